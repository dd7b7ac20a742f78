// Package capture reads the changes of a PostgreSQL database out of its
// write-ahead log and hands them to a [Sink], in commit order and each
// transaction whole.
//
// Most programs use it through package audit, which joins it to a store. It
// stands on its own for those who want the stream and keep it elsewhere.
//
// # The two halves
//
// [Setup] is what happens before: it checks the source, and makes the
// publication, the replica identities and the slot, or says in a [*SetupError]
// what somebody with more rights has to run. The publication always comes before
// the slot: decoding looks it up in the catalog as of the change, and stops for
// good where it was not there yet.
//
// [Reader] is what happens then: it takes the slot when it is free, streams, and
// starts over after a failure, until it is stopped. The slot is a lease: the
// server gives it to one session at a time, so of many instances of a program
// one reads and the others wait.
//
// # One goroutine owns the socket
//
// A Reader's session runs on one goroutine, from START_REPLICATION to its end. It
// parses pgoutput in place, passes rows to the sink without copying them, and
// answers the server's keepalives also while the sink is busy. A [Sink] therefore
// never waits: it says that it is Full, and the reader stops reading, so that TCP
// holds the server back and no timeout does. Transactions stream row by row;
// none is ever held in memory.
//
// # Exactly once
//
// The sink says up to where it holds everything for good ([Sink.Durable]); the
// slot is confirmed up to there and never beyond. Streaming resumes at the
// sink's own position, so that the server itself skips what was stored. A
// position is always the end of a commit record, never a place inside a
// transaction. [CheckSource] refuses to go on on a server that is not the one
// that the position belongs to: a position beyond the server's WAL would be
// accepted silently, and everything up to it skipped.
//
// # What comes out
//
// Values are PostgreSQL's text, under settings that are pinned for the session,
// so that the same row gives the same bytes whatever the defaults of the role or
// the server. Context messages are passed on at their place among the rows, those
// of Bemi's clients included.
package capture
