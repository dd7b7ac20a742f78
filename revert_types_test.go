package audit_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// typeTables makes a table of every type (see [kindOfType.makeTable]), with a row
// for each of its values.
func typeTables(t *testing.T, db *audittest.Database) []kindOfType {
	t.Helper()
	db.Exec(t, makeTypes)
	types := slices.Concat(builtinTypes, madeTypes)
	for _, k := range contribTypes {
		if audittest.Value[bool](t, db, "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = $1)", k.name) {
			db.Exec(t, "CREATE EXTENSION "+k.name)
			types = append(types, k)
		}
	}
	for n, k := range types {
		db.Exec(t, k.makeTable(n))
		db.Exec(t, fmt.Sprintf("INSERT INTO public.k%[1]d SELECT * FROM ctl.k%[1]d", n))
	}
	return types
}

// everyWrite changes, deletes and inserts rows of the table of a type.
func (k kindOfType) everyWrite(n int) []string {
	columns := strings.Join(typeColumns, ", ")
	if k.bare {
		columns = "v"
	}
	return []string{
		fmt.Sprintf("UPDATE public.k%[1]d k SET (%[2]s) = (SELECT %[2]s FROM ctl.k%[1]d c WHERE c.id = k.id %% %[3]d + 1) WHERE id %% 2 = 0", n, columns, len(k.values)+1),
		fmt.Sprintf("DELETE FROM public.k%d WHERE id %% 2 = 1", n),
		fmt.Sprintf("INSERT INTO public.k%[1]d (id, %[2]s) SELECT id + 1000, %[2]s FROM ctl.k%[1]d", n, columns),
	}
}

// differences are the rows that tables k0, k1... and those of a name in ctl do not
// share, as text.
func differences(t *testing.T, conn *pgx.Conn, types []kindOfType, name string) string {
	t.Helper()
	var parts []string
	for n, k := range types {
		const side = `SELECT %[4]s || %[3]s || left(x.line, 300) FROM (SELECT l::text AS line FROM %[1]s l EXCEPT ALL SELECT r::text FROM %[2]s r) x`
		now, then, label := fmt.Sprintf("public.k%d", n), fmt.Sprintf("ctl.%s%d", name, n), "'"+strings.ReplaceAll(k.name, "'", "''")+"'"
		parts = append(parts, fmt.Sprintf(side, now, then, "' is '", label), fmt.Sprintf(side, then, now, "' was '", label))
	}
	rows, err := conn.Query(t.Context(), strings.Join(parts, " UNION ALL ")+" ORDER BY 1")
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// Values of all types, and domains, arrays and composites of them, come back as
// they were and go forth again, whatever the settings of role, database and
// session.
func TestEveryTypeIsUndoneAndRedone(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]struct {
		settings func(*audittest.Database) []string
		// session makes do with a session of the test's, whose settings it changes.
		session string
		do      func(*testing.T, *pgx.Conn, audit.Reversal)
	}{
		"HostileRole":  {settings: hostile},
		"CallersOwnTx": {session: hostileSession, do: func(t *testing.T, conn *pgx.Conn, r audit.Reversal) { applyIn(t, conn, r) }},
		"Script":       {session: hostileSession + "; SET xmloption = 'content'", do: runPlanSQL},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			types := typeTables(t, db)
			if h.settings != nil {
				for _, sql := range h.settings(db) {
					db.Exec(t, sql)
				}
			}
			a := capturing(t, db, audit.Config{Tables: []string{"public.*"}})
			// The check at the end reads as any client does.
			t.Cleanup(func() {
				db.Exec(t, fmt.Sprintf("ALTER ROLE CURRENT_USER IN DATABASE %s RESET ALL", db.Name()))
			})
			u := &undo{Audited: a, conn: a.Connect(t)}
			exec := func(conn *pgx.Conn, sql string) {
				t.Helper()
				if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
					t.Fatalf("%s: %v", sql, err)
				}
			}
			// What is compared is text: it has to show everything.
			exec(u.conn, "SET client_encoding = 'UTF8'; SET extra_float_digits = 3; SET standard_conforming_strings = on")
			var statements, tables []string
			for n, k := range types {
				tables = append(tables, fmt.Sprintf("public.k%d", n))
				statements = append(statements, k.everyWrite(n)...)
			}
			u.request(t, "first", statements...)
			var copies strings.Builder
			for n := range types {
				fmt.Fprintf(&copies, "CREATE TABLE ctl.after%[1]d AS SELECT * FROM public.k%[1]d;", n)
			}
			exec(u.conn, copies.String())
			do := func(r audit.Reversal) { apply(t, r) }
			if h.do != nil {
				conn := a.Connect(t)
				exec(conn, h.session)
				do = func(r audit.Reversal) { h.do(t, conn, r) }
			}
			begin := u.position(t)
			do(u.Client.RevertRequest("first"))
			if diff := differences(t, u.conn, types, "k"); diff != "" {
				t.Errorf("after the revert:\n%s", diff)
			}
			do(u.Client.RevertTables(u.Client.AtPosition(begin), tables...))
			if diff := differences(t, u.conn, types, "after"); diff != "" {
				t.Errorf("after the redo:\n%s", diff)
			}
		})
	}
}

