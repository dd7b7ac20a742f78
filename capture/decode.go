package capture

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hindsight-go/audit/internal/wal"
)

// pgoutput, protocol version 1.
//
// Source: PostgreSQL documentation, "Logical Replication Message Formats".
const (
	msgBegin    = 'B'
	msgCommit   = 'C'
	msgOrigin   = 'O'
	msgType     = 'Y'
	msgRelation = 'R'
	msgInsert   = 'I'
	msgUpdate   = 'U'
	msgDelete   = 'D'
	msgTruncate = 'T'
	msgMessage  = 'M'
	// msgStreamAbort belongs to protocol 2, but some 18 servers send a stray one
	// on version 1. It names a transaction that was never sent: ignored.
	msgStreamAbort = 'A'
)

// errShort is wrapped by every decoding error of a message that ends early.
var errShort = errors.New("message ends early")

// DecodeError is returned when the server sent what is not pgoutput. Capture
// stops and reconnects: skipping a message could lose a change.
type DecodeError struct {
	Message byte // the message type
	Reason  error
}

func (e *DecodeError) Error() string {
	return fmt.Sprintf("decode pgoutput message %q: %v", e.Message, e.Reason)
}

func (e *DecodeError) Unwrap() error { return e.Reason }

// cursor reads a message in place. It never reads past the end: the first short
// read sets bad, and everything after it is zero.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if n < 0 || n > len(c.b) {
		c.bad = true
		c.b = nil
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) u8() byte {
	if len(c.b) < 1 {
		c.bad = true
		return 0
	}
	v := c.b[0]
	c.b = c.b[1:]
	return v
}

func (c *cursor) u16() uint16 {
	if len(c.b) < 2 {
		c.bad, c.b = true, nil
		return 0
	}
	v := binary.BigEndian.Uint16(c.b)
	c.b = c.b[2:]
	return v
}

func (c *cursor) u32() uint32 {
	if len(c.b) < 4 {
		c.bad, c.b = true, nil
		return 0
	}
	v := binary.BigEndian.Uint32(c.b)
	c.b = c.b[4:]
	return v
}

func (c *cursor) u64() uint64 {
	if len(c.b) < 8 {
		c.bad, c.b = true, nil
		return 0
	}
	v := binary.BigEndian.Uint64(c.b)
	c.b = c.b[8:]
	return v
}

// str reads up to the next NUL.
func (c *cursor) str() []byte {
	for i, x := range c.b {
		if x == 0 {
			v := c.b[:i:i]
			c.b = c.b[i+1:]
			return v
		}
	}
	c.bad, c.b = true, nil
	return nil
}

// tuple reads TupleData into dst, whose values alias the message.
func (c *cursor) tuple(dst wal.Tuple) (wal.Tuple, error) {
	n := int(c.u16())
	if dst == nil || cap(dst) < n { // nil means that there is no row, one without columns is one
		// A table has at most 1,600 columns, so this stays small.
		dst = make(wal.Tuple, n)
	}
	dst = dst[:n]
	for i := range dst {
		switch state := c.u8(); wal.State(state) {
		case wal.Text:
			dst[i] = wal.Datum{State: wal.Text, Text: c.take(int(c.u32()))}
		case wal.Null:
			dst[i] = wal.Datum{State: wal.Null}
		case wal.Unchanged:
			dst[i] = wal.Datum{State: wal.Unchanged}
		case wal.Omitted: // by the condenser
			dst[i] = wal.Datum{State: wal.Omitted, Size: c.u32()}
		default:
			if c.bad {
				return dst, errShort
			}
			return dst, fmt.Errorf("column %d has the unknown kind %q", i, state)
		}
		if c.bad {
			return dst, errShort
		}
	}
	if c.bad {
		return dst, errShort
	}
	return dst, nil
}

// relationMessage is a Relation message as it stands on the wire.
type relationMessage struct {
	OID             uint32
	Schema, Table   string
	ReplicaIdentity byte
	Columns         []wal.Column
}

func decodeRelation(b []byte) (relationMessage, error) {
	c := cursor{b: b}
	m := relationMessage{OID: c.u32()}
	m.Schema = string(c.str())
	if m.Schema == "" {
		m.Schema = "pg_catalog" // the protocol's abbreviation
	}
	m.Table = string(c.str())
	m.ReplicaIdentity = c.u8()
	n := int(c.u16())
	for range n {
		if c.bad {
			break
		}
		flags := c.u8()
		name := string(c.str())
		oid := c.u32()
		mod := int32(c.u32())
		m.Columns = append(m.Columns, wal.Column{Name: name, TypeOID: oid, TypeMod: mod, Identity: flags&1 != 0})
	}
	if c.bad {
		return m, errShort
	}
	return m, nil
}

