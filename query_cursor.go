package audit

import (
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"math"
	"slices"
	"strings"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pglogrepl"
)

// Cursor marks the place where an answer ended, for [Query.After]. It is opaque
// text, safe in URLs, that stays valid across restarts and for as long as the
// history is kept. It holds no row values and grants nothing.
type Cursor string

// cursorKind says what sequence of results a cursor is a place in.
type cursorKind byte

const (
	newestChanges      cursorKind = 'C'
	oldestChanges      cursorKind = 'c'
	newestTransactions cursorKind = 'T'
	oldestTransactions cursorKind = 't'
	newestRequests     cursorKind = 'R'
	oldestRequests     cursorKind = 'r'
	// What leads to the page before another one.
	newestRequestsBack cursorKind = 'B'
	oldestRequestsBack cursorKind = 'b'
	watchEvents        cursorKind = 'w'
)

func (k cursorKind) String() string {
	switch k {
	case newestChanges:
		return "changes, newest first"
	case oldestChanges:
		return "changes, oldest first"
	case newestTransactions:
		return "transactions, newest first"
	case oldestTransactions:
		return "transactions, oldest first"
	case newestRequests:
		return "requests, newest first"
	case oldestRequests:
		return "requests, oldest first"
	case newestRequestsBack:
		return "a page of requests before another, newest first"
	case oldestRequestsBack:
		return "a page of requests before another, oldest first"
	case watchEvents:
		return "a watch"
	default:
		return ""
	}
}

// mark is a place among the changes of the store.
type mark struct {
	position Position
	database string
}

func markOf(c Change) mark { return mark{c.Position, c.Database} }

// compared is the condition that a change c stands in this way to the mark.
func (m *mark) compared(comparison string) sq.Sqlizer {
	return sq.Expr(`(c.position, c.sequence, c.database) `+comparison+` (?::pg_lsn, ?::integer, ?::text)`,
		m.position.LSN.String(), m.position.Sequence, m.database)
}

// cursor is what a Cursor says: the last result delivered; for a watch, that of
// each database. The second mark of a list of requests is how far history
// reached when the list began.
type cursor struct {
	kind  cursorKind
	marks []mark
}

const (
	cursorVersion = 1
	// maxCursor bounds what is decoded: a watch over some hundred databases.
	maxCursor = 64 << 10
)

// encode writes the version, the kind, the marks and a checksum.
func (c cursor) encode() Cursor {
	b := []byte{cursorVersion, byte(c.kind)}
	b = binary.AppendUvarint(b, uint64(len(c.marks)))
	for _, m := range c.marks {
		b = binary.AppendUvarint(b, uint64(m.position.LSN))
		b = binary.AppendUvarint(b, uint64(m.position.Sequence))
		b = binary.AppendUvarint(b, uint64(len(m.database)))
		b = append(b, m.database...)
	}
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return Cursor(base64.RawURLEncoding.EncodeToString(b))
}

var errDamagedCursor = &CursorError{Reason: "it is damaged or no cursor at all"}

func parseCursor(text Cursor) (*cursor, error) {
	if len(text) > maxCursor {
		return nil, errDamagedCursor
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(string(text))
	if err != nil || len(b) < 7 {
		return nil, errDamagedCursor
	}
	body := b[:len(b)-4]
	if crc32.ChecksumIEEE(body) != binary.BigEndian.Uint32(b[len(b)-4:]) {
		return nil, errDamagedCursor
	}
	if body[0] != cursorVersion {
		return nil, &CursorError{Reason: "it was made by another version of this package"}
	}
	c := &cursor{kind: cursorKind(body[1])}
	if c.kind.String() == "" {
		return nil, &CursorError{Reason: "it was made by another version of this package"}
	}
	r := cursorReader{b: body[2:]}
	for count := r.number(maxCursor); count > 0 && !r.bad; count-- {
		lsn := pglogrepl.LSN(r.number(math.MaxUint64))
		sequence := int(r.number(math.MaxInt32))
		c.marks = append(c.marks, mark{Position{lsn, sequence}, r.text()})
	}
	wrongCount := c.kind != watchEvents && len(c.marks) != 1
	if c.kind == newestRequests || c.kind == newestRequestsBack {
		wrongCount = len(c.marks) != 2
	}
	if r.bad || len(r.b) != 0 || wrongCount {
		return nil, errDamagedCursor
	}
	return c, nil
}

type cursorReader struct {
	b   []byte
	bad bool
}

func (r *cursorReader) number(limit uint64) uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > limit {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *cursorReader) text() string {
	size := r.number(maxCursor)
	if r.bad || size > uint64(len(r.b)) {
		r.bad = true
		return ""
	}
	text := string(r.b[:size])
	r.b = r.b[size:]
	return text
}

// watchCursor is the cursor of a watch that has delivered everything up to the
// marks, sorted so that the same state has the same text.
func watchCursor(marks map[string]Position) cursor {
	c := cursor{kind: watchEvents}
	for database, position := range marks {
		c.marks = append(c.marks, mark{position, database})
	}
	slices.SortFunc(c.marks, func(a, b mark) int { return strings.Compare(a.database, b.database) })
	return c
}
