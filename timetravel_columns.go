package audit

import (
	"context"
	"maps"
	"slices"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
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

func (p *pastTable) columnsOf(ctx context.Context, v store.Version) (*pgcatalog.Columns, error) {
	list := make([]pgcatalog.Column, len(v.Columns))
	for i, c := range v.Columns {
		kind, err := p.client.history.Kinds.Of(ctx, c.TypeOID)
		if err != nil {
			return nil, history.OpError("look up type", err)
		}
		list[i] = pgcatalog.Column{
			Name: c.Name, Attnum: c.Attnum, TypeOID: c.TypeOID, TypeMod: c.TypeMod, TypeName: c.Type, Kind: kind,
			GeneratedKind: c.Generated, Identity: c.Identity, Generated: c.Generated != "", Expression: c.Expression, Definition: c.Definition,
			Rewritten: c.Rewritten,
		}
		if c.Type == "" {
			if err := p.client.history.Source.QueryRow(ctx, "SELECT coalesce(pg_catalog.format_type($1, $2), 'text')", c.TypeOID, c.TypeMod).Scan(&list[i].TypeName); err != nil {
				return nil, history.OpError("look up type", err)
			}
		}
	}
	return pgcatalog.NewColumns(list), nil
}

// matchLive finds the columns of then in the table of now. If they are just the
// same, so is what the catalog of now says beside.
func (p *pastTable) matchLive() error {
	if p.live == nil {
		p.hide()
		return p.project()
	}
	if p.live.Columns.Same(p.columns) {
		p.columns = p.live.Columns
	}
	p.hide()
	if err := p.project(); err != nil {
		return err
	}
	p.liveAt = make([]int, len(p.columns.List))
	for i, c := range p.columns.List {
		p.liveAt[i] = slices.IndexFunc(p.live.Columns.List, func(now pgcatalog.Column) bool {
			return sameColumn(c, now) && c.Keeps(now) && p.keptUntilNow(c, now) && (!c.Generated || !now.Generated || c.Expression == now.Expression)
		})
		switch {
		case p.liveAt[i] >= 0:
		case c.Generated:
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
		if _, ok := p.columns.Index[name]; !ok {
			return &ColumnsError{Table: p.qualified(), Asked: p.point.String(), Missing: []string{name}, Columns: p.columns.Names(), Withheld: p.withheldNames()}
		}
	}
	var list []pgcatalog.Column
	for _, c := range p.columns.List {
		if slices.Contains(wanted, c.Name) || slices.Contains(p.key, c.Name) {
			list = append(list, c)
		}
	}
	p.columns = pgcatalog.NewColumns(list)
	return nil
}

// sameColumn reports whether two versions of a table mean the same column. Renaming
// keeps the number, dropping and making it anew does not. What the catalog did
// not tell has no number.
func sameColumn(a, b pgcatalog.Column) bool {
	if a.Attnum == 0 || b.Attnum == 0 {
		return a.Name == b.Name
	}
	return a.Attnum == b.Attnum
}

// indexOf says where the columns of then are in an image of another version.
// Values of a type that says less, or something else, are not taken.
// between are the versions from the one of then to it, or the other way about.
func (p *pastTable) indexOf(v store.Version, between []store.Version) map[string]int {
	index := make(map[string]int, len(v.Columns))
	for i, c := range p.columns.List {
		for _, o := range v.Columns {
			if o.Generated != "" && c.Generated {
				continue // the server computes it anew
			}
			if o.Policy != "" {
				continue // an image has something else in its place
			}
			other := typedColumn(o)
			if v.RelationID != p.oid {
				other.Attnum = 0 // a partition counts its columns by itself
			}
			from, to := other, c
			if v.Position > p.through {
				from, to = to, from
			}
			if sameColumn(c, other) && from.Keeps(to) && p.keptThrough(between, c) {
				index[o.Name] = i
			}
		}
	}
	return index
}

// keptThrough reports whether each version of a table kept the texts of a column's values
// that the one before it had: a column that was altered and altered back says the same as
// before, and its values may be others.
func (p *pastTable) keptThrough(versions []store.Version, c pgcatalog.Column) bool {
	var last *pgcatalog.Column
	for _, v := range versions {
		for _, o := range v.Columns {
			is := typedColumn(o)
			if v.RelationID != p.oid {
				is.Attnum = 0 // a partition counts its columns by itself
			}
			if !sameColumn(c, is) {
				continue
			}
			if last != nil && !last.Keeps(is) {
				return false
			}
			last = &is
		}
	}
	return true
}

// keptUntilNow is keptThrough from the moment to what the catalog says.
func (p *pastTable) keptUntilNow(c, now pgcatalog.Column) bool {
	if p.then == nil {
		return true
	}
	for _, o := range p.laterVersions[len(p.laterVersions)-1].Columns {
		if last := typedColumn(o); sameColumn(c, last) && !last.Keeps(now) {
			return false
		}
	}
	return p.keptThrough(p.laterVersions, c)
}

// typedColumn is a column of a version as far as it says what becomes of its values.
func typedColumn(o store.Column) pgcatalog.Column {
	return pgcatalog.Column{Name: o.Name, Attnum: o.Attnum, TypeOID: o.TypeOID, TypeMod: o.TypeMod, Definition: o.Definition, Rewritten: o.Rewritten}
}

// versionAt returns where the columns of then are in an image of a change.
func (p *pastTable) versionAt(position LSN, sequence int) map[string]int {
	if len(p.versions) == 0 {
		return p.columns.Index
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
