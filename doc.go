// Package audit gives a Go program the history of its PostgreSQL database: every
// change to every row, what it was before and after, who made it, from which
// request, however it got there. Capture reads the write-ahead log in the
// background of the program; there is nothing else to deploy, and nothing to
// change in the code that writes.
//
// # Begin
//
// The database has to run with wal_level = logical, and the program's role needs
// REPLICATION and its tables. Then:
//
//	client, err := audit.Open(ctx, audit.Config{
//		SourceURL: dsn,
//		Tables:    []string{"public.*", "!public.sessions"},
//	})
//	if err != nil {
//		return err // a *ConfigError for every problem
//	}
//	defer client.Close()
//	if err := client.Start(ctx); err != nil {
//		return err // what is missing, and the SQL that makes it
//	}
//	defer client.Stop(context.WithoutCancel(ctx))
//
// Start checks the database, sets up what is missing (the schema audit with the
// table changes, a publication, a replication slot, REPLICA IDENTITY FULL on the
// tables) and returns when capture runs. From then on every INSERT, UPDATE,
// DELETE and TRUNCATE of the tables stands in the history milliseconds after its
// commit: once, in commit order, whole transactions at a time.
//
// # Say who
//
// A [Context] says who writes, where and on behalf of which request. It travels
// in a context.Context, and [Stamp] puts it into a transaction:
//
//	ctx = audit.WithContext(ctx, audit.Context{UserID: user.ID, RequestID: id, Endpoint: "POST /todo"})
//	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
//		if err := audit.Stamp(ctx, tx); err != nil {
//			return err
//		}
//		...
//	})
//
// The stamp lives and dies with the transaction: nothing of it can reach the next
// user of a pooled connection. Writes without one are captured all the same, and
// [Query.WithoutContext] finds them.
//
// # Ask
//
// [Changes] begins a query. Filters narrow it, a terminal method answers it:
//
//	for change, err := range audit.Changes().ForTable("todo").ByUser(id).Since(yesterday).All(ctx) {
//		if err != nil {
//			return err
//		}
//		fmt.Println(change) // 16/B374D848#3 ... UPDATE public.todo[26] completed: false -> true by 187234
//	}
//
// There are [Query.List], [Query.First], [Query.Count] and [Query.Page]; counts
// by table, user, endpoint and the like ([Query.CountBy]) and over time
// ([Query.Trend]); changes grouped into [Query.Transactions] and
// [Query.Requests]; [Query.Export] to files and [Query.Watch], a live tail. A
// [Change] can be taken apart ([Change.Diff]) and read into a struct
// ([After], [Change.DecodeAfter]).
//
// The history is a table, too: SELECT * FROM audit.changes ORDER BY position,
// sequence.
//
// A commit is in the history a moment after it returned, not when it returns.
// [Client.Sync] waits for everything committed so far; it is a barrier, not a
// sleep.
//
// # The past
//
// [AsOf] and its kin make a [Point], a moment of history. A row of it, a table,
// or any SQL over all tables:
//
//	err := audit.AsOf(lastTuesday).Load(ctx, &todo, 26)
//	err := audit.BeforeRequest(id).Table("todo").List(ctx, &todos)
//	err := audit.AtMark("before the import").View(ctx, func(tx pgx.Tx) error { ... })
//
// A transaction is in a moment whole or not at all, the same moment gives the same
// answer for good, and what history cannot tell is a [*HistoryError]. [History]
// gives the versions of a row, [Blame] who set its columns, [DiffBetween] what
// differs between two moments. See docs/timetravel.md.
//
// # Order
//
// A [Position] is a change's place in history: the WAL position of its
// transaction's commit, and its number inside. Nothing else orders history:
// commit times and transaction ids both run backwards under concurrency.
//
// # Many instances
//
// Run the same program as often as you like: the replication slot is the lease.
// One instance captures, the others wait, and one of them takes over when it
// ends. A client need not be started to ask for history.
//
// # The default client
//
// Every package-level function has the same name as a method of [Client] and
// works on the client given to [SetDefault], except [CurrentStatus], which is
// [Client.Status].
//
// # Leave out
//
// Config.Tables leaves tables out ("!public.sessions"), and Config.Columns keeps
// the values of columns out of the history, or stores a mask or a digest of them.
// What looks like a secret is left out unless told otherwise.
//
// # In tests
//
// Package audittest gives a test a throwaway PostgreSQL with a history, and checks
// at its end that history tells what the tables hold.
//
// # Guarantees
//
// What is promised, what is not, and what values look like in an image is
// written down in docs/guarantees.md of the repository; how to run it, in
// docs/operations.md; what rights it needs, in docs/permissions.md. Recipes to
// copy are in docs/cookbook.md, and what to do about an error, by its text, in
// docs/troubleshooting.md.
//
// Row values are in the history, in the results of queries and in the String
// form of a [Change]. They are in no error and in no log line of this package.
package audit
