package audit

import (
	"slices"
	"strconv"
)

// writer says whose a value is.
type writer uint8

const (
	// The first is what was there before the selection.
	_ writer = iota
	// writtenBySelection is what the selection wrote.
	writtenBySelection
	// writtenByRevert is what one of our reverts wrote and nobody before it, such as
	// what a trigger put in.
	writtenByRevert
	// writtenByOther is somebody else's work.
	writtenByOther
)

// level is a value that a column has had, or whether a row was there.
type level struct {
	value string
	by    writer
	// wrote is the change that wrote it first, nil for what was there before; redone
	// is the revert that put it back last, after another one had taken it away.
	wrote, redone *writing
}

// levels are the values that a column has had since the selection began, each above
// the one that it replaced. A revert of ours adds none: it takes those away that it
// undoes, or puts those back that another revert had taken away. So what is left is
// what is in force.
type levels struct {
	stack []level
	taken []takenLevels
	// detour is the transaction of a revert that wrote last, and before is what there
	// was before it: only what it leaves in the end counts.
	detour uint64
	before *levels
}

// takenLevels are levels that a revert took away.
type takenLevels struct {
	by     *writing
	levels []level
}

// writing is a change, as far as it matters to whom a value belongs.
type writing struct {
	change Change
	by     writer
	// revert is the revert that made the change, if it was one of ours.
	revert *PastRevert
}

func newLevels(before string) *levels { return &levels{stack: []level{{value: before}}} }

// cloneLevels copies levels so that they can change without the copies.
func cloneLevels(columns map[int]*levels) map[int]*levels {
	clones := make(map[int]*levels, len(columns))
	for at, l := range columns {
		clones[at] = l.clone()
	}
	return clones
}

func (l *levels) clone() *levels {
	return &levels{stack: slices.Clone(l.stack), taken: slices.Clone(l.taken), detour: l.detour, before: l.before}
}

func (l *levels) top() level { return l.stack[len(l.stack)-1] }

// write takes note of a value that a change has given to the column.
func (l *levels) write(value string, w *writing) {
	switch {
	case w.by != writtenByRevert:
		l.detour, l.before = 0, nil
	case l.before != nil && l.detour == w.change.TransactionID:
		*l = levels{stack: slices.Clone(l.before.stack), taken: slices.Clone(l.before.taken), detour: l.detour, before: l.before}
		if l.top().value == value {
			return
		}
	default:
		l.before = nil
		l.detour, l.before = w.change.TransactionID, l.clone()
	}
	switch {
	case w.by != writtenByRevert:
		l.stack = append(l.stack, level{value: value, by: w.by, wrote: w})
	case l.putBack(value, w, w.revert.Of.covers), l.takeUnit(value, w), l.takeDownTo(value, w):
	case w.revert.Of.repeatable() && l.putBack(value, w, func(*Change) bool { return true }):
	case l.takeUndone(value, w):
	case l.top().value != value:
		// It is older than the selection: all that was written since is taken away.
		l.taken = append(l.taken, takenLevels{w, l.stack})
		l.stack = []level{{value: value, by: writtenByRevert, wrote: w}}
	}
}

// changedBack takes away what somebody's transaction has written if it ends with what it
// began with: a trigger counts down and up again, and nobody's work is in that.
func (l *levels) changedBack(value string, w *writing) bool {
	begin := len(l.stack)
	for begin > 0 && l.stack[begin-1].by == writtenByOther && l.stack[begin-1].wrote.change.TransactionID == w.change.TransactionID {
		begin--
	}
	if begin == 0 || begin == len(l.stack) || l.stack[begin-1].value != value {
		return false
	}
	l.stack, l.detour, l.before = l.stack[:begin], 0, nil
	return true
}

