package audit

import "context"

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
