package auditgorm

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"gorm.io/gorm"

	"github.com/hindsight-go/audit/auditsql"
	"github.com/hindsight-go/audit/internal/stamp"
)

var (
	errConn     = errors.New("auditgorm: a statement on a *sql.Conn outside a transaction cannot be stamped")
	errPrepared = errors.New("auditgorm: statements that were prepared by this type of pool cannot be stamped")
	errPool     = errors.New("auditgorm: cannot stamp through this type of pool")
)

// register has each statement looked at before it runs. Other plugins, and the program,
// may have given it another pool than that of the DB.
func (p *Plugin) register(db *gorm.DB) error {
	const adopt, name = "audit:adopt", "audit:stamp"
	c := db.Callback()
	return errors.Join(
		c.Create().Before("gorm:begin_transaction").Register(adopt, p.adopt),
		c.Update().Before("gorm:begin_transaction").Register(adopt, p.adopt),
		c.Delete().Before("gorm:begin_transaction").Register(adopt, p.adopt),
		c.Create().Before("gorm:create").Register(name, p.write),
		c.Update().Before("gorm:update").Register(name, p.write),
		c.Delete().Before("gorm:delete").Register(name, p.write),
		c.Raw().Before("gorm:raw").Register(name, p.run),
		c.Query().Before("gorm:query").Register(name, p.run),
		c.Row().Before("gorm:row").Register(name, p.run),
	)
}

// adopt puts a pool of ours in the place of one of others, also where that prepares
// statements: what it has prepared would not be stamped.
func (p *Plugin) adopt(db *gorm.DB) {
	switch conn := db.Statement.ConnPool.(type) {
	case *sql.DB:
		db.Statement.ConnPool = p.pool(conn)
	case *gorm.PreparedStmtDB:
		if other, ok := conn.ConnPool.(*sql.DB); ok {
			db.Statement.ConnPool = p.preparing(other, db.Config)
		}
	}
}

// run is write for a statement that may be one.
func (p *Plugin) run(db *gorm.DB) {
	if _, ours := db.Statement.ConnPool.(*pool); ours {
		return
	}
	text := "SELECT" // which gorm:query will build
	if db.Statement.SQL.Len() > 0 {
		text = db.Statement.SQL.String()
	}
	if stamp.Wants(db.Statement.Context, p.s.Parse(text)) {
		p.write(db)
	}
}

// write sees to the stamp of a statement that writes.
func (p *Plugin) write(db *gorm.DB) {
	if db.Error != nil || db.DryRun {
		return
	}
	p.adopt(db) // where GORM begins no transaction, it was not asked before
	switch conn := db.Statement.ConnPool.(type) {
	case *pool:
	case *sql.Tx:
		p.stamp(db.Statement.Context, conn)
	case *gorm.PreparedStmtTX:
		p.stamp(db.Statement.Context, within(conn))
	case *gorm.PreparedStmtDB:
		if !isOverOurs(conn) {
			p.lose(db.Statement.Context, errPrepared)
		}
	case *sql.Conn:
		if stamped, err := auditsql.Stamps(db.Statement.Context, conn); err == nil && !stamped {
			p.lose(db.Statement.Context, errConn)
		}
	default:
		p.lose(db.Statement.Context, fmt.Errorf("%w: %T", errPool, conn))
	}
}

// isOverOurs reports whether statements are prepared by a pool of ours. A session of a DB
// puts one over the other if both say PrepareStmt.
func isOverOurs(conn *gorm.PreparedStmtDB) bool {
	switch of := conn.ConnPool.(type) {
	case *pool:
		return true
	case *gorm.PreparedStmtDB:
		return isOverOurs(of)
	}
	return false
}

// lose takes note of a write that goes without its context, or that has none.
func (p *Plugin) lose(ctx context.Context, cause error) {
	if _, said := p.s.Asked(ctx); !said {
		p.s.Without(ctx)
		return
	}
	p.s.Lose(ctx, cause)
}

const (
	guard   = "SAVEPOINT audit_stamp"
	unguard = "RELEASE SAVEPOINT audit_stamp"
	backout = "ROLLBACK TO SAVEPOINT audit_stamp"
)

// within returns the transaction behind prepared statements.
func within(tx *gorm.PreparedStmtTX) gorm.ConnPool {
	for {
		inner, ok := tx.Tx.(*gorm.PreparedStmtTX)
		if !ok {
			return tx.Tx
		}
		tx = inner
	}
}

// stamp stamps a transaction with statements, unless it stamps by itself. They are in a
// savepoint: a stamp that fails must not take the transaction with it. What stops all
// statements also stops the next, which says so.
func (p *Plugin) stamp(ctx context.Context, tx gorm.ConnPool) {
	if isOurs(tx) {
		return
	}
	said, ok := p.s.Asked(ctx)
	if !ok {
		if stamped, err := auditsql.Stamps(ctx, tx); err == nil && !stamped {
			p.s.Without(ctx)
		}
		return
	}
	content := p.s.Content(said)
	if content == nil {
		return
	}
	result, err := tx.ExecContext(ctx, stamp.Question+guard)
	if err != nil {
		return
	}
	if n, _ := result.RowsAffected(); n == stamp.Answer {
		return
	}
	_, err = tx.ExecContext(ctx, p.s.TextInSavepoint(content)+";"+unguard)
	if err == nil {
		p.s.Took()
		return
	}
	p.s.Lose(ctx, err)
	if _, err := tx.ExecContext(ctx, backout); err == nil {
		_, _ = tx.ExecContext(ctx, unguard) // fails only if all that follows does
	}
}

// isOurs reports whether a transaction is of a pool of ours.
func isOurs(tx gorm.ConnPool) bool {
	db := gorm.DB{Config: &gorm.Config{}, Statement: &gorm.Statement{ConnPool: tx}}
	of, err := db.DB()
	if err != nil {
		return false
	}
	_, ours := of.Driver().(ourDriver)
	return ours
}
