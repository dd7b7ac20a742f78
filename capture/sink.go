package capture

import (
	"github.com/hindsight-go/audit/internal/wal"
)

// The record that a Sink receives. See the fields of each for what they hold
// and how long.
type (
	// LSN is a position in the write-ahead log.
	LSN = wal.LSN
	// Transaction is the head of a source transaction.
	Transaction = wal.Transaction
	// Structure is a table as the catalog described it at some place of the stream.
	Structure = wal.Structure
	// Relation is a table as the rows that follow are of it.
	Relation = wal.Relation
	// Row is one change of one row; its bytes are valid only during the call.
	Row = wal.Row
)

// Sink takes what a Reader reads. Its methods are called by one goroutine, the
// one that owns the replication connection, and must not wait: what takes time
// is done elsewhere, and Full holds the reader back meanwhile.
type Sink interface {
	// Begin opens a transaction; Commit ends it. end is where the stream goes on
	// after it. Transactions come in commit order and do not overlap.
	Begin(Transaction)
	Commit(end LSN)
	// Structure tells what a table looks like from here on, whether rows of it
	// follow or not.
	Structure(*Structure)
	// Relation announces how the rows of a table come, before the first of them.
	Relation(*Relation)
	// Stamp is a context message at its place among the rows. Of one whose size is
	// more than that of content, content is the beginning.
	Stamp(content []byte, size int)
	// Row is one change.
	Row(*Row)
	// Barrier asks for the end of the open transaction to become durable even
	// if the transaction has no rows.
	Barrier(nonce string)
	// Advance says that the source has nothing for us before lsn.
	Advance(lsn LSN)
	// Flush says that no more input is at hand.
	Flush()
	// Finish asks for everything so far to be stored; Idle then becomes true.
	Finish()
	// Full reports whether nothing more should be passed for now.
	Full() bool
	// Idle reports whether everything handed over is stored.
	Idle() bool
	// Durable is the position up to which everything is stored for good.
	Durable() LSN
	// Err is why the sink stopped working, or nil.
	Err() error
	// Close ends the sink's work at once.
	Close()
}
