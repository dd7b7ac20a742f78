package audit

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
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
	columns *pgcatalog.Columns
	key     []string
	keyAt   []int
	// then is the version of then; nil if the table is as it is now.
	then *store.Version
	// live is the same table now, under whatever name; nil if it is gone. liveAt
	// says where each column of then stands in it, -1 if it is gone or has another
	// type; absent lists those.
	live   *pgcatalog.Table
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
	// computed reports whether the live table does not have a generated column as it was.
	computed bool

	fills  int              // how many rows were looked up one by one
	before map[string]event // the last event of every row until then, if all were read
}

const maxLSN = LSN(1<<64 - 1)

// qualified returns the table's name then, for messages.
func (p *pastTable) qualified() string { return pgcatalog.Qualified(p.schema, p.name) }

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
	parsed, err := pgcatalog.ParseName(name)
	if err != nil {
		return nil, &FilterError{Filter: "Table", Reason: err.Error(), cause: err}
	}
	cov, err := t.coverageOf(ctx, parsed)
	if err != nil {
		return nil, err
	}
	// What the catalog said a moment ago will do: it is asked again before the live
	// table is read.
	p, err := t.tableOf(ctx, cov, t.client.history.Table)
	if err == nil && p.live == nil && t.point.kind == pointNow {
		return nil, p.refuse(ErrNotTracked, "it was dropped", 0)
	}
	return p, err
}

