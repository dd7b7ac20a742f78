package auditsql_test

import (
	"context"
	"database/sql"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// TestDB_CopyOfAStatementThatWrites copies what a statement that writes returns. Unlike
// COPY FROM, which a driver begins by preparing it, it is a statement like others.
func TestDB_CopyOfAStatementThatWrites(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	for _, d := range drivers {
		for _, statement := range []string{
			"COPY (DELETE FROM todo RETURNING *) TO STDOUT",
			"COPY (WITH gone AS (DELETE FROM todo RETURNING *) SELECT * FROM gone) TO STDOUT",
			"COPY (UPDATE todo SET cell = 'updated' RETURNING *) TO STDOUT",
			"COPY (INSERT INTO todo VALUES ('copied', 9) RETURNING *) TO STDOUT",
		} {
			a.Exec(t, "TRUNCATE todo; INSERT INTO todo VALUES ('a', 1)")
			user := d.name + ": " + statement
			ctx := by(t.Context(), user)
			db, _ := d.open(t, parse(t, a.Database, nil))
			if _, err := db.ExecContext(ctx, statement); err != nil {
				t.Errorf("%s: %v", user, err)
			}
			a.Exec(t, "TRUNCATE todo; INSERT INTO todo VALUES ('a', 1)")
			if err := runPrepared(ctx, db, statement); err != nil {
				t.Errorf("%s: prepared: %v", user, err)
			}
			a.Sync(t)
			if n, err := a.Client.Changes().ByUser(user).Count(t.Context()); err != nil || n != 2 {
				t.Errorf("%s: %d changes have the context, error %v, want 2", user, n, err)
			}
		}
	}
}

func runPrepared(ctx context.Context, db *sql.DB, statement string) error {
	prepared, err := db.PrepareContext(ctx, statement)
	if err != nil {
		return err
	}
	defer prepared.Close()
	_, err = prepared.ExecContext(ctx)
	return err
}