// runPlanSQL runs what Plan.SQL gives, statement by statement as psql does.
func runPlanSQL(t *testing.T, conn *pgx.Conn, r audit.Reversal) {
	t.Helper()
	plan, err := r.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.PgConn().Exec(t.Context(), plan.SQL()).ReadAll(); err != nil {
		t.Fatal(err)
	}
}

// The null of JSON, which an image cannot tell from NULL, comes back as what it was.
func TestNullOfJSONIsUndoneAndRedone(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `CREATE TABLE a (id int PRIMARY KEY, v jsonb); INSERT INTO a VALUES (1, 'null'), (2, NULL), (3, '"null"'), (4, 'null')`)
	u.roundTrip(t, "UPDATE a SET v = NULL WHERE id = 1", "UPDATE a SET v = 'null' WHERE id IN (2, 3)", "DELETE FROM a WHERE id = 4", "INSERT INTO a VALUES (5, 'null')")
	// Also where only Overwrite makes a whole row of the last that history has of it.
	u.request(t, "first", "UPDATE a SET id = 40 WHERE id = 4", "UPDATE a SET v = '1' WHERE id = 1", "INSERT INTO a VALUES (6, '6')")
	u.request(t, "second", "DELETE FROM a WHERE id = 40")
	apply(t, u.Client.RevertRequest("first").OnConflict(audit.Overwrite))
	u.holds(t, "(SELECT count(*) = 2 FROM a WHERE id IN (1, 4) AND v = 'null'::jsonb)")
}

// Bytes that are no text in UTF-8 are not in history as they were, and so are not
// put back as something else.
func TestBytesThatAreNotUTF8AreNotPutBackWrong(t *testing.T) {
	t.Parallel()
	for name, request := range map[string]string{
		"Updated": "UPDATE a SET v = '' WHERE id = 1", "Deleted": "DELETE FROM a WHERE id = 1", "UpdatedTo": `UPDATE a SET v = convert_from('\xfe', 'SQL_ASCII') WHERE id = 2`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := databaseIn(t, "SQL_ASCII")
			db.Exec(t, `CREATE TABLE a (id int PRIMARY KEY, v text, n int); INSERT INTO a VALUES (1, convert_from('\x61ff62', 'SQL_ASCII'), 1), (2, 'x', 2)`)
			a := audittest.Open(t, db, audit.Config{Tables: []string{"public.*"}})
			mustStart(t, a)
			t.Cleanup(func() { a.Stop(t) })
			u := &undo{Audited: a, conn: a.Connect(t)}
			u.request(t, "first", request)
			u.request(t, "second", "UPDATE a SET n = 7")
			var refused *audit.UnrevertableError
			_, err := u.Client.RevertRequest("first").OnConflict(audit.Overwrite).Apply(t.Context())
			if !errors.As(err, &refused) && (err != nil || name != "UpdatedTo") { // there the old value is known
				t.Errorf("the revert gives %v", err)
			}
			// Where it was not changed it is in nobody's way.
			if result := apply(t, u.Client.RevertRequest("second")); result.Updated == 0 {
				t.Error("nothing was reverted")
			}
		})
	}
}
