package audit

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/internal/rowimage"
	"github.com/hindsight-go/audit/store"
)

// RowHistory asks for the versions of one row. It begins with [History] and is an
// immutable value.
type RowHistory struct {
	client *Client
	table  string
	key    []any
	err    error
	limit  int
}

// RowVersion is a version of a row, and how it came about.
type RowVersion struct {
	// From is the position of the change that made the version. It is zero for the
	// version that the row had when its table began to be tracked; FromTime is then
	// when that was. A row that left the table with a partition, or came to it, has no
	// change of it: From is then where the partition went or came, FromTime is zero and
	// Change is nil.
	From     Position  `json:"from,omitzero"`
	FromTime time.Time `json:"fromTime,omitzero"`
	// Until is the position of the change that ended it; zero while it holds.
	Until     Position  `json:"until,omitzero"`
	UntilTime time.Time `json:"untilTime,omitzero"`
	// Row is the row, by the names that its columns had when the version began. It is
	// empty where the row was gone: deleted, truncated, or given another key.
	Row Image `json:"row"`
	// Change is what made the version, or nil.
	Change *Change `json:"change,omitempty"`
	// AfterGap reports whether history has a hole between the version before and this
	// one, in which there may have been others: or that a partition came in between,
	// with which the row may have come.
	AfterGap bool `json:"afterGap,omitempty"`
}

// Exists reports whether there was a row.
func (v RowVersion) Exists() bool { return !v.Row.IsEmpty() }

// History asks for the versions of a row, by its primary key. The row is followed
// through changes of its key, and the table through changes of its name.
func History(table string, key ...any) RowHistory { return RowHistory{table: table, key: key} }

// History is [History] of the client's history.
func (c *Client) History(table string, key ...any) RowHistory {
	return RowHistory{client: c, table: table, key: key}
}

// Limit keeps the newest n versions. It has to be at least 1.
func (h RowHistory) Limit(n int) RowHistory {
	if n < 1 && h.err == nil {
		h.err = &FilterError{Filter: "Limit", Reason: "the limit must be at least 1"}
	}
	h.limit = n
	return h
}

// All returns the versions, oldest first, everything that was committed before
// the call included. There are none of a row that never was. They are read into
// memory at once.
//
// Each pair is a value and nil, or a zero value and an error; after an error the
// sequence ends. Each range runs the query again.
func (h RowHistory) All(ctx context.Context) iter.Seq2[RowVersion, error] {
	return func(yield func(RowVersion, error) bool) {
		versions, err := h.List(ctx)
		if err != nil {
			yield(RowVersion{}, err)
			return
		}
		for _, v := range versions {
			if !yield(v, nil) {
				return
			}
		}
	}
}

// List returns the versions, oldest first. See [RowHistory.All].
func (h RowHistory) List(ctx context.Context) (versions []RowVersion, err error) {
	ctx, span := Now().of(h.client).span(ctx, spanHistory, h.table)
	defer func() { span.end(err, rowsReturned(len(versions))) }()
	if h.err != nil {
		return nil, h.err
	}
	past, err := Now().of(h.client).lately(ctx, h.table)
	if err != nil {
		return nil, err
	}
	versions, err = past.versionsOf(ctx, h.key)
	if err != nil {
		return nil, err
	}
	if h.limit > 0 && len(versions) > h.limit {
		versions = versions[len(versions)-h.limit:]
	}
	return versions, nil
}

// lately finds a table as it is at the point, or as it was when it was tracked
// last.
func (p Point) lately(ctx context.Context, name string) (*pastTable, error) {
	t, err := p.travel(ctx)
	if err != nil {
		return nil, err
	}
	past, err := t.table(ctx, name)
	if !errors.Is(err, ErrNotTracked) {
		return past, err
	}
	parsed, parseErr := pgcatalog.ParseName(name)
	if parseErr != nil {
		return nil, err
	}
	last := store.Coverage{}
	for _, cov := range t.facts.Coverage {
		if cov.Table == parsed.Table && (parsed.Schema == "" || cov.Schema == parsed.Schema) && cov.From > last.From && cov.Until <= t.through {
			last = cov
		}
	}
	switch {
	case last.From == 0:
		return nil, err
	case last.Until != 0: // else it was dropped a moment ago
		t.through, t.same = last.Until-1, last.Until-1
	}
	return t.tableOf(ctx, last, t.client.history.FreshTable)
}

