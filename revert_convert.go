package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/store"
)

// A value of history has the type that its column had. If that is another today, the
// value is converted before anything is compared or written, as ALTER COLUMN TYPE
// converts the rows of the table, and what comes out is compared with what was asked:
// an explicit cast cuts off what a shorter type cannot hold, without a word.

// pastType is a type that columns of a table had, and have no longer.
type pastType struct {
	oid uint32
	mod int32
	// moved reports whether the type itself has other attributes now, rewritten whether
	// the column's values were computed anew: there is no way from then to now.
	moved, rewritten bool
}

// pastType returns the number of a type that a column had, 0 if it has it still. late
// tells that a type that is defined otherwise now may have been so already.
func (t *target) pastType(then store.Column, now *pgcatalog.Column, late bool) uint16 {
	p := pastType{oid: then.TypeOID, mod: then.TypeMod, moved: late && then.Definition != now.Definition || attributesMoved(then.Definition, now.Definition), rewritten: then.Rewritten != now.Rewritten}
	if !p.moved && !p.rewritten && p.oid == now.TypeOID && p.mod == now.TypeMod && pgcatalog.DefinitionKeeps(then.Definition, now.Definition) {
		return 0
	}
	at := slices.Index(t.pastTypes, p)
	if at < 0 {
		at = len(t.pastTypes)
		t.pastTypes = append(t.pastTypes, p)
	}
	return uint16(at + 1)
}

// attributesMoved reports whether a text of a composite type would be read by other
// attributes than those that it was printed by.
func attributesMoved(then, now string) bool {
	if then == now || then == "" || now == "" {
		return false
	}
	attributes := func(definition string) (places []string) {
		var entries []string
		if json.Unmarshal([]byte(definition), &entries) != nil {
			return []string{definition}
		}
		for _, entry := range entries {
			if words := strings.SplitN(entry, " ", 4); words[0] == "attribute" && len(words) == 4 {
				places = append(places, words[1]+" "+words[2]) // the name may be another
			}
		}
		slices.Sort(places)
		return places
	}
	return !slices.Equal(attributes(then), attributes(now))
}

// conversion says how texts of a type of then are made into values of a type of now.
type conversion struct {
	// from is the type as SQL, bare without its modifier; there reports whether it is
	// still there.
	from, bare string
	there      bool
	// implicit reports whether ALTER COLUMN TYPE would convert without being told how,
	// back whether there is a way back, after which values can be compared.
	implicit, back bool
	// settings reports whether the way depends on settings, such as the time zone: what
	// they were when the column was altered is not in history.
	settings bool
}

func (p *planner) conversion(ctx context.Context, from pastType, to *pgcatalog.Column) (c conversion, err error) {
	err = p.tx.QueryRow(ctx, `
		WITH RECURSIVE made_of (side, oid, arrays) AS (
			VALUES (1, $1::oid, 0), (2, $3::oid, 0)
			UNION ALL
			SELECT m.side, CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.typelem END, m.arrays + CASE WHEN t.typtype = 'd' THEN 0 ELSE 1 END
			FROM made_of m
			JOIN pg_catalog.pg_type t ON t.oid = m.oid
			WHERE t.typtype = 'd' OR t.typelem <> 0 AND t.typlen = -1),
		base AS (
			SELECT m.side, m.arrays, t.oid, t.typtype, t.typcategory
			FROM made_of m
			JOIN pg_catalog.pg_type t ON t.oid = m.oid
			WHERE NOT (t.typtype = 'd' OR t.typelem <> 0 AND t.typlen = -1))
		SELECT coalesce(pg_catalog.format_type($1, $2), ''), coalesce(pg_catalog.format_type($1, -1), ''), f.oid IS NOT NULL,
			coalesce(f.arrays = t.arrays AND (f.oid = t.oid OR forth.castcontext IN ('i', 'a') OR t.typcategory = 'S'), false),
			coalesce(f.arrays = t.arrays AND (f.oid = t.oid OR back.oid IS NOT NULL OR f.typcategory = 'S' OR t.typcategory = 'S')
				AND (f.typcategory = 'S' OR f.typtype IN ('e', 'r', 'm') OR f.oid < 16384 AND EXISTS (
					SELECT FROM pg_catalog.pg_opclass o JOIN pg_catalog.pg_am m ON m.oid = o.opcmethod
					WHERE o.opcintype = f.oid AND o.opcdefault AND m.amname = 'btree')), false),
			coalesce((SELECT p.provolatile <> 'i' FROM pg_catalog.pg_proc p WHERE p.oid = forth.castfunc), false)
		FROM base t
		LEFT JOIN base f ON f.side = 1
		LEFT JOIN pg_catalog.pg_cast forth ON forth.castsource = f.oid AND forth.casttarget = t.oid
		LEFT JOIN pg_catalog.pg_cast back ON back.castsource = t.oid AND back.casttarget = f.oid
		WHERE t.side = 2`, from.oid, from.mod, to.TypeOID).Scan(&c.from, &c.bare, &c.there, &c.implicit, &c.back, &c.settings)
	return c, history.OpError("look up types", err)
}

// sql converts the text s.x, as its value and whether that is what was asked.
func (c conversion) sql(to *pgcatalog.Column) (value, same string) {
	value = "s.x::" + to.TypeName
	if c.there && c.implicit {
		value = "s.x::" + c.from + "::" + to.TypeName
	}
	same = "pg_catalog.concat(y.v) OPERATOR(pg_catalog.=) y.x"
	if c.there && c.back && !c.settings {
		same += fmt.Sprintf(" OR y.v::%s IS NOT DISTINCT FROM y.x::%s", c.bare, c.from)
	}
	return value, same
}

