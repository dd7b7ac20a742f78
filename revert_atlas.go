package audit

import (
	"context"
	"errors"
	"math"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/internal/wal"
	"github.com/hindsight-go/audit/store"
)

// imageMap says where the columns of the images of one version of a table are in
// the table of now.
type imageMap struct {
	target  *target
	columns map[string]imageColumn
	// withheld are columns for which images have something else than the values.
	withheld map[string]bool
	// at holds the same by the columns of the target; kinds of those that the
	// version does not have are those of now. required are the columns that a whole
	// image has.
	at       []imageColumn
	required []int
	// versioned reports whether the columns are known from a version, not by their names of now.
	versioned bool
	// keyed reports whether the key of the version has the columns of the key of now, in
	// the same order, so that the key's text can be taken.
	keyed bool
}

type imageColumn struct {
	at   int // -1: the column is gone
	kind wal.Kind
	// as is the number of the type that the column had, 0 if it has it still: see
	// target.pastType.
	as uint16
}

// atlas finds the tables of now for the changes of a selection.
type atlas struct {
	client  *Client
	db      capture.Querier
	facts   *store.Facts
	targets map[uint32]*target
	r       Reversal
	maps    map[versionAt]*imageMap
	bare    map[pgcatalog.Name]*imageMap // for tables of which no version is known
	last    struct {
		name     pgcatalog.Name
		from, to Position // the changes behind from, up to to
		m        *imageMap
	}
}

func newAtlas(c *Client, db capture.Querier, facts *store.Facts) *atlas {
	return &atlas{
		client: c, db: db, facts: facts, targets: make(map[uint32]*target),
		maps: make(map[versionAt]*imageMap), bare: make(map[pgcatalog.Name]*imageMap),
	}
}

// versionAt is a version of a table, as far as it holds for a change: late tells that
// the table had perhaps been altered by then, in what the stream does not tell of.
type versionAt struct {
	*store.Version
	late bool
}

// at returns the map for a change of a table at a position.
func (a *atlas) at(ctx context.Context, schema, table string, position Position) (*imageMap, error) {
	name := pgcatalog.Name{Schema: schema, Table: table}
	if l := &a.last; l.m != nil && l.name == name && position.Compare(l.from) > 0 && position.Compare(l.to) <= 0 {
		return l.m, nil
	}
	version, from, until := a.version(name, position)
	var m *imageMap
	var err error
	if version.Version == nil {
		m, err = a.byName(ctx, name)
	} else {
		m, err = a.byVersion(ctx, version)
	}
	if err != nil {
		return nil, err
	}
	a.last.name, a.last.m, a.last.from, a.last.to = name, m, from, until
	return m, nil
}

// version returns the version that is valid for the change at the position, and for
// those behind from, up to until.
func (a *atlas) version(name pgcatalog.Name, position Position) (found versionAt, from, until Position) {
	until = Position{LSN: maxLSN}
	for i := range a.facts.Versions {
		v := &a.facts.Versions[i]
		begin := Position{LSN: v.Position, Sequence: v.Sequence}
		switch {
		case v.Schema != name.Schema || v.Table != name.Table || v.Dropped:
			continue
		case found.Version == nil: // what the table was when it was first seen, it was before
			found.Version = v
			continue
		case position.Compare(begin) > 0:
			found.Version, from = v, begin
			continue
		}
		until = begin
		if v.After != 0 && v.RelationID == found.RelationID {
			behind := Position{LSN: v.After, Sequence: math.MaxInt}
			if found.late = position.Compare(behind) > 0; found.late {
				from = behind
			} else {
				until = behind
			}
		}
		break
	}
	return found, from, until
}

func (a *atlas) byName(ctx context.Context, name pgcatalog.Name) (*imageMap, error) {
	if m := a.bare[name]; m != nil {
		return m, nil
	}
	var oid uint32
	err := a.db.QueryRow(ctx, `
		SELECT c.oid
		FROM pg_catalog.pg_class c
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')`, name.Schema, name.Table).Scan(&oid)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, &UnrevertableError{Table: pgcatalog.Qualified(name.Schema, name.Table), Reason: "the table is not there any more"}
	}
	if err != nil {
		return nil, history.OpError("find table", err)
	}
	t, err := a.target(ctx, name, oid)
	if err != nil {
		return nil, err
	}
	m := &imageMap{target: t, columns: make(map[string]imageColumn), keyed: true}
	for i, c := range t.Columns.List {
		m.columns[c.Name] = imageColumn{at: i, kind: c.Kind}
	}
	m.settle()
	a.bare[name] = m
	return m, nil
}

