package shop_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
	"github.com/hindsight-go/audit/internal/shop"
)

// secondsEnv sets for how long stories are told, seedEnv repeats one.
const (
	secondsEnv = "AUDIT_TEST_SHOP_SECONDS"
	seedEnv    = "AUDIT_TEST_SHOP_SEED"
)

// requests is how many requests a story has.
const requests = 24

// opened is the shop with all that was done in it.
type opened struct {
	*audittest.Audited
	conn *pgx.Conn
	// bare reverts without the triggers of the shop, so that what they write is put back
	// as any other rows. Else what they keep is theirs, and price_log has their doings.
	bare   bool
	ids    []string // of the requests that changed anything
	copies []copied // before the first request and after each
	undone map[string]string
}

// Each request of a random story is undone by itself, then all of them are undone one
// after the other and done again.
func TestShop_UndoAndRedo(t *testing.T) {
	t.Parallel()
	seed := faulttest.EnvNumber(t, seedEnv, rand.Uint64())
	end := time.Now().Add(time.Duration(faulttest.EnvNumber(t, secondsEnv, 5)) * time.Second)
	for n := uint64(0); n == 0 || time.Now().Before(end) && !t.Failed(); n++ {
		t.Run(fmt.Sprint(seed+n), func(t *testing.T) {
			t.Logf("%s=%d", seedEnv, seed+n)
			s := open(t, seed+n)
			s.undoEach(t)
			s.undoAll(t)
			s.redoAll(t)
		})
	}
}

// open tells the story.
func open(t *testing.T, seed uint64) *opened {
	t.Helper()
	s := &opened{bare: seed%3 == 0, undone: make(map[string]string)}
	cfg := audit.Config{Tables: []string{"public.*"}, NeverRestored: []string{"*.updated_at", "purchase.lines", "purchase.total", "product.sold"}}
	// What a trigger or a rule inserts when a row comes back is in the way of the row that
	// was there before: see docs/revert.md.
	setup := []string{shop.Schema}
	if !s.bare {
		setup = append(setup, "ALTER TABLE customer DISABLE TRIGGER wallet; ALTER TABLE ticket DISABLE RULE opened")
	}
	s.Audited = audittest.New(t, cfg, setup...)
	s.conn = s.Connect(t)
	s.copies = []copied{s.copy(t)}
	people := &story{r: rand.New(rand.NewPCG(seed, 1))}
	for n := 0; len(s.ids) < requests; n++ {
		id := fmt.Sprintf("request %d", n)
		s.do(t, audit.Context{UserID: fmt.Sprintf("user %d", people.r.IntN(3)), RequestID: id}, people.request())
		if now := s.copy(t); now.differs(s.copies[len(s.copies)-1]) {
			s.ids, s.copies = append(s.ids, id), append(s.copies, now)
		}
	}
	s.Sync(t)
	return s
}

// do does what the shop lets do.
func (s *opened) do(t *testing.T, who audit.Context, statements []string) {
	t.Helper()
	ctx := audit.WithContext(t.Context(), who)
	err := pgx.BeginFunc(ctx, s.conn, func(tx pgx.Tx) error {
		if err := audit.Stamp(ctx, tx); err != nil {
			return err
		}
		for _, sql := range statements {
			if err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return s.try(ctx, tx, sql) }); err == nil {
				t.Logf("%s: %s", who.RequestID, sql)
			}
		}
		if !s.bare {
			_, err := tx.Exec(ctx, "INSERT INTO open_ticket SELECT id FROM ticket ON CONFLICT DO NOTHING; INSERT INTO wallet SELECT id FROM customer ON CONFLICT DO NOTHING")
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// try runs a statement, and checks at once what is deferred.
func (s *opened) try(ctx context.Context, tx pgx.Tx, sql string) error {
	if _, err := tx.Exec(ctx, sql); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, "SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED")
	return err
}

func (s *opened) copy(t *testing.T) copied {
	t.Helper()
	var found copied
	err := pgx.BeginTxFunc(t.Context(), s.conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		found = s.copyIn(t, tx)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func (s *opened) copyIn(t *testing.T, tx pgx.Tx) copied {
	t.Helper()
	rows, err := tx.Query(t.Context(), sums)
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if len(wrong) > 0 {
		t.Fatalf("what is computed is not what it has to be: %v", wrong)
	}
	if s.bare {
		return copyTables(t, tx)
	}
	return copyTables(t, tx, "price_log")
}

func (s *opened) reversal(r audit.Reversal) audit.Reversal {
	if s.bare {
		return r.WithoutTriggers().AllColumns()
	}
	return r
}

// undoEach undoes each request alone, at the end of the story: that is undone and nothing
// of what was done later, or the conflicts are named.
func (s *opened) undoEach(t *testing.T) {
	t.Helper()
	undone, refused := 0, 0
	last := s.copies[len(s.copies)-1]
	for i, id := range s.ids {
		tx, err := s.conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.reversal(s.Client.RevertRequest(id)).ApplyTx(t.Context(), tx)
		want, named := without(s.copies[i], s.copies[i+1], last)
		var blocked *audit.ConflictError
		switch {
		case errors.As(err, &blocked):
			refused++
		case err != nil:
			t.Errorf("%s cannot be undone: %v", id, errors.Join(err, errors.Unwrap(err)))
		case named != "":
			t.Errorf("%s is undone without a conflict, but %s", id, named)
		default:
			undone++
			if diff := cmp.Diff(want, s.copyIn(t, tx)); diff != "" {
				t.Errorf("%s undone alone (-want +got):\n%s", id, diff)
			}
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d requests undone alone, %d in conflict", undone, refused)
	if undone == 0 {
		t.Error("no request was undone alone")
	}
}

// undoAll undoes all requests, the last one first.
func (s *opened) undoAll(t *testing.T) {
	t.Helper()
	for i := len(s.ids) - 1; i >= 0; i-- {
		result, err := s.reversal(s.Client.RevertRequest(s.ids[i])).Apply(t.Context())
		s.is(t, s.ids[i]+" undone", err, s.copies[i])
		s.undone[s.ids[i]] = result.ID
	}
}

// redoAll does them all again.
func (s *opened) redoAll(t *testing.T) {
	t.Helper()
	for i, id := range s.ids {
		if s.undone[id] == "" {
			continue // nothing had to be undone
		}
		_, err := s.reversal(s.Client.Redo(s.undone[id])).Apply(t.Context())
		s.is(t, id+" done again", err, s.copies[i+1])
	}
}

// is fails the test if a revert failed or anything is not as in the copy.
func (s *opened) is(t *testing.T, what string, err error, want copied) {
	t.Helper()
	if err != nil {
		var blocked *audit.ConflictError
		if errors.As(err, &blocked) {
			t.Fatalf("%s: %v", what, blocked.Conflicts)
		}
		t.Fatalf("%s: %v", what, errors.Join(err, errors.Unwrap(err)))
	}
	t.Log(what)
	if diff := cmp.Diff(want, s.copy(t)); diff != "" {
		t.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}
