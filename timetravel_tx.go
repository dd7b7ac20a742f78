package audit

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// viewTx is the transaction that a View hands out. Every query is looked at
// before it runs.
type viewTx struct {
	pgx.Tx
	view   *pastView
	nested bool
	// full are the tables that were loaded before the savepoint.
	full map[int]bool
}

// errViewEnds is why a view cannot be committed.
var errViewEnds = errors.New("audit: a view of the past is read-only: it ends, rolled back, when its function returns")

// Begin makes a savepoint.
func (t *viewTx) Begin(ctx context.Context) (pgx.Tx, error) {
	tx, err := t.Tx.Begin(pass(ctx))
	if err != nil {
		return nil, err
	}
	return &viewTx{Tx: tx, view: t.view, nested: true, full: t.view.filled()}, nil
}

// Commit ends a savepoint.
func (t *viewTx) Commit(ctx context.Context) error {
	if !t.nested {
		return errViewEnds
	}
	return t.Tx.Commit(pass(ctx))
}

// Rollback ends a savepoint, and takes with it what was loaded since.
func (t *viewTx) Rollback(ctx context.Context) error {
	if !t.nested {
		return errViewEnds
	}
	err := t.Tx.Rollback(pass(ctx))
	if err == nil {
		t.view.forget(t.full)
	}
	return err
}

func (t *viewTx) Exec(ctx context.Context, sql string, arguments ...any) (pgconn.CommandTag, error) {
	if err := t.check(ctx, sql, arguments); err != nil {
		return pgconn.CommandTag{}, err
	}
	return t.Tx.Exec(pass(ctx), sql, arguments...)
}

func (t *viewTx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if err := t.check(ctx, sql, args); err != nil {
		return refusedRows{err: err}, err
	}
	return t.Tx.Query(pass(ctx), sql, args...)
}

func (t *viewTx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if err := t.check(ctx, sql, args); err != nil {
		return refusedRows{err: err}
	}
	return t.Tx.QueryRow(pass(ctx), sql, args...)
}

func (t *viewTx) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	if err := t.view.guard.check(ctx, sql); err != nil {
		return nil, err
	}
	description, err := t.Tx.Prepare(pass(ctx), name, sql)
	if err == nil && name != "" {
		t.view.guard.checked[name] = true
	}
	return description, err
}

func (t *viewTx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	for _, q := range b.QueuedQueries {
		if err := t.check(ctx, q.SQL, q.Arguments); err != nil {
			return refusedBatch{err}
		}
	}
	return t.Tx.SendBatch(pass(ctx), b)
}

func (t *viewTx) CopyFrom(context.Context, pgx.Identifier, []string, pgx.CopyFromSource) (int64, error) {
	return 0, t.view.guard.refuse("", "it would write: only queries can be run in the past")
}

// filled returns which tables are loaded.
func (v *pastView) filled() map[int]bool {
	full := make(map[int]bool)
	for _, t := range v.tables {
		full[t.n] = t.full
	}
	return full
}

// forget takes note that only these tables are loaded.
func (v *pastView) forget(full map[int]bool) {
	for _, t := range v.tables {
		t.full = full[t.n]
	}
	clear(v.guard.checked)
}

// check looks at the statement as it will be sent.
func (t *viewTx) check(ctx context.Context, sql string, args []any) error {
	for len(args) > 0 {
		rewriter, ok := args[0].(pgx.QueryRewriter)
		if ok {
			rewritten, _, err := rewriter.RewriteQuery(ctx, t.Conn(), sql, args[1:])
			if err != nil {
				return err
			}
			return t.view.guard.check(ctx, rewritten)
		}
		switch args[0].(type) {
		case pgx.QueryExecMode, pgx.QueryResultFormats, pgx.QueryResultFormatsByOID:
			args = args[1:]
			continue
		}
		break
	}
	return t.view.guard.check(ctx, sql)
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