func (a *atlas) byVersion(ctx context.Context, v versionAt) (*imageMap, error) {
	if m := a.maps[v]; m != nil {
		return m, nil
	}
	if v.Guessed {
		return nil, &UnrevertableError{Table: pgcatalog.Qualified(v.Schema, v.Table), Reason: "the table was altered several times before capture saw it, and which of its columns was which cannot be told (event triggers tell, see Config.NoEventTrigger)"}
	}
	oid := v.RelationID
	if v.Root != 0 { // the partition may be another by now, and other changes are of others
		oid = v.Root
	}
	t, err := a.target(ctx, pgcatalog.Name{Schema: v.Schema, Table: v.Table}, oid)
	if err != nil {
		return nil, err
	}
	var names map[int16]string
	if v.RelationID != t.OID {
		if names, err = a.columnNames(ctx, v.RelationID); err != nil {
			return nil, err
		}
	}
	m := &imageMap{target: t, columns: make(map[string]imageColumn), versioned: true, withheld: make(map[string]bool)}
	for _, c := range v.Columns {
		if c.Policy != "" {
			m.withheld[c.Name] = true
			continue
		}
		then := pgcatalog.Column{Name: c.Name, Attnum: c.Attnum}
		if v.RelationID != t.OID { // a partition counts its columns by itself
			then.Attnum = 0
			if name, there := names[c.Attnum]; there {
				then.Name = name
			} else if len(names) > 0 && c.Attnum != 0 {
				then.Name = "" // it was dropped
			}
		}
		kind, err := a.client.history.Kinds.Of(ctx, c.TypeOID)
		if err != nil {
			return nil, history.OpError("look up type", err)
		}
		at := slices.IndexFunc(t.Columns.List, func(now pgcatalog.Column) bool { return sameColumn(then, now) })
		found := imageColumn{at: at, kind: kind}
		if at >= 0 {
			found.as = t.pastType(c, &t.Columns.List[at], v.late)
			t.noteFormer(at, c.Name)
		}
		m.columns[c.Name] = found
	}
	m.keyed = len(v.Key) == len(t.Key)
	for i, name := range v.Key {
		m.keyed = m.keyed && !m.withheld[name] && m.columns[name].at == t.Columns.Index[t.Key[i]]
	}
	m.settle()
	a.maps[v] = m
	return m, nil
}

// columnNames returns the names of a partition's columns by their numbers, none if it is
// gone.
func (a *atlas) columnNames(ctx context.Context, oid uint32) (map[int16]string, error) {
	rows, err := a.db.Query(ctx, "SELECT a.attnum, a.attname FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped", oid)
	if err != nil {
		return nil, history.OpError("describe partition", err)
	}
	names := make(map[int16]string)
	var number int16
	var name string
	_, err = pgx.ForEachRow(rows, []any{&number, &name}, func() error { names[number] = name; return nil })
	return names, history.OpError("describe partition", err)
}

// foreignReason is why a change cannot be read that has columns which no version has.
const foreignReason = "the table had other columns then than history knows: it was altered around the change, and nobody saw how (event triggers do, see Config.NoEventTrigger)"

// settle fills in what follows from columns.
func (m *imageMap) settle() {
	for i, c := range m.target.Columns.List {
		m.at = append(m.at, imageColumn{at: i, kind: c.Kind})
	}
	for _, c := range m.columns {
		if c.at < 0 {
			continue
		}
		m.at[c.at] = c
		if !m.target.Columns.List[c.at].Generated {
			m.required = append(m.required, c.at)
		}
	}
}

