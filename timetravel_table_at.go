package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/wal"
	"github.com/hindsight-go/audit/store"
)

// pastTable is a table as it was at the moment of a question: which table was
// meant, what columns it had, and where its changes stand in history.
type pastTable struct {
	*travel
	schema, name string // then
	oid          uint32
	covered      store.Coverage
	// until is where the uninterrupted coverage from the moment on ends; 0 while it
	// goes on.
	until LSN
	// columns and key are those of then.
	columns *columnSet
	key     []string
	keyAt   []int
	// then is the version of then; nil if the table is as it is now.
	then *store.Version
	// live is the same table now, under whatever name; nil if it is gone. liveAt
	// says where each column of then stands in it, -1 if it is gone or has another
	// type; absent lists those.
	live   *sourceTable
	liveAt []int
	absent []int
	// names are the names under which its changes stand, oldest first.
	names []nameSpan
	// versions are those of its columns, oldest first, each with where the columns
	// of then are found in an image of that version.
	versions []pastVersion
	// rekeyed are the times at which the table got another key: the same text of a
	// key means the same row only between two of them.
	rekeyed []turn
	// parted are the times at which rows left the table, or came to it, together
	// with a partition; joined are the leaves that it has now and had not then.
	parted []turn
	joined []uint32
	// laterVersions are those from the moment on; hidden is what they withhold.
	laterVersions []store.Version
	hidden        map[string]wal.Policy
	// computed tells that the live table does not have a generated column as it was.
	computed bool

	fills  int              // how many rows were looked up one by one
	before map[string]event // the last event of every row until then, if all were read
}

// nameSpan is a time under one name: positions in (from, to]. Of the first transaction, in
// which the table got the name, the changes behind the first begin ones are in it; of the
// last, in which it gave the name up, the first end ones.
type nameSpan struct {
	schema, name string
	from, to     LSN
	begin, end   int
}

// first is the place at which the table got the name, last that at which it gave it up.
func (s nameSpan) first() Position { return Position{LSN: s.from + 1, Sequence: s.begin} }
func (s nameSpan) last() Position  { return Position{LSN: s.to, Sequence: s.end} }

// within is what is asked of a change c beside its position: another table may have, or
// have had, the name in the same transaction.
func (s nameSpan) within() (sql string) {
	if s.begin > 0 {
		sql = fmt.Sprintf(" AND (c.position <> '%s' OR c.sequence > %d)", s.from+1, s.begin)
	}
	if s.end < math.MaxInt {
		sql += fmt.Sprintf(" AND (c.position <> '%s' OR c.sequence <= %d)", s.to, s.end)
	}
	return sql
}

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

const maxLSN = LSN(1<<64 - 1)

// qualified returns the table's name then, for messages.
func (p *pastTable) qualified() string { return qualifiedName(p.schema, p.name) }

// refuse makes the error of a table whose past cannot be told.
func (p *pastTable) refuse(reason error, detail string, earliest LSN) error {
	e := &HistoryError{Table: p.qualified(), Asked: p.point.String(), Reason: reason, Detail: detail}
	if earliest != 0 {
		e.Earliest = Position{LSN: earliest}
	}
	return e
}

// table finds the table that a name meant at the moment.
func (t *travel) table(ctx context.Context, name string) (*pastTable, error) {
	parsed, err := parseTable(name)
	if err != nil {
		return nil, &FilterError{Filter: "Table", Reason: err.Error(), cause: err}
	}
	cov, err := t.coverageOf(ctx, parsed)
	if err != nil {
		return nil, err
	}
	// What the catalog said a moment ago will do: it is asked again before the live
	// table is read.
	p, err := t.tableOf(ctx, cov, t.client.recentTable)
	if err == nil && p.live == nil && t.point.kind == pointNow {
		return nil, p.refuse(ErrNotTracked, "it was dropped", 0)
	}
	return p, err
}

// tableOf describes the table of a stay in coverage that the moment is in.
func (t *travel) tableOf(ctx context.Context, cov store.Coverage, look func(ctx context.Context, oid uint32) (*sourceTable, error)) (*pastTable, error) {
	p := &pastTable{travel: t, schema: cov.Schema, name: cov.Table, oid: cov.RelationID, covered: cov}
	p.until = t.coveredUntil(cov)
	var err error
	if p.live, err = look(ctx, p.oid); err != nil {
		return nil, err
	}
	if err := p.describe(ctx); err != nil {
		return nil, err
	}
	if t.point.report != nil {
		*t.point.report = t.completeness(&cov)
		t.point.report.Withheld = p.withheldNames()
	}
	return p, nil
}

