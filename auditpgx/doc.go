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
// DELETE, MERGE, TRUNCATE, COPY, WITH around one of those, SELECT INTO, EXECUTE,
// and the names of prepared statements. A SELECT that calls a function that
// writes looks like a read: run it with [AsWrite]. CALL and DO may commit in
// their middle when they are alone, which a stamp in front would forbid: they
// are stamped inside a transaction only. Of several statements in one string
// that end transactions, those after the first COMMIT are not stamped.
// COPY on its own becomes a transaction of three round trips more.
//
// # What it costs
//
// One message of some 100 to 300 bytes of WAL a transaction, and no round trip,
// except: CopyFrom, and the first write of a transaction whose call asks for
// another QueryExecMode than the connection's or for result formats.
//
// # What it never does
//
// It never makes a write fail that would have succeeded without it. What cannot be
// stamped is written without, is counted ([DB.Stats]) and logged, at most once a
// minute: members of the context that are no JSON (the others are stamped, and
// the change names the missing ones in Context.Truncated), a role that may not
// execute pg_logical_emit_message. Nothing is kept in the session, so it works
// through PgBouncer in transaction mode; nothing is put into the statement's
// text, so there is nothing to inject into.
//
// # What a tracer sees
//
// The statement and its stamp are a batch to pgx: a tracer that implements
// pgx.BatchTracer sees that, with the statement in it. To one that does not, the
// statement is a query like any other.
package auditpgx
