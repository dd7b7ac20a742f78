package audit

import (
	"bytes"
	"context"
	"iter"
	"slices"

	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/store"
)

// Difference asks for the net changes between two moments. It begins with
// [DiffBetween] and is an immutable value.
type Difference struct {
	from, to Point
	tables   []string
}

// RowDiff is how a row differs between two moments, whatever happened to it in
// between.
type RowDiff struct {
	Schema string `json:"schema"`
	Table  string `json:"table"`
	// PrimaryKey is the text of the row's key, empty where the table has none. A
	// row whose key was changed is gone under the one and there under the other.
	PrimaryKey string `json:"primaryKey,omitempty"`
	// Operation is Create if only the second moment has the row, Delete if only
	// the first has, and else Update.
	Operation Operation `json:"operation"`
	// Before is the row at the first moment, After that at the second; empty where
	// there is none.
	Before Image `json:"before"`
	After  Image `json:"after"`
}

// TableName returns the name of the table in the form that [Point.Table] reads.
func (d RowDiff) TableName() string { return pgcatalog.Qualified(d.Schema, d.Table) }

// Diff returns the columns that differ, as [Change.Diff] does.
func (d RowDiff) Diff() []ColumnChange {
	return Change{Operation: d.Operation, Before: d.Before, After: d.After}.Diff()
}

// DiffBetween asks for the net changes from one moment to another: rows that were
// changed and changed back are not among them, nor are those that differ in nothing but
// columns that only one of the moments has. The first moment may be the later
// one; the changes are then those that would lead back.
func DiffBetween(from, to Point) Difference { return Difference{from: from, to: to} }

// DiffBetween is [DiffBetween] of the client's history.
func (c *Client) DiffBetween(from, to Point) Difference {
	return DiffBetween(from.of(c), to.of(c))
}

// Tables restricts the question to the named tables. Without it, it is about all
// that were tracked at both moments, and in between.
func (d Difference) Tables(names ...string) Difference {
	d.tables = append(slices.Clip(d.tables), names...)
	return d
}

// All returns the differences table by table, in no order within a table. The
// rows that were touched between the moments are held in memory, a table at a
// time; all of its rows are where it was truncated in between, has no primary key, or a
// column of it was replaced or got another type, expression or definition.
//
// Each pair is a value and nil, or a zero value and an error; after an error the
// sequence ends. Each range runs the query again.
func (d Difference) All(ctx context.Context) iter.Seq2[RowDiff, error] {
	return func(yield func(RowDiff, error) bool) {
		err := d.each(ctx, func(diff RowDiff) error {
			if !yield(diff, nil) {
				return errStop
			}
			return nil
		})
		if err != nil && err != errStop { //nolint:errorlint // it is ours, and never wrapped
			yield(RowDiff{}, err)
		}
	}
}

// List returns all differences, in memory.
func (d Difference) List(ctx context.Context) ([]RowDiff, error) {
	var all []RowDiff
	for diff, err := range d.All(ctx) {
		if err != nil {
			return nil, err
		}
		all = append(all, diff)
	}
	return all, nil
}

