package auditpgx

import (
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/stamp"
)

// What package auditsql uses of this one.
func init() {
	stamp.Pgx.Conn = func(s *stamp.Stamper, conn *pgx.Conn) stamp.PgxConn { return newConn(conn, s) }
	stamp.Pgx.Tx = func(s *stamp.Stamper, tx pgx.Tx, options *pgx.TxOptions) stamp.PgxTx {
		if options == nil {
			return lentTx{wrapTx(tx, s)}
		}
		return lentTx{begun(tx, s, *options)}
	}
}

type lentTx struct{ *Tx }

// HasStamp implements stamp.PgxTx.
func (tx lentTx) HasStamp() bool { return tx.state.covers() }

// NoteUse implements stamp.PgxTx.
func (tx lentTx) NoteUse() { tx.state.used = true }
