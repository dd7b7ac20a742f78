package audit

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// step is one statement of a revert.
type step struct {
	group *group
	// side reports whether the step only prepares or completes others: it takes a
	// unique value out of the way, or a reference that goes round in a circle.
	side bool
	// final is the rows as they are to be in the end, where the statement leaves
	// references empty for others to set; nil: as in the group.
	final *group
}

// parking is a row whose unique value another row is to have before the row itself
// gives it up.
type parking struct {
	row    *netRow
	index  *pgcatalog.UniqueIndex
	action Operation // of the row that is to have it
}

func (p *planner) park(r *netRow, u *pgcatalog.UniqueIndex, action Operation) {
	p.parked = append(p.parked, parking{row: r, index: u, action: action})
}

// order puts the statements into an order in which every foreign key and every
// unique index holds after each of them: rows are removed first, children before
// parents, and put back parents before children. Where rows to be removed are
// still referenced by rows that are to be given back another parent, they are
// removed last.
func (p *planner) order() ([]step, error) {
	rows := p.activeRows()
	for _, r := range rows {
		r.parkedKey, r.parkedWhole = nil, nil
	}
	p.deleteFirst()
	broken, err := p.rank(rows)
	if err != nil {
		return nil, err
	}
	parks, err := p.parkingSteps(p.updatesFirst)
	if err != nil {
		return nil, err
	}
	loosened, childrenFirst := p.loosen(false)
	// References of rows to be updated wait if the order cannot be one that suits them.
	detour := childrenFirst || len(broken) > 0 || p.updatesFirst && p.insertsFirst
	if detour {
		loosened, childrenFirst = p.loosen(true)
	}
	var inserts, updates, deletes, unlinks, relinks []step
	for _, g := range groupRows(rows) {
		switch g.action {
		case Create:
			insert, relink := g.withoutReferences(broken)
			inserts = append(inserts, step{group: insert, final: g})
			if relink != nil {
				if g.table.keyless {
					return nil, &UnrevertableError{Table: g.table.label(), Reason: "its foreign keys go round in a circle, and without a primary key its rows cannot be found again: make one of them DEFERRABLE"}
				}
				relinks = append(relinks, step{group: relink, side: true})
			}
		case Delete:
			deletes = append(deletes, step{group: g})
			if unlink := g.unlink(broken); unlink != nil {
				unlinks = append(unlinks, step{group: unlink, side: true})
			}
		default:
			var relink *group
			if detour && len(p.coming) > 0 {
				g, relink = g.postpone(p.coming)
			}
			if g != nil {
				updates = append(updates, step{group: g})
			}
			if relink != nil {
				relinks = append(relinks, step{group: relink, side: true})
			}
		}
	}
	byRank := func(a, b step) int { return a.group.table.rank - b.group.table.rank }
	slices.SortStableFunc(inserts, byRank)
	slices.SortStableFunc(updates, byRank)
	if childrenFirst {
		slices.SortStableFunc(updates, func(a, b step) int { return byRank(b, a) })
	}
	slices.SortStableFunc(deletes, func(a, b step) int { return byRank(b, a) })
	deletes = append(unlinks, deletes...)
	puts := slices.Concat(parks, inserts, updates, relinks)
	if p.updatesFirst {
		puts = slices.Concat(parks, updates, inserts, relinks)
	}
	if p.deletesLast {
		return slices.Concat(loosened, puts, deletes), nil
	}
	return slices.Concat(loosened, deletes, puts), nil
}

