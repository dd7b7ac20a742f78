package audit

import (
	"context"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit/internal/rowimage"
)

// Explain has the server tell seen the plan of every statement that a query of the
// client runs, as auto_explain writes it: analyzed, with buffers, in JSON.
func Explain(ctx context.Context, c *Client, seen func(plan string)) error {
	for _, pool := range []**pgxpool.Pool{&c.history.Listings, &c.history.Store, &c.history.StoreLong} {
		config := (*pool).Config()
		for name, value := range map[string]string{
			"session_preload_libraries": "auto_explain", "client_min_messages": "log",
			"auto_explain.log_min_duration": "0", "auto_explain.log_analyze": "on", "auto_explain.log_buffers": "on",
			"auto_explain.log_format": "json", "auto_explain.log_timing": "off",
		} {
			config.ConnConfig.RuntimeParams[name] = value
		}
		config.ConnConfig.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { seen(n.Message) }
		explained, err := pgxpool.NewWithConfig(ctx, config)
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, (*pool).Close) // others have it, too
		*pool = explained
	}
	return nil
}

// Statement returns the SQL that reads a page of the query, so that its plan can
// be looked at.
func (q Query) Statement(size int) (statement string, args []any, err error) {
	p, err := q.pages()
	if err != nil {
		return "", nil, err
	}
	return p.statement(size).ToSql()
}

// TransactionStatement returns the SQL that finds the next transactions.
func (q Query) TransactionStatement(size int) (statement string, args []any, err error) {
	client, err := q.ready()
	if err != nil {
		return "", nil, err
	}
	return q.transactionStatement(client, q.cursor, size).ToSql()
}

// Searching returns p with the strategy forced by which changes are looked for:
// reading them in order, or asking the index for each row.
func Searching(p Point, scan bool) Point {
	p.search = searchProbe
	if scan {
		p.search = searchScan
	}
	return p
}

// KeepPartitions does the hourly maintenance now.
func KeepPartitions(ctx context.Context, c *Client) error { return c.keepPartitions(ctx) }

// DirectRows sets from how many rows on reverts are tried without looking first.
func DirectRows(c *Client, n int) { c.directRows = n }

// RawRow is Row with the texts of the values.
func RawRow(ctx context.Context, table PastTable, key ...any) (PastRow, error) {
	return table.one(ctx, key)
}

// RowImage returns the image that history would store of a row.
func RowImage(r PastRow) Image { return r.table.image(r.values) }

// SameJSON reports whether two values of images mean the same.
func SameJSON(a, b []byte) bool { return rowimage.Equal(a, b) }
