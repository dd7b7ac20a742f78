package auditsql_test

import (
	"database/sql"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit/audittest"
)

// TestColumnType_Changed runs a statement on a connection that knows it, before and
// after the type of its column changes.
func TestColumnType_Changed(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	for _, d := range drivers {
		fares := func(on *sql.DB) (list []string) {
			on.SetMaxOpenConns(1)
			db.Exec(t, "CREATE TABLE tc (n int)")
			defer db.Exec(t, "DROP TABLE tc")
			note := func(v any) {
				_, err := on.ExecContext(by(t.Context(), "ann"), "INSERT INTO tc VALUES ($1)", v)
				said := "failed"
				if err == nil {
					said = "ok"
				}
				list = append(list, said+code(err))
			}
			note(1)
			note(1)
			db.Exec(t, "ALTER TABLE tc ALTER n TYPE bigint")
			for range 3 {
				note(1 << 40)
			}
			return list
		}
		want := fares(openDB(t, d.connector(parse(t, db, nil))))
		stamping, _ := d.open(t, parse(t, db, nil))
		if diff := cmp.Diff(want, fares(stamping)); diff != "" {
			t.Errorf("%s: %s", d.name, diff)
		}
	}
}
