package audit_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// AUDIT_TEST_DDL_UNDO_SECONDS sets for how long requests are undone behind random DDL,
// AUDIT_TEST_DDL_UNDO_SEED repeats a run from the story that it names.
const (
	ddlUndoSecondsEnv = "AUDIT_TEST_DDL_UNDO_SECONDS"
	ddlUndoSeedEnv    = "AUDIT_TEST_DDL_UNDO_SEED"
)

// A request writes to random tables, which are altered in random ways then: its undo
// leaves what the tables would hold if they had been altered without the request, or says
// why it cannot.
func TestRevert_DDLSimulation(t *testing.T) {
	t.Parallel()
	seed := faulttest.EnvNumber(t, ddlUndoSeedEnv, 20261126)
	told := make(map[string]int)
	end := time.Now().Add(time.Duration(faulttest.EnvNumber(t, ddlUndoSecondsEnv, 3)) * time.Second)
	for stories := 0; stories == 0 || time.Now().Before(end); stories++ {
		if !t.Run(fmt.Sprintf("%s=%d", ddlUndoSeedEnv, seed), func(t *testing.T) { undoBehindDDL(t, newDDLSimulation(t, seed), told) }) {
			break
		}
		seed++
	}
	t.Logf("what became of the requests: %v", told)
	if told["undone"] == 0 {
		t.Error("no request was undone")
	}
}

func undoBehindDDL(t *testing.T, s *ddlSimulation, told map[string]int) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("traced: %t\n%s", s.traced, strings.Join(s.done, ";\n"))
		}
	}()
	for round := range 6 {
		s.refresh(t)
		want, ddl := s.alteredOnly(t)
		id := fmt.Sprintf("request %d", round)
		if !s.request(t, id) {
			told["changed no row"]++
			continue
		}
		if !s.alterAgain(t, ddl) {
			told["not to be compared"]++
			continue
		}
		s.a.Sync(t)
		s.done = append(s.done, "-- undo of "+id)
		outcome := undoOutcome(t, s, id)
		told[outcome]++
		if outcome == "undone" {
			if diff := cmp.Diff(want, s.rows(t, s.conn)); diff != "" {
				t.Errorf("%s is undone, and (-want +got):\n%s", id, diff)
			}
		}
		if t.Failed() {
			return
		}
	}
}

// undoOutcome undoes a request, and names what came of it.
func undoOutcome(t *testing.T, s *ddlSimulation, id string) string {
	t.Helper()
	_, err := s.a.Client.RevertRequest(id).Apply(t.Context())
	var conflict *audit.ConflictError
	var unrevertable *audit.UnrevertableError
	var history *audit.HistoryError
	switch {
	case err == nil:
		return "undone"
	case errors.As(err, &conflict):
		return "in conflict"
	case errors.As(err, &unrevertable):
		return "unrevertable"
	case errors.As(err, &history):
		return "not in history"
	}
	t.Errorf("%s: %v", id, errors.Join(err, errors.Unwrap(err)))
	return "failed"
}

// alteredOnly tries some random DDL, and returns what the tables hold then, and the
// statements; all is as before afterwards.
func (s *ddlSimulation) alteredOnly(t *testing.T) (want map[string][]string, ddl []string) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), s.conn, func(tx pgx.Tx) error {
		for range 1 + s.IntN(3) {
			sql := s.alter(t)
			// A row that comes back gets the default of today in a column that is newer.
			if sql == "" || strings.Contains(sql, "SET DEFAULT") {
				continue
			}
			if err := pgx.BeginFunc(t.Context(), tx, func(tx pgx.Tx) error {
				_, err := tx.Conn().PgConn().Exec(t.Context(), sql).ReadAll()
				return err
			}); err == nil {
				ddl = append(ddl, sql)
			}
		}
		want = s.rows(t, tx)
		return errRolledBack
	})
	if !errors.Is(err, errRolledBack) {
		t.Fatal(err)
	}
	return want, ddl
}

var errRolledBack = errors.New("rolled back")

// request writes in the name of a request, and reports whether it changed any row: a
// statement that finds none leaves nothing to undo.
func (s *ddlSimulation) request(t *testing.T, id string) (wrote bool) {
	t.Helper()
	statements := 1 + s.IntN(3)
	for try := range 12 {
		if wrote && try >= statements {
			break
		}
		sql := s.write(t)
		if sql == "" || strings.HasPrefix(sql, "TRUNCATE") {
			continue
		}
		ctx := audit.WithContext(t.Context(), audit.Context{UserID: "ann", RequestID: id})
		changed := false
		err := pgx.BeginFunc(ctx, s.conn, func(tx pgx.Tx) error {
			if err := audit.Stamp(ctx, tx); err != nil {
				return err
			}
			tag, err := tx.Exec(ctx, sql)
			changed = tag.RowsAffected() > 0
			return err
		})
		var refusal *pgconn.PgError
		switch {
		case err == nil:
			wrote = wrote || changed
			s.done = append(s.done, "-- "+id, sql)
		case !errors.As(err, &refusal):
			t.Fatal(err)
		}
	}
	return wrote
}

// alterAgain does the DDL for good, and reports whether all of it went as before.
func (s *ddlSimulation) alterAgain(t *testing.T, ddl []string) bool {
	t.Helper()
	for _, sql := range ddl {
		before := len(s.done)
		s.try(t, sql)
		if len(s.done) == before {
			return false
		}
		if s.IntN(4) == 0 {
			s.refresh(t)
		}
	}
	return true
}

// rows is what all tables hold, by the names of their columns.
func (s *ddlSimulation) rows(t *testing.T, db querier) map[string][]string {
	t.Helper()
	list := func(sql string) []string {
		rows, err := db.Query(t.Context(), sql)
		if err != nil {
			t.Fatal(err)
		}
		all, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	all := make(map[string][]string)
	for _, table := range list(simulatedTables + "IN ('r', 'p')") {
		all[table] = list(fmt.Sprintf("SELECT CASE WHEN to_jsonb(r) IS NULL THEN '' ELSE to_jsonb(r)::text END FROM %s r ORDER BY 1", table))
	}
	for _, table := range slices.Collect(maps.Keys(all)) {
		if len(all[table]) == 0 {
			delete(all, table)
		}
	}
	return all
}
