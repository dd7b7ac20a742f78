package auditpgx

import (
	"context"

	"github.com/hindsight-go/audit/internal/sqltext"
)

// maxNames bounds how many names of prepared statements are remembered of a
// connection. What is asked for may also be SQL that is not understood.
const maxNames = 1000

// prepared takes note of a statement that was prepared under a name.
func (r runner) prepared(name, sql string, err error) {
	if err == nil && name != sql && name != "" {
		r.remember(name, r.s.Parse(sql))
	}
}

func (r runner) remember(name string, text sqltext.Text) {
	st := r.state()
	if st.names == nil || len(st.names) >= maxNames {
		st.names = map[string]sqltext.Text{}
	}
	st.names[name] = text
}

// lookUp returns what the statement does that a text names, or EXECUTE runs, as far
// as a statement of that name is prepared. Where nobody has said it before, the server
// is asked, once for each name and connection: a read must not become a transaction
// that writes a stamp.
func (r runner) lookUp(ctx context.Context, sql string, text sqltext.Text) sqltext.Text {
	name := text.Executes
	if text.Prepares {
		return text // and then runs what it has prepared itself
	}
	if name == "" {
		if text.Class != sqltext.Unknown {
			return text
		}
		name = sql
	}
	known, ok := r.state().names[name]
	if !ok {
		if known, ok = r.ask(ctx, name, text); !ok {
			return text
		}
		r.remember(name, known)
	}
	return known
}

// ask asks the server what is prepared under a name. If nothing is, that is text.
func (r runner) ask(ctx context.Context, name string, text sqltext.Text) (sqltext.Text, bool) {
	conn := r.q.Conn().PgConn()
	if status := conn.TxStatus(); conn.IsBusy() || conn.IsClosed() || status != 'I' && status != 'T' {
		return text, false
	}
	const sql = "SELECT statement, from_sql::int FROM pg_catalog.pg_prepared_statements WHERE name = $1"
	result := conn.ExecParams(ctx, sql, [][]byte{[]byte(name)}, nil, nil, nil).Read()
	if result.Err != nil {
		return text, false
	}
	for _, row := range result.Rows {
		statement, ok := string(row[0]), true
		if string(row[1]) == "1" {
			statement, ok = sqltext.Prepared(statement)
		}
		if ok {
			return r.s.Parse(statement), true
		}
	}
	return text, true
}
