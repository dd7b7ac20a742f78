package auditsql_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"testing"

	"github.com/hindsight-go/audit/auditsql"
	"github.com/hindsight-go/audit/audittest"
)

// tracing is a connector that wraps what another makes.
type tracing struct{ driver.Connector }

func (c tracing) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return struct {
		driver.Conn
		driver.ConnBeginTx
	}{conn, conn.(driver.ConnBeginTx)}, nil
}

func TestStamps(t *testing.T) {
	t.Parallel()
	database := audittest.NewDatabase(t)
	database.Exec(t, todoSQL)
	for _, d := range []aDriver{ofPgx, other, bare} {
		plain := openDB(t, d.connector(parse(t, database, nil)))
		stamping, connector := d.open(t, parse(t, database, nil))
		around := openDB(t, tracing{auditsql.Wrap(d.connector(parse(t, database, nil)))})
		for _, c := range []struct {
			name string
			db   *sql.DB
			want bool
		}{{"plain", plain, false}, {"stamping", stamping, true}, {"wrapped again", around, true}} {
			conn, err := c.db.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			tx, err := c.db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, db := range []auditsql.Execer{c.db, conn, tx} {
				if stamps, err := auditsql.Stamps(by(t.Context(), "ann"), db); stamps != c.want || err != nil {
					t.Errorf("%s: %s: %T: %v, %v", d.name, c.name, db, stamps, err)
				}
			}
			if _, err := tx.ExecContext(t.Context(), insert, d.name+c.name, 1); err != nil {
				t.Errorf("%s: %s: %v", d.name, c.name, err)
			}
			if err := errors.Join(tx.Commit(), conn.Close()); err != nil {
				t.Fatal(err)
			}
			if _, err := auditsql.Stamps(t.Context(), tx); !errors.Is(err, sql.ErrTxDone) {
				t.Errorf("error %v", err)
			}
		}
		if stats := connector.Stats(); stats.Stamped != 0 || stats.Without != 1 {
			t.Errorf("%s: %+v", d.name, stats)
		}
	}
}
