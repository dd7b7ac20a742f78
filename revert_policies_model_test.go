package audit_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
)

// realmState is all rows of a realm by their names, each with its values by
// column. NULL is left out.
type realmState map[string]map[string]string

// netChange is what a request did to one row in the end. It has no before if the
// request made the row, and no after if it removed it.
type netChange struct {
	table         *realmTable
	from, to      string // the row's name before and after
	before, after map[string]string

	// What the model makes of it.
	idle    bool // there is nothing to do, or nothing to be done
	blocked bool // the row itself is in conflict
	skipped bool
}

// key is the name that a plan knows the row by.
func (n *netChange) key() string {
	if n.after == nil {
		return n.from
	}
	return n.to
}

func (n *netChange) active() bool { return !n.idle && !n.skipped }

// nets puts together what a request did.
func (w *realm) nets(t *testing.T, request string) []*netChange {
	t.Helper()
	var all []*netChange
	index := make(map[string]*netChange)
	for c, err := range w.Client.Changes().InRequest(request).OldestFirst().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		table := w.table(t, c.TableName())
		row := rowName(table, c.KeyParts())
		from := row
		if c.KeyChanged {
			from = rowName(table, c.PreviousKeyParts())
		}
		n := index[from]
		if n == nil {
			n = &netChange{table: table}
			if c.Operation != audit.Create {
				n.from, n.before = from, imageValues(c.Before)
			}
			all = append(all, n)
		}
		delete(index, from)
		index[row] = n
		n.to, n.after = row, imageValues(c.After)
		if c.Operation == audit.Delete {
			n.to, n.after = "", nil
		}
	}
	return slices.DeleteFunc(all, func(n *netChange) bool { return maps.Equal(n.before, n.after) })
}

// changed reports whether the request changed a column.
func (n *netChange) changed(column string) bool {
	return n.before == nil || n.after == nil || n.before[column] != n.after[column]
}

// undone is the row as it is when the change is undone in the live one.
func (n *netChange) undone(live realmState) map[string]string {
	if n.before == nil || n.after == nil {
		return n.before
	}
	row := make(map[string]string)
	for _, column := range n.table.columns() {
		value := live[n.to][column]
		if n.changed(column) {
			value = n.before[column]
		}
		if value != "" {
			row[column] = value
		}
	}
	return row
}

// alters reports whether undoing it gives the live row other values in some columns, or
// takes it away.
func (n *netChange) alters(live realmState, columns []string) bool {
	if n.before == nil {
		return true
	}
	row := n.undone(live)
	return slices.ContainsFunc(columns, func(c string) bool { return row[c] != live[n.to][c] })
}

// renames reports whether undoing it takes the live row away from its key.
func (n *netChange) renames() bool { return n.after != nil && n.from != n.to }

// prophecy says what reverting some net changes comes to.
type prophecy struct {
	w    *realm
	nets []*netChange
	live realmState
	// later is what others did to the rows that the request made.
	later map[string]*workOfOthers
	// found are the conflicts, as "kind row column".
	found []string
}

func (p *prophecy) conflict(kind audit.ConflictKind, n *netChange, column string) {
	p.found = append(p.found, strings.TrimSpace(kind.String()+" public."+n.key()+" "+column))
}

// rows finds the conflicts between the rows of the request and the live ones.
func (p *prophecy) rows() {
	leaving := make(map[string]bool)
	for _, n := range p.nets {
		if n.renames() && p.live[n.to] != nil {
			leaving[n.to] = true
		}
	}
	for _, n := range p.nets {
		before := len(p.found)
		live := p.live[n.to]
		switch {
		case n.after == nil: // to be put back
			there := p.live[n.from]
			n.idle = there != nil && !leaving[n.from] && maps.Equal(there, n.before)
			if there != nil && !leaving[n.from] {
				p.conflict(audit.RowRecreated, n, "")
			}
		case live == nil:
			n.idle = true
			p.conflict(audit.RowGone, n, "")
		default:
			n.idle = n.before != nil && !n.alters(p.live, n.table.columns())
			for _, column := range n.table.columns() {
				switch {
				case !n.changed(column):
				case live[column] != n.after[column] && n.before != nil && live[column] == n.before[column]:
					p.conflict(audit.ValueReturned, n, column)
				case live[column] != n.after[column]:
					p.conflict(audit.ColumnChanged, n, column)
				case n.before == nil && p.later[n.to] != nil && !p.later[n.to].remade && slices.Contains(p.later[n.to].touched, column):
					p.conflict(audit.ColumnChanged, n, column)
				}
			}
			if n.before == nil && p.later[n.to] != nil && p.later[n.to].remade {
				p.conflict(audit.RowRecreated, n, "")
			}
		}
		n.blocked = len(p.found) > before
	}
}

