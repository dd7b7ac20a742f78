package audit

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// printedRows is how many rows and conflicts Plan.String shows.
const printedRows = 200

// String returns the plan as a diff for people, with values cut short:
//
//	revert request r-1: 3 changes: 1 rows to insert, 2 to update, 0 to delete, 0 already reverted, 0 skipped
//	  ~ public.todo[26] task: "Eat" -> "Sleep"
//	  + public.todo[27] id: "27", task: "Work"
//	  ~ public.todo[28] (in conflict) task: "Run" -> "Walk"
//	conflicts: 1, of which 1 in the way
//	  ! public.todo[28] task: column changed: ... [Abort]
//
// A plus is a row that is put back, a minus one that is removed, a tilde one of
// which columns are restored. Rows that are skipped or already as they should be
// are marked so. Of long plans the beginning is shown. What cannot be seen, such as
// control characters, is quoted.
func (p *Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "revert %s: %d changes: %d rows to insert, %d to update, %d to delete, %d already reverted, %d skipped\n",
		p.Of, p.Changes, p.Inserts, p.Updates, p.Deletes, p.Unchanged, p.Skipped)
	if p.Already != nil {
		by := ""
		if p.Already.User != "" {
			by = " by " + printable(p.Already.User)
		}
		fmt.Fprintf(&b, "already reverted%s in revert %s at %s\n", by, printable(p.Already.ID), p.Already.Position.LSN)
	}
	p.writeOrigins(&b)
	if len(p.Cascaded) > 0 {
		fmt.Fprintf(&b, "later changes that are reverted as well: %d\n", len(p.Cascaded))
		for i, c := range p.Cascaded {
			if i == printedRows {
				fmt.Fprintf(&b, "  ... and %d more\n", len(p.Cascaded)-i)
				break
			}
			b.WriteString("  < " + c.String() + "\n")
		}
	}
	n := 0
	for row := range p.Rows() {
		if n++; n > printedRows {
			fmt.Fprintf(&b, "  ... and %d more\n", len(p.p.rows)-printedRows)
			break
		}
		row.write(&b)
	}
	for i, c := range p.Unrestored {
		if i == 0 {
			b.WriteString("left as they are:\n")
		}
		b.WriteString("  = " + c.String() + "\n")
	}
	if len(p.Conflicts) > 0 {
		fmt.Fprintf(&b, "conflicts: %d, of which %d in the way\n", len(p.Conflicts), len(p.Blocked()))
		for i, c := range p.Conflicts {
			if i == printedRows {
				fmt.Fprintf(&b, "  ... and %d more\n", len(p.Conflicts)-i)
				break
			}
			fmt.Fprintf(&b, "  ! %s [%s]\n", c, c.Resolution)
		}
	}
	return b.String()
}

func (r PlannedRow) write(b *strings.Builder) {
	sign := map[Operation]string{Create: "+", Update: "~", Delete: "-"}[r.Action]
	fmt.Fprintf(b, "  %s %s", sign, r.RowRef)
	if r.Outcome != Reverted {
		fmt.Fprintf(b, " (%s)", r.Outcome)
	}
	for i, c := range r.Columns {
		if i > 0 {
			b.WriteByte(',')
		}
		switch r.Action {
		case Create:
			fmt.Fprintf(b, " %s: %s", printable(c.Column), sqlValueText(c.Restore))
		case Delete:
			fmt.Fprintf(b, " %s: %s", printable(c.Column), sqlValueText(c.Live))
		default:
			fmt.Fprintf(b, " %s: %s -> %s", printable(c.Column), sqlValueText(c.Live), sqlValueText(c.Restore))
		}
	}
	b.WriteByte('\n')
}

// SQL returns the plan as a script, in the order in which it is carried out, for
// people to read or to run by hand. It has a statement for each row, but one for
// all rows that go into a table which references itself, or out of it. Apply does
// it with fewer statements, checks the live rows under lock first, puts right what
// triggers do to rows that are restored already, and stamps the revert; the script
// does not. It is empty if conflicts are in the way, or if the plan is refused.
func (p *Plan) SQL() string {
	var b strings.Builder
	_ = p.WriteSQL(&b) // a strings.Builder takes everything
	return b.String()
}

// WriteSQL writes what [Plan.SQL] returns.
func (p *Plan) WriteSQL(w io.Writer) error {
	if p.p == nil || len(p.p.steps) == 0 || p.p.refused != nil {
		return nil //nolint:nilerr // A plan that is refused has no script.
	}
	if _, err := io.WriteString(w, "BEGIN;\nSET CONSTRAINTS ALL DEFERRED;\n"); err != nil {
		return err
	}
	for _, s := range p.p.steps {
		for _, rows := range s.group.inStatements() {
			if _, err := io.WriteString(w, statementSQL(rows)+";\n"); err != nil {
				return err
			}
		}
	}
	_, err := io.WriteString(w, "COMMIT;\n")
	return err
}

// inStatements puts the rows together that need one statement: those that come or
// go together may reference each other, which is checked after the statement, and
// under a key that is deferrable the second would find the first one's row, too.
func (g *group) inStatements() [][]*netRow {
	ring := slices.ContainsFunc(g.table.Parents, func(f *pgcatalog.ForeignKey) bool { return f.ChildOID == f.ParentOID && !f.Deferrable })
	shift := g.table.Deferrable && slices.ContainsFunc(g.rows, (*netRow).keyChanges)
	if g.action == Update && shift || g.action != Update && ring {
		return [][]*netRow{g.rows}
	}
	return slices.Collect(slices.Chunk(g.rows, 1))
}