// pastValue is a value, or a part of a key, in a type of then.
type pastValue struct {
	row   *netRow
	value *datum
	// exact reports whether it is to be written.
	exact bool
}

type pastColumn struct {
	table  *target
	column int
	as     uint16
}

// convert makes the values of rows that are of a type of then into ones of today's. A
// value to be restored that does not come out as it was stays what it is: see
// checkConverted.
func (p *planner) convert(ctx context.Context, rows []*netRow) error {
	values := make(map[pastColumn][]pastValue)
	var order []pastColumn
	add := func(r *netRow, column int, d *datum, exact bool) {
		if d.as == 0 || d.text == nil {
			return
		}
		at := pastColumn{r.table, column, d.as}
		if values[at] == nil {
			order = append(order, at)
		}
		values[at] = append(values[at], pastValue{r, d, exact})
	}
	for _, r := range rows {
		if !r.retyped && r.keyMap == nil {
			continue
		}
		for i := range r.cells {
			c := &r.cells[i]
			add(r, c.column, &c.restore, true)
			if !r.table.keyless { // else history is searched for what it holds
				add(r, c.column, &c.expect, false)
			}
		}
		for i := range r.keyData() {
			add(r, r.table.keyAt[i], &r.keyed[i], false)
		}
	}
	for _, at := range order {
		past := at.table.pastTypes[at.as-1]
		if past.moved || past.rewritten {
			continue
		}
		c, err := p.conversion(ctx, past, &at.table.Columns.List[at.column])
		if err != nil {
			return err
		}
		for part := range slices.Chunk(values[at], stageRows) {
			if err := p.convertPart(ctx, at, c, part); err != nil {
				return err
			}
		}
	}
	for _, r := range rows {
		r.takeConverted()
	}
	return nil
}

func (p *planner) convertPart(ctx context.Context, at pastColumn, c conversion, part []pastValue) error {
	column := &at.table.Columns.List[at.column]
	numbers, texts := make([]int32, len(part)), make([]string, len(part))
	for i, v := range part {
		numbers[i], texts[i] = int32(i), string(v.value.text)
	}
	value, same := c.sql(column)
	rows, err := p.tx.Query(ctx, fmt.Sprintf(`
		SELECT y.n, pg_catalog.concat(y.v), %s
		FROM (SELECT s.n, s.x, %s AS v FROM unnest($1::int4[], $2::text[]) AS s (n, x) OFFSET 0) AS y`, same, value), numbers, texts)
	refuse := func(err error) error {
		if isDataError(err) {
			return &UnrevertableError{Table: at.table.label(), Position: part[0].row.first(), Reason: retypedReason(column, c.from), cause: err}
		}
		return history.OpError("convert values of "+at.table.label(), err)
	}
	if err != nil {
		return refuse(err)
	}
	var n int32
	var text []byte
	var fits bool
	_, err = pgx.ForEachRow(rows, []any{&n, &text, &fits}, func() error {
		if v := part[n]; fits || !v.exact {
			p.budget.spend(len(text) - len(v.value.text))
			*v.value = datum{text: slices.Clone(text), known: true}
		}
		return p.budget.err()
	})
	if err != nil {
		return refuse(err)
	}
	return nil
}

// retypedReason says that a value cannot be had in today's type of its column.
func retypedReason(c *pgcatalog.Column, from string) string {
	return fmt.Sprintf("column %q has another type since: %s cannot hold, for certain, what it held as %s", c.Name, c.TypeName, from)
}

// keyData returns the parts of a key that has a column of another type since.
func (r *netRow) keyData() []datum {
	if r.keyMap == nil || r.table.keyless || len(r.key) != len(r.table.keyAt) {
		return nil
	}
	r.keyed = make([]datum, len(r.key))
	for i, at := range r.table.keyAt {
		r.keyed[i] = datum{text: []byte(r.key[i]), known: true, as: r.keyMap.at[at].as}
	}
	return r.keyed
}

// takeConverted notes what is left of a row to be converted, and its key of now.
func (r *netRow) takeConverted() {
	if r.keyed != nil {
		key := make([]string, len(r.keyed))
		for i, d := range r.keyed {
			key[i] = string(d.text)
		}
		if !slices.Equal(key, r.key) {
			r.oldKey, r.key = store.KeyText(r.key...), key
		}
	}
	r.keyed, r.keyMap = nil, nil
	if !r.table.keyless {
		r.retyped = slices.ContainsFunc(r.cells, func(c cell) bool { return c.restore.as != 0 || c.expect.as != 0 })
	}
}

// checkConverted refuses to write values that today's type of their column cannot hold.
func (p *planner) checkConverted(ctx context.Context) error {
	for _, r := range p.activeRows() {
		if r.action == Delete || !r.retyped {
			continue
		}
		for i := range r.cells {
			c := &r.cells[i]
			if c.restore.as == 0 || c.restore.text == nil {
				continue
			}
			column := &r.table.Columns.List[c.column]
			past := r.table.pastTypes[c.restore.as-1]
			conversion, err := p.conversion(ctx, past, column)
			if err != nil {
				return err
			}
			reason := retypedReason(column, conversion.from)
			if past.rewritten {
				reason = fmt.Sprintf("the values of column %q were computed anew since, by ALTER TABLE ... USING: what it held means something else now", column.Name)
			}
			if r.action == Update {
				reason += fmt.Sprintf("; Except(%q) leaves the column as it is", column.Name)
			}
			return &UnrevertableError{Table: r.table.label(), Position: r.first(), Reason: reason}
		}
	}
	return nil
}

// storedKey is the key as the change that the selection made of the row last has it.
func (r *netRow) storedKey() []string {
	switch {
	case r.oldKey == "":
		return r.key
	case len(r.key) == 1:
		return []string{r.oldKey}
	}
	return splitKey(r.oldKey)
}