// versionsOf returns the versions of a row until the moment, oldest first.
func (p *pastTable) versionsOf(ctx context.Context, key []any) ([]RowVersion, error) {
	values, parts, err := p.locate(ctx, key)
	if err != nil && !errors.Is(err, ErrNoRow) && !errors.Is(err, ErrIncomplete) {
		return nil, err
	}
	absent := errors.Is(err, ErrNoRow)
	changes, err := p.changesOf(ctx, parts, values)
	if err != nil {
		return nil, err
	}
	if len(changes) == 0 {
		if values == nil {
			return nil, nil
		}
		// It never changed while it was tracked.
		v, _ := p.arrived(p.covered.From, p.through, p.image(values), true)
		return []RowVersion{v}, nil
	}
	own := store.KeyText(parts...)
	var versions []RowVersion
	add := func(v RowVersion) {
		if n := len(versions); n > 0 {
			versions[n-1].Until, versions[n-1].UntilTime = v.From, v.FromTime
			_, gap := p.gapIn(versions[n-1].From.LSN, v.From.LSN)
			v.AfterGap = v.AfterGap || gap
		}
		versions = append(versions, v)
	}
	for i, c := range changes {
		there := len(versions) > 0 && versions[len(versions)-1].Exists()
		unsure := false
		switch from := p.lastFrom(versions); {
		case there && c.Operation == Create:
			if left, ok := p.left(from, c.Position.LSN); ok {
				add(left)
			}
		case there && c.Operation != Truncate:
			// It may have left with a partition and come back with it.
			if left, ok := p.left(from, c.Position.LSN); ok {
				came, ok := p.arrived(left.From.LSN, c.Position.LSN, c.Before, false)
				switch {
				case ok && sameRow(versions[len(versions)-1].Row, c.Before):
					unsure = true
				case ok:
					add(left)
					add(came)
				}
			}
		case !there && c.Operation == Truncate:
			continue
		case c.Operation == Truncate && truncatesPart(&c.Defect):
			gone, told := wentWithPart(changes[i+1:])
			switch {
			case !told && values == nil && !absent:
				return nil, p.refuse(ErrIncomplete, "only a partition was emptied at "+c.Position.String()+", and whether the row was in it is not in history", 0)
			case !told && !absent, told && !gone:
				continue
			}
		case !there && c.Operation != Create && !c.Before.IsEmpty():
			if came, ok := p.arrived(from, c.Position.LSN, c.Before, len(versions) == 0); ok {
				add(came)
			}
		}
		v := RowVersion{From: c.Position, FromTime: c.CommittedAt, Row: c.After, Change: &changes[i], AfterGap: unsure}
		if c.KeyChanged && c.PreviousKey == own && c.PrimaryKey != own {
			v.Row = nil // it goes on under another key
		}
		add(v)
	}
	if there := len(versions) > 0 && versions[len(versions)-1].Exists(); there && absent {
		if left, ok := p.left(p.lastFrom(versions), p.through); ok {
			add(left)
		}
	}
	return versions, nil
}

// wentWithPart tells by the changes that follow whether a row was in a partition that was
// emptied. They do not tell if none follows.
func wentWithPart(next []Change) (gone, told bool) {
	for i := range next {
		if next[i].Operation != Truncate {
			return next[i].Operation == Create, true
		}
	}
	return false, false
}

// sameRow reports whether two images have the same values, in the columns that both have.
func sameRow(a, b Image) bool {
	same := true
	rowimage.EachMember(a, func(name, value []byte) {
		if other, ok := b.Get(string(name)); ok && !rowimage.Equal(value, other) {
			same = false
		}
	})
	return same
}

// lastFrom returns from where on the last version of a row is told.
func (p *pastTable) lastFrom(versions []RowVersion) LSN {
	if n := len(versions); n > 0 {
		return versions[n-1].From.LSN
	}
	return p.covered.From
}

// left returns how a row that nothing deleted went: with a partition that was
// detached or dropped between two positions.
func (p *pastTable) left(from, to LSN) (RowVersion, bool) {
	for _, t := range p.parted {
		if t.in(from, to) {
			return RowVersion{From: Position{LSN: min(t.position, to)}}, true
		}
	}
	return RowVersion{}, false
}

// arrived returns the version of a row that was there though nothing had made it: it
// is from before the table was tracked, or came with a partition between two
// positions. Which of the two is not told of a row's first version.
func (p *pastTable) arrived(from, to LSN, row Image, first bool) (RowVersion, bool) {
	for _, t := range slices.Backward(p.parted) {
		if t.came && t.in(from, to) {
			return RowVersion{From: Position{LSN: min(t.position, to)}, Row: row, AfterGap: first}, true
		}
	}
	return RowVersion{FromTime: p.covered.FromTime.UTC(), Row: row}, first
}

