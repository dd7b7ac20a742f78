package audit

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// viewTx is the transaction that a View hands out. Every query is looked at
// before it runs.
type viewTx struct {
	pgx.Tx
	view *pastView
	// savepoint is that of a nested one, depth how many are around it.
	savepoint string
	depth     int
	done      bool
}

// errViewEnds is why a view cannot be committed.
var errViewEnds = errors.New("audit: a view of the past is read-only: it ends, rolled back, when its function returns")

// Begin makes a savepoint. It is ours, not pgx's, so that it can be made again
// behind what a later query needs.
func (t *viewTx) Begin(ctx context.Context) (pgx.Tx, error) {
	if t.done {
		return nil, pgx.ErrTxClosed
	}
	v := t.view
	v.serial++
	nested := &viewTx{Tx: t.Tx, view: v, savepoint: fmt.Sprintf("audit_sp_%d", v.serial), depth: len(v.savepoints)}
	if _, err := t.Tx.Exec(pass(ctx), "SAVEPOINT "+nested.savepoint); err != nil {
		return nil, err
	}
	v.savepoints = append(v.savepoints, nested.savepoint)
	return nested, nil
}

// Commit ends a savepoint.
func (t *viewTx) Commit(ctx context.Context) error { return t.end(ctx, "RELEASE SAVEPOINT ") }

// Rollback ends a savepoint.
func (t *viewTx) Rollback(ctx context.Context) error { return t.end(ctx, "ROLLBACK TO SAVEPOINT ") }

func (t *viewTx) end(ctx context.Context, statement string) error {
	switch {
	case t.savepoint == "":
		return errViewEnds
	case t.done:
		return pgx.ErrTxClosed
	}
	t.done = true
	t.view.savepoints = t.view.savepoints[:min(t.depth, len(t.view.savepoints))]
	_, err := t.Tx.Exec(pass(ctx), statement+t.savepoint)
	return err
}

func (t *viewTx) Exec(ctx context.Context, sql string, arguments ...any) (pgconn.CommandTag, error) {
	sql, arguments, err := t.check(ctx, sql, arguments)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	return t.Tx.Exec(pass(ctx), sql, arguments...)
}

func (t *viewTx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	sql, args, err := t.check(ctx, sql, args)
	if err != nil {
		return refusedRows{err: err}, err
	}
	return t.Tx.Query(pass(ctx), sql, args...)
}

func (t *viewTx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	sql, args, err := t.check(ctx, sql, args)
	if err != nil {
		return refusedRows{err: err}
	}
	return t.Tx.QueryRow(pass(ctx), sql, args...)
}

// Prepare prepares a query. A name means the query from then on, whatever query it
// may be the text of.
func (t *viewTx) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	if t.done {
		return nil, pgx.ErrTxClosed
	}
	checked, err := t.view.guard.check(ctx, sql)
	if err != nil {
		return nil, err
	}
	description, err := t.Tx.Prepare(pass(ctx), name, checked)
	if err == nil && name != "" {
		t.view.guard.prepared[name] = sql
	}
	return description, err
}

func (t *viewTx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	for _, q := range b.QueuedQueries {
		sql, args, err := t.check(ctx, q.SQL, q.Arguments)
		if err != nil {
			return refusedBatch{err}
		}
		q.SQL, q.Arguments = sql, args
	}
	return t.Tx.SendBatch(pass(ctx), b)
}

func (t *viewTx) CopyFrom(context.Context, pgx.Identifier, []string, pgx.CopyFromSource) (int64, error) {
	return 0, t.view.guard.refuse("", "it would write: only queries can be run in the past")
}

// check looks at the statement as it will be sent, and returns what to send.
func (t *viewTx) check(ctx context.Context, sql string, args []any) (string, []any, error) {
	if t.done {
		return "", nil, pgx.ErrTxClosed
	}
	var options []any
	for len(args) > 0 {
		switch arg := args[0].(type) {
		case pgx.QueryRewriter:
			var err error
			if sql, args, err = arg.RewriteQuery(ctx, t.Conn(), sql, args[1:]); err != nil {
				return "", nil, err
			}
			continue
		case pgx.QueryExecMode, pgx.QueryResultFormats, pgx.QueryResultFormatsByOID:
			options, args = append(options, arg), args[1:]
			continue
		}
		break
	}
	g := t.view.guard
	if text, ok := g.prepared[sql]; ok {
		// The name is sent, and means this.
		_, err := g.check(ctx, text)
		return sql, append(options, args...), err
	}
	sql, err := g.check(ctx, sql)
	return sql, append(options, args...), err
}

// refusedRows is the answer to a query that was not run.
type refusedRows struct{ err error }

func (r refusedRows) Close()                                       {}
func (r refusedRows) Err() error                                   { return r.err }
func (r refusedRows) CommandTag() pgconn.CommandTag                { return pgconn.CommandTag{} }
func (r refusedRows) FieldDescriptions() []pgconn.FieldDescription { return nil }
func (r refusedRows) Next() bool                                   { return false }
func (r refusedRows) Scan(...any) error                            { return r.err }
func (r refusedRows) Values() ([]any, error)                       { return nil, r.err }
func (r refusedRows) RawValues() [][]byte                          { return nil }
func (r refusedRows) Conn() *pgx.Conn                              { return nil }
func (r refusedRows) TypeMap() *pgtype.Map                         { return pgtype.NewMap() }

// refusedBatch is the answer to a batch of which a query was refused.
type refusedBatch struct{ err error }

func (r refusedBatch) Exec() (pgconn.CommandTag, error) { return pgconn.CommandTag{}, r.err }
func (r refusedBatch) Query() (pgx.Rows, error)         { return refusedRows(r), r.err }
func (r refusedBatch) QueryRow() pgx.Row                { return refusedRows(r) }
func (r refusedBatch) Close() error                     { return r.err }
func (r refusedBatch) Tx() pgx.Tx                       { return nil }
