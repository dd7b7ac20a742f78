// Package auditgorm stamps the context of what a program writes through GORM: who
// writes, where, on behalf of which request. It is a plugin, so the program goes on
// opening its database as it does:
//
//	db, err := gorm.Open(postgres.Open(dsn), &gorm.Config{})
//	if err != nil {
//		return err
//	}
//	if err := db.Use(auditgorm.New(auditgorm.Config{})); err != nil {
//		return err
//	}
//
//	ctx = audit.WithContext(ctx, audit.Context{UserID: 187234, Endpoint: "POST /todo"})
//	err = db.WithContext(ctx).Create(&Todo{Task: "Sleep"}).Error
//
// In a service package audithttp puts the context into the ctx of each request.
//
// # What is stamped
//
// All that GORM writes with a ctx that carries an audit.Context: Create, Save, Update,
// Delete and what their hooks and associations write, Exec and Raw, in the transactions
// that GORM makes by itself, in those of Transaction and Begin with their savepoints,
// with SkipDefaultTransaction, with PrepareStmt. What is stamped, and when, is told in
// package auditsql, which does it. A db without WithContext has no context to stamp:
// what it writes is counted, and [Config].Context is asked instead, if it is given. In a
// transaction the ctx that it was begun with stands in. A SELECT that calls a function
// that writes is to be run with auditsql.AsWrite(ctx).
//
// # What it costs
//
// Over pgx's driver, which is GORM's own, the stamp goes in the round trip of the write,
// as in package auditsql. Over others, as lib/pq, a transaction takes one round trip more,
// also that which GORM makes around a write; what writes alone, as Exec does, and all with
// SkipDefaultTransaction, takes two. Reads take none more.
//
// The plugin puts itself between GORM and its pool, and takes a connection from that for
// each statement or transaction. So the pool of db.DB() stays the same one, with its
// limits, whether they were set before or are set later; closing it is as it was.
// Connections in it that have died are passed over, as database/sql does. What a program
// writes through db.DB() itself does not go through GORM and is not stamped: auditsql
// opens a pool that is.
//
// A pool that auditsql has opened, also where it is wrapped for tracing, is recognised.
// The plugin leaves the stamping to it.
//
// # Pools of others
//
// GORM can be made to write through something else than its pool. That is stamped, too,
// at another price, or counted as lost ([Plugin.Stats]) and logged:
//   - another *sql.DB, as dbresolver chooses one: as the pool itself;
//   - a *sql.Tx, given as postgres.Config.Conn, or begun in db.Connection: each write
//     takes two round trips for its stamp, in a savepoint;
//   - a *sql.Conn, given so, or that of db.Connection: as a transaction's, in a
//     transaction. What runs on it outside of one is lost: Exec, and all with
//     SkipDefaultTransaction.
//
// Use returns a [*PoolError] where GORM has a pool that the plugin does not know.
//
// Use it before the first statement: what a session with PrepareStmt has prepared
// before, where the Config itself does not say PrepareStmt, goes on without stamps.
//
// Over pgx's driver PrepareStmt prepares in the cache of the connection: the first time
// that it runs a statement, on each. If the cache is off in the connection string
// (statement_cache_capacity=0), and over drivers of others, a statement is prepared each
// time, which costs two round trips, for reads, too.
package auditgorm
