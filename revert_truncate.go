package audit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/internal/rowimage"
	"github.com/hindsight-go/audit/internal/wal"
	"github.com/hindsight-go/audit/store"
)

// A TRUNCATE is one change, without a row. What it took away is the table as it
// was just before it: as of the moment before its transaction, with what that
// transaction itself had done to the table until then. Each row of that goes into
// the collapse as if it had been deleted where the TRUNCATE stands, so that all
// that follows knows nothing of TRUNCATE.

// truncated is a TRUNCATE that is being taken apart.
type truncated struct {
	change *selectedChange
	past   *pastTable
	// emptied reports whether the transaction had truncated the table once before.
	emptied bool
	// own holds what the transaction has left, by key, where that is not what was
	// there before it; nil values for a row that it took away.
	own map[string][][]byte
	// bag is the same of a table without a key: how many more rows of each content
	// there are.
	bag map[string]*bagged
}

// truncated adds the rows that a TRUNCATE took away.
func (c *collapse) truncated(ctx context.Context, ch *selectedChange) error {
	t := &truncated{change: ch, own: make(map[string][][]byte), bag: make(map[string]*bagged)}
	if truncatesPart(&ch.defect) {
		return t.refuse("only one partition was truncated, and history does not say which of the table's rows were in it", nil)
	}
	var err error
	if t.past, err = c.tableBefore(ctx, ch); err != nil {
		return t.explain(err)
	}
	m, err := c.atlas.at(ctx, t.past.schema, t.past.name, Position{LSN: t.past.through, Sequence: math.MaxInt})
	if err != nil {
		return err
	}
	if err := t.readOwn(ctx); err != nil {
		return t.explain(err)
	}
	take := func(key string, values [][]byte) error { return c.take(m, t.deleted(key, values)) }
	if c.row != nil {
		return t.explain(t.eachOf(ctx, c.concerned(m.target), take))
	}
	return t.explain(t.each(ctx, take))
}

// deleted is the change that a row's own DELETE would have been.
func (t *truncated) deleted(key string, values [][]byte) *selectedChange {
	d := &selectedChange{
		position: t.change.position, schema: t.change.schema, table: t.change.table, key: []byte(key),
		operation: Delete, before: t.past.image(values), after: Image("{}"),
	}
	for i, column := range t.past.columns.List {
		isJSON := column.Kind.Base == wal.JSON || column.Kind.Base == wal.JSONB
		if isJSON && string(values[i]) == "null" {
			d.defect += fmt.Sprintf("before: column %q is the null of JSON; ", column.Name)
		}
	}
	return d
}

// tableBefore is the table of a change just before the change's transaction.
func (c *collapse) tableBefore(ctx context.Context, ch *selectedChange) (*pastTable, error) {
	client, through := c.atlas.client, ch.position.LSN-1
	database, err := client.history.Database(ctx)
	if err != nil {
		return nil, err
	}
	point := AtPosition(Position{LSN: through}).of(client)
	// How many rows the table had is no longer to be seen, so there is nothing to
	// choose by: the changes are read in order.
	point.search = searchScan
	t := &travel{client: client, point: point, database: database, facts: c.atlas.facts, through: through, same: through}
	cov, err := t.coverageOf(ctx, pgcatalog.Name{Schema: ch.schema, Table: ch.table})
	if err != nil {
		return nil, err
	}
	past, err := t.tableOf(ctx, cov, client.history.Table)
	if err != nil || !past.columns.HasDerived() {
		return past, err
	}
	// The server computes them when the rows are put back.
	for _, column := range past.columns.List {
		if !column.Generated {
			t.point.columns = append(t.point.columns, column.Name)
		}
	}
	return t.tableOf(ctx, cov, client.history.Table)
}

func (t *truncated) refuse(reason string, cause error) error {
	return &UnrevertableError{Table: pgcatalog.Qualified(t.change.schema, t.change.table), Position: t.change.position, Reason: reason, cause: cause}
}