// coverageOf returns the stay in coverage that holds the moment, of the table
// that had the name then, or else of the one that has it at another time.
func (t *travel) coverageOf(ctx context.Context, name tableName) (store.Coverage, error) {
	var ever, others []store.Coverage // of tables that had the name at any time, and of the last of them
	named, last := t.everNamed(name)
	if len(named) == 0 {
		renamed, err := t.renamedTo(ctx, name)
		if err != nil {
			return store.Coverage{}, err
		}
		for _, cov := range renamed {
			named, last = append(named, cov.RelationID), append(last, cov.RelationID)
		}
	}
	for _, cov := range t.facts.Coverage {
		if slices.Contains(named, cov.RelationID) {
			ever = append(ever, cov)
		}
		if slices.Contains(last, cov.RelationID) {
			others = append(others, cov)
		}
	}
	if len(ever) == 0 {
		return store.Coverage{}, t.notTracked(ctx, name)
	}
	for range 2 {
		then := slices.DeleteFunc(slices.Clone(ever), func(cov store.Coverage) bool { return !name.matches(t.nameThen(cov)) })
		if found := t.holding(then); len(found) > 0 {
			return t.one(ctx, name, found)
		}
		if t.lent(name, ever) || t.lentSince(name, last) {
			e := &HistoryError{Table: qualifiedName(name.schema, name.table), Asked: t.point.String(), Reason: ErrNotTracked, Detail: "another table had the name then, and was not tracked yet"}
			return store.Coverage{}, e
		}
		if found := t.holding(others); len(found) > 0 {
			return t.one(ctx, name, found)
		}
		if err := t.widen(ctx); err != nil {
			return store.Coverage{}, err
		}
	}
	return store.Coverage{}, t.notCovered(name, ever)
}

// matches reports whether a name, with a schema or without, is that of a table.
func (n tableName) matches(of tableName) bool {
	return n.table == of.table && (n.schema == "" || n.schema == of.schema)
}

// everNamed returns the tables that ever had the name, as far as history knows, and
// of each schema the one that got it last: whoever asks for another time means that.
func (t *travel) everNamed(name tableName) (ever, last []uint32) {
	newest := make(map[string]LSN)
	holder := make(map[string]uint32)
	note := func(of tableName, oid uint32, at LSN) {
		if !name.matches(of) {
			return
		}
		ever = append(ever, oid)
		if at >= newest[of.schema] {
			newest[of.schema], holder[of.schema] = at, oid
		}
	}
	for _, cov := range t.facts.Coverage {
		note(tableName{cov.Schema, cov.Table}, cov.RelationID, cov.From)
	}
	for _, v := range t.facts.Versions {
		if v.Root == 0 && !v.Dropped { // it is noted long after the drop, perhaps
			note(tableName{v.Schema, v.Table}, v.RelationID, v.Position)
		}
	}
	return ever, slices.Collect(maps.Values(holder))
}

// nameThen returns the name that a table had at the moment. Coverage says a new name
// only from the next look at the catalog on.
func (t *travel) nameThen(cov store.Coverage) tableName {
	then := tableName{cov.Schema, cov.Table}
	for _, v := range t.facts.Versions {
		if v.RelationID == cov.RelationID && v.Root == 0 && v.Position <= t.through && !v.Dropped {
			then = tableName{v.Schema, v.Table}
		}
	}
	return then
}

// lent reports whether a table that is none of those had the name at the moment.
func (t *travel) lent(name tableName, others []store.Coverage) bool {
	last := make(map[uint32]store.Version)
	for _, v := range t.facts.Versions {
		if v.Position <= t.through && v.Root == 0 {
			last[v.RelationID] = v
		}
	}
	for oid, v := range last {
		covered := slices.ContainsFunc(others, func(cov store.Coverage) bool { return cov.RelationID == oid && cov.From <= t.through })
		if !v.Dropped && !covered && name.schema != "" && name.matches(tableName{v.Schema, v.Table}) {
			return true
		}
	}
	return false
}

// lentSince reports whether a table that is none of those got the name behind the moment:
// it may have had it before that, when nobody looked.
func (t *travel) lentSince(name tableName, holders []uint32) bool {
	for _, v := range t.facts.Versions {
		if v.Position > t.through && v.Root == 0 && !v.Dropped && !slices.Contains(holders, v.RelationID) && name.matches(tableName{v.Schema, v.Table}) {
			return true
		}
	}
	return slices.ContainsFunc(t.facts.Coverage, func(cov store.Coverage) bool {
		return cov.From > t.through && !slices.Contains(holders, cov.RelationID) && name.matches(tableName{cov.Schema, cov.Table})
	})
}

