package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// alikeAtLeast is how many watches with filters that differ by their values alone are
// asked of together, by one statement that the server knows already.
const alikeAtLeast = 4

// typesKept is of how many conditions the types of the values are remembered.
const typesKept = 256

// question is a page of changes of which the server is asked.
type question struct {
	database string
	after    Position // where the page begins
	changes  []Change
}

// askAll lets the server say which changes the filters leave of which it cannot be told
// here. It returns the groups that it could not be asked of.
func (t *tail) askAll(ctx context.Context, q *question, asked []*matches) (refused map[*filterGroup]bool) {
	alike := make(map[string][]*matches)
	var order []string
	for _, m := range asked {
		sql := m.group.sql
		if alike[sql] == nil {
			order = append(order, sql)
		}
		alike[sql] = append(alike[sql], m)
	}
	var unlike []*matches
	for _, sql := range order {
		// If that fails it is the fault of one of them.
		if all := alike[sql]; len(all) < alikeAtLeast || t.askAlike(ctx, q, sql, all) != nil {
			unlike = append(unlike, all...)
		}
	}
	refused = make(map[*filterGroup]bool)
	for chunk := range slices.Chunk(unlike, askedAtOnce) {
		if t.ask(ctx, q, chunk) != nil {
			for _, m := range chunk { // the one at fault learns it when it asks by itself
				refused[m.group] = true
			}
		}
	}
	return refused
}

// page selects from the changes of the page, oldest first. The number of them is an
// argument, so that the statement stays the same.
func (q *question) page(t *tail, columns ...string) sq.SelectBuilder {
	p := &pages{client: t.client, query: Query{oldest: true}.InDatabase(q.database), after: &mark{q.after, q.database}}
	return p.bounded(p.query.from(t.client, columns...)).OrderBy(p.query.order()).Suffix("LIMIT ?", len(q.changes))
}

// read gives the answers, by place of the change, to whoever asked.
func read[T any](rows pgx.Rows, answered func(at Position, answer T)) error {
	var lsn lsnText
	var at Position
	var answer T
	_, err := pgx.ForEachRow(rows, []any{&lsn, &at.Sequence, &answer}, func() error {
		at.LSN = pglogrepl.LSN(lsn)
		answered(at, answer)
		return nil
	})
	return err
}

// ask asks of each change, with a condition for each filter.
func (t *tail) ask(ctx context.Context, q *question, asked []*matches) error {
	var conditions bytes.Buffer
	var args []any
	for i, m := range asked {
		if i > 0 {
			conditions.WriteString(", ")
		}
		conditions.WriteString("(" + m.group.sql + ") IS TRUE")
		args = append(args, m.group.args...)
	}
	statement, args, err := q.page(t, "c.position", "c.sequence").
		Column(sq.Expr("ARRAY["+conditions.String()+"]", args...)).ToSql()
	if err != nil {
		return err
	}
	// The statement is another each time: it is not to be kept.
	rows, err := t.client.history.Listings.Query(ctx, statement, append([]any{pgx.QueryExecModeDescribeExec}, args...)...)
	if err != nil {
		return err
	}
	holds := make(map[Position][]bool)
	if err := read(rows, func(at Position, each []bool) { holds[at] = slices.Clone(each) }); err != nil {
		return err
	}
	return q.answer(asked, func(at Position, n int) (holdsHere, known bool) {
		each, ok := holds[at]
		return ok && each[n], ok
	})
}

