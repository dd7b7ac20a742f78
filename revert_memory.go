package audit

import (
	"math"
	"unsafe"
)

// DefaultMaxMemory is how many bytes the rows of a revert may take in memory unless
// [Reversal.MaxMemory] says otherwise.
const DefaultMaxMemory = 256 << 20

// budget counts what the rows of a revert take in memory: their values, and what
// there is about each. It is not exact, and need not be: it is there so that a
// revert of rows that are too large is an error of the revert's, and not the end of
// the program.
type budget struct{ max, spent int64 }

// unlimited is for what is looked at when writing has begun, and not kept.
func unlimited() *budget { return &budget{max: math.MaxInt64} }

func (b *budget) spend(bytes int) { b.spent += int64(bytes) }

func (b *budget) err() error {
	if b.spent > b.max {
		return &TooLargeError{Max: b.max}
	}
	return nil
}

const (
	rowBytes      = int(unsafe.Sizeof(netRow{})) + 2*headerBytes + entryBytes
	cellBytes     = int(unsafe.Sizeof(cell{}))
	datumBytes    = int(unsafe.Sizeof(datum{}))
	positionBytes = int(unsafe.Sizeof(Position{}))
	headerBytes   = int(unsafe.Sizeof("")) // of a string
	// entryBytes is what a row takes in the index of the rows by their keys.
	entryBytes = 48
)

// bytes is what a conflict takes, but for the change behind it, which others may be
// about as well.
func (c *Conflict) bytes() int {
	size := int(unsafe.Sizeof(*c)) + len(c.origin.later)*positionBytes
	for _, value := range []*string{c.Restore, c.Live} {
		if value != nil {
			size += headerBytes + len(*value)
		}
	}
	if c.Other != nil {
		size += int(unsafe.Sizeof(*c.Other))
		for _, part := range c.Other.Key {
			size += headerBytes + len(part)
		}
	}
	return size
}

// bytes is what a change takes.
func (c *Change) bytes() int { return int(unsafe.Sizeof(*c)) + len(c.Before) + len(c.After) }

// slabs are where rows and what belongs to them are allocated: they are many, small,
// and go away together.
type slabs struct {
	rows      []netRow
	cells     []cell
	positions []Position
	keys      []string
}

// take returns room for n values, all of it empty, at the expense of the slab.
func take[T any](slab *[]T, n, size int) []T {
	if len(*slab) < n {
		*slab = make([]T, max(n, size))
	}
	room := (*slab)[:n:n]
	*slab = (*slab)[n:]
	return room
}

const (
	// slabRows is how many rows there are in a slab, when there are many.
	slabRows = 256
	// slabCells is how many cells there are in a slab then.
	slabCells = 4096
	// ownBytes is how large a value may be to be kept among others.
	ownBytes = 4 << 10
)

// room makes room for n cells of a row.
func (c *collapse) room(r *netRow, n int) {
	if n > cap(r.cells) {
		r.cells = append(take(&c.slabs.cells, n, min(n*len(c.rows), slabCells))[:0], r.cells...)
		c.budget.spend(n * cellBytes)
	}
}

// addCell adds a cell to a row.
func (c *collapse) addCell(r *netRow, k cell) {
	had := cap(r.cells)
	r.cells = append(r.cells, k)
	c.budget.spend((cap(r.cells) - had) * cellBytes)
}