// rank orders the tables, parents before children, and returns the foreign keys
// that go round in a circle and are to be left empty at first. Those that can be
// deferred do not bind.
func (p *planner) rank(rows []*netRow) ([]*pgcatalog.ForeignKey, error) {
	involved := make(map[uint32]*target)
	for _, r := range rows {
		involved[r.table.OID] = r.table
	}
	groups := groupRows(rows)
	// moves reports whether rows of a table come, go, or change in one of the columns.
	moves := func(oid uint32, columns []string) bool {
		return slices.ContainsFunc(groups, func(g *group) bool {
			return g.table.OID == oid && (g.action != Update || g.touches(columns))
		})
	}
	var edges, broken []*pgcatalog.ForeignKey
	for _, t := range involved {
		for _, f := range t.Parents {
			switch {
			case !moves(f.ChildOID, f.Columns) && !moves(f.ParentOID, f.References): // it stays as it is
			case f.Deferrable && f.OnDelete != "r" || involved[f.ParentOID] == nil: // RESTRICT is never deferred
			case f.ChildOID == f.ParentOID:
				// Within one statement only RESTRICT minds the order.
				if f.OnDelete == "r" && f.Nullable {
					broken = append(broken, f)
				}
			default:
				edges = append(edges, f)
			}
		}
	}
	slices.SortFunc(edges, func(a, b *pgcatalog.ForeignKey) int { return strings.Compare(a.Constraint(), b.Constraint()) })
	left := make(map[uint32]bool)
	var order []uint32
	for oid := range involved {
		left[oid] = true
		order = append(order, oid)
	}
	slices.Sort(order)
	for rank := 0; len(left) > 0; rank++ {
		next := slices.IndexFunc(order, func(oid uint32) bool {
			return left[oid] && !slices.ContainsFunc(edges, func(f *pgcatalog.ForeignKey) bool { return f.ChildOID == oid && left[f.ParentOID] })
		})
		if next < 0 {
			circle := slices.IndexFunc(edges, func(f *pgcatalog.ForeignKey) bool {
				return f.Nullable && left[f.ChildOID] && left[f.ParentOID] && reaches(edges, left, f.ParentOID, f.ChildOID)
			})
			if circle < 0 {
				f := edges[slices.IndexFunc(edges, func(f *pgcatalog.ForeignKey) bool { return left[f.ChildOID] && left[f.ParentOID] })]
				return nil, &UnrevertableError{Table: f.ChildName(), Reason: fmt.Sprintf("foreign key %q goes round in a circle, cannot be deferred and cannot be NULL: make it DEFERRABLE", f.Name)}
			}
			broken = append(broken, edges[circle])
			edges = slices.Delete(edges, circle, circle+1)
			rank--
			continue
		}
		involved[order[next]].rank = rank
		delete(left, order[next])
	}
	return broken, nil
}

// reaches reports whether foreign keys lead from one table to another.
func reaches(edges []*pgcatalog.ForeignKey, left map[uint32]bool, from, to uint32) bool {
	seen := map[uint32]bool{from: true}
	for queue := []uint32{from}; len(queue) > 0; queue = queue[1:] {
		if queue[0] == to {
			return true
		}
		for _, f := range edges {
			if f.ChildOID == queue[0] && left[f.ParentOID] && !seen[f.ParentOID] {
				seen[f.ParentOID] = true
				queue = append(queue, f.ParentOID)
			}
		}
	}
	return false
}

// referencing returns where the columns of broken foreign keys stand.
func (g *group) referencing(broken []*pgcatalog.ForeignKey) []int {
	var at []int
	for _, f := range broken {
		if f.ChildOID != g.table.OID {
			continue
		}
		for _, name := range f.Columns {
			if i := g.table.Columns.Index[name]; slices.Contains(g.columns, i) && !slices.Contains(at, i) {
				at = append(at, i)
			}
		}
	}
	return at
}

// withoutReferences splits an INSERT into one without the references of broken
// foreign keys, and an UPDATE that sets them.
func (g *group) withoutReferences(broken []*pgcatalog.ForeignKey) (insert, relink *group) {
	at := g.referencing(slices.DeleteFunc(slices.Clone(broken), func(f *pgcatalog.ForeignKey) bool { return f.ChildOID == f.ParentOID }))
	if len(at) == 0 {
		return g, nil
	}
	insert = &group{table: g.table, action: Create}
	relink = &group{table: g.table, action: Update}
	for _, r := range g.rows {
		bare := *r
		bare.cells = slices.Clone(r.cells)
		link := &netRow{table: r.table, key: r.restoredKey(), action: Update, positions: r.positions}
		for i := range bare.cells {
			c := &bare.cells[i]
			if slices.Contains(at, c.column) && c.restore.text != nil {
				link.cells = append(link.cells, cell{column: c.column, restore: c.restore})
				c.restore = datum{known: true}
			}
		}
		insert.rows = append(insert.rows, &bare)
		if len(link.cells) > 0 {
			relink.rows = append(relink.rows, link)
		}
	}
	insert.settle()
	relink.settle()
	if len(relink.rows) == 0 {
		relink = nil
	}
	return insert, relink
}

// unlink is an UPDATE that empties the references of broken foreign keys in rows
// that are to be deleted.
func (g *group) unlink(broken []*pgcatalog.ForeignKey) *group {
	u := &group{table: g.table, action: Update}
	at := g.referencing(broken)
	for _, r := range g.rows {
		empty := &netRow{table: r.table, key: r.key, action: Update, positions: r.positions, whole: r.whole}
		for _, column := range at {
			if c := r.cell(column); c != nil && c.seen().text != nil {
				empty.cells = append(empty.cells, cell{column: column, restore: datum{known: true}})
				if r.table.keyless {
					r.parkAt(column, datum{known: true})
				}
			}
		}
		if len(empty.cells) > 0 {
			u.rows = append(u.rows, empty)
		}
	}
	if len(u.rows) == 0 {
		return nil
	}
	u.settle()
	return u
}