// changesOf returns the changes of a row, oldest first, those under keys that it
// had before and the table's TRUNCATEs among them. values is the row at the moment,
// if there was one.
func (p *pastTable) changesOf(ctx context.Context, parts []string, values [][]byte) ([]Change, error) {
	var changes []Change
	bound := Position{LSN: p.through, Sequence: 1 << 30}
	for parts != nil {
		found, previous, err := p.changesUnder(ctx, parts, bound)
		if err != nil {
			return nil, err
		}
		changes = append(changes, found...)
		parts = previous
		if previous != nil {
			bound = found[len(found)-1].Position
		}
	}
	earlier, err := p.changesBefore(ctx, changes, values)
	if err != nil {
		return nil, err
	}
	changes = append(changes, earlier...)
	if len(changes) == 0 {
		return nil, nil // nothing but truncations
	}
	truncations, err := p.truncations(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range truncations {
		if t.position > p.through {
			continue
		}
		c, err := p.client.Changes().wholly().InDatabase(p.database).AtPosition(Position{t.position, t.sequence}).First(ctx)
		if err != nil {
			return nil, err
		}
		changes = append(changes, c)
	}
	slices.SortFunc(changes, func(a, b Change) int { return a.Position.Compare(b.Position) })
	return changes, nil
}

// changesBefore goes on from the changes of a row, newest first, to those from
// before the table got the primary key that it has: under the key that the row had
// by then.
func (p *pastTable) changesBefore(ctx context.Context, changes []Change, values [][]byte) ([]Change, error) {
	last := slices.IndexFunc(p.rekeyed, func(t turn) bool { return t.position > p.through })
	if last < 0 {
		last = len(p.rekeyed)
	}
	if last == 0 {
		return nil, nil
	}
	turned := p.rekeyed[last-1]
	if n := len(changes); n > 0 {
		oldest := changes[n-1]
		if oldest.Operation == Create {
			return nil, nil // there was no such row before
		}
		values, _ = rowimage.Texts(oldest.Before, p.columns.List, p.versionAt(oldest.Position.LSN, oldest.Position.Sequence))
	}
	if values == nil {
		gone, err := p.changesIn(ctx, 0, turned.position, "(c.operation IN ('DELETE', 'TRUNCATE') OR c.previous_key IS NOT NULL)")
		if err == nil && gone {
			err = p.refuse(ErrIncomplete, "it got another primary key, or the same anew, and a row that was gone by then is not found by the key of now", turned.position)
		}
		return nil, err
	}
	between, err := p.changesIn(ctx, turned.after, turned.position, "true")
	if err == nil && between {
		err = p.refuse(ErrIncomplete, "rows changed while it got another primary key, and under which of the two cannot be told", turned.position)
	}
	if err != nil {
		return nil, err
	}
	before := *p.travel
	before.point = AtPosition(Position{LSN: turned.after}).of(p.client)
	before.through, before.same = turned.after, turned.after
	older, err := before.tableOf(ctx, p.covered, p.client.history.Table)
	if err != nil {
		return nil, err
	}
	var parts []string
	for _, at := range older.keyAt {
		here := slices.IndexFunc(p.columns.List, func(c pgcatalog.Column) bool { return sameColumn(c, older.columns.List[at]) })
		if here < 0 || values[here] == nil {
			return nil, p.refuse(ErrIncomplete, "the primary key that it had before has columns that are gone", turned.position)
		}
		parts = append(parts, string(values[here]))
	}
	if parts == nil {
		return nil, p.refuse(ErrIncomplete, "it had no primary key before", turned.position)
	}
	found, err := older.changesOf(ctx, parts, values)
	return slices.DeleteFunc(found, func(c Change) bool { return c.Operation == Truncate }), err
}

// changesIn reports whether there are changes of the table in (from, to] for which a
// condition holds.
func (p *pastTable) changesIn(ctx context.Context, from, to LSN, condition string) (found bool, err error) {
	for _, span := range p.names {
		err := p.client.history.Store.QueryRow(ctx, `
			SELECT EXISTS (
				SELECT FROM `+p.client.history.Relation("changes")+` c
				WHERE c."table" = $1 AND c.schema = $2 AND c.database = $3 AND c.position > $4 AND c.position <= $5 AND `+condition+span.within()+`)`,
			span.name, span.schema, p.database, max(from, span.from).String(), min(to, span.to).String()).Scan(&found)
		if err != nil || found {
			return found, history.OpError("look for changes of the row", err)
		}
	}
	return false, nil
}

// changesUnder returns the changes of a row before a bound, newest first, as far
// back as it had the key, and the key that it had before that, if it had.
func (p *pastTable) changesUnder(ctx context.Context, parts []string, bound Position) (changes []Change, previous []string, err error) {
	key := make([]any, len(parts))
	for i, part := range parts {
		key[i] = part
	}
	from := p.rekeyedFrom()
	own := store.KeyText(parts...)
	names := make([]string, len(p.names))
	for i, span := range p.names {
		names[i] = pgcatalog.Qualified(span.schema, span.name)
	}
	for c, err := range p.client.Changes().wholly().InDatabase(p.database).ForTable(names...).ForRow(key...).All(ctx) {
		if err != nil {
			return nil, nil, err
		}
		if c.Position.Compare(bound) >= 0 || c.Position.LSN <= from || !p.named(c) {
			continue
		}
		changes = append(changes, c)
		if c.KeyChanged && c.PrimaryKey == own {
			return changes, c.PreviousKeyParts(), nil
		}
	}
	return changes, nil, nil
}

// named reports whether a change under one of the table's names was made when it was
// the table's.
func (p *pastTable) named(c Change) bool {
	return slices.ContainsFunc(p.names, func(s nameSpan) bool {
		return s.schema == c.Schema && s.name == c.Table && c.Position.Compare(s.first()) > 0 && c.Position.Compare(s.last()) <= 0
	})
}

// image makes an image of a row's texts, as the store would have.
func (p *pastTable) image(values [][]byte) Image { return imageOf(p.columns.List, values) }

func imageOf(columns []pgcatalog.Column, values [][]byte) Image {
	image := store.ImageWriter{}
	for i, c := range columns {
		image.Add(c.Name, c.Kind, values[i])
	}
	return Image(image.Bytes())
}

// ColumnBlame says which change gave a column the value that it has.
type ColumnBlame struct {
	Column string `json:"column"`
	// Value is the value as JSON.
	Value json.RawMessage `json:"value"`
	// Change is what set it. It is nil if the value is from before the table was
	// tracked, or came with a partition.
	Change *Change `json:"change,omitempty"`
}

// Blame says for each column of a row which change gave it the value that it has
// now. See [Point.Blame].
func Blame(ctx context.Context, table string, key ...any) ([]ColumnBlame, error) {
	return Now().Blame(ctx, table, key...)
}

// Blame is [Blame] of the client's history.
func (c *Client) Blame(ctx context.Context, table string, key ...any) ([]ColumnBlame, error) {
	return c.Now().Blame(ctx, table, key...)
}

// Blame says for each column of a row which change gave it the value that it had
// at the moment, in the order of the columns. A change that left a value as it was
// did not give it; one that made or re-made the row did. It returns [ErrNoRow] if
// there was no row then.
func (p Point) Blame(ctx context.Context, table string, key ...any) (_ []ColumnBlame, err error) {
	ctx, span := p.span(ctx, spanBlame, table)
	defer func() { span.end(err) }()
	t, err := p.travel(ctx)
	if err != nil {
		return nil, err
	}
	past, err := t.table(ctx, table)
	if err != nil {
		return nil, err
	}
	values, _, err := past.locate(ctx, key)
	if err != nil {
		return nil, err
	}
	versions, err := past.versionsOf(ctx, key)
	if err != nil {
		return nil, err
	}
	var blames []ColumnBlame
	for i, col := range past.columns.List {
		image := store.ImageWriter{}
		image.Add(col.Name, col.Kind, values[i])
		value, _ := Image(image.Bytes()).Get(col.Name)
		blames = append(blames, ColumnBlame{Column: col.Name, Value: value, Change: past.blame(versions, i)})
	}
	return blames, nil
}

// blame returns the change that set a column last.
func (p *pastTable) blame(versions []RowVersion, column int) *Change {
	for _, v := range slices.Backward(versions) {
		c := v.Change
		if c == nil {
			return nil
		}
		if c.Operation == Create {
			return c
		}
		index := p.versionAt(c.Position.LSN, c.Position.Sequence)
		before, known := p.columnOf(c.Before, index, column)
		after, _ := p.columnOf(c.After, index, column)
		if !known || !rowimage.Equal(before, after) {
			return c
		}
	}
	return nil
}

// columnOf returns a column of then out of an image of another version.
func (p *pastTable) columnOf(image Image, index map[string]int, column int) (value json.RawMessage, known bool) {
	rowimage.EachMember(image, func(name, raw []byte) {
		if i, ok := index[string(name)]; ok && i == column {
			value, known = raw, true
		}
	})
	return value, known
}