// at returns the net change that does something to a live row.
func (p *prophecy) at(row string) *netChange {
	i := slices.IndexFunc(p.nets, func(n *netChange) bool { return n.active() && n.after != nil && n.to == row })
	if i < 0 {
		return nil
	}
	return p.nets[i]
}

// comesBack reports whether a row is put back, or gets its key back.
func (p *prophecy) comesBack(row string) bool {
	return slices.ContainsFunc(p.nets, func(n *netChange) bool { return n.active() && n.from == row })
}

// structure finds the conflicts with other rows, and tells who has one.
func (p *prophecy) structure() []*netChange {
	var hit []*netChange
	for _, n := range p.nets {
		if !n.active() {
			continue
		}
		before := len(p.found)
		if n.renames() {
			p.references(n)
		}
		if n.before != nil {
			p.parents(n)
			p.uniques(n)
		}
		if len(p.found) > before {
			hit = append(hit, n)
		}
	}
	return hit
}

func (p *prophecy) references(n *netChange) {
	for _, t := range p.w.tables {
		for _, l := range t.links {
			if l.parent != n.table || l.onUpdate == "CASCADE" && n.before != nil {
				continue
			}
			for name, row := range p.live {
				if !strings.HasPrefix(name, t.name+"[") || l.target(row) != n.to {
					continue
				}
				if child := p.at(name); child == nil || !child.alters(p.live, l.columns()) {
					p.conflict(audit.Referenced, n, "")
				}
			}
		}
	}
}

func (p *prophecy) parents(n *netChange) {
	for _, l := range n.table.links {
		if n.after != nil && !n.alters(p.live, l.columns()) {
			continue
		}
		parent := l.target(n.undone(p.live))
		if parent == "" || p.comesBack(parent) {
			continue
		}
		if leaves := p.at(parent); p.live[parent] == nil || leaves != nil && leaves.renames() {
			p.conflict(audit.ParentMissing, n, "")
		}
	}
}

func (p *prophecy) uniques(n *netChange) {
	columns := [][]string{n.table.key()}
	if n.table.unique {
		columns = append(columns, []string{"u"})
	}
	row := n.undone(p.live)
	for _, key := range columns {
		if n.after != nil && !n.alters(p.live, key) {
			continue
		}
		for name, holder := range p.live {
			own := n.after != nil && name == n.to || n.after == nil && name == n.from
			same := !slices.ContainsFunc(key, func(c string) bool { return row[c] == "" || row[c] != holder[c] })
			if own || !same || !strings.HasPrefix(name, n.table.name+"[") {
				continue
			}
			if other := p.at(name); other == nil || !other.alters(p.live, key) {
				p.conflict(audit.UniqueTaken, n, "")
			}
		}
		// What the request took from the row, it took later from another one, which
		// somebody had given it in between.
		for _, other := range p.nets[slices.Index(p.nets, n)+1:] {
			if other.table != n.table || !other.active() || other.before == nil || other.after != nil && !other.alters(p.live, key) {
				continue
			}
			again := other.undone(p.live)
			if !slices.ContainsFunc(key, func(c string) bool { return row[c] == "" || row[c] != again[c] }) {
				p.conflict(audit.UniqueTaken, n, "")
			}
		}
	}
}

// outcome is the state when everything that is active is undone.
func (p *prophecy) outcome() realmState {
	state := maps.Clone(p.live)
	renamed := make(map[string]string)
	for _, n := range p.nets {
		if n.active() && n.after != nil {
			delete(state, n.to)
			renamed[n.to] = n.from
		}
	}
	for name, row := range state {
		state[name] = p.follow(name, row, renamed)
	}
	for _, n := range p.nets {
		if n.active() && n.before != nil {
			row := n.undone(p.live)
			if n.after != nil && !n.blocked { // columns that the request left alone may follow, too
				row = p.followUnchanged(n, row, renamed)
			}
			state[n.from] = row
		}
	}
	return state
}

// follow has a row reference the new keys of its parents, where ON UPDATE CASCADE
// does that.
func (p *prophecy) follow(name string, row, renamed map[string]string) map[string]string {
	for _, t := range p.w.tables {
		if !strings.HasPrefix(name, t.name+"[") {
			continue
		}
		for _, l := range t.links {
			row = l.follow(row, renamed)
		}
	}
	return row
}

func (p *prophecy) followUnchanged(n *netChange, row, renamed map[string]string) map[string]string {
	for _, l := range n.table.links {
		if !n.alters(p.live, l.columns()) {
			row = l.follow(row, renamed)
		}
	}
	return row
}

func (l *realmLink) follow(row, renamed map[string]string) map[string]string {
	to := renamed[l.target(row)]
	if l.onUpdate != "CASCADE" || to == "" {
		return row
	}
	row = maps.Clone(row)
	key := strings.Split(strings.TrimSuffix(to[strings.Index(to, "[")+1:], "]"), ",")
	for i, column := range l.columns() {
		row[column] = key[i]
	}
	return row
}
