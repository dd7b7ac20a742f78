package audit

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/jackc/pgx/v5"
)

// printedRows is how many rows and conflicts Plan.String shows.
const printedRows = 200

// String returns the plan as a diff for people, with values cut short:
//
//	revert request r-1: 3 changes, 2 rows
//	  ~ public.todo[26] task: "Eat" -> "Sleep"
//	  + public.todo[27] id: "27", task: "Work"
//	conflicts: 1, of which 1 in the way
//	  ! public.todo[28] task: column changed: ...
//
// A plus is a row that is put back, a minus one that is removed, a tilde one of
// which columns are restored. Rows that are skipped or already as they should be
// are marked so. Of long plans the beginning is shown.
func (p *Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "revert %s: %d changes: %d rows to insert, %d to update, %d to delete, %d already reverted, %d skipped\n",
		p.Of, p.Changes, p.Inserts, p.Updates, p.Deletes, p.Unchanged, p.Skipped)
	if p.Already != nil {
		fmt.Fprintf(&b, "already reverted by %s in revert %s at %s\n", p.Already.User, p.Already.ID, p.Already.Position.LSN)
	}
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
			fmt.Fprintf(b, " %s: %s", c.Column, sqlValueText(c.Restore))
		case Delete:
			fmt.Fprintf(b, " %s: %s", c.Column, sqlValueText(c.Live))
		default:
			fmt.Fprintf(b, " %s: %s -> %s", c.Column, sqlValueText(c.Live), sqlValueText(c.Restore))
		}
	}
	b.WriteByte('\n')
}

// SQL returns the plan as a script of one statement a row, in the order in which
// they are carried out, for people to read or to run by hand. Apply does it with
// few statements, checks the live rows under lock first, and stamps the revert;
// the script does not. It is empty if conflicts are in the way.
func (p *Plan) SQL() string {
	var b strings.Builder
	_ = p.WriteSQL(&b) // a strings.Builder takes everything
	return b.String()
}

// WriteSQL writes what [Plan.SQL] returns.
func (p *Plan) WriteSQL(w io.Writer) error {
	if len(p.p.steps) == 0 {
		return nil
	}
	if _, err := io.WriteString(w, "BEGIN;\nSET CONSTRAINTS ALL DEFERRED;\n"); err != nil {
		return err
	}
	for _, s := range p.p.steps {
		for _, r := range s.group.rows {
			if _, err := io.WriteString(w, r.sql()+";\n"); err != nil {
				return err
			}
		}
	}
	_, err := io.WriteString(w, "COMMIT;\n")
	return err
}

// sql is the statement for one row.
func (r *netRow) sql() string {
	t := r.table
	var where, names, values, set []string
	if t.keyless && r.action != Create {
		where = append(where, r.placeCondition())
	}
	for i, at := range t.keyAt {
		if t.keyless {
			break
		}
		where = append(where, columnIdent("", t.columns.list[at].name)+" = "+sqlLiteral(datum{text: []byte(r.liveKey()[i]), known: true}))
	}
	for _, c := range r.cells {
		name := pgx.Identifier{t.columns.list[c.column].name}.Sanitize()
		names, values = append(names, name), append(values, sqlLiteral(c.restore))
		set = append(set, name+" = "+sqlLiteral(c.restore))
	}
	switch r.action {
	case Create:
		return fmt.Sprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE VALUES (%s)", t.ident(), strings.Join(names, ", "), strings.Join(values, ", "))
	case Delete:
		return fmt.Sprintf("DELETE FROM %s WHERE %s", t.from(), strings.Join(where, " AND "))
	default:
		return fmt.Sprintf("UPDATE %s SET %s WHERE %s", t.from(), strings.Join(set, ", "), strings.Join(where, " AND "))
	}
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
	Of        Unit         `json:"of"`
	Hash      string       `json:"hash"`
	Changes   int          `json:"changes"`
	First     Position     `json:"first"`
	Last      Position     `json:"last"`
	Inserts   int          `json:"inserts"`
	Updates   int          `json:"updates"`
	Deletes   int          `json:"deletes"`
	Unchanged int          `json:"unchanged"`
	Skipped   int          `json:"skipped"`
	Blocked   int          `json:"blocked"`
	Already   *PastRevert  `json:"already,omitempty"`
	Cascaded  []Change     `json:"cascaded,omitempty"`
	Conflicts []Conflict   `json:"conflicts"`
	Rows      []PlannedRow `json:"rows"`
}

// MarshalJSON writes the plan for tools: counts, conflicts and every row, with
// values as PostgreSQL prints them.
func (p *Plan) MarshalJSON() ([]byte, error) {
	document := planJSON{
		Of: p.Of, Hash: p.Hash, Changes: p.Changes, First: p.First, Last: p.Last,
		Inserts: p.Inserts, Updates: p.Updates, Deletes: p.Deletes, Unchanged: p.Unchanged, Skipped: p.Skipped,
		Blocked: len(p.Blocked()), Already: p.Already, Cascaded: p.Cascaded, Conflicts: p.Conflicts, Rows: []PlannedRow{},
	}
	if document.Conflicts == nil {
		document.Conflicts = []Conflict{}
	}
	for row := range p.Rows() {
		document.Rows = append(document.Rows, row)
	}
	return json.Marshal(document)
}
