// Package wal holds the record that capture hands to a store: transactions,
// relations and rows as they come out of PostgreSQL's logical decoding. It has
// no behaviour beyond what both sides need to read the record the same way.
package wal

import (
	"time"

	"github.com/jackc/pglogrepl"
)

// LSN is a position in the write-ahead log.
type LSN = pglogrepl.LSN

// Operation is what happened to a row, by its pgoutput message byte.
type Operation byte

// The operations of a row.
const (
	Insert   Operation = 'I'
	Update   Operation = 'U'
	Delete   Operation = 'D'
	Truncate Operation = 'T'
)

// Transaction is the head of a source transaction.
type Transaction struct {
	// XID is the 64-bit transaction id, as pg_current_xact_id() shows it.
	XID uint64
	// CommitLSN is the LSN of the commit record: the transaction's position.
	CommitLSN LSN
	// CommitTime is in microseconds since 2000-01-01 UTC, PostgreSQL's epoch.
	CommitTime int64
	// ReadTime is when capture read the transaction's first message, in the
	// same unit.
	ReadTime int64
}

// State tells what a Datum carries, by its pgoutput byte.
type State byte

// The states of a value in a tuple. Two are not on the wire: Absent marks a column
// of which the stream says nothing, Omitted a value that was too large to be kept.
const (
	Absent    State = 0
	Omitted   State = 'o'
	Null      State = 'n'
	Unchanged State = 'u'
	Text      State = 't'
)

// Datum is one value of a tuple, in PostgreSQL's text format. The bytes belong
// to the reader's buffer and are valid only during the call that passes them.
type Datum struct {
	State State
	// Raw reports whether Text is not in UTF-8: it has a byte that is no character there.
	Raw bool
	// Size is how many bytes an Omitted value had.
	Size uint32
	Text []byte
}

// Tuple is a row version, one Datum for each column of its relation.
type Tuple []Datum

// Column describes a column of a relation version.
type Column struct {
	Name    string
	TypeOID uint32
	TypeMod int32
	// Identity reports whether the column is part of the replica identity, as the
	// Relation message flags it: with REPLICA IDENTITY FULL every column is.
	Identity bool
	// Kind is how the value is written in an image.
	Kind Kind
	// Type, Attnum, Generated and AttIdentity come from the catalog. They are
	// zero where the table was gone before they could be looked up.
	Type        string
	Attnum      int16
	Generated   string
	AttIdentity string
	Policy      Policy
}

// Relation is a tracked table as its rows come.
type Relation struct {
	OID uint32
	// Schema and Table name the table as history knows it: the root of a
	// partition tree, not the leaf.
	Schema, Table string
	// Partition is the leaf's own quoted name where the row comes from a partition
	// under its own OID; Root is its root's OID.
	Partition string
	Root      uint32
	// ReplicaIdentity is d, n, f or i.
	ReplicaIdentity byte
	Columns         []Column
	// Key holds the indexes of the primary key's columns, in key order.
	Key []int
}

// Row is one change of one row.
type Row struct {
	Operation Operation
	Relation  *Relation
	// Old is the version before. It is nil for an INSERT, and for an UPDATE
	// whose replica identity did not log it. OldIsKey tells that it holds
	// nothing but the replica identity.
	Old      Tuple
	OldIsKey bool
	// New is the version after; nil for DELETE and TRUNCATE.
	New Tuple
	// Partition is the quoted name of the only partition that a TRUNCATE emptied;
	// without it, the whole table is empty.
	Partition string
}

// epochMicro is PostgreSQL's epoch, 2000-01-01 UTC, in Unix microseconds.
const epochMicro = 946_684_800 * 1_000_000

// Microseconds converts a time to PostgreSQL's microseconds since 2000-01-01.
func Microseconds(t time.Time) int64 { return t.UnixMicro() - epochMicro }

// Time converts PostgreSQL's microseconds since 2000-01-01 to a time in UTC.
func Time(micros int64) time.Time { return time.UnixMicro(micros + epochMicro).UTC() }
