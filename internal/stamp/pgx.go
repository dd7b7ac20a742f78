package stamp

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Pgx is how package auditsql stamps what goes through pgx: as package auditpgx does,
// which fills these in, so that it exports nothing that nobody else can use.
var Pgx struct {
	// Conn stamps, and counts, with s what is run on a connection outside a transaction.
	Conn func(s *Stamper, conn *pgx.Conn) PgxConn
	// Tx does so in a transaction. options are those of one that was begun just now, and
	// nil if something may have run in it.
	Tx func(s *Stamper, tx pgx.Tx, options *pgx.TxOptions) PgxTx
}

// Querier runs statements with their stamps.
type Querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// PgxConn is a connection that stamps.
type PgxConn interface {
	Querier
	// Conn returns the connection of pgx, which does not stamp. What is known of prepared
	// statements is forgotten.
	Conn() *pgx.Conn
}

// PgxTx is a transaction that stamps.
type PgxTx interface {
	Querier
	// HasStamp reports whether the transaction holds a stamp.
	HasStamp() bool
	// NoteUse takes note that something has run in the transaction that did not go through
	// here.
	NoteUse()
}
