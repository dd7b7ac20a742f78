package audit

import (
	"context"
	"slices"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/store"
)

// conflictOrigin says where in history the change behind a conflict is to be
// looked for: among those of a row, which is not always the one to be reverted.
type conflictOrigin struct {
	oid           uint32
	schema, table string
	key           []string // nil: cannot be told
	// columns are those that it changed; nil: any.
	columns []string
	// gone asks for what took the row away, made for what put it there.
	gone, made bool
	// unseen reports whether the row may be there and the role not be allowed to see it.
	unseen bool
	// ownRow reports whether it is the row to be reverted.
	ownRow bool
	// after is the selection's first change of the row, before the one that gave it
	// the key; zero: any time.
	after, before Position
	// previous is the key that the row had before that, and renamed the change that
	// gave it another one.
	previous []string
	renamed  Position
	// instead is where to look if a cascade reverts what this finds already: what a
	// row is to reference again may have been made by the selection.
	instead *conflictOrigin

	// later are the changes that have to be reverted for the conflict to go away, moved tells
	// that any of them put the row there, took it away or gave it another key.
	later []Position
	moved bool
}

// originChunk is how many rows one query asks for.
const originChunk = 500

// findOrigins looks up the changes behind conflicts. Where there is none under the
// key that a row has, it looks under the one that the row had before.
func (p *planner) findOrigins(ctx context.Context, conflicts []Conflict) error {
	if err := p.findOriginsNow(ctx, conflicts); err != nil || len(p.sel.extra) == 0 {
		return err
	}
	again := false
	for i := range conflicts {
		if c := &conflicts[i]; c.Change == nil && c.origin.instead != nil {
			c.origin, again = *c.origin.instead, true
		}
	}
	if !again {
		return nil
	}
	return p.findOriginsNow(ctx, conflicts)
}

// keepInForce leaves out of what has to be reverted for a conflict to go away what is out
// of force in its column: what others wrote there and a revert has undone or written over.
// Where the row itself went or came meanwhile, all of it stays.
func (p *planner) keepInForce(c *Conflict) {
	if len(p.reverts) == 0 || c.Kind != ColumnChanged && c.Kind != ColumnInterleaved || c.origin.moved {
		return
	}
	work, told := c.row.later.inForce[c.row.table.Columns.Index[c.Column]]
	if !told || !c.origin.ownRow {
		return
	}
	c.origin.later = slices.Clone(work.at)
	if work.last != nil {
		c.Change = work.last
	}
}

func (p *planner) findOriginsNow(ctx context.Context, conflicts []Conflict) error {
	for range maxCascades {
		if err := p.findOriginsByKey(ctx, conflicts); err != nil {
			return err
		}
		again := false
		for i := range conflicts {
			again = conflicts[i].follow() || again
		}
		if !again {
			return nil
		}
	}
	return nil
}

// follow goes on to the key that the row had before; it tells whether there is
// something to look for.
func (c *Conflict) follow() bool {
	o := &c.origin
	o.key, o.before, o.previous = o.previous, o.renamed, nil
	// A row that was made anew may have been given its key by a selected change, too.
	if c.Change != nil || o.gone {
		o.key = nil
	}
	return len(o.key) > 0
}

func (p *planner) findOriginsByKey(ctx context.Context, conflicts []Conflict) error {
	byTable := make(map[pgcatalog.Name][]int)
	var order []pgcatalog.Name
	for i := range conflicts {
		o := &conflicts[i].origin
		if len(o.key) == 0 {
			continue
		}
		for _, name := range p.namesOf(o) {
			if byTable[name] == nil {
				order = append(order, name)
			}
			byTable[name] = append(byTable[name], i)
		}
	}
	for _, t := range order {
		for part := range slices.Chunk(byTable[t], originChunk) {
			if err := p.findOriginsIn(ctx, t.Schema, t.Table, conflicts, part); err != nil {
				return err
			}
		}
	}
	if err := p.keylessOrigins(ctx, conflicts); err != nil {
		return err
	}
	return p.truncationsBehind(ctx, conflicts)
}