// renamedTo returns the stays of a table that has been given the name so lately
// that history does not know it yet.
func (t *travel) renamedTo(ctx context.Context, name tableName) ([]store.Coverage, error) {
	rows, err := t.client.source.Query(ctx, `
		SELECT c.oid
		FROM pg_catalog.pg_class c
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relname = $1 AND ($2 = '' OR n.nspname = $2)`, name.table, name.schema)
	if err != nil {
		return nil, wrap("look for the table", err)
	}
	oids, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return nil, wrap("look for the table", err)
	}
	var named []store.Coverage
	for _, cov := range t.facts.Coverage {
		if slices.Contains(oids, cov.RelationID) {
			named = append(named, cov)
		}
	}
	return named, nil
}

// one picks the stay that a name without a schema means.
func (t *travel) one(ctx context.Context, name tableName, found []store.Coverage) (store.Coverage, error) {
	if len(found) == 1 {
		return found[0], nil
	}
	path, err := t.client.applicationPath(ctx, t.point)
	if err != nil {
		return store.Coverage{}, err
	}
	for _, schema := range sqlNames(scanSQL(path)) {
		if schema == "$user" {
			schema = t.client.reader()
		}
		if i := slices.IndexFunc(found, func(cov store.Coverage) bool { return cov.Schema == schema }); i >= 0 {
			return found[i], nil
		}
	}
	var schemas []string
	for _, cov := range found {
		schemas = append(schemas, cov.Schema)
	}
	return store.Coverage{}, &FilterError{Filter: "Table", Reason: fmt.Sprintf("%q is in the schemas %s: write it with its schema", name.table, strings.Join(schemas, ", "))}
}

// holding returns the stays that the moment is in, and moves the moment, between
// positions that mean the same, to where it is in the first of them.
func (t *travel) holding(stays []store.Coverage) []store.Coverage {
	var found []store.Coverage
	for _, cov := range stays {
		from, until := cov.From, cov.Until
		if until == 0 {
			until = maxLSN
		}
		low, high := max(t.same, from), min(t.through, until-1)
		if low > high || !t.at.IsZero() && t.at.Before(cov.FromTime) {
			continue
		}
		if !t.at.IsZero() && cov.Until != 0 && until <= t.through && !t.at.Before(cov.UntilTime) {
			continue
		}
		if len(found) == 0 {
			t.through = high
		}
		found = append(found, cov)
	}
	return found
}

func (t *travel) notTracked(ctx context.Context, name tableName) error {
	e := &HistoryError{Table: qualifiedName(name.schema, name.table), Asked: t.point.String(), Reason: ErrNotTracked}
	var exists bool
	err := t.client.source.QueryRow(ctx, `
		SELECT EXISTS (
			SELECT FROM pg_catalog.pg_class c
			JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relname = $1 AND ($2 = '' OR n.nspname = $2))`, name.table, name.schema).Scan(&exists)
	switch {
	case err != nil:
		return wrap("look for the table", err)
	case exists:
		e.Detail = "the source has a table of that name, which Config.Tables leaves out, capture has not taken on yet, or which is unlogged"
	default:
		e.Detail = "neither the source nor its history knows a table of that name"
	}
	return e
}

// notCovered says why none of the stays holds the moment.
func (t *travel) notCovered(name tableName, stays []store.Coverage) error {
	e := &HistoryError{Table: qualifiedName(name.schema, name.table), Asked: t.point.String(), Reason: ErrBeforeHistory}
	for _, cov := range stays {
		if cov.From <= t.through && (t.at.IsZero() || !t.at.Before(cov.FromTime)) {
			e.Reason = ErrNotTracked
			e.Detail = "it was tracked until " + cov.Until.String()
			continue
		}
		if e.Earliest.IsZero() || cov.From < e.Earliest.LSN {
			e.Earliest, e.EarliestTime = Position{LSN: cov.From}, cov.FromTime.UTC()
		}
	}
	return e
}

// coveredUntil follows a table from stay to stay, through renames, as long as one
// joins on to the other.
func (t *travel) coveredUntil(cov store.Coverage) LSN {
	for cov.Until != 0 {
		next := slices.IndexFunc(t.facts.Coverage, func(n store.Coverage) bool {
			return n.RelationID == cov.RelationID && n.From == cov.Until && (n.Schema != cov.Schema || n.Table != cov.Table)
		})
		if next < 0 {
			break
		}
		cov = t.facts.Coverage[next]
	}
	return cov.Until
}