// askAlike asks of each change which of the filters hold, that have the same condition, sql,
// with other values. The values are rows to the server, so that the statement is the same each
// time, however many filters there are.
func (t *tail) askAlike(ctx context.Context, q *question, sql string, asked []*matches) error {
	conn, err := t.client.history.Listings.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	types, err := t.typesOf(ctx, conn.Conn(), sql)
	if err != nil {
		return err
	}
	values := make([][]*string, len(types))
	for _, m := range asked {
		texts, err := m.group.valuesAs(types, conn.Conn().TypeMap())
		if err != nil {
			return err
		}
		for i, text := range texts {
			values[i] = append(values[i], text)
		}
	}
	var columns, names, casts []string
	var args []any
	for i, of := range types {
		columns = append(columns, "pg_catalog.unnest(?::text[])")
		names = append(names, fmt.Sprintf("a%d", i))
		casts = append(casts, fmt.Sprintf("f.a%d::%s AS a%[1]d", i, pgx.Identifier{"pg_catalog", of.Name}.Sanitize()))
		args = append(args, values[i])
	}
	statement, args, err := q.page(t, "c.position", "c.sequence").
		Prefix("WITH filters AS MATERIALIZED (SELECT f.n, "+strings.Join(casts, ", ")+" FROM ROWS FROM ("+strings.Join(columns, ", ")+") WITH ORDINALITY AS f ("+strings.Join(names, ", ")+", n))", args...).
		Column("ARRAY(SELECT filters.n FROM filters WHERE " + withColumns(sql) + ")").ToSql()
	if err != nil {
		return err
	}
	rows, err := conn.Query(ctx, statement, args...)
	if err != nil {
		return err
	}
	holds := make(map[Position][]int64)
	if err := read(rows, func(at Position, which []int64) { holds[at] = slices.Clone(which) }); err != nil {
		return err
	}
	return q.answer(asked, func(at Position, n int) (holdsHere, known bool) {
		which, ok := holds[at]
		return slices.Contains(which, int64(n+1)), ok
	})
}

// valuesAs returns the values of the filters as texts of types, of which the same condition has
// always the same.
func (g *filterGroup) valuesAs(types []*pgtype.Type, known *pgtype.Map) ([]*string, error) {
	if g.texts != nil {
		return g.texts, nil
	}
	if len(g.args) != len(types) {
		return nil, errUnlike
	}
	texts := make([]*string, len(types))
	for i, arg := range g.args {
		text, err := known.Encode(types[i].OID, pgtype.TextFormatCode, arg, nil)
		if err != nil {
			return nil, err
		}
		if text != nil {
			s := string(text)
			texts[i] = &s
		}
	}
	g.texts = texts
	return texts, nil
}

// errUnlike is for filters that are not as alike as their conditions.
var errUnlike = errors.New("audit: filters of one form have different numbers of values")

// withColumns puts the columns of the filters in the place of the values.
func withColumns(sql string) string {
	var b strings.Builder
	n := 0
	for i := 0; i < len(sql); i++ {
		switch {
		case sql[i] != '?':
			b.WriteByte(sql[i])
		case i+1 < len(sql) && sql[i+1] == '?': // an operator: it is written so once more
			b.WriteString("??")
			i++
		default:
			fmt.Fprintf(&b, "filters.a%d", n)
			n++
		}
	}
	return b.String()
}

// typesOf returns the types that the server gives to the values of a condition.
func (t *tail) typesOf(ctx context.Context, conn *pgx.Conn, sql string) ([]*pgtype.Type, error) {
	t.mu.Lock()
	types, ok := t.types[sql]
	t.mu.Unlock()
	if ok {
		return types, nil
	}
	statement, err := sq.Dollar.ReplacePlaceholders("SELECT FROM " + t.client.history.Relation("changes") + " AS c WHERE " + sql)
	if err != nil {
		return nil, err
	}
	described, err := conn.PgConn().Prepare(ctx, "", statement, nil)
	if err != nil {
		return nil, err
	}
	for _, oid := range described.ParamOIDs {
		of, ok := conn.TypeMap().TypeForOID(oid)
		if !ok || oid >= 16384 {
			return nil, fmt.Errorf("audit: a filter has a value of a type, %d, that is not the server's", oid)
		}
		types = append(types, of)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.types) >= typesKept {
		clear(t.types)
	}
	t.types[sql] = types
	return types, nil
}

// answer notes which of the changes that were asked of hold for whom.
func (q *question) answer(asked []*matches, holds func(at Position, n int) (holds, known bool)) error {
	for _, m := range asked {
		for _, i := range m.asked {
			if _, known := holds(q.changes[i].Position, 0); !known {
				return errChangeGone
			}
		}
	}
	for n, m := range asked {
		for _, i := range m.asked {
			if yes, _ := holds(q.changes[i].Position, n); yes {
				m.sure = append(m.sure, i)
			}
		}
		slices.Sort(m.sure)
	}
	return nil
}