// explain says what can be done where history does not know the rows.
func (t *truncated) explain(err error) error {
	var unknown *HistoryError
	if !errors.As(err, &unknown) {
		return err
	}
	why := strings.TrimPrefix(unknown.Reason.Error(), "audit: ")
	if unknown.Detail != "" {
		why += ": " + strings.TrimSuffix(unknown.Detail, " (leave them out with Point.Columns)")
	}
	return t.refuse("history does not know all of the rows that the TRUNCATE took ("+why+
		"): a Client.Baseline of the table, taken before, makes the next one known; leave this one out of the selection with Operations", err)
}

// readOwn reads what the transaction of the TRUNCATE did to the table before it.
func (t *truncated) readOwn(ctx context.Context) error {
	rows, err := t.past.client.history.Store.Query(ctx, `
		SELECT c.sequence, c.primary_key, c.previous_key, c.operation, c.before, c.after, c.defect
		FROM `+t.past.client.history.Relation("changes")+` c
		WHERE c."table" = $1 AND c.schema = $2 AND c.database = $3 AND c.position = $4 AND c.sequence < $5
		ORDER BY c.sequence`,
		t.change.table, t.change.schema, t.past.database, t.change.position.LSN.String(), t.change.position.Sequence)
	if err != nil {
		return history.OpError("read changes before the truncation", err)
	}
	defer rows.Close()
	for rows.Next() {
		o := ownChange{position: t.change.position.LSN}
		if err := rows.Scan(&o.sequence, &o.key, &o.previous, &o.operation, &o.before, &o.after, &o.remarks); err != nil {
			return history.OpError("read changes before the truncation", err)
		}
		if err := t.note(o); err != nil {
			return err
		}
	}
	return history.OpError("read changes before the truncation", rows.Err())
}

// ownChange is a change in the transaction of a TRUNCATE.
type ownChange struct {
	position               LSN
	sequence               int
	key, previous, remarks *string
	operation              Operation
	before, after          []byte
}

// image reads one of the images by the columns of the table before.
func (o ownChange) image(past *pastTable, label string, image []byte) ([][]byte, error) {
	values, missing := past.read(event{position: o.position, sequence: o.sequence, image: image, defects: rowimage.ReadDefects(o.remarks, label)})
	if len(missing) > 0 {
		return nil, past.unknown(missing)
	}
	return values, nil
}

// note takes the next change of the transaction.
func (t *truncated) note(o ownChange) error {
	if o.operation == Truncate {
		if truncatesPart(o.remarks) {
			return t.refuse("one partition was truncated before in its transaction, and history does not say which rows were in it", nil)
		}
		t.emptied = true
		clear(t.own)
		clear(t.bag)
		return nil
	}
	if len(t.past.key) == 0 {
		return t.noteContents(o)
	}
	if o.previous != nil {
		if err := t.leave(o); err != nil {
			return err
		}
	}
	if o.operation == Delete {
		t.own[text(o.key)] = nil
		return nil
	}
	values, err := o.image(t.past, "after", o.after)
	t.own[text(o.key)] = values
	return err
}

// noteContents takes the next change of a table without a key.
func (t *truncated) noteContents(o ownChange) error {
	for label, n := range map[string]int{"before": -1, "after": 1} {
		image := o.after
		if label == "before" {
			image = o.before
		}
		if Image(image).IsEmpty() {
			continue
		}
		values, err := o.image(t.past, label, image)
		if err != nil {
			return err
		}
		key := t.past.rowText(values)
		if t.bag[key] == nil {
			t.bag[key] = &bagged{values: values}
		}
		t.bag[key].more += n
	}
	return nil
}

// eachMore calls yield for the rows that the transaction itself has put into a
// table without a key.
func (t *truncated) eachMore(yield func(key string, values [][]byte) error) error {
	for _, n := range t.bag {
		if n.more < 0 {
			return t.past.refuse(ErrIncomplete, "its transaction takes rows away that the table does not hold", 0)
		}
		for range n.more {
			if err := yield("", n.values); err != nil {
				return err
			}
		}
	}
	return nil
}

// taken reports whether the transaction itself took a row away, or changed it.
func (t *truncated) taken(key string, values [][]byte) bool {
	if len(t.past.key) > 0 {
		_, changed := t.own[key]
		return changed
	}
	n := t.bag[t.past.rowText(values)]
	if n == nil || n.more >= 0 {
		return false
	}
	n.more++
	return true
}

