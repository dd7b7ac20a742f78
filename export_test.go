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

// KeepPartitions does the hourly maintenance now.
func KeepPartitions(ctx context.Context, c *Client) error { return c.keepPartitions(ctx) }
