package audit

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
)

const (
	// stageRows is how many rows go into a statement as its parameters. More are
	// copied into a temporary table, or taken in several statements where nothing
	// may be written.
	stageRows = 2000
	// stageBytes is how many bytes of values may be in a statement when one more row
	// is added to it.
	stageBytes = 4 << 20
)

// group is rows of one table to which the same is done.
type group struct {
	table  *target
	action Operation
	rows   []*netRow
	// columns are those that any of the rows has a cell of, in the table's order.
	columns []int
	// uniform reports whether all rows have cells of all columns.
	uniform bool
}

// groupRows puts rows together by table and action. Rows to be inserted are kept
// apart by their columns, since a column that is left out gets its default.
func groupRows(rows []*netRow) []*group {
	type groupKey struct {
		table   *target
		action  Operation
		columns string
	}
	index := make(map[groupKey]*group)
	var groups []*group
	var g *group
	for _, r := range rows {
		if r.skipped || r.action == "" {
			continue
		}
		if g != nil && g.table == r.table && g.action == r.action && r.action != Create { // as nearly all are
			g.rows = append(g.rows, r)
			continue
		}
		k := groupKey{table: r.table, action: r.action}
		if r.action == Create {
			k.columns = r.signature()
		}
		if g = index[k]; g == nil {
			g = &group{table: r.table, action: r.action}
			index[k] = g
			groups = append(groups, g)
		}
		g.rows = append(g.rows, r)
	}
	for _, g := range groups {
		g.settle()
	}
	return groups
}

// signature tells apart rows with different sets of cells.
func (r *netRow) signature() string {
	have := make([]byte, len(r.table.Columns.List))
	for _, c := range r.cells {
		have[c.column] = 1
	}
	return string(have)
}

// settle finds the columns.
func (g *group) settle() {
	count := make([]int, len(g.table.Columns.List))
	for _, r := range g.rows {
		for _, c := range r.cells {
			count[c.column]++
		}
	}
	g.columns, g.uniform = nil, true
	for at, n := range count {
		if n > 0 {
			g.columns = append(g.columns, at)
			g.uniform = g.uniform && n == len(g.rows)
		}
	}
}

// part is the group with some of its rows, and all of its columns.
func (g *group) part(rows []*netRow) *group {
	p := *g
	p.rows = rows
	return &p
}

// stagedColumn is a column of a stage.
type stagedColumn struct {
	name  string
	value func(r *netRow) datum
}

// stagedColumns are the number of the row, its key, what is expected and what is
// restored in each column, and which of the columns the row has.
func (g *group) stagedColumns() []stagedColumn {
	var columns []stagedColumn
	for i := range g.table.Key {
		columns = append(columns, stagedColumn{fmt.Sprintf("k%d", i), func(r *netRow) datum {
			return datum{text: []byte(r.liveKey()[i]), known: true}
		}})
	}
	for _, at := range g.columns {
		value := func(side func(*cell) datum) func(*netRow) datum {
			return func(r *netRow) datum {
				if c := r.cell(at); c != nil {
					return side(c)
				}
				return datum{}
			}
		}
		if g.action != Create {
			columns = append(columns, stagedColumn{fmt.Sprintf("e%d", at), value((*cell).seen)})
		}
		if g.action != Delete {
			columns = append(columns, stagedColumn{fmt.Sprintf("r%d", at), value(func(c *cell) datum { return c.restore })})
		}
	}
	if !g.uniform {
		columns = append(columns, stagedColumn{"m", func(r *netRow) datum {
			mask := make([]byte, len(g.columns))
			for i, at := range g.columns {
				mask[i] = '0'
				if r.cell(at) != nil {
					mask[i] = '1'
				}
			}
			return datum{text: mask, known: true}
		}})
	}
	return columns
}

// seen is what the live row had when it was last looked at.
func (c *cell) seen() datum {
	if c.live != nil {
		return *c.live
	}
	return c.expect
}

// has is the SQL condition that the row has a cell of the i-th column.
func (g *group) has(i int) string {
	if g.uniform {
		return "true"
	}
	return fmt.Sprintf("pg_catalog.substr(s.m, %d, 1) = '1'", i+1)
}

// stage is rows where a statement can join them, as s, with their number n.
type stage struct {
	from string
	args []any
	// table is the temporary table that they are in, empty if they are parameters.
	table string
}

// writtenFrom is the stage from which the rows were written, as one of what they hold then;
// nil if there is none that can be read once more.
func (g *group) writtenFrom(s *stage) *stage {
	if s == nil || s.table == "" || g.action == Delete {
		return nil
	}
	columns := []string{"n"}
	for i, at := range g.table.keyAt {
		key := fmt.Sprintf("k%d", i)
		if k := slices.Index(g.columns, at); k >= 0 {
			key = fmt.Sprintf("CASE WHEN %s THEN s.r%d ELSE s.k%d END AS k%d", g.has(k), at, i, i)
		}
		columns = append(columns, key)
	}
	for _, at := range g.columns {
		columns = append(columns, fmt.Sprintf("r%[1]d AS e%[1]d, r%[1]d", at))
	}
	if !g.uniform {
		columns = append(columns, "m")
	}
	return &stage{from: fmt.Sprintf("(SELECT %s FROM %s AS s) AS s", strings.Join(columns, ", "), s.table), table: s.table}
}

