package audit_test

import (
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

func TestViewDB_CodeOverDatabaseSQL(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	a := audittest.New(t, audit.Config{}, todoTable, "INSERT INTO todo VALUES (1, 'a'), (2, 'b')",
		"CREATE TABLE kinds (id int PRIMARY KEY, b bytea, f float8, at timestamptz, n numeric, j jsonb, o text)",
		`INSERT INTO kinds VALUES (1, '\x0102', 1.5, '2020-01-02 03:04:05Z', 1.20, '{"a": 1}', NULL)`)
	then := here(t, a)
	a.Exec(t, "UPDATE todo SET task = 'c'; DELETE FROM kinds")
	a.Sync(t)
	var kept *sql.DB
	err := then.ViewDB(ctx, func(db *sql.DB) error {
		kept = db
		var wait sync.WaitGroup
		for range 8 {
			wait.Go(func() {
				var task string
				if err := db.QueryRowContext(ctx, "SELECT task FROM public.todo WHERE id = $1", 2).Scan(&task); err != nil || task != "b" {
					t.Errorf("%q: %v", task, err)
				}
			})
		}
		wait.Wait()
		var refused *audit.ViewError
		if _, err := db.ExecContext(ctx, "DELETE FROM todo"); !errors.As(err, &refused) {
			t.Errorf("a write: %v", err)
		}
		if _, err := db.ExecContext(ctx, "SELECT 1 / 0"); err == nil {
			t.Error("a division by zero went well")
		}
		tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
		if err != nil {
			return err
		}
		statement, err := tx.PrepareContext(ctx, "SELECT id FROM todo WHERE task <> $1 ORDER BY id")
		if err != nil {
			return err
		}
		defer func() { _ = statement.Close() }()
		rows, err := statement.QueryContext(ctx, "x")
		if err != nil {
			return err
		}
		defer func() { _ = rows.Close() }()
		n := 0
		for rows.Next() {
			var id int
			var task string
			// Another query in the midst of the rows.
			if err := errors.Join(rows.Scan(&id), tx.QueryRowContext(ctx, "SELECT task FROM todo WHERE id = $1", id).Scan(&task)); err != nil {
				return err
			}
			n++
		}
		if err := errors.Join(rows.Err(), tx.Commit()); err != nil || n != 2 {
			return fmt.Errorf("%d rows: %w", n, err)
		}
		var k struct {
			b       []byte
			f       float64
			at      time.Time
			n, j    string
			o       sql.NullString
			id      int64
			missing bool
		}
		if err := db.QueryRowContext(ctx, "SELECT id, b, f, at, n, j, o, o IS NULL FROM kinds").Scan(&k.id, &k.b, &k.f, &k.at, &k.n, &k.j, &k.o, &k.missing); err != nil {
			return err
		}
		if k.id != 1 || string(k.b) != "\x01\x02" || k.f != 1.5 || !k.at.Equal(time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)) || k.n != "1.20" || k.j != `{"a": 1}` || k.o.Valid || !k.missing {
			t.Errorf("%+v", k)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := kept.PingContext(ctx); err == nil {
		t.Error("the database can be used behind the view")
	}
}
