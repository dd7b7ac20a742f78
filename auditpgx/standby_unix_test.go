//go:build unix

package auditpgx_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// TestHotStandby reads and writes on a standby, as if everything were a write,
// and then makes a primary of it.
func TestHotStandby(t *testing.T) {
	t.Parallel()
	db := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	db.Exec(t, todoSQL+"; INSERT INTO todo VALUES ('c', 1, 'x')")
	config, err := pgxpool.ParseConfig(db.URL())
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig, config.MaxConns = faulttest.StartStandby(t, db, "todo"), 1
	forced := auditpgx.AsWrite(by(t.Context(), "ann"))

	pools := map[pgx.QueryExecMode]*auditpgx.DB{}
	for _, mode := range modes {
		c := config.Copy()
		c.ConnConfig.DefaultQueryExecMode = mode
		pool, err := pgxpool.NewWithConfig(context.WithoutCancel(t.Context()), c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		q := auditpgx.Config{}.Wrap(pool)
		if diff := cmp.Diff(onStandby(forced, t, pool), onStandby(forced, t, q)); diff != "" {
			t.Errorf("%s: %s", mode, diff)
		}
		if stats := q.Stats(); stats.Lost != 0 {
			t.Errorf("%s: %+v", mode, stats)
		}
		pools[mode] = q
	}

	admin, err := pgx.ConnectConfig(t.Context(), config.ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close(context.WithoutCancel(t.Context())) }()
	if _, err := admin.Exec(t.Context(), "SELECT pg_promote()"); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Exec(t.Context(), "CREATE PUBLICATION all_of_it FOR ALL TABLES"); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Exec(t.Context(), "SELECT pg_create_logical_replication_slot('s', 'pgoutput')"); err != nil {
		t.Fatal(err)
	}
	// The connections are those from before, and this is the first they do.
	for mode, q := range pools {
		if _, err := q.Exec(forced, insert, mode.String(), 1); err != nil {
			t.Errorf("%s: %v", mode, err)
		}
	}
	var stamps int
	err = admin.QueryRow(t.Context(), `SELECT count(*) FROM pg_logical_slot_peek_binary_changes('s', NULL, NULL, 'proto_version', '1', 'publication_names', 'all_of_it', 'messages', 'true')
		WHERE position('"userId":"ann"'::bytea IN data) > 0`).Scan(&stamps)
	if err != nil || stamps != len(modes) {
		t.Errorf("%d stamps for %d writes after the promotion: %v", stamps, len(modes), err)
	}
}

// onStandby returns what a caller sees on a server that cannot write.
func onStandby(ctx context.Context, t *testing.T, q auditpgx.Querier) (seen []string) {
	t.Helper()
	note := func(err error) { seen = append(seen, code(err)) }
	for _, w := range writers() {
		note(w.write(ctx, q, "c", 1))
		note(pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error { return w.write(ctx, tx, "c", 1) }))
	}
	for range 3 {
		var n int
		note(q.QueryRow(ctx, "SELECT id FROM todo WHERE cell = $1", "c").Scan(&n))
		note(pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error {
			err := tx.QueryRow(ctx, "SELECT id FROM todo").Scan(&n)
			return errors.Join(err, tx.QueryRow(by(ctx, "bob"), "SELECT id FROM todo WHERE id = $1", 1).Scan(&n))
		}))
		var batch pgx.Batch
		batch.Queue("SELECT 1")
		batch.Queue("SELECT id FROM todo WHERE id = $1", 1)
		note(q.SendBatch(ctx, &batch).Close())
	}
	return seen
}
