package auditsql_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/stdlib"

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

// muteConn does not tell how many rows a comment has affected, as lib/pq does not.
type muteConn struct{ hiddenConn }

func (c muteConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	result, err := c.hiddenConn.ExecContext(ctx, query, args)
	if err == nil && strings.HasPrefix(query, "/*") {
		result = driver.ResultNoRows
	}
	return result, err
}

func TestStamps(t *testing.T) {
	t.Parallel()
	database := audittest.NewDatabase(t)
	database.Exec(t, todoSQL)
	mute := aDriver{name: "mute", hide: func(c *stdlib.Conn) driver.Conn { return muteConn{hidden(c).(hiddenConn)} }}
	for _, d := range []aDriver{ofPgx, other, bare, mute} {
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