// leave takes note that a row has left its key, unless another one has come to
// have that before, as it may where the key is DEFERRABLE.
func (t *truncated) leave(o ownChange) error {
	there := t.own[*o.previous]
	if there != nil {
		was, err := o.image(t.past, "before", o.before)
		if err != nil {
			return err
		}
		if t.past.rowText(was) != t.past.rowText(there) {
			return nil
		}
	}
	t.own[*o.previous] = nil
	return nil
}

// each calls yield for every row that was truncated. It stops at once when yield
// says so: leaving rows early would read the rest of them, cutting the connection
// does not.
func (t *truncated) each(ctx context.Context, yield func(key string, values [][]byte) error) error {
	for key, values := range t.own {
		if values == nil {
			continue
		}
		if err := yield(key, values); err != nil {
			return err
		}
	}
	if t.emptied {
		return t.eachMore(yield)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var stopped error
	b, err := t.past.base(ctx)
	if err != nil {
		return err
	}
	if b.kind == baseLive {
		return t.past.refuse(ErrIncomplete, "it had another name in the transaction of its truncation", 0)
	}
	err = t.past.rowsFrom(ctx, b, func(key string, values [][]byte) error {
		if t.taken(key, values) {
			return nil
		}
		if stopped = yield(key, values); stopped != nil {
			cancel()
		}
		return stopped
	})
	switch {
	case stopped != nil:
		return stopped
	case err != nil:
		return err
	}
	return t.eachMore(yield)
}

// eachOf calls yield for those of some rows that were truncated. Rows are looked
// up one by one, so that not all of the table has to be known.
func (t *truncated) eachOf(ctx context.Context, keys [][]any, yield func(key string, values [][]byte) error) error {
	seen := make(map[string]bool)
	for _, key := range keys {
		parts, err := t.past.keyParts(ctx, key)
		if err != nil {
			return err
		}
		values, changed := t.own[store.KeyText(parts...)]
		if !changed && !t.emptied {
			values, parts, err = t.past.locate(ctx, key)
			if err != nil && !errors.Is(err, ErrNoRow) {
				return err
			}
		}
		text := store.KeyText(parts...)
		if values == nil || seen[text] {
			continue
		}
		seen[text] = true
		if err := yield(text, values); err != nil {
			return err
		}
	}
	return nil
}

// concerned lists the keys of the rows that a TRUNCATE is about where one row is
// put back: its own, and where the selection has left it.
func (c *collapse) concerned(t *target) [][]any {
	keys := [][]any{c.row}
	for _, r := range c.index[t] {
		if !r.exists {
			continue
		}
		key := make([]any, len(r.key))
		for i, part := range r.key {
			key[i] = part
		}
		keys = append(keys, key)
	}
	return keys
}

// truncationsBehind finds the TRUNCATEs behind conflicts about rows that are gone,
// where no change of the row itself is.
func (p *planner) truncationsBehind(ctx context.Context, conflicts []Conflict) error {
	found := make(map[pgcatalog.Name][]Change)
	for i := range conflicts {
		c := &conflicts[i]
		if !c.origin.gone || c.Change != nil || c.row.table.keyless && c.origin.ownRow {
			continue
		}
		for _, name := range p.namesOf(&c.origin) {
			if _, known := found[name]; !known {
				q := Query{client: p.client}.InDatabase(p.database).ForTable(pgcatalog.Qualified(name.Schema, name.Table)).
					Operations(Truncate).OldestFirst()
				changes, err := q.List(ctx)
				if err != nil {
					return err
				}
				found[name] = slices.DeleteFunc(changes, func(t Change) bool {
					return p.isSelected(t.Position) || slices.Contains(p.sel.extra, t.Position)
				})
			}
			for j, t := range found[name] {
				if t.Position.Compare(c.origin.after) > 0 && c.Change == nil {
					c.Change, c.origin.later = &found[name][j], []Position{t.Position}
				}
			}
		}
	}
	return nil
}
