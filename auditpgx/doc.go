// Package auditpgx stamps the context of a program's writes through pgx: who
// writes, on behalf of which request, put into the transaction's WAL beside the
// changes, from where capture stitches it to them.
//
//	db := auditpgx.Wrap(pool)
//	ctx = audit.WithContext(ctx, audit.Context{UserID: 187234, Endpoint: "POST /todo"})
//	_, err := db.Exec(ctx, "INSERT INTO todo (task) VALUES ($1)", "Sleep")
//
// A [DB] has the methods of a *pgxpool.Pool that code and generated code use, a
// [Conn] those of a *pgx.Conn, and [Tx] is a pgx.Tx. So sqlc's DBTX, pgx.BeginFunc,
// pgx.CollectRows and the like take them unchanged.
//
// # What is stamped
//
// Statements that change rows, if ctx carries an audit.Context. A statement on
// its own is sent in one batch with its stamp, which the server runs as one
// transaction: there is no further round trip, and if the statement fails, its
// stamp goes with it. In a transaction the first write takes the stamp along, and
// later ones only if the context has changed since, or if a savepoint that was
// rolled back took the stamp with it.
//
// What changes rows is told from the words of the statement: INSERT, UPDATE,
// DELETE, MERGE, TRUNCATE, COPY, WITH around one of those, SELECT INTO, CREATE TABLE
// AS. Of the name of a prepared statement, and of EXECUTE, the statement counts that is
// prepared: it is remembered from Prepare, or asked of the server once. A name that is
// deallocated and prepared anew on the connection of pgx, kept from before or by a hook of
// the pool, stays what it was. A SELECT that calls a function that writes looks like a read: run it
// with [AsWrite], which leaves transaction control alone. CALL and DO may commit in
// their middle when they are alone, which a stamp in front would forbid: they
// are stamped inside a transaction only.
//
// Of several statements in one string those are stamped that come before the first
// end of a transaction. The stamp goes behind what begins or sets up a transaction, as
// SET TRANSACTION has to come first. What follows the end, and what [DB.Query] runs in
// such a string, is counted as lost.
//
// What runs on the connection of pgx, as [Tx.Conn] returns it, is not stamped. It may go
// back to a savepoint, so behind a call of Conn every write of the transaction is
// stamped anew.
//
// # What it costs
//
// One message of some 100 to 300 bytes of WAL a transaction, some microseconds of
// the server's time, and no round trip, except:
//   - CopyFrom: one in a transaction, two alone, where a transaction is made
//     around it;
//   - in a transaction, where a stamp is due: a prepared statement called by its
//     name, and a Query that asks for the simple protocol on a connection whose
//     default it is not. Alone, the rows of such a Query are read to their end
//     before the caller gets them;
//   - a batch that is stamped behind other statements of its transaction, on a
//     connection that caches statements;
//   - once or twice in the life of a connection that caches statements: the stamp
//     is prepared when it is needed a second time.
//
// A stamp behind other statements of its transaction goes into a savepoint that is
// sent along and released at once, which takes the server some 25 microseconds
// more. So do those of a transaction that was given to [WrapTx]. A transaction
// that begins by reading what it writes later is spared it if the first statement
// is run with [AsWrite].
//
// Statements that are sent with a stamp are prepared in a cache of their own, of
// the same size as that of pgx.
//
// # What it never does
//
// It never makes a write fail that would have succeeded without it. What cannot be
// stamped is written without, is counted ([DB.Stats]) and logged, at most once a
// minute: members of the context that are no JSON (the others are stamped, and
// the change names the missing ones in Context.Truncated), a role that may not
// execute pg_logical_emit_message. That may turn out at any time, since rights are
// revoked and roles change in mid-session. Then the statement is run again without
// a stamp: alone, of which nothing had happened; as the first of a transaction in
// a new one with the same options; in any other behind the savepoint. What it
// leaves behind is that of any statement that is tried again: numbers that
// sequences gave out. The connection is not asked again for a minute.
//
// Nothing is kept in the session, so it works through PgBouncer in transaction
// mode. The statement's text is not touched. The context is a parameter of another
// statement, or, in the simple protocol, a literal in which quotes and dollar signs
// are escapes.
//
// # What a tracer sees
//
// The caller's statement as the query that it is, with the caller's arguments,
// and in the stamp's place nothing, except that:
//   - a batch holds its stamp as one more query, and the savepoint around it as
//     two;
//   - a stamp that is sent by itself is a query, as are the BEGIN and the COMMIT
//     around a CopyFrom;
//   - in the simple protocol a Query is a batch, and an Exec with arguments has
//     an argument that is not the caller's;
//   - with a PrepareTracer neither stamps nor the statements sent with them are
//     prepared under a name: those are described once and sent as text, since only
//     by asking pgx, which tells the tracer, could it be known whether a name is
//     still there.
package auditpgx
