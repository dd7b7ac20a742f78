package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/hindsight-go/audit/internal/wal"
)

const (
	// maxOther bounds the messages of which all is needed: descriptions of tables,
	// TRUNCATE, errors. None that a server sends comes near it.
	maxOther = 4 << 20
	// smallValue is what a value may have to be kept in a row of any size, so that a
	// large column never costs the row its key.
	smallValue = 8 << 10
	// maxPrefix is more than any prefix that is asked for.
	maxPrefix = 256
	// cutMessage marks, in the flags of a logical message, that the true size of its
	// content follows the size of what was kept.
	cutMessage = 0x80
)

// limits bound what is kept of a message.
type limits struct {
	row      int // bytes of the values of one version of a row
	context  int // bytes of the content of a context message
	prefixes []string
}

// condenser takes a message that is larger than the read buffer while it arrives
// and keeps no more of it than the limits allow: anybody who may log in can put a
// gigabyte into the stream. What comes out is the same message, in which values
// that were left out are wal.Omitted, and the content of a logical message is cut.
type condenser struct {
	limits limits
	kind   byte
	left   int // bytes of the message that are still to come
	out    []byte
	keep   int // bytes to pass on, before
	drop   int // bytes to leave out, before the next step
	// step looks at what has arrived, and says how much of it it has used and how
	// much it needs to see if that is not enough. nil is the end.
	step func(c *condenser, head []byte) (used, needs int, err error)

	operation, marker byte
	columns           int // of the tuple that are still to come
	budget            int // of the tuple
}

func newCondenser(l limits, kind byte, size int) *condenser {
	c := &condenser{limits: l, kind: kind, left: size, step: (*condenser).all}
	if kind == 'd' {
		c.step = (*condenser).frame
	}
	return c
}

// feed takes what has arrived and reports how much of it was used, and whether the
// message is complete.
func (c *condenser) feed(b []byte) (used int, done bool, err error) {
	b = b[:min(len(b), c.left)]
	for {
		n := min(c.keep, len(b)-used)
		c.out = append(c.out, b[used:used+n]...)
		used, c.keep, c.left = used+n, c.keep-n, c.left-n
		if c.keep > 0 {
			return used, false, nil
		}
		n = min(c.drop, len(b)-used)
		used, c.drop, c.left = used+n, c.drop-n, c.left-n
		if c.drop > 0 {
			return used, false, nil
		}
		if c.step == nil {
			if c.left > 0 {
				return used, false, c.wrong(fmt.Errorf("%d bytes too many", c.left))
			}
			return used, true, nil
		}
		n, needs, err := c.step(c, b[used:])
		used, c.left = used+n, c.left-n
		switch {
		case err != nil:
			return used, false, c.wrong(err)
		case needs > c.left || c.keep+c.drop > c.left:
			return used, false, c.wrong(errShort)
		case needs > 0:
			return used, false, nil
		}
	}
}

func (c *condenser) wrong(err error) error {
	kind := c.kind
	if c.operation != 0 {
		kind = c.operation
	}
	return &DecodeError{Message: kind, Reason: err}
}

// all keeps the whole message.
func (c *condenser) all([]byte) (used, needs int, err error) {
	if c.left > maxOther {
		return 0, 0, fmt.Errorf("it has %d bytes, more than such a message can have", c.left)
	}
	c.keep, c.step = c.left, nil
	return 0, 0, nil
}

// frame looks at the head of a CopyData message and at what it carries.
func (c *condenser) frame(head []byte) (used, needs int, err error) {
	const frame = 25 // of XLogData
	if len(head) < frame+1 {
		return 0, frame + 1, nil
	}
	if head[0] != 'w' {
		return 0, 0, errors.New("unknown replication message")
	}
	c.keep = frame
	switch c.operation = head[frame]; c.operation {
	case msgInsert, msgUpdate, msgDelete:
		c.step = (*condenser).row
	case msgMessage:
		c.step = (*condenser).message
	default:
		c.step = (*condenser).all
	}
	return 0, 0, nil
}

