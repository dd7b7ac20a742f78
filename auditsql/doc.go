// Package auditsql stamps the context of a program's writes through database/sql,
// and so through what is built on it: GORM, ent, bun, sqlx, code of sqlc. A stamp
// says who writes, on behalf of which request; it goes into the transaction's WAL
// beside the changes, from where capture stitches it to them.
//
//	db, err := auditsql.Open("pgx", dsn) // in place of sql.Open
//
//	ctx = audit.WithContext(ctx, audit.Context{UserID: 187234, Endpoint: "POST /todo"})
//	_, err = db.ExecContext(ctx, "INSERT INTO todo (task) VALUES ($1)", "Sleep")
//
// The result is an ordinary *sql.DB. Who has a driver.Connector, as pgx/stdlib and
// lib/pq make them, wraps that: [OpenDB], [Wrap]. What else wraps drivers, for
// tracing or metrics, goes around the result of [Wrap], not inside: it is only by
// its type that a connection of pgx is recognised.
//
// # What is stamped
//
// Statements that change rows, if their ctx carries an audit.Context. In a
// transaction the ctx of BeginTx stands in for statements that come without a
// Context, such as those of tx.Exec, which has no ctx. So a transaction that was
// begun with a Context is stamped whatever runs in it.
//
// A statement on its own is in one transaction with its stamp: if it fails, the
// stamp goes with it. In a transaction the first write takes the stamp along, and
// later ones only if the context has changed since, or if a savepoint was rolled
// back, which may have taken the stamp with it. Transactions and savepoints count
// however they are made: by BeginTx, or by BEGIN, SAVEPOINT and ROLLBACK TO as
// statements, which is how ORMs nest.
//
// What changes rows is told from the words of the statement, as package auditpgx
// tells it. A SELECT that calls a function that writes looks like a read: run it
// with [AsWrite], which leaves transaction control alone. CALL and DO on their own may commit in their middle, which a
// stamp in front would forbid: they are stamped inside a transaction only.
//
// # Over pgx, and over other drivers
//
// Over pgx/stdlib a stamp takes no round trip: it is sent together with the
// statement, through package auditpgx, in every execution mode of pgx. Prepared
// statements are run as the prepared statements that they are. What auditpgx says
// of its cost holds here.
//
// Over any other driver for PostgreSQL, lib/pq for one, a stamp is a statement of
// its own:
//   - a write on its own becomes BEGIN with the stamp, the statement, and COMMIT:
//     two round trips more;
//   - in a transaction a stamp takes one round trip, in a savepoint, so that a
//     stamp that fails does not take the transaction with it;
//   - a COPY of lib/pq (pq.CopyIn) is stamped when it is prepared, with the ctx of
//     that, and the rows go as they are;
//   - a text of several statements that begins or ends a transaction is stamped
//     inside a transaction only, and one that sets up its transaction (SET
//     TRANSACTION, LOCK) before it writes is not: it is counted as lost;
//   - EXECUTE counts as a write, whatever is prepared under the name.
//
// The driver has to run several statements in one string, as all do that speak the
// simple protocol. One that has no Exec and must prepare everything takes a few
// round trips for each of ours.
//
// There, too, a statement that gives rows, as INSERT with RETURNING does, holds
// its locks no longer than without us: up to 1 MiB of its rows are read ahead and
// the transaction is committed, before the caller sees the first.
//
// # What it never does
//
// It never makes a write fail that would have succeeded without it, nor the other
// way around. What cannot be stamped is written without, is counted
// ([Connector.Stats], [DefaultStats]) and logged, at most once a minute: members of
// the context that are no JSON (the others are stamped, and the change names the
// missing ones in Context.Truncated), a role that may not execute
// pg_logical_emit_message. Nothing is kept in the session, so it works through
// PgBouncer in transaction mode. The statement's text and arguments are the
// driver's to read, untouched. Errors are those of the driver: errors.As finds
// *pgconn.PgError and *pq.Error.
//
// Of the driver's interfaces those are there that it has: it checks and converts
// arguments itself, describes columns, gives several results, resets and validates
// its connections, and driver.ErrBadConn and driver.ErrSkip mean what they mean. Only if
// the answer to our COMMIT is lost, that is no driver.ErrBadConn, whatever the driver
// says: database/sql would run the statement again. Rows of pgx have
// driver.RowsColumnScanner of Go 1.27 as those of stdlib do: slices, maps and ranges are
// scanned by pgx. Over other drivers the rows of a stamped statement outside a transaction
// are read ahead, so that they hold no locks, and database/sql assigns their values.
//
// # The driver's own connection
//
// The function given to sql.Conn.Raw gets a connection of this package. The one
// of the driver, which does not stamp, is behind it: see [Unwrap]. For that of pgx
// there is a way that works with and without this package:
//
//	err := conn.Raw(func(c any) error {
//		pgxConn := c.(interface{ Conn() *pgx.Conn }).Conn()
//		...
//	})
//
// auditpgx.WrapConn makes of it one that stamps, for CopyFrom and batches.
package auditsql
