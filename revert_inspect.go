package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/internal/rowimage"
	"github.com/hindsight-go/audit/internal/wal"
)

// inspectSQL compares live rows with what is expected and with what is to be
// restored, by the text that the type itself prints. It gives the rows that are
// there, with live values only where they are not as expected.
func (g *group) inspectSQL(s *stage, lock bool, retyped bool) string {
	var same, values, expected, restored []string
	for i, at := range g.columns {
		column := g.table.unchecked(at)
		live := pgcatalog.ColumnIdent("t", column.Name)
		values = append(values, pgcatalog.TextOf(live))
		if g.action != Create {
			condition := sameSQL(column, live, fmt.Sprintf("s.e%d", at), retyped)
			expected = append(expected, condition)
			if !g.uniform {
				condition = "(NOT " + g.has(i) + " OR " + condition + ")"
			}
			same = append(same, condition)
		}
		if g.action != Delete {
			restored = append(restored, sameSQL(column, live, fmt.Sprintf("s.r%d", at), retyped))
		}
	}
	if g.action == Create || len(same) == 0 {
		same = []string{fmt.Sprint(g.action != Create)}
	}
	flags := func(conditions []string) []string {
		texts := make([]string, len(conditions))
		for i, condition := range conditions {
			texts[i] = "pg_catalog.concat(" + condition + ")"
		}
		return texts
	}
	found := slices.Concat(values, flags(expected), flags(restored))
	key := "NULL::text[]"
	if g.table.printsOtherwise() {
		key = pgcatalog.KeyArray("t", g.table.Key)
	}
	suffix := ""
	if lock {
		suffix = " ORDER BY " + g.table.keyOrder() + " FOR UPDATE OF t"
	}
	return fmt.Sprintf(`
		SELECT s.n, CASE WHEN %s THEN NULL ELSE ARRAY[%s]::text[] END, %s
		FROM %s
		JOIN %s AS t ON %s%s`,
		strings.Join(same, " AND "), strings.Join(found, ", "), key, s.from, g.table.from(), g.table.on(), suffix)
}

// sameSQL compares a live value with a staged text. Some types have several texts
// for one value, or are written in an image in another way: their staged text is
// put through the type first. By the column's collation, other texts may be equal.
func sameSQL(column *pgcatalog.Column, live, staged string, retyped bool) string {
	text := staged
	if column.HasSeveralTexts(retyped) {
		text = fmt.Sprintf("pg_catalog.concat(%s::%s)", staged, column.TypeName)
	}
	return fmt.Sprintf("((%s IS NOT DISTINCT FROM NULL) OPERATOR(pg_catalog.=) (%s IS NULL) AND pg_catalog.concat(%s) COLLATE pg_catalog.\"C\" OPERATOR(pg_catalog.=) coalesce(%s, ''))", live, staged, live, text)
}

// inspect looks at the live rows of a group and notes on each row what it finds.
func (g *group) inspect(ctx context.Context, tx pgx.Tx, s *stage, lock bool, b *budget) error {
	retyped := slices.ContainsFunc(g.rows, func(r *netRow) bool { return r.retyped })
	for _, r := range g.rows {
		r.missing, r.printed = true, nil
	}
	rows, err := tx.Query(ctx, g.inspectSQL(s, lock, retyped), s.args...)
	if err != nil {
		return g.inspectError(err, retyped)
	}
	var n int32
	var found []*string
	var key []string
	_, err = pgx.ForEachRow(rows, []any{&n, &found, &key}, func() error {
		r := g.rows[n]
		r.missing, r.done = false, false
		if key != nil {
			if !slices.Equal(key, r.key) {
				r.printed = key
				b.spend(keyBytes(key))
			}
			key = nil
		}
		if found != nil { // else it is just as the selection left it
			g.note(r, found)
			found = nil
			for i := range r.cells {
				if live := r.cells[i].live; live != nil {
					b.spend(datumBytes + len(live.text))
				}
			}
		}
		return b.err()
	})
	return g.inspectError(err, retyped)
}

