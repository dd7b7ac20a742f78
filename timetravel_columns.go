package audit

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/hindsight-go/audit/store"
)

// pastVersion is where the columns of then are in the images of a version of the table.
type pastVersion struct {
	position LSN
	sequence int // how many changes of its transaction came before it
	index    map[string]int
	// Behind until the table was altered, at some time before the next version: what
	// the stream does not tell of a change is not known from there on. late is index
	// without it.
	until LSN
	late  map[string]int
}

func (p *pastTable) columnsOf(ctx context.Context, v store.Version) (*columnSet, error) {
	list := make([]column, len(v.Columns))
	for i, c := range v.Columns {
		kind, err := p.client.kinds.Of(ctx, c.TypeOID)
		if err != nil {
			return nil, wrap("look up type", err)
		}
		list[i] = column{
			name: c.Name, attnum: c.Attnum, typeOID: c.TypeOID, typeMod: c.TypeMod, typeName: c.Type, kind: kind,
			generated: c.Generated, identity: c.Identity, derived: c.Generated != "", expression: c.Expression, definition: c.Definition,
			rewritten: c.Rewritten,
		}
		if c.Type == "" {
			if err := p.client.source.QueryRow(ctx, "SELECT coalesce(pg_catalog.format_type($1, $2), 'text')", c.TypeOID, c.TypeMod).Scan(&list[i].typeName); err != nil {
				return nil, wrap("look up type", err)
			}
		}
	}
	return newColumnSet(list), nil
}

// matchLive finds the columns of then in the table of now. If they are just the
// same, so is what the catalog of now says beside.
func (p *pastTable) matchLive() error {
	if p.live == nil {
		p.hide()
		return p.project()
	}
	if p.live.columns.same(p.columns) {
		p.columns = p.live.columns
	}
	p.hide()
	if err := p.project(); err != nil {
		return err
	}
	p.liveAt = make([]int, len(p.columns.list))
	for i, c := range p.columns.list {
		p.liveAt[i] = slices.IndexFunc(p.live.columns.list, func(now column) bool {
			return sameColumn(c, now) && c.keeps(now) && p.keptUntilNow(c, now) && (!c.derived || !now.derived || c.expression == now.expression)
		})
		switch {
		case p.liveAt[i] >= 0:
		case c.derived:
			p.computed = true
		default:
			p.absent = append(p.absent, i)
		}
	}
	return nil
}

// project leaves out the columns that were not asked for. The key stays: it tells
// the rows apart.
func (p *pastTable) project() error {
	wanted := p.point.columns
	if wanted == nil {
		return nil
	}
	for _, name := range wanted {
		if _, ok := p.columns.index[name]; !ok {
			return &ColumnsError{Table: p.qualified(), Asked: p.point.String(), Missing: []string{name}, Columns: p.columns.names(), Withheld: p.withheldNames()}
		}
	}
	var list []column
	for _, c := range p.columns.list {
		if slices.Contains(wanted, c.name) || slices.Contains(p.key, c.name) {
			list = append(list, c)
		}
	}
	p.columns = newColumnSet(list)
	return nil
}

// sameColumn tells that two versions of a table mean the same column. Renaming
// keeps the number, dropping and making it anew does not. What the catalog did
// not tell has no number.
func sameColumn(a, b column) bool {
	if a.attnum == 0 || b.attnum == 0 {
		return a.name == b.name
	}
	return a.attnum == b.attnum
}

// indexOf says where the columns of then are in an image of another version.
// Values of a type that says less, or something else, are not taken.
// between are the versions from the one of then to it, or the other way about.
func (p *pastTable) indexOf(v store.Version, between []store.Version) map[string]int {
	index := make(map[string]int, len(v.Columns))
	for i, c := range p.columns.list {
		for _, o := range v.Columns {
			if o.Generated != "" && c.derived {
				continue // the server computes it anew
			}
			if o.Policy != "" {
				continue // an image has something else in its place
			}
			other := typedColumn(o)
			if v.RelationID != p.oid {
				other.attnum = 0 // a partition counts its columns by itself
			}
			from, to := other, c
			if v.Position > p.through {
				from, to = to, from
			}
			if sameColumn(c, other) && from.keeps(to) && p.keptThrough(between, c) {
				index[o.Name] = i
			}
		}
	}
	return index
}

