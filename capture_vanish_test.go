package audit_test

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
)

// Functions of the catalog look at what is there now, a query's snapshot at what was: what
// is dropped in between has no root, no owner, no size. Here every session has a snapshot
// from before a drop.
func TestCatalog_ObjectsVanishWhileTheyAreRead(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	role := "vanishing_" + db.Name()
	made := `CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
		CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id); CREATE TABLE parted_3 PARTITION OF parted_2 DEFAULT;
		CREATE TYPE mood AS ENUM ('good'); CREATE TABLE plain (id int PRIMARY KEY, m mood, g int GENERATED ALWAYS AS (id * 2) STORED);
		CREATE ROLE ` + role + `; ALTER TABLE plain OWNER TO ` + role + `; CREATE TABLE stays (id int PRIMARY KEY)`
	gone := "DROP TABLE IF EXISTS parted, plain, stays; DROP TYPE IF EXISTS mood; DROP ROLE IF EXISTS " + role
	db.Exec(t, "CREATE PUBLICATION audit")
	t.Cleanup(func() { db.Exec(t, gone) })
	var oids []uint32
	var sessions atomic.Int32
	config, err := pgxpool.ParseConfig(db.URL())
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 1
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		sessions.Add(1)
		db.Exec(t, gone)
		db.Exec(t, made)
		db.Exec(t, "ALTER PUBLICATION audit ADD TABLE parted_1, parted_3")
		if _, err := conn.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ"); err != nil {
			return err
		}
		rows, _ := conn.Query(ctx, "SELECT oid FROM pg_class WHERE relname IN ('parted', 'parted_1', 'parted_2', 'parted_3', 'plain', 'stays') ORDER BY relname")
		if oids, err = pgx.CollectRows(rows, pgx.RowTo[uint32]); err != nil {
			return err
		}
		db.Exec(t, "DROP TABLE parted, plain; DROP TYPE mood; DROP ROLE "+role)
		return nil
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	patterns, err := capture.ParsePatterns([]string{"public.*"})
	if err != nil {
		t.Fatal(err)
	}
	setup := &capture.Setup{DB: pool, Slot: db.Name(), Publication: "audit", Patterns: patterns, Logger: slog.New(slog.DiscardHandler)}
	ctx := t.Context()
	for name, read := range map[string]func() error{
		"Check":     func() error { _, err := setup.Check(ctx); return err },
		"Waiting":   func() error { _, err := setup.Waiting(ctx, nil); return err },
		"Unmatched": func() error { _, err := setup.Unmatched(ctx); return err },
		"Script":    func() error { _, _, err := setup.Script(ctx, "postgres"); return err },
		"RestoreSQL": func() error {
			_, err := setup.RestoreSQL(ctx, map[uint32]string{oids[0]: "d"})
			return err
		},
		"Join": func() error {
			_, _, err := setup.Join(ctx, func(context.Context, map[uint32]string) error { return nil }, nil)
			return err
		},
		"structures": func() error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				for i, oid := range oids {
					s, err := capture.LookUpStructure(ctx, tx, oid)
					if err != nil {
						return err
					}
					if name := []string{"parted", "parted_1", "parted_2", "parted_3"}; s != nil && i > 0 && i < len(name) && s.Root == 0 {
						t.Errorf("partition %s is said to be a table of its own", name[i])
					}
				}
				return nil
			})
		},
		"digests": func() error {
			rows, _ := pool.Query(ctx, capture.DigestsSQL, oids)
			var oid uint32
			var digest string
			_, err := pgx.ForEachRow(rows, []any{&oid, &digest}, func() error { return nil })
			return err
		},
	} {
		pool.Reset()
		// The session is there before the read, which takes oids by then.
		if err := pool.Ping(ctx); err != nil {
			t.Fatal(err)
		}
		if err := read(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := sessions.Load(); n < 8 {
		t.Errorf("%d sessions, too few for each read to have one from before the drop", n)
	}
}