func (d Difference) each(ctx context.Context, yield func(RowDiff) error) (err error) {
	ctx, span := d.from.span(ctx, spanDiff)
	defer func() { span.end(unlessStopped(err)) }()
	client, err := d.from.ready()
	if err != nil {
		return err
	}
	if _, err := d.to.ready(); err != nil {
		return err
	}
	first, err := client.travel(ctx, d.from)
	if err != nil {
		return err
	}
	last, err := client.travel(ctx, d.to)
	if err != nil {
		return err
	}
	// The one that was asked later may know of more.
	first.facts = last.facts
	back := first.through > last.through
	if back {
		first, last = last, first
	}
	names := d.tables
	if names == nil {
		names = tracedThroughout(first, last)
	}
	for _, name := range names {
		// Each table may move the moment between positions that mean the same.
		from, to := *first, *last
		past, err := from.table(ctx, name)
		if err != nil {
			return err
		}
		err = past.differences(ctx, &to, func(diff RowDiff) error {
			if back {
				diff.reverse()
			}
			return yield(diff)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// tracedThroughout returns the tables that are covered from one moment to the
// other.
func tracedThroughout(first, last *travel) []string {
	var names []string
	for _, cov := range first.facts.Coverage {
		until := last.coveredUntil(cov)
		if cov.From <= first.through && (cov.Until == 0 || cov.Until > first.through) && (until == 0 || until > last.through) {
			names = append(names, pgcatalog.Qualified(cov.Schema, cov.Table))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (d *RowDiff) reverse() {
	d.Before, d.After = d.After, d.Before
	switch d.Operation {
	case Create:
		d.Operation = Delete
	case Delete:
		d.Operation = Create
	case Update, Truncate:
	}
}

// differences calls yield for each row that differs between the table's moment
// and a later one.
func (p *pastTable) differences(ctx context.Context, to *travel, yield func(RowDiff) error) error {
	if horizon := p.facts.Horizon; p.through < horizon.Position {
		return p.refuse(ErrPastRetention, "", horizon.Position)
	}
	if gap, ok := p.gapIn(p.through, to.through); ok {
		return p.refuse(ErrInGap, gap.Reason, gap.To)
	}
	if p.until != 0 && p.until <= to.through {
		return p.refuse(ErrNotTracked, "it was tracked until "+p.until.String()+" only", 0)
	}
	truncations, err := p.truncations(ctx)
	if err != nil {
		return err
	}
	truncated := slices.ContainsFunc(truncations, func(t truncation) bool { return t.position > p.through && t.position <= to.through })
	if len(p.key) > 0 && p.turned(p.through, to.through) {
		return p.refuse(ErrIncomplete, "it got another primary key between the two moments, and which row is which cannot be told", 0)
	}
	parted := slices.ContainsFunc(p.parted, func(t turn) bool { return t.in(p.through, to.through) })
	later, err := to.table(ctx, p.qualified())
	if err != nil {
		return err
	}
	if truncated || parted || len(p.key) == 0 || p.rewritten(later) {
		return p.compareWhole(ctx, later, yield)
	}
	// For each touched row: as its first change found it, and as its last left it.
	before := make(map[string]Image)
	err = p.events(ctx, side{from: p.through, to: to.through}, func(e event) error {
		before[e.key], err = p.whole(ctx, e)
		return err
	})
	if err != nil {
		return err
	}
	return p.events(ctx, side{from: p.through, to: to.through, newest: true}, func(e event) error {
		after, err := later.whole(ctx, e)
		if err != nil {
			return err
		}
		return p.emit(e.key, before[e.key], after, yield)
	})
}

// rewritten reports whether a column has the name that another one had, or another type or
// expression than it had, or had one in between, so that rows may differ that nobody wrote to.
func (p *pastTable) rewritten(later *pastTable) bool {
	if p.then == nil || later.then == nil {
		return false
	}
	between := slices.DeleteFunc(slices.Clone(p.laterVersions), func(v store.Version) bool { return v.Position > later.then.Position })
	return slices.ContainsFunc(p.then.Columns, func(was store.Column) bool {
		return slices.ContainsFunc(later.then.Columns, func(is store.Column) bool { return is.Name == was.Name && is != was }) || !p.keptThrough(between, typedColumn(was))
	})
}

// whole returns the image of an event with all columns that the table had.
func (p *pastTable) whole(ctx context.Context, e event) (Image, error) {
	if e.image == nil {
		return nil, nil
	}
	if _, missing := p.read(e); len(missing) == 0 {
		return e.image, nil
	}
	values, err := p.valuesOf(ctx, e.key, e)
	if err != nil {
		return nil, err
	}
	return p.image(values), nil
}

// emit tells how two versions of a row differ, if they do.
func (p *pastTable) emit(key string, before, after Image, yield func(RowDiff) error) error {
	diff := RowDiff{Schema: p.schema, Table: p.name, PrimaryKey: key, Operation: Update, Before: before, After: after}
	switch {
	case before.IsEmpty() && after.IsEmpty():
		return nil
	case before.IsEmpty():
		diff.Operation, diff.Before = Create, nil
	case after.IsEmpty():
		diff.Operation, diff.After = Delete, nil
	case bytes.Equal(before, after) || !diff.inBoth():
		return nil
	}
	return yield(diff)
}

// inBoth reports whether a column differs that both versions of the row have.
func (d RowDiff) inBoth() bool {
	return slices.ContainsFunc(d.Diff(), func(c ColumnChange) bool {
		_, was := d.Before.Get(c.Column)
		_, is := d.After.Get(c.Column)
		return was && is
	})
}

// compareWhole reads the table at both moments.
func (p *pastTable) compareWhole(ctx context.Context, later *pastTable, yield func(RowDiff) error) error {
	type found struct {
		key   string
		image Image
		n     int
	}
	rows := make(map[string]*found)
	identify := func(t *pastTable, values [][]byte) string {
		if len(t.key) > 0 {
			return t.keyText(values)
		}
		return t.rowText(values)
	}
	err := p.rows(ctx, func(values [][]byte) error {
		id := identify(p, values)
		if rows[id] == nil {
			rows[id] = &found{key: p.keyText(values), image: p.image(values)}
		}
		rows[id].n++
		return nil
	})
	if err != nil {
		return err
	}
	err = later.rows(ctx, func(values [][]byte) error {
		old := rows[identify(later, values)]
		if old == nil || old.n == 0 {
			return p.emit(later.keyText(values), nil, later.image(values), yield)
		}
		old.n--
		if len(p.key) == 0 {
			return nil
		}
		return p.emit(old.key, old.image, later.image(values), yield)
	})
	if err != nil {
		return err
	}
	for _, old := range rows {
		for range old.n {
			if err := p.emit(old.key, old.image, nil, yield); err != nil {
				return err
			}
		}
	}
	return nil
}