// parkingSteps are UPDATEs that give rows a value nobody else has, where another
// row needs theirs first.
func (p *planner) parkingSteps(updatesFirst bool) ([]step, error) {
	parked := make(map[*netRow]*netRow) // one row of the statement for each, whatever is parked of it
	groups := make(map[*target]*group)
	var order []*group
	for n, k := range p.parked {
		if k.row.action == Delete && !p.deletesLast || k.row.action == Update && k.action == Create && updatesFirst {
			continue
		}
		at, value, ok := k.place(n)
		if !ok {
			return nil, &UnrevertableError{
				Table: k.row.table.label(), Position: k.row.first(),
				Reason: fmt.Sprintf("rows would swap their values of %q, which takes a value for the time in between, and there is none for its columns: make the constraint DEFERRABLE", k.index.Name),
			}
		}
		g := groups[k.row.table]
		if g == nil {
			g = &group{table: k.row.table, action: Update}
			groups[k.row.table] = g
			order = append(order, g)
		}
		r := parked[k.row]
		if r == nil {
			r = &netRow{table: k.row.table, key: k.row.key, action: Update, positions: k.row.positions, whole: k.row.whole}
			g.rows, parked[k.row] = append(g.rows, r), r
		}
		if r.cell(at) == nil {
			r.cells = append(r.cells, cell{column: at, restore: value})
			k.row.parkAt(at, value)
		}
	}
	var steps []step
	for _, g := range order {
		g.settle()
		steps = append(steps, step{group: g, side: true})
	}
	return steps, nil
}

// liveKey is the key under which a statement finds the row.
func (r *netRow) liveKey() []string {
	if r.parkedKey != nil {
		return r.parkedKey
	}
	return r.key
}

// parkAt notes the key that the row has while it is parked, or what it holds.
func (r *netRow) parkAt(column int, value datum) {
	if r.table.keyless {
		if r.parkedWhole == nil {
			r.parkedWhole = slices.Clone(r.whole)
		}
		r.parkedWhole[column] = value
		return
	}
	if k := slices.Index(r.table.keyAt, column); k >= 0 {
		r.parkedKey = slices.Clone(r.liveKey())
		r.parkedKey[k] = string(value.text)
	}
}

// place chooses the column that is given another value, and the value: NULL, if it
// may be that. A row that leaves a partial index by what its predicate says is given
// what it is to have in the end.
func (k parking) place(n int) (at int, value datum, ok bool) {
	t := k.row.table
	for _, name := range k.index.Columns {
		at, ok := t.Columns.Index[name]
		if ok && !k.index.NullsNotDistinct && !t.Columns.List[at].NotNull && k.parks(name) && k.row.changes([]string{name}) && !slices.Contains(t.Key, name) {
			return at, datum{known: true}, true
		}
	}
	for _, name := range k.index.Columns {
		at, ok := t.Columns.Index[name]
		if !ok || !k.parks(name) || t.Columns.List[at].Identity == "a" || !k.row.changes([]string{name}) && k.row.action == Update {
			continue
		}
		if text, ok := parkingText(&t.Columns.List[at], n); ok {
			return at, datum{text: []byte(text), known: true}, true
		}
	}
	for _, name := range k.index.Conditions {
		if at, ok := t.Columns.Index[name]; ok && k.row.action == Update && k.row.changes([]string{name}) {
			return at, k.row.cell(at).restore, true
		}
	}
	return 0, datum{}, false
}

// parks reports whether a value of the column's own would take the row out of the way.
func (k parking) parks(name string) bool {
	return !k.row.table.Columns.List[k.row.table.Columns.Index[name]].Generated && !slices.Contains(k.index.Conditions, name)
}

// parkingText is a value of the column's type that nobody uses.
func parkingText(c *pgcatalog.Column, n int) (string, bool) {
	switch c.TypeOID {
	case 21: // int2
		return strconv.Itoa(-1<<15 + n), n < 1<<15
	case 23: // int4
		return strconv.Itoa(-1<<31 + n), true
	case 20: // int8
		return strconv.Itoa(-1<<63 + n), true
	case 1700: // numeric
		return "-" + strconv.Itoa(n+1) + strings.Repeat("0", 60), c.TypeMod < 0
	case 25, 1043: // text, varchar
		text := "~" + strconv.FormatInt(int64(n), 36)
		return text, c.TypeMod < 0 || len(text) <= int(c.TypeMod)-4
	case 2950: // uuid
		return hex.EncodeToString(fmt.Appendf(nil, "~audit~%9d", n)), true
	case 1082: // date
		return time.Date(1, 1, 1+n, 0, 0, 0, 0, time.UTC).Format(time.DateOnly), true
	case 1114, 1184: // timestamp, timestamptz
		return time.Date(1, 1, 1, 0, 0, n, 0, time.UTC).Format("2006-01-02 15:04:05+00"), true
	}
	if strings.HasSuffix(c.TypeName, "multirange") {
		return "{}", true
	}
	return "empty", strings.HasSuffix(c.TypeName, "range") && len(c.Labels) == 0 // an enum may be called so
}