func (g *group) inspectError(err error, retyped bool) error {
	var large *TooLargeError
	if err == nil || errors.As(err, &large) {
		return err
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (isDenied(err) || strings.HasPrefix(pg.Code, "23") && !retyped) { // a domain has become stricter
		return &ApplyError{Table: g.table.label(), Action: g.action, Constraint: pg.ConstraintName, cause: err}
	}
	if retyped && isDataError(err) {
		return &UnrevertableError{Table: g.table.label(), Reason: "a column has another type since, which cannot take what history has of it", cause: err}
	}
	return history.OpError("compare with the live rows of "+g.table.label(), err)
}

// note keeps what was found of a row: live values, whether each of them is as
// expected, and whether it is as it would be restored.
func (g *group) note(r *netRow, found []*string) {
	size := len(g.columns)
	flag := func(part, i int) bool {
		at := part*size + i
		return at < len(found) && found[at] != nil && *found[at] == "t"
	}
	done := g.action != Delete
	for i, at := range g.columns {
		c := r.cell(at)
		if c == nil {
			continue
		}
		live := datum{known: true}
		if found[i] != nil {
			live.text = []byte(*found[i])
		}
		isJSON := g.table.Columns.List[at].Kind.Base == wal.JSON
		expected, restored := flag(1, i), flag(2, i)
		if g.action == Create {
			expected, restored = false, expected
		}
		c.live = &live
		if g.action != Create && (expected || isJSON && sameJSON(live, c.expect)) {
			c.live = nil // as expected, in other words perhaps
		}
		restored = (restored || isJSON && c.live != nil && sameJSON(live, c.restore)) && c.restore.as == 0
		c.already = restored && c.live != nil
		done = done && restored
	}
	r.done = done
}

// keyBytes is what a key takes in memory.
func keyBytes(key []string) int {
	size := headerBytes * len(key)
	for _, part := range key {
		size += len(part)
	}
	return size
}

// sameJSON compares documents of type json, of which images keep the meaning.
func sameJSON(a, b datum) bool {
	return (a.text == nil) == (b.text == nil) && (a.text == nil || rowimage.Equal(a.text, b.text))
}

// inspectUnknown finds columns of rows to be removed of which history says nothing,
// and that hold something else than they would without anybody's doing: they were
// added since, perhaps, and somebody has filled them in.
func (g *group) inspectUnknown(ctx context.Context, tx pgx.Tx, b *budget) error {
	if g.action != Delete {
		return nil
	}
	var unknown []int
	for at, c := range g.table.Columns.List {
		if !c.Generated && !slices.Contains(g.table.withheld, c.Name) && slices.ContainsFunc(g.rows, func(r *netRow) bool { return !r.missing && r.cell(at) == nil }) {
			unknown = append(unknown, at)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	untouched, err := g.table.untouched(ctx, tx)
	if err != nil {
		return err
	}
	values := make([]string, len(unknown))
	for i, at := range unknown {
		values[i] = pgcatalog.TextOf(pgcatalog.ColumnIdent("t", g.table.Columns.List[at].Name))
	}
	s := g.stageArrays()
	rows, err := tx.Query(ctx, fmt.Sprintf("SELECT s.n, ARRAY[%s]::text[] FROM %s JOIN %s AS t ON %s",
		strings.Join(values, ", "), s.from, g.table.from(), g.table.on()), s.args...)
	if err != nil {
		return g.inspectError(err, false)
	}
	var n int32
	var found []*string
	_, err = pgx.ForEachRow(rows, []any{&n, &found}, func() error {
		r := g.rows[n]
		for i, at := range unknown {
			if r.cell(at) != nil {
				continue
			}
			live := datum{known: true}
			if found[i] != nil {
				live.text = []byte(*found[i])
			}
			if !live.equal(untouched[g.table.Columns.List[at].Attnum]) {
				r.unknown = append(r.unknown, liveColumn{at, live})
				b.spend(datumBytes + len(live.text))
			}
		}
		found = nil
		return b.err()
	})
	return g.inspectError(err, false)
}

// untouched reads what rows hold in columns that were added behind them: NULL, or the
// default that the column was added with.
func (t *target) untouched(ctx context.Context, tx pgx.Tx) (map[int16]datum, error) {
	rows, err := tx.Query(ctx, `
		SELECT a.attnum, (a.attmissingval::text::text[])[1]
		FROM pg_catalog.pg_attribute a
		WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped`, t.OID)
	if err != nil {
		return nil, history.OpError("read defaults", err)
	}
	values := make(map[int16]datum)
	var at int16
	var text *string
	_, err = pgx.ForEachRow(rows, []any{&at, &text}, func() error {
		d := datum{known: true}
		if text != nil {
			d.text = []byte(*text)
		}
		values[at] = d
		return nil
	})
	return values, history.OpError("read defaults", err)
}