// stageArrays stages rows as parameters of the statement.
func (g *group) stageArrays() *stage { return g.stageArraysBehind(0) }

// stageArraysBehind is stageArrays for a statement that has some parameters already.
func (g *group) stageArraysBehind(taken int) *stage {
	columns := g.stagedColumns()
	numbers := make([]int32, len(g.rows))
	names, params := []string{"n"}, []string{fmt.Sprintf("$%d::int4[]", taken+1)}
	s := &stage{args: []any{numbers}}
	for i := range g.rows {
		numbers[i] = int32(i)
	}
	for i, c := range columns {
		values := make([]*string, len(g.rows))
		for j, r := range g.rows {
			values[j] = c.value(r).pointer()
		}
		names, params = append(names, c.name), append(params, fmt.Sprintf("$%d::text[]", taken+i+2))
		s.args = append(s.args, values)
	}
	s.from = fmt.Sprintf("unnest(%s) AS s (%s)", strings.Join(params, ", "), strings.Join(names, ", "))
	return s
}

// stageTable stages rows in a temporary table of the transaction.
func (g *group) stageTable(ctx context.Context, tx pgx.Tx, name string) (*stage, error) {
	columns := g.stagedColumns()
	definitions := []string{"n int4"}
	for _, c := range columns {
		definitions = append(definitions, c.name+" text")
	}
	ident := pgx.Identifier{"pg_temp", name}.Sanitize()
	if _, err := tx.Exec(ctx, fmt.Sprintf("CREATE TEMPORARY TABLE %s (%s) ON COMMIT DROP", pgx.Identifier{name}.Sanitize(), strings.Join(definitions, ", "))); err != nil {
		return nil, history.OpError("make temporary table", err)
	}
	if _, err := tx.Conn().PgConn().CopyFrom(ctx, &stageReader{rows: g.rows, columns: columns}, "COPY "+ident+" FROM STDIN"); err != nil {
		return nil, history.OpError("fill temporary table", err)
	}
	return &stage{from: ident + " AS s", table: ident}, nil
}

// stageReader gives rows in the text format of COPY.
type stageReader struct {
	rows    []*netRow
	columns []stagedColumn
	next    int
	buffer  []byte
	begin   int
}

// Read implements io.Reader.
func (s *stageReader) Read(p []byte) (int, error) {
	for s.begin == len(s.buffer) {
		if s.next == len(s.rows) {
			return 0, io.EOF
		}
		s.buffer, s.begin = s.buffer[:0], 0
		for len(s.buffer) < 32<<10 && s.next < len(s.rows) {
			s.appendRow(s.rows[s.next])
			s.next++
		}
	}
	n := copy(p, s.buffer[s.begin:])
	s.begin += n
	return n, nil
}

func (s *stageReader) appendRow(r *netRow) {
	s.buffer = fmt.Appendf(s.buffer, "%d", s.next)
	for _, c := range s.columns {
		s.buffer = append(s.buffer, '\t')
		value := c.value(r).text
		if value == nil {
			s.buffer = append(s.buffer, '\\', 'N')
			continue
		}
		for _, b := range value {
			switch b {
			case '\\', '\t', '\n', '\r':
				s.buffer = append(s.buffer, '\\', map[byte]byte{'\\': '\\', '\t': 't', '\n': 'n', '\r': 'r'}[b])
			default:
				s.buffer = append(s.buffer, b)
			}
		}
	}
	s.buffer = append(s.buffer, '\n')
}

// on joins the live table, as t, by the primary key.
func (t *target) on() string {
	parts := make([]string, len(t.Key))
	for i, at := range t.keyAt {
		parts[i] = fmt.Sprintf("%s %s s.k%d::%s", pgcatalog.ColumnIdent("t", t.Key[i]), t.keyOp(i), i, t.Columns.List[at].TypeName)
	}
	return strings.Join(parts, " AND ")
}

func (t *target) keyOp(i int) string {
	if i < len(t.KeyOperators) {
		return t.KeyOperators[i]
	}
	return "="
}

// keyOrder is the order in which rows are locked.
func (t *target) keyOrder() string {
	parts := make([]string, len(t.Key))
	for i, name := range t.Key {
		parts[i] = pgcatalog.ColumnIdent("t", name)
	}
	return strings.Join(parts, ", ")
}

// fits reports whether the group goes into one statement as its parameters.
func (g *group) fits() bool { return g.chunk() == len(g.rows) }

// chunk is how many of the rows go into one statement.
func (g *group) chunk() int {
	bytes := 0
	for i, r := range g.rows {
		if i == stageRows || bytes > stageBytes {
			return i
		}
		for j := range r.cells {
			bytes += len(r.cells[j].restore.text) + len(r.cells[j].seen().text)
		}
	}
	return len(g.rows)
}

// chunks are the group in parts that go into one statement each.
func (g *group) chunks() []*group {
	var parts []*group
	for left := g; len(left.rows) > 0; {
		n := left.chunk()
		parts, left = append(parts, left.part(left.rows[:n])), left.part(left.rows[n:])
	}
	return parts
}