// target describes the table with an OID, or the root of the partition with it.
func (a *atlas) target(ctx context.Context, name pgcatalog.Name, oid uint32) (*target, error) {
	if t := a.targets[oid]; t != nil {
		return t, nil
	}
	label := pgcatalog.Qualified(name.Schema, name.Table)
	var root uint32
	err := a.db.QueryRow(ctx, `SELECT coalesce(CASE WHEN relispartition THEN pg_catalog.pg_partition_root(oid)::oid END, oid) FROM pg_catalog.pg_class WHERE oid = $1`, oid).Scan(&root)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, &UnrevertableError{Table: label, Reason: "the table was dropped since, so its rows have no place to go back to"}
	}
	if err != nil {
		return nil, history.OpError("find table", err)
	}
	if t := a.targets[root]; t != nil {
		return t, nil
	}
	described, err := a.describe(ctx, root)
	if err != nil {
		return nil, err
	}
	if described.Kind != "r" && described.Kind != "p" {
		return nil, &UnrevertableError{Table: label, Reason: "it is not a table any more"}
	}
	for i := range a.facts.Versions {
		if v := &a.facts.Versions[i]; v.RelationID == root {
			described.Columns = described.Columns.RewrittenAs(v)
		}
	}
	t := &target{Table: described, named: a.r.columns, withheld: a.withheld(described)}
	t.except = slices.Concat(a.r.except, t.withheld)
	if len(described.Key) == 0 {
		t.byPlace()
	}
	for _, name := range described.Key {
		t.keyAt = append(t.keyAt, described.Columns.Index[name])
	}
	if err := a.leaveOut(ctx, t); err != nil {
		return nil, err
	}
	a.targets[root] = t
	return t, nil
}

// withheld are the columns of a table of which some version of it does not store the
// values, and those that the server computes from them.
func (a *atlas) withheld(t *pgcatalog.Table) (names []string) {
	for _, v := range a.facts.Versions {
		if v.RelationID != t.OID && v.Root != t.OID {
			continue
		}
		for _, o := range v.Columns {
			then := pgcatalog.Column{Name: o.Name, Attnum: o.Attnum}
			if v.RelationID != t.OID {
				then.Attnum = 0
			}
			for _, now := range t.Columns.List {
				if o.Policy != "" && sameColumn(then, now) && !slices.Contains(names, now.Name) {
					names = append(names, now.Name)
				}
			}
		}
	}
	return names
}

// describe describes a table that nobody can alter from there on, until the transaction
// ends.
func (a *atlas) describe(ctx context.Context, oid uint32) (*pgcatalog.Table, error) {
	t := &target{Table: &pgcatalog.Table{}}
	err := a.db.QueryRow(ctx, `
		SELECT n.nspname, c.relname, c.relkind::text
		FROM pg_catalog.pg_class c
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.oid = $1`, oid).Scan(&t.Schema, &t.Name, &t.Kind)
	if err == nil && (t.Kind == "r" || t.Kind == "p") {
		var none bool
		err = a.db.QueryRow(ctx, "SELECT NOT EXISTS (SELECT FROM "+t.from()+" AS t WHERE false)").Scan(&none)
	}
	switch {
	case isDenied(err):
		return nil, &ApplyError{Table: t.label(), Action: Update, cause: err}
	case err != nil:
		return nil, history.OpError("find table", err)
	}
	described, err := pgcatalog.Describe(ctx, a.db, a.client.history.Kinds, oid)
	return described, history.OpError("describe table", err)
}

// unaltered refuses a plan whose tables are no longer as it knows them.
func (p *planner) unaltered(ctx context.Context, tx pgx.Tx) error {
	a := newAtlas(p.client, tx, p.facts)
	seen := make(map[*target]bool)
	for _, r := range p.activeRows() {
		if seen[r.table] {
			continue
		}
		seen[r.table] = true
		now, err := a.describe(ctx, r.table.OID)
		stale := errors.Is(err, pgcatalog.ErrNoTable) || errors.Is(err, pgx.ErrNoRows) || history.IsCode(err, "42P01")
		if err != nil && !stale {
			return err
		}
		known := r.table.Columns
		if r.table.keyless { // without those that stand for a key
			known = pgcatalog.NewColumns(known.List[:len(known.List)-len(r.table.Key)])
		}
		if stale || now.Name != r.table.Name || now.Schema != r.table.Schema || !now.Columns.Same(known) || !r.table.keyless && !slices.Equal(now.Key, r.table.Key) {
			return &StaleError{Table: r.table.label(), Reason: "has been altered"}
		}
	}
	return nil
}