// describe finds columns, key and names.
func (p *pastTable) describe(ctx context.Context) error {
	versions, err := p.ownVersions()
	if err != nil {
		return err
	}
	if p.live != nil && len(versions) > 0 {
		live := *p.live
		live.columns = live.columns.rewrittenAs(&versions[len(versions)-1])
		p.live = &live
	}
	at := -1
	for i, v := range versions {
		if v.Position <= p.through {
			at = i
		}
	}
	if at < 0 && len(versions) > 0 {
		at = 0 // what the table was when it was first seen, it was before
	}
	if at >= 0 && p.point.kind != pointNow {
		if err := p.decide(versions, at); err != nil {
			return err
		}
	}
	switch {
	case p.live != nil && (at < 0 || p.point.kind == pointNow):
		p.columns, p.key = p.live.columns, p.live.key
	case at < 0:
		return p.refuse(ErrIncomplete, "it was dropped before a row of it changed, so its columns are not known", 0)
	default:
		columns, err := p.columnsOf(ctx, versions[at])
		if err != nil {
			return err
		}
		p.columns, p.key = columns, versions[at].Key
		p.then = &versions[at]
		if !slices.ContainsFunc(columns.list, func(c column) bool { return !c.derived }) {
			return p.refuse(ErrIncomplete, "it had no columns but those that the server computes, and a change without values does not say that there was a row", 0)
		}
		// Coverage says a new name only from the next look at the catalog on.
		p.schema, p.name = versions[at].Schema, versions[at].Table
	}
	p.laterVersions = versions[max(at, 0):]
	if err := p.inherits(versions); err != nil {
		return err
	}
	p.rekeyed, p.parted = p.turnsOfKey(versions), p.turnsOfParts(versions, at)
	if err := p.matchLive(); err != nil {
		return err
	}
	p.keyAt = nil
	for _, name := range p.key {
		i, ok := p.columns.index[name]
		if !ok {
			return p.refuse(ErrIncomplete, "its key has columns that its history does not know", 0)
		}
		p.keyAt = append(p.keyAt, i)
	}
	p.names = p.spans(versions)
	for i, v := range versions {
		version := pastVersion{position: v.Position, sequence: v.Sequence, index: p.indexOf(v, versions[max(min(i, at), 0):max(i, at)+1]), until: maxLSN}
		if i+1 < len(versions) && versions[i+1].After != 0 {
			version.until, version.late = versions[i+1].After, withoutAltered(version.index, v, versions[i+1])
		}
		p.versions = append(p.versions, version)
	}
	return nil
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

// spans returns under which names the changes of the table stand, and when: a
// name it gave up may be that of another table since.
func (p *pastTable) spans(own []store.Version) []nameSpan {
	spans := []nameSpan{{schema: p.schema, name: p.name, to: maxLSN, end: math.MaxInt}}
	if len(own) > 0 {
		spans = spans[:0]
	}
	for i, v := range own {
		if n := len(spans); n > 0 && spans[n-1].schema == v.Schema && spans[n-1].name == v.Table && !p.lent(own, spans[n-1], v.Position) {
			continue
		}
		at := Position{LSN: v.Position, Sequence: v.Sequence}
		if n := len(spans); n > 0 && at.Compare(spans[n-1].last()) < 0 {
			// Its transaction may have changed rows before the name.
			spans[n-1].to, spans[n-1].end = v.Position, v.Sequence
		}
		span := nameSpan{schema: v.Schema, name: v.Table, from: v.Position - 1, begin: v.Sequence, to: maxLSN, end: math.MaxInt}
		if i == 0 {
			span.from, span.begin = 0, 0
		}
		spans = append(spans, span)
	}
	for i, s := range spans {
		for _, v := range p.facts.Versions {
			foreign := !v.Dropped && v.Schema == s.schema && v.Table == s.name && v.RelationID != p.oid && !p.isPart(own, v)
			at := Position{LSN: v.Position, Sequence: v.Sequence}
			switch {
			case foreign && at.Compare(s.first()) > 0 && at.Compare(spans[i].last()) < 0 && (len(own) == 0 || v.Position > own[0].Position):
				spans[i].to, spans[i].end = v.Position, v.Sequence
			case foreign && v.Position <= s.to && i == 0 && len(own) > 0 && v.Position < own[0].Position:
				spans[i].from = max(spans[i].from, p.covered.From-1)
			}
		}
	}
	return spans
}

// lent tells that another table had the name for a while, before a position.
func (p *pastTable) lent(own []store.Version, s nameSpan, before LSN) bool {
	return slices.ContainsFunc(p.facts.Versions, func(v store.Version) bool {
		return !v.Dropped && v.Schema == s.schema && v.Table == s.name && v.RelationID != p.oid && !p.isPart(own, v) && v.Position > s.from && v.Position < before
	})
}

// isPart reports whether a version under the table's name is one of its partitions.
func (p *pastTable) isPart(own []store.Version, v store.Version) bool {
	return v.Root == p.oid || len(own) > 0 && own[0].RelationID != p.oid && slices.ContainsFunc(own, func(o store.Version) bool { return o.RelationID == v.RelationID })
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