// namesOf lists the names under which the changes of a table stand.
func (p *planner) namesOf(o *conflictOrigin) []pgcatalog.Name {
	names := []pgcatalog.Name{{Schema: o.schema, Table: o.table}}
	for _, v := range p.facts.Versions {
		if n := (pgcatalog.Name{Schema: v.Schema, Table: v.Table}); v.RelationID == o.oid && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

func (p *planner) findOriginsIn(ctx context.Context, schema, table string, conflicts []Conflict, part []int) error {
	keys := make([]string, 0, len(part))
	byKey := make(map[string][]int)
	for _, i := range part {
		key := store.KeyText(conflicts[i].origin.key...)
		if byKey[key] == nil {
			keys = append(keys, key)
		}
		byKey[key] = append(byKey[key], i)
	}
	// There may be very many of a row: only those that conflicts refer to are kept.
	var last Position
	_, err := collectAll(ctx, p.client, "find later changes", p.laterOf(schema, table, keys), func(row pgx.CollectableRow) (none struct{}, err error) {
		change, err := scanChange(row)
		if err == nil && change.Position != last { // else it is there for either of its keys
			p.attribute(&change, conflicts, byKey)
			last = change.Position
		}
		return none, err
	})
	return err
}

// laterOf selects the changes of rows since the selection began, by the keys that they
// gave them or took from them. Each key is looked up by itself: where the statistics of
// a partition are not there yet, the server reads the whole table for a list of keys.
func (p *planner) laterOf(schema, table string, keys []string) sq.Sqlizer {
	changes := p.client.history.Relation("changes")
	under := func(column string) string {
		return `(SELECT c.* FROM ` + changes + ` AS c
			WHERE c."table" = ? AND c.schema = ? AND c.database = ? AND c.` + column + ` = wanted.key AND c.position >= ?::pg_lsn
			OFFSET 0)`
	}
	args := []any{table, schema, p.database, p.firstSelected.LSN.String()}
	return sq.StatementBuilder.PlaceholderFormat(sq.Dollar).Select(changeColumns...).Suffix(`
		FROM unnest(?::text[]) AS wanted (key), LATERAL (`+under("primary_key")+` UNION ALL `+under("previous_key")+`) AS c
		ORDER BY c.position, c.sequence`, slices.Concat([]any{keys}, args, args)...)
}

// attribute takes a change, oldest first, for the one behind those of the conflicts
// that are about its row.
func (p *planner) attribute(change *Change, conflicts []Conflict, byKey map[string][]int) {
	if change.KeyChanged {
		for _, at := range byKey[change.PrimaryKey] {
			conflicts[at].origin.renamedBy(change)
		}
	}
	if p.isSelected(change.Position) {
		return
	}
	for _, at := range byKey[change.PrimaryKey] {
		conflicts[at].consider(change, false)
	}
	if change.KeyChanged {
		for _, at := range byKey[change.PreviousKey] {
			conflicts[at].consider(change, true)
		}
	}
}

// covers reports whether a change was made while the row had the key, and since the
// selection's first change of it.
func (o *conflictOrigin) covers(position Position) bool {
	return position.Compare(o.after) >= 0 && (o.before.IsZero() || position.Compare(o.before) < 0)
}

// renamedBy notes the change that gave the row its key.
func (o *conflictOrigin) renamedBy(change *Change) {
	if o.covers(change.Position) {
		o.previous, o.renamed = change.PreviousKeyParts(), change.Position
	}
}

// consider takes a change of the row in question, oldest first, for the one
// behind the conflict. left tells that the change gave the row another key.
func (c *Conflict) consider(change *Change, left bool) {
	o := &c.origin
	if !o.covers(change.Position) {
		return
	}
	takesAway := change.Operation == Delete || left
	puts := change.Operation == Create || change.KeyChanged && !left
	switch {
	case o.gone && !takesAway, o.made && !puts:
	case len(o.columns) > 0 && !puts && !takesAway && !change.Changed(o.columns...):
	default:
		if c.Kind != ColumnChanged && c.Kind != ColumnInterleaved || c.Change == nil {
			o.later = o.later[:0:0]
		}
		c.Change = change
		o.later = append(o.later, change.Position)
		o.moved = o.moved || puts || takesAway
		return
	}
	// What followed on the change behind it has to be reverted with it.
	if c.Change != nil && c.Kind != ColumnChanged && c.Kind != ColumnInterleaved {
		o.later = append(o.later, change.Position)
	}
}