// putBack puts back what the last of certain reverts has taken away, if that leads to
// the value: whoever undoes an undo does again what it undid.
func (l *levels) putBack(value string, w *writing, of func(*Change) bool) bool {
	for i := len(l.taken) - 1; i >= 0; i-- {
		t := l.taken[i]
		if !of(&t.by.change) || t.levels[len(t.levels)-1].value != value {
			continue
		}
		for _, level := range t.levels {
			level.redone = w
			l.stack = append(l.stack, level)
		}
		l.taken = slices.Delete(l.taken, i, i+1)
		return true
	}
	return false
}

// without parts the levels that the unit of the revert has written from the others.
func (l *levels) without(w *writing) (left, gone []level) {
	for _, level := range l.stack {
		if level.wrote != nil && w.revert.Of.covers(&level.wrote.change) || level.redone != nil && w.revert.Of.covers(&level.redone.change) {
			gone = append(gone, level)
		} else {
			left = append(left, level)
		}
	}
	return left, gone
}

// takeUnit takes away what the unit of the revert has written, if that leads to the
// value.
func (l *levels) takeUnit(value string, w *writing) bool {
	left, gone := l.without(w)
	if len(gone) == 0 || len(left) == 0 || left[len(left)-1].value != value {
		return false
	}
	l.stack, l.taken = left, append(l.taken, takenLevels{w, gone})
	return true
}

// takeUndone takes away what the unit of the revert has written, though the value is
// another: a trigger had the last word.
func (l *levels) takeUndone(value string, w *writing) bool {
	left, gone := l.without(w)
	if len(gone) == 0 || len(left) == 0 {
		return false
	}
	l.taken = append(l.taken, takenLevels{w, gone})
	l.stack = append(left, level{value: value, by: writtenByRevert, wrote: w})
	return true
}

// takeDownTo takes away all that lies above the value.
func (l *levels) takeDownTo(value string, w *writing) bool {
	for i := len(l.stack) - 2; i >= 0; i-- {
		if l.stack[i].value == value {
			l.taken = append(l.taken, takenLevels{w, slices.Clone(l.stack[i+1:])})
			l.stack = l.stack[:i+1]
			return true
		}
	}
	return false
}

// undone reports whether nothing of what the selection wrote is in force: reverts of
// ours have taken it away, whatever others wrote afterwards.
func (l *levels) undone() bool {
	if l.top().by == writtenByRevert {
		return true
	}
	for _, level := range l.stack {
		if level.by == writtenBySelection {
			return false
		}
	}
	return true
}

// others reports whether somebody else wrote after the selection had begun, and that
// is in force or covered by the selection.
func (l *levels) others() bool {
	for _, level := range l.stack {
		if level.by == writtenByOther {
			return true
		}
	}
	return false
}

// othersWork is what others wrote that is in force or covered by the selection. It reports
// false where one of our reverts has left something of its own.
func (l *levels) othersWork() (work othersWork, ok bool) {
	for _, level := range l.stack {
		switch level.by {
		case writtenByRevert:
			return othersWork{}, false
		case writtenByOther:
			work.at, work.last = append(work.at, level.wrote.change.Position), &level.wrote.change
		}
	}
	return work, true
}

// othersBehind is others, of what is in force behind a position.
func (l *levels) othersBehind(at Position) bool {
	return slices.ContainsFunc(l.stack, func(level level) bool {
		return level.by == writtenByOther && level.wrote.change.Position.Compare(at) > 0
	})
}

// covers reports whether a change belongs to the unit, as far as the change tells.
func (u Unit) covers(c *Change) bool {
	id := ""
	switch u.Kind {
	case "request":
		id = c.Context.RequestID
	case "transaction":
		id = strconv.FormatUint(c.TransactionID, 10)
	case "trace":
		id = c.Context.TraceID
	case "change":
		id = c.Position.String()
	case "revert":
		past, _ := c.Revert()
		id = past.ID
	}
	return id != "" && Unit{Kind: u.Kind, ID: id}.stamped() == u.stamped()
}