type beginMessage struct {
	FinalLSN   wal.LSN
	CommitTime int64
	XID        uint32
}

func decodeBegin(b []byte) (beginMessage, error) {
	c := cursor{b: b}
	m := beginMessage{FinalLSN: wal.LSN(c.u64()), CommitTime: int64(c.u64()), XID: c.u32()}
	if c.bad {
		return m, errShort
	}
	return m, nil
}

type commitMessage struct {
	CommitLSN, EndLSN wal.LSN
}

func decodeCommit(b []byte) (commitMessage, error) {
	c := cursor{b: b}
	c.u8() // flags, unused
	m := commitMessage{CommitLSN: wal.LSN(c.u64()), EndLSN: wal.LSN(c.u64())}
	c.u64() // commit time, known since BEGIN
	if c.bad {
		return m, errShort
	}
	return m, nil
}

type logicalMessage struct {
	Transactional bool
	LSN           wal.LSN
	Prefix        []byte
	// Content is the beginning of the content if that was of another Size.
	Content []byte
	Size    int
}

func decodeMessage(b []byte) (logicalMessage, error) {
	c := cursor{b: b}
	flags := c.u8()
	m := logicalMessage{Transactional: flags&1 != 0, LSN: wal.LSN(c.u64())}
	m.Prefix = c.str()
	kept := int(c.u32())
	m.Size = kept
	if flags&cutMessage != 0 {
		m.Size = int(c.u32())
	}
	m.Content = c.take(kept)
	if c.bad {
		return m, errShort
	}
	return m, nil
}

// rowDecoder holds the tuples that are reused from row to row.
type rowDecoder struct {
	old, new wal.Tuple
	row      wal.Row
}

// relationOID returns the relation that an Insert, Update or Delete message is
// about.
func relationOID(b []byte) (uint32, error) {
	c := cursor{b: b}
	oid := c.u32()
	if c.bad {
		return 0, errShort
	}
	return oid, nil
}

// decode reads the body of an Insert, Update or Delete message behind its
// relation's OID. The row is valid until the next call.
func (d *rowDecoder) decode(kind byte, b []byte, rel *wal.Relation) (*wal.Row, error) {
	c := cursor{b: b}
	c.u32()
	d.row = wal.Row{Operation: wal.Operation(kind), Relation: rel}
	marker := c.u8()
	var err error
	if kind != msgInsert && (marker == 'O' || marker == 'K') {
		if d.old, err = c.tuple(d.old); err != nil {
			return nil, err
		}
		d.row.Old, d.row.OldIsKey = d.old, marker == 'K' && !isWhole(d.old, rel)
		if kind == msgUpdate {
			marker = c.u8()
		}
	}
	switch kind {
	case msgDelete:
		if d.row.Old == nil {
			return nil, fmt.Errorf("unknown tuple kind %q", marker)
		}
	default:
		if marker != 'N' {
			if c.bad {
				return nil, errShort
			}
			return nil, fmt.Errorf("unknown tuple kind %q", marker)
		}
		if d.new, err = c.tuple(d.new); err != nil {
			return nil, err
		}
		d.row.New = d.new
	}
	if c.bad {
		return nil, errShort
	}
	for _, t := range []wal.Tuple{d.row.Old, d.row.New} {
		if t != nil && len(t) != len(rel.Columns) {
			return nil, fmt.Errorf("tuple has %d columns, relation has %d", len(t), len(rel.Columns))
		}
	}
	return &d.row, nil
}

// decodeTruncate calls each for every relation that a Truncate message names.
func decodeTruncate(b []byte, each func(oid uint32) error) error {
	c := cursor{b: b}
	n := c.u32()
	c.u8() // options: CASCADE, RESTART IDENTITY
	if c.bad || uint64(n)*4 > uint64(len(c.b)) {
		return errShort
	}
	for range n {
		if err := each(c.u32()); err != nil {
			return err
		}
	}
	return nil
}

// isWhole reports whether an old row which the server calls the key is more than that.
// It calls rows so by the identity of the root under whose name it sends them, and
// what it sends goes by that of the partition: FULL, if we track it, or, if it was
// made a moment ago, really the key with all else NULL.
func isWhole(old wal.Tuple, rel *wal.Relation) bool {
	for i, datum := range old {
		if i < len(rel.Columns) && !rel.Columns[i].Identity && datum.State != wal.Null && datum.State != wal.Absent {
			return true
		}
	}
	return false
}
