package auditsql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"math"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	_ "github.com/hindsight-go/audit/auditpgx" // fills in stamp.Pgx
	"github.com/hindsight-go/audit/internal/sqltext"
	"github.com/hindsight-go/audit/internal/stamp"
)

// pgxConn is a connection of pgx/stdlib. What is to be stamped goes to pgx
// through auditpgx, which sends stamp and statement together; all else goes
// through stdlib, whose methods it has.
type pgxConn struct {
	*stdlibConn
	s    *stamp.Stamper
	lone stamp.PgxConn
	// tx knows the stamps of the transaction that is open. It is nil if there is
	// none, or none that is known of.
	tx    stamp.PgxTx
	begun begun
}

// stdlibConn has another name than its method Conn.
type stdlibConn = stdlib.Conn

func newPgxConn(conn *stdlib.Conn, s *stamp.Stamper) *pgxConn {
	return &pgxConn{stdlibConn: conn, s: s, lone: stamp.Pgx.Conn(s, conn.Conn())}
}

// Conn returns the connection of pgx, which does not stamp.
func (c *pgxConn) Conn() *pgx.Conn {
	c.tx = nil // it may be used to roll back
	return c.lone.Conn()
}

func (c *pgxConn) unwrap() driver.Conn {
	c.Conn() // which it leads to
	return c.stdlibConn
}

// due returns a ctx with the Context that a statement is to be stamped with. If it
// is not to be stamped, it is for stdlib to run.
func (c *pgxConn) due(ctx context.Context, text sqltext.Text) (context.Context, bool) {
	ctx = c.begun.in(ctx)
	said := false
	if stamp.Wants(ctx, text) {
		ctx, said = c.s.Asked(ctx)
	}
	if !said && stamp.IsWrite(text) && (c.tx == nil || !c.tx.HasStamp()) {
		c.s.Without(ctx)
	}
	if said && c.stdlibConn.Conn().PgConn().TxStatus() != 'E' {
		return ctx, true
	}
	if c.tx != nil {
		c.tx.NoteUse() // not all goes through it
	}
	return ctx, false
}

// session returns the transaction, if there is one, or the connection. It goes by
// what the server says, since transactions are also begun by a statement.
func (c *pgxConn) session() stamp.Querier {
	if c.stdlibConn.Conn().PgConn().TxStatus() == 'I' {
		c.tx = nil
		return c.lone
	}
	if c.tx == nil {
		c.tx = stamp.Pgx.Tx(c.s, openTx{c.stdlibConn.Conn()}, nil)
	}
	return c.tx
}

// ran takes note of what stdlib ran.
func (c *pgxConn) ran(text sqltext.Text) {
	if text.Prepares {
		c.lone.Conn() // forgets what is prepared
	}
	if text.Ends || text.Leaves != sqltext.AsItWas || text.Class == sqltext.Unknown || c.stdlibConn.Conn().PgConn().TxStatus() == 'I' {
		c.tx = nil
	}
}

// ExecContext is ExecContext of stdlib.
func (c *pgxConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if isQuestion(query) {
		return answer{}, nil
	}
	text := c.s.Parse(query)
	stampCtx, ok := c.due(ctx, text)
	if !ok || c.areTooMany(args) {
		defer c.ran(text)
		return c.stdlibConn.ExecContext(ctx, query, args)
	}
	return c.exec(stampCtx, query, nil, args)
}

// exec runs a statement with its stamp, and gives what stdlib would give.
func (c *pgxConn) exec(ctx context.Context, query string, sd *pgconn.StatementDescription, args []driver.NamedValue) (driver.Result, error) {
	if c.stdlibConn.Conn().IsClosed() {
		return nil, driver.ErrBadConn
	}
	tag, err := c.session().Exec(ctx, query, values(sd, args)...)
	if err != nil && pgconn.SafeToRetry(err) {
		return nil, driver.ErrBadConn
	}
	return driver.RowsAffected(tag.RowsAffected()), err
}

// QueryContext is QueryContext of stdlib.
func (c *pgxConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	text := c.s.Parse(query)
	stampCtx, ok := c.due(ctx, text)
	if !ok || c.areTooMany(args) {
		defer c.ran(text)
		return c.stdlibConn.QueryContext(ctx, query, args)
	}
	return c.query(stampCtx, query, nil, args)
}

// query runs a statement with its stamp, and gives what stdlib would give.
func (c *pgxConn) query(ctx context.Context, query string, sd *pgconn.StatementDescription, args []driver.NamedValue) (driver.Rows, error) {
	if c.stdlibConn.Conn().IsClosed() {
		return nil, driver.ErrBadConn
	}
	rows, err := c.session().Query(ctx, query, append([]any{formats}, values(sd, args)...)...)
	if err != nil {
		if pgconn.SafeToRetry(err) {
			return nil, driver.ErrBadConn
		}
		return nil, err
	}
	return newPgxRows(c.stdlibConn.Conn().TypeMap(), rows)
}