// message keeps the beginning of the content of a context, and nothing of that of
// other messages.
func (c *condenser) message(head []byte) (used, needs int, err error) {
	const fixed = 1 + 1 + 8 // kind, flags, LSN
	if len(head) < fixed {
		return 0, fixed, nil
	}
	name := head[fixed:min(len(head), fixed+maxPrefix)]
	end := bytes.IndexByte(name, 0)
	if end < 0 {
		if all := min(c.left, fixed+maxPrefix); len(head) < all {
			return 0, all, nil
		}
		// Nobody asks for such a prefix: the message is one that is ignored.
		c.out = append(c.out, head[:fixed+len(name)]...)
		c.out = append(c.out, 0, 0, 0, 0, 0)
		c.drop, c.step = c.left, nil
		return 0, 0, nil
	}
	whole := fixed + end + 1 + 4
	if len(head) < whole {
		return 0, whole, nil
	}
	content, kept := c.left-whole, 0
	if int(binary.BigEndian.Uint32(head[whole-4:])) != content {
		return 0, 0, errShort
	}
	if head[1]&1 != 0 && slices.Contains(c.limits.prefixes, string(name[:end])) {
		kept = min(content, c.limits.context)
	}
	c.out = append(c.out, head[0], head[1]|cutMessage)
	c.out = append(c.out, head[2:whole-4]...)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(kept))
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(content))
	c.keep, c.drop, c.step = kept, content-kept, nil
	return whole, 0, nil
}

// row is the head of a change of a row.
func (c *condenser) row(head []byte) (used, needs int, err error) {
	const fixed = 1 + 4 + 1 // kind, relation, the marker of the first tuple
	if len(head) < fixed {
		return 0, fixed, nil
	}
	c.keep = fixed
	return 0, 0, c.mark(head[fixed-1])
}

func (c *condenser) mark(marker byte) error {
	switch c.marker = marker; marker {
	case 'O', 'K', 'N':
		c.step = (*condenser).tuple
		return nil
	}
	return fmt.Errorf("unknown tuple kind %q", marker)
}

func (c *condenser) tuple(head []byte) (used, needs int, err error) {
	if len(head) < 2 {
		return 0, 2, nil
	}
	c.columns, c.budget = int(binary.BigEndian.Uint16(head)), c.limits.row
	c.keep, c.step = 2, (*condenser).column
	return 0, 0, nil
}

// column keeps a value if there is room for it in its version of the row.
func (c *condenser) column(head []byte) (used, needs int, err error) {
	switch {
	case c.columns == 0 && c.operation == msgUpdate && c.marker != 'N':
		if len(head) < 1 {
			return 0, 1, nil
		}
		c.keep = 1
		return 0, 0, c.mark(head[0])
	case c.columns == 0:
		c.step = nil
		return 0, 0, nil
	case len(head) < 1:
		return 0, 1, nil
	}
	switch wal.State(head[0]) {
	case wal.Null, wal.Unchanged:
		c.columns--
		c.keep = 1
		return 0, 0, nil
	case wal.Text:
	default:
		return 0, 0, fmt.Errorf("a column has the unknown kind %q", head[0])
	}
	const prefix = 1 + 4
	if len(head) < prefix {
		return 0, prefix, nil
	}
	c.columns--
	size := int(binary.BigEndian.Uint32(head[1:]))
	if size > c.left-prefix {
		return 0, 0, errShort
	}
	if size > smallValue && size > c.budget {
		c.out = append(c.out, byte(wal.Omitted))
		c.out = append(c.out, head[1:prefix]...)
		c.drop = size
		return prefix, 0, nil
	}
	c.budget -= size
	c.keep = prefix + size
	c.out = slices.Grow(c.out, c.keep)
	return 0, 0, nil
}