// tableOf describes the table of a stay in coverage that the moment is in.
func (t *travel) tableOf(ctx context.Context, cov store.Coverage, look func(ctx context.Context, oid uint32) (*pgcatalog.Table, error)) (*pastTable, error) {
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
func (t *travel) coverageOf(ctx context.Context, name pgcatalog.Name) (store.Coverage, error) {
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
		then := slices.DeleteFunc(slices.Clone(ever), func(cov store.Coverage) bool { return !name.Matches(t.nameThen(cov)) })
		if found := t.holding(then); len(found) > 0 {
			return t.one(ctx, name, found)
		}
		if t.lent(name, ever) || t.lentSince(name, last) {
			e := &HistoryError{Table: pgcatalog.Qualified(name.Schema, name.Table), Asked: t.point.String(), Reason: ErrNotTracked, Detail: "another table had the name then, and was not tracked yet"}
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

// everNamed returns the tables that ever had the name, as far as history knows, and
// of each schema the one that got it last: whoever asks for another time means that.
func (t *travel) everNamed(name pgcatalog.Name) (ever, last []uint32) {
	newest := make(map[string]LSN)
	holder := make(map[string]uint32)
	note := func(of pgcatalog.Name, oid uint32, at LSN) {
		if !name.Matches(of) {
			return
		}
		ever = append(ever, oid)
		if at >= newest[of.Schema] {
			newest[of.Schema], holder[of.Schema] = at, oid
		}
	}
	for _, cov := range t.facts.Coverage {
		note(pgcatalog.Name{Schema: cov.Schema, Table: cov.Table}, cov.RelationID, cov.From)
	}
	for _, v := range t.facts.Versions {
		if v.Root == 0 && !v.Dropped { // it is noted long after the drop, perhaps
			note(pgcatalog.Name{Schema: v.Schema, Table: v.Table}, v.RelationID, v.Position)
		}
	}
	return ever, slices.Collect(maps.Values(holder))
}

// nameThen returns the name that a table had at the moment. Coverage says a new name
// only from the next look at the catalog on.
func (t *travel) nameThen(cov store.Coverage) pgcatalog.Name {
	then := pgcatalog.Name{Schema: cov.Schema, Table: cov.Table}
	for _, v := range t.facts.Versions {
		if v.RelationID == cov.RelationID && v.Root == 0 && v.Position <= t.through && !v.Dropped {
			then = pgcatalog.Name{Schema: v.Schema, Table: v.Table}
		}
	}
	return then
}

// lent reports whether a table that is none of those had the name at the moment.
func (t *travel) lent(name pgcatalog.Name, others []store.Coverage) bool {
	last := make(map[uint32]store.Version)
	for _, v := range t.facts.Versions {
		if v.Position <= t.through && v.Root == 0 {
			last[v.RelationID] = v
		}
	}
	for oid, v := range last {
		covered := slices.ContainsFunc(others, func(cov store.Coverage) bool { return cov.RelationID == oid && cov.From <= t.through })
		if !v.Dropped && !covered && name.Schema != "" && name.Matches(pgcatalog.Name{Schema: v.Schema, Table: v.Table}) {
			return true
		}
	}
	return false
}

// lentSince reports whether a table that is none of those got the name behind the moment:
// it may have had it before that, when nobody looked.
func (t *travel) lentSince(name pgcatalog.Name, holders []uint32) bool {
	for _, v := range t.facts.Versions {
		if v.Position > t.through && v.Root == 0 && !v.Dropped && !slices.Contains(holders, v.RelationID) && name.Matches(pgcatalog.Name{Schema: v.Schema, Table: v.Table}) {
			return true
		}
	}
	return slices.ContainsFunc(t.facts.Coverage, func(cov store.Coverage) bool {
		return cov.From > t.through && !slices.Contains(holders, cov.RelationID) && name.Matches(pgcatalog.Name{Schema: cov.Schema, Table: cov.Table})
	})
}

// renamedTo returns the stays of a table that has been given the name so lately
// that history does not know it yet.
func (t *travel) renamedTo(ctx context.Context, name pgcatalog.Name) ([]store.Coverage, error) {
	rows, err := t.client.history.Source.Query(ctx, `
		SELECT c.oid
		FROM pg_catalog.pg_class c
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relname = $1 AND ($2 = '' OR n.nspname = $2)`, name.Table, name.Schema)
	if err != nil {
		return nil, history.OpError("look for the table", err)
	}
	oids, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return nil, history.OpError("look for the table", err)
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
func (t *travel) one(ctx context.Context, name pgcatalog.Name, found []store.Coverage) (store.Coverage, error) {
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
	return store.Coverage{}, &FilterError{Filter: "Table", Reason: fmt.Sprintf("%q is in the schemas %s: write it with its schema", name.Table, strings.Join(schemas, ", "))}
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

func (t *travel) notTracked(ctx context.Context, name pgcatalog.Name) error {
	e := &HistoryError{Table: pgcatalog.Qualified(name.Schema, name.Table), Asked: t.point.String(), Reason: ErrNotTracked}
	var exists bool
	err := t.client.history.Source.QueryRow(ctx, `
		SELECT EXISTS (
			SELECT FROM pg_catalog.pg_class c
			JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relname = $1 AND ($2 = '' OR n.nspname = $2))`, name.Table, name.Schema).Scan(&exists)
	switch {
	case err != nil:
		return history.OpError("look for the table", err)
	case exists:
		e.Detail = "the source has a table of that name, which Config.Tables leaves out, capture has not taken on yet, or which is unlogged"
	default:
		e.Detail = "neither the source nor its history knows a table of that name"
	}
	return e
}

// notCovered says why none of the stays holds the moment.
func (t *travel) notCovered(name pgcatalog.Name, stays []store.Coverage) error {
	e := &HistoryError{Table: pgcatalog.Qualified(name.Schema, name.Table), Asked: t.point.String(), Reason: ErrBeforeHistory}
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
		live.Columns = live.Columns.RewrittenAs(&versions[len(versions)-1])
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
		p.columns, p.key = p.live.Columns, p.live.Key
	case at < 0:
		return p.refuse(ErrIncomplete, "it was dropped before a row of it changed, so its columns are not known", 0)
	default:
		columns, err := p.columnsOf(ctx, versions[at])
		if err != nil {
			return err
		}
		p.columns, p.key = columns, versions[at].Key
		p.then = &versions[at]
		if !slices.ContainsFunc(columns.List, func(c pgcatalog.Column) bool { return !c.Generated }) {
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
		i, ok := p.columns.Index[name]
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