// areTooMany reports whether the arguments are more than the protocol can send.
// pgx itself is to say so.
func (c *pgxConn) areTooMany(args []driver.NamedValue) bool {
	return len(args) > math.MaxUint16 && c.stdlibConn.Conn().Config().DefaultQueryExecMode != pgx.QueryExecModeSimpleProtocol
}

// values returns the arguments for pgx.
func values(sd *pgconn.StatementDescription, args []driver.NamedValue) []any {
	list := make([]any, 0, len(args)+1)
	if sd != nil {
		list = append(list, stamp.Prepared{SD: sd})
	}
	for _, arg := range args {
		list = append(list, arg.Value)
	}
	return list
}

// Prepare is Prepare of stdlib.
func (c *pgxConn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

// PrepareContext is PrepareContext of stdlib.
func (c *pgxConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if isQuestion(query) {
		return answer{}, nil
	}
	prepared, err := c.stdlibConn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	stmt, ok := prepared.(*stdlib.Stmt)
	if !ok || query == "" {
		return prepared, nil
	}
	// stdlib does not show the description. pgx has it under this name, so that
	// this asks nobody.
	sd, err := c.stdlibConn.Conn().Prepare(ctx, query, query)
	if err != nil {
		_ = stmt.Close()
		return nil, err
	}
	return &pgxStmt{Stmt: stmt, conn: c, text: c.s.Parse(query), sd: sd}, nil
}

// Begin is Begin of stdlib.
func (c *pgxConn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

// BeginTx is BeginTx of stdlib.
func (c *pgxConn) BeginTx(ctx context.Context, options driver.TxOptions) (driver.Tx, error) {
	tx, err := c.stdlibConn.BeginTx(ctx, options)
	if err != nil {
		return nil, err
	}
	same := pgx.TxOptions{IsoLevel: isoLevels[sql.IsolationLevel(options.Isolation)]}
	if options.ReadOnly {
		same.AccessMode = pgx.ReadOnly
	}
	c.tx = stamp.Pgx.Tx(c.s, openTx{c.stdlibConn.Conn()}, &same)
	c.begun = begunWith(ctx)
	return pgxTx{tx, c}, nil
}

// isoLevels are the isolation levels that stdlib knows.
var isoLevels = map[sql.IsolationLevel]pgx.TxIsoLevel{
	sql.LevelReadUncommitted: pgx.ReadUncommitted,
	sql.LevelReadCommitted:   pgx.ReadCommitted,
	sql.LevelRepeatableRead:  pgx.RepeatableRead,
	sql.LevelSnapshot:        pgx.RepeatableRead,
	sql.LevelSerializable:    pgx.Serializable,
}

// pgxTx is a transaction that BeginTx began.
type pgxTx struct {
	tx   driver.Tx
	conn *pgxConn
}

func (t pgxTx) Commit() error {
	t.conn.tx, t.conn.begun = nil, begun{}
	return t.tx.Commit()
}

func (t pgxTx) Rollback() error {
	t.conn.tx, t.conn.begun = nil, begun{}
	return t.tx.Rollback()
}

// pgxStmt is a prepared statement of stdlib.
type pgxStmt struct {
	*stdlib.Stmt
	conn *pgxConn
	text sqltext.Text
	sd   *pgconn.StatementDescription
}

// ExecContext is ExecContext of stdlib.
func (s *pgxStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	stampCtx, ok := s.conn.due(ctx, s.text)
	if !ok {
		defer s.conn.ran(s.text)
		return s.Stmt.ExecContext(ctx, args)
	}
	return s.conn.exec(stampCtx, s.sd.SQL, s.sd, args)
}

// QueryContext is QueryContext of stdlib.
func (s *pgxStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	stampCtx, ok := s.conn.due(ctx, s.text)
	if !ok {
		defer s.conn.ran(s.text)
		return s.Stmt.QueryContext(ctx, args)
	}
	return s.conn.query(stampCtx, s.sd.SQL, s.sd, args)
}

// openTx is the transaction that is open on a connection, however it began.
type openTx struct{ *pgxOwnConn }

// pgxOwnConn has another name than the method Conn of a transaction.
type pgxOwnConn = pgx.Conn

func (tx openTx) Conn() *pgx.Conn { return tx.pgxOwnConn }

func (tx openTx) Commit(ctx context.Context) error {
	_, err := tx.Exec(ctx, "COMMIT")
	return err
}

func (tx openTx) Rollback(ctx context.Context) error {
	_, err := tx.Exec(ctx, "ROLLBACK")
	return err
}

// LargeObjects is of pgx.Tx. Nobody asks for them here.
func (openTx) LargeObjects() pgx.LargeObjects { return pgx.LargeObjects{} }