// keeps reports whether altering a column, or its type, left the texts of its
// values as they were.
func (c column) keeps(to column) bool {
	return c.rewritten == to.rewritten && keeps(sqlType{c.typeOID, c.typeMod}, sqlType{to.typeOID, to.typeMod}) && definitionKeeps(c.definition, to.definition)
}

// keptThrough reports whether each version of a table kept the texts of a column's values
// that the one before it had: a column that was altered and altered back says the same as
// before, and its values may be others.
func (p *pastTable) keptThrough(versions []store.Version, c column) bool {
	var last *column
	for _, v := range versions {
		for _, o := range v.Columns {
			is := typedColumn(o)
			if v.RelationID != p.oid {
				is.attnum = 0 // a partition counts its columns by itself
			}
			if !sameColumn(c, is) {
				continue
			}
			if last != nil && !last.keeps(is) {
				return false
			}
			last = &is
		}
	}
	return true
}

// keptUntilNow is keptThrough from the moment to what the catalog says.
func (p *pastTable) keptUntilNow(c, now column) bool {
	if p.then == nil {
		return true
	}
	for _, o := range p.laterVersions[len(p.laterVersions)-1].Columns {
		if last := typedColumn(o); sameColumn(c, last) && !last.keeps(now) {
			return false
		}
	}
	return p.keptThrough(p.laterVersions, c)
}

// typedColumn is a column of a version as far as it says what becomes of its values.
func typedColumn(o store.Column) column {
	return column{name: o.Name, attnum: o.Attnum, typeOID: o.TypeOID, typeMod: o.TypeMod, definition: o.Definition, rewritten: o.Rewritten}
}

// definitionKeeps reports whether all values of a type as it was defined have the
// same text in another definition: it got new labels, but none was renamed.
func definitionKeeps(from, to string) bool {
	if from == to || from == "" || to == "" {
		return true
	}
	var before, after []string
	if json.Unmarshal([]byte(from), &before) != nil || json.Unmarshal([]byte(to), &after) != nil {
		return false
	}
	for _, entry := range before {
		if !slices.Contains(after, entry) {
			return false
		}
	}
	return !slices.ContainsFunc(after, func(entry string) bool {
		return strings.HasPrefix(entry, "attribute ") && !slices.Contains(before, entry)
	})
}

type sqlType struct {
	oid uint32
	mod int32
}

// keeps tells that altering a column from one type to another leaves the texts of
// its values as they are, unless USING says otherwise.
func keeps(from, to sqlType) bool {
	const (
		textOID    = 25
		varcharOID = 1043
		numericOID = 1700
	)
	whole := []uint32{21, 23, 20} // int2, int4, int8
	switch {
	case from == to:
		return true
	case (from.oid == varcharOID || from.oid == textOID) && (to.oid == textOID || to.oid == varcharOID && to.mod == -1):
		return true
	case from.oid == varcharOID && to.oid == varcharOID:
		return from.mod != -1 && to.mod >= from.mod
	case from.oid == numericOID && to.oid == numericOID && from.mod >= 4 && to.mod >= from.mod:
		return (from.mod-4)&0x7ff == (to.mod-4)&0x7ff // of the same scale
	}
	return slices.Contains(whole, from.oid) && slices.Index(whole, to.oid) > slices.Index(whole, from.oid)
}

// versionAt returns where the columns of then are in an image of a change.
func (p *pastTable) versionAt(position LSN, sequence int) map[string]int {
	if len(p.versions) == 0 {
		return p.columns.index
	}
	at := 0
	for i, v := range p.versions {
		if v.position < position || v.position == position && v.sequence < sequence {
			at = i
		}
	}
	if v := p.versions[at]; position > v.until {
		return v.late
	}
	return p.versions[at].index
}

// withoutAltered returns an index without the columns of which the stream does not
// tell that they were altered: their type was defined otherwise.
func withoutAltered(index map[string]int, v, next store.Version) map[string]int {
	late := maps.Clone(index)
	for _, c := range v.Columns {
		for _, n := range next.Columns {
			if n.Attnum == c.Attnum && n.Definition != c.Definition {
				delete(late, c.Name)
			}
		}
	}
	return late
}
