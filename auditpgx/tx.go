package auditpgx

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/internal/stamp"
)

// Tx is a pgx.Tx that stamps. Like any pgx.Tx it is for one goroutine at a time.
type Tx struct {
	tx        pgx.Tx
	s         *stamp.Stamper
	state     *txState
	savepoint int  // the number of the savepoint of a nested one, 0 for others
	outer     *Tx  // that of a nested one, nil for others
	closed    bool // by Commit or Rollback
	done      func()
}

var _ pgx.Tx = (*Tx)(nil)

// wrapTx wraps a transaction in which anything may have run. One that stamps already
// goes on as it is.
func wrapTx(tx pgx.Tx, s *stamp.Stamper) *Tx {
	if wrapped, ok := tx.(*Tx); ok {
		return wrapped
	}
	return &Tx{tx: tx, s: s, state: &txState{used: true}}
}

// begun wraps a transaction that was begun just now.
func begun(tx pgx.Tx, s *stamp.Stamper, options pgx.TxOptions) *Tx {
	return &Tx{tx: tx, s: s, state: &txState{options: options}}
}

func (tx *Tx) runner() runner { return runner{s: tx.s, q: tx.tx, tx: tx.state} }

// passes reports whether a statement goes to pgx as it is: the connection of a
// closed transaction must not even be looked at, somebody else may have it.
func (tx *Tx) passes(ctx context.Context, sql string) (context.Context, bool) {
	if tx.isOver() {
		return ctx, true
	}
	ctx, ok := tx.s.Enter(ctx, sql, tx.state.covers())
	return ctx, !ok
}

// isOver reports whether the transaction, or one around it, was committed or rolled
// back.
func (tx *Tx) isOver() bool { return tx.closed || tx.outer != nil && tx.outer.isOver() }

// Begin begins a nested transaction: a savepoint.
func (tx *Tx) Begin(ctx context.Context) (pgx.Tx, error) {
	tx.state.used = true
	nested, err := tx.tx.Begin(ctx)
	if err != nil {
		return nil, err
	}
	tx.state.savepoints++
	return &Tx{tx: nested, s: tx.s, state: tx.state, savepoint: tx.state.savepoints, outer: tx}, nil
}

// Commit commits the transaction, or releases the savepoint of a nested one.
func (tx *Tx) Commit(ctx context.Context) error {
	err := tx.tx.Commit(ctx)
	tx.close()
	return err
}

// Rollback rolls the transaction back, or goes back to the savepoint of a nested
// one. What was stamped since is stamped again before the next write.
func (tx *Tx) Rollback(ctx context.Context) error {
	err := tx.tx.Rollback(ctx)
	if !tx.closed {
		tx.state.rolledBack(tx.savepoint)
	}
	tx.close()
	return err
}

func (tx *Tx) close() {
	if tx.closed {
		return
	}
	tx.closed = true
	if tx.done != nil {
		tx.done()
	}
}

// Exec is Exec of pgx.Tx.
func (tx *Tx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	defer func() { tx.state.used = true }()
	ctx, passes := tx.passes(ctx, sql)
	if passes {
		tag, err := tx.tx.Exec(ctx, sql, args...)
		tx.runner().ran(sql)
		return tag, err
	}
	return tx.runner().exec(ctx, sql, args)
}

// Query is Query of pgx.Tx.
func (tx *Tx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	ctx, passes := tx.passes(ctx, sql)
	if passes {
		rows, err := tx.tx.Query(ctx, sql, args...)
		tx.runner().ran(sql)
		tx.state.used = true
		return rows, err
	}
	rows, err := tx.runner().query(ctx, sql, args)
	tx.state.used = true
	return rows, err
}

// QueryRow is QueryRow of pgx.Tx.
func (tx *Tx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	ctx, passes := tx.passes(ctx, sql)
	if passes {
		row := tx.tx.QueryRow(ctx, sql, args...)
		tx.runner().ran(sql)
		tx.state.used = true
		return row
	}
	rows, _ := tx.runner().query(ctx, sql, args) //nolint:sqlclosecheck // Scan closes them and gives the error
	tx.state.used = true
	return row{rows}
}

// SendBatch is SendBatch of pgx.Tx.
func (tx *Tx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	defer func() { tx.state.used = true }()
	if tx.isOver() {
		return tx.tx.SendBatch(ctx, b)
	}
	ctx, _ = enterBatch(ctx, tx.s, b, tx.state.covers())
	return tx.runner().batch(ctx, b)
}

// CopyFrom is CopyFrom of pgx.Tx. If the context has to be stamped first, that
// takes a round trip.
func (tx *Tx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error) {
	defer func() { tx.state.used = true }()
	ctx, passes := tx.passes(ctx, stamp.CopyFrom)
	if passes {
		return tx.tx.CopyFrom(ctx, table, columns, rows)
	}
	return tx.runner().copyFrom(ctx, table, columns, rows)
}

// Prepare is Prepare of pgx.Tx.
func (tx *Tx) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	sd, err := tx.tx.Prepare(ctx, name, sql)
	if !tx.isOver() {
		tx.runner().prepared(name, sql, err)
	}
	return sd, err
}

// LargeObjects is LargeObjects of pgx.Tx. Large objects are not captured.
func (tx *Tx) LargeObjects() pgx.LargeObjects {
	tx.state.used = true
	return tx.tx.LargeObjects()
}

// Conn returns the connection of pgx, which does not stamp. It may be used to go back
// to a savepoint, unseen, so from here on every write of the transaction is stamped
// anew.
func (tx *Tx) Conn() *pgx.Conn {
	tx.state.used, tx.state.exposed = true, true
	conn := tx.tx.Conn()
	if conn != nil && !tx.isOver() {
		stateOf(conn).names = nil // it may be used to prepare others
	}
	return conn
}

// Stats counts what became of the contexts that went through the DB, the Conn
// or the Config that the transaction is from.
func (tx *Tx) Stats() Stats { return Stats(tx.s.Stats()) }
