package auditpgx_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// Hundreds of goroutines write in every way and mode at once, each row under a context
// of its own, with reads, rollbacks and cancelled contexts in between: in the write-ahead
// log every row stands behind its own stamp.
func TestStorm_EveryRowUnderItsOwnContext(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL)
	decoded := faulttest.NewDecoded(t, db)
	const goroutines, rounds = 200, 12
	var pools []*auditpgx.DB
	for _, mode := range modes {
		pools = append(pools, auditpgx.Wrap(newPool(t, db, func(c *pgxpool.Config) {
			c.ConnConfig.DefaultQueryExecMode, c.MaxConns = mode, 6
		})))
	}
	ways := slices.DeleteFunc(writers(), func(w writer) bool {
		return w.name == "query" // looks at rows that are closed, which pgx keeps in the connection
	})
	var all sync.WaitGroup
	for g := range goroutines {
		all.Go(func() {
			random := rand.New(rand.NewPCG(16, uint64(g))) //nolint:gosec // It is to be repeatable.
			for round := range rounds {
				cell := fmt.Sprintf("%d-%d", g, round)
				if err := storm(t.Context(), random, pools[random.IntN(len(pools))], ways, cell); err != nil {
					t.Errorf("%s: %v", cell, err)
				}
			}
		})
	}
	all.Wait()
	rows, cell := 0, regexp.MustCompile(`cell\[text\]:'([^']*)' id\[integer\]:(\d+)`)
	decoded.Rows(t, func(_, _, row, stamp string) {
		m := cell.FindStringSubmatch(row)
		if m == nil {
			t.Fatalf("a row without a cell: %s", row)
		}
		var by struct {
			UserID string `json:"userId"`
		}
		if err := json.Unmarshal([]byte(stamp), &by); err != nil || by.UserID != m[1]+"/"+m[2] {
			t.Errorf("row %s/%s is under %q", m[1], m[2], stamp)
		}
		rows++
	})
	if rows < goroutines*rounds {
		t.Errorf("%d rows in the log", rows)
	}
	t.Logf("%d rows", rows)
}

// storm writes a few rows of a cell.
func storm(ctx context.Context, random *rand.Rand, db *auditpgx.DB, ways []writer, cell string) error {
	write := func(q auditpgx.Querier, id int) error {
		return ways[random.IntN(len(ways))].write(by(ctx, fmt.Sprintf("%s/%d", cell, id)), q, cell, id)
	}
	read := func(q auditpgx.Querier) error {
		var n int
		return q.QueryRow(ctx, "SELECT count(*) FROM todo WHERE cell = $1", cell).Scan(&n)
	}
	switch random.IntN(5) {
	case 0:
		return errors.Join(write(db, 1), read(db), write(db, 2))
	case 1:
		return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
			q := tx.(auditpgx.Querier)
			return errors.Join(read(q), write(q, 1), write(q, 2), read(q), write(q, 3))
		})
	case 2:
		err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
			return errors.Join(write(tx.(auditpgx.Querier), 1), errRollback)
		})
		return errors.Join(rolledBack(err), write(db, 2))
	case 3:
		return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
			nested := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				return errors.Join(write(tx.(auditpgx.Querier), 1), errRollback)
			})
			return errors.Join(rolledBack(nested), write(tx.(auditpgx.Querier), 2))
		})
	default:
		gone, cancel := context.WithCancel(by(ctx, "nobody"))
		cancel()
		if _, err := db.Exec(gone, insert, cell, 9); !errors.Is(err, context.Canceled) {
			return fmt.Errorf("a cancelled context: %w", err)
		}
		return write(db, 1)
	}
}