// statementSQL is the statement for rows of one group.
func statementSQL(rows []*netRow) string {
	first := rows[0]
	t := first.table
	switch first.action {
	case Create:
		var names, lists []string
		for _, c := range first.cells {
			names = append(names, pgcatalog.ColumnIdent("", t.Columns.List[c.column].Name))
		}
		for _, r := range rows {
			values := make([]string, len(first.cells))
			for i, c := range first.cells {
				values[i] = sqlLiteral(r.cell(c.column).restore)
			}
			lists = append(lists, "("+strings.Join(values, ", ")+")")
		}
		return fmt.Sprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE VALUES %s", t.Ident(), strings.Join(names, ", "), strings.Join(lists, ", "))
	case Delete:
		var keys []string
		for _, r := range rows {
			keys = append(keys, r.whereSQL())
		}
		return fmt.Sprintf("DELETE FROM %s WHERE %s", t.from(), strings.Join(keys, " OR "))
	default:
		if len(rows) > 1 {
			return shiftSQL(rows)
		}
		var set []string
		for _, c := range first.cells {
			set = append(set, pgcatalog.ColumnIdent("", t.Columns.List[c.column].Name)+" = "+sqlLiteral(c.restore))
		}
		set = append(set, t.countOn("")...)
		where := first.whereSQL()
		if first.movesWithParent() {
			where += " OR " + t.keySQL(first.restoredKey())
		}
		return fmt.Sprintf("UPDATE %s SET %s WHERE %s", t.from(), strings.Join(set, ", "), where)
	}
}

// shiftSQL updates several rows at once, each to values of its own.
func shiftSQL(rows []*netRow) string {
	t := rows[0].table
	cases := make(map[int]*strings.Builder)
	var keys, set []string
	for _, r := range rows {
		key := t.keySQL(r.liveKey())
		keys = append(keys, key)
		for _, c := range r.cells {
			if cases[c.column] == nil {
				cases[c.column] = new(strings.Builder)
			}
			fmt.Fprintf(cases[c.column], " WHEN %s THEN %s::%s", key, sqlLiteral(c.restore), t.Columns.List[c.column].TypeName)
		}
	}
	for at := range t.Columns.List {
		if when := cases[at]; when != nil {
			name := pgcatalog.ColumnIdent("", t.Columns.List[at].Name)
			set = append(set, fmt.Sprintf("%s = CASE%s ELSE %s END", name, when, name))
		}
	}
	set = append(set, t.countOn("")...)
	return fmt.Sprintf("UPDATE %s SET %s WHERE %s", t.from(), strings.Join(set, ", "), strings.Join(keys, " OR "))
}

// whereSQL is the condition that finds the row.
func (r *netRow) whereSQL() string {
	if r.table.keyless {
		return r.placeCondition()
	}
	return r.table.keySQL(r.liveKey())
}

// keySQL is the condition that a row has a key.
func (t *target) keySQL(key []string) string {
	parts := make([]string, len(key))
	for i, name := range t.Key {
		parts[i] = pgcatalog.ColumnIdent("", name) + " = " + sqlLiteral(datum{text: []byte(key[i]), known: true})
	}
	return strings.Join(parts, " AND ")
}

// movesWithParent reports whether the row may have its restored key already when its
// turn comes: its parent's new key has cascaded to it.
func (r *netRow) movesWithParent() bool {
	return r.keyChanges() && slices.ContainsFunc(r.table.Parents, func(f *pgcatalog.ForeignKey) bool {
		return f.OnUpdate == "c" && r.changes(f.Columns)
	})
}

// sqlLiteral quotes a value so that it means the same with either setting of
// standard_conforming_strings.
func sqlLiteral(d datum) string {
	if d.text == nil {
		return "NULL"
	}
	text := strings.ReplaceAll(string(d.text), "'", "''")
	if strings.Contains(text, `\`) {
		return "E'" + strings.ReplaceAll(text, `\`, `\\`) + "'"
	}
	return "'" + text + "'"
}

// planJSON is the form of MarshalJSON.
type planJSON struct {
	Of         Unit               `json:"of"`
	Hash       string             `json:"hash"`
	Changes    int                `json:"changes"`
	First      Position           `json:"first"`
	Last       Position           `json:"last"`
	Origins    []Origin           `json:"origins"`
	Refused    string             `json:"refused,omitempty"`
	Unrestored []UnrestoredColumn `json:"unrestored"`
	Inserts    int                `json:"inserts"`
	Updates    int                `json:"updates"`
	Deletes    int                `json:"deletes"`
	Unchanged  int                `json:"unchanged"`
	Skipped    int                `json:"skipped"`
	Blocked    int                `json:"blocked"`
	Already    *PastRevert        `json:"already,omitempty"`
	Cascaded   []Change           `json:"cascaded,omitempty"`
	Conflicts  []Conflict         `json:"conflicts"`
	Rows       []PlannedRow       `json:"rows"`
}

// MarshalJSON writes the plan for tools: counts, conflicts and every row, with
// values as PostgreSQL prints them.
func (p Plan) MarshalJSON() ([]byte, error) {
	document := planJSON{
		Of: p.Of, Hash: p.Hash, Changes: p.Changes, First: p.First, Last: p.Last,
		Inserts: p.Inserts, Updates: p.Updates, Deletes: p.Deletes, Unchanged: p.Unchanged, Skipped: p.Skipped,
		Blocked: len(p.Blocked()), Already: p.Already, Cascaded: p.Cascaded, Conflicts: p.Conflicts, Rows: []PlannedRow{},
		Origins: list(p.Origins), Unrestored: list(p.Unrestored),
	}
	if err := p.Refused(); err != nil {
		document.Refused = err.Error()
	}
	if document.Conflicts == nil {
		document.Conflicts = []Conflict{}
	}
	for row := range p.Rows() {
		document.Rows = append(document.Rows, row)
	}
	return json.Marshal(document)
}
