package auditsql_test

import (
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditsql"
	"github.com/hindsight-go/audit/audittest"
)

// TestContext_OfAProgramThatPassesNone writes through methods that have no ctx.
func TestContext_OfAProgramThatPassesNone(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	want := map[string][]string{}
	for _, d := range drivers {
		told := true
		connector := auditsql.Config{
			Logger:  slog.New(slog.DiscardHandler),
			Context: func() (audit.Context, bool) { return audit.Context{UserID: "asked"}, told },
		}.Wrap(d.connector(parse(t, a.Database, nil))).(*auditsql.Connector)
		db := openDB(t, connector)
		exec := func(id int) error { _, err := db.Exec(insert, d.name, id); return err } //nolint:noctx // that is the point
		inTx := func(id int) error {
			tx, err := db.Begin() //nolint:noctx // that is the point
			if err != nil {
				return err
			}
			if _, err := tx.Exec(insert, d.name, id); err != nil { //nolint:noctx // that is the point
				return err
			}
			return tx.Commit()
		}
		prepared := func(id int) error {
			stmt, err := db.Prepare(insert) //nolint:noctx // that is the point
			if err != nil {
				return err
			}
			defer func() { _ = stmt.Close() }()
			_, err = stmt.Exec(d.name, id) //nolint:noctx // that is the point
			return err
		}
		for i, write := range []func(int) error{exec, inTx, prepared, exec, inTx, prepared} {
			told = i < 3
			if err := write(i + 1); err != nil {
				t.Errorf("%s, %d: %v", d.name, i, err)
			}
		}
		want[d.name] = []string{"1 asked", "2 asked", "3 asked", "4", "5", "6"}
		if diff := cmp.Diff(auditsql.Stats{Stamped: 3, Without: 3}, connector.Stats()); diff != "" {
			t.Errorf("%s: %s", d.name, diff)
		}
	}
	if diff := cmp.Diff(want, whoWrote(t, a)); diff != "" {
		t.Error(diff)
	}
}
