package audit_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
)

// reverter reverts requests of a realm, some of them by a plan that was made some
// time ago.
type reverter struct {
	w        *realm
	asStored bool

	mu      sync.Mutex // guards reverts
	reverts []*applied
}

// revertAll reverts each of the requests by some policy.
func (v *reverter) revertAll(ctx context.Context, requests []string, random *rand.Rand) error {
	for _, request := range requests {
		policy := audit.Abort + audit.Resolution(random.IntN(4))
		r := v.w.Client.RevertRequest(request).OnConflict(policy)
		if v.asStored {
			r = r.AsStored()
		}
		result, err := v.revert(ctx, r, random.IntN(2) == 0)
		v.w.note("%v of %s: %v", policy, request, err)
		if err != nil && !mayFail(err) {
			return errors.Join(err, errors.Unwrap(err))
		}
		if err == nil && result.ID != "" {
			v.mu.Lock()
			v.reverts = append(v.reverts, &applied{request: request, policy: policy, result: result})
			v.mu.Unlock()
		}
	}
	return nil
}

func (v *reverter) revert(ctx context.Context, r audit.Reversal, planned bool) (*audit.Result, error) {
	for {
		var result *audit.Result
		var err error
		if planned {
			var plan *audit.Plan
			if plan, err = r.Plan(ctx); err == nil {
				result, err = plan.Apply(ctx)
			}
		} else {
			result, err = r.Apply(ctx)
		}
		var pg *pgconn.PgError
		if errors.As(err, &pg) && (pg.Code == "40P01" || pg.Code == "40001") {
			continue // the victim of a deadlock
		}
		return result, err
	}
}

// mayFail tells errors that say that others were in the way from those that say
// that something is wrong.
func mayFail(err error) bool {
	var blocked *audit.ConflictError
	var stale *audit.StaleError
	var refused *audit.ApplyError
	var unrevertable *audit.UnrevertableError
	return errors.As(err, &blocked) || errors.As(err, &stale) || errors.As(err, &refused) || errors.As(err, &unrevertable) ||
		errors.Is(err, audit.ErrNothingSelected)
}

// requests lists what has been done so far, some of it in another order.
func (w *realm) requests(t *testing.T, since audit.Position) []string {
	t.Helper()
	w.Sync(t)
	var all []string
	for tx, err := range w.Client.Changes().OldestFirst().Transactions(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if tx.Position > since.LSN {
			all = append(all, tx.Context.RequestID)
		}
	}
	return all
}

// While two sessions revert what was done before, by all policies, others go on
// working on the same rows. Whatever those have written stays, but for what a
// cascade lists, and what Overwrite is there for.
func TestRevertsWhileOthersWork(t *testing.T) {
	t.Parallel()
	inRealms(t, 2, func(t *testing.T, w *realm) {
		since := w.position(t)
		w.work(t, 4, 3)
		requests := w.requests(t, since)
		v := &reverter{w: w}
		var all sync.WaitGroup
		for n := range 2 {
			random := rand.New(rand.NewPCG(w.seed, uint64(n))) //nolint:gosec // It is to be repeatable.
			random.Shuffle(len(requests), func(i, j int) { requests[i], requests[j] = requests[j], requests[i] })
			half := append([]string(nil), requests...)
			all.Go(func() {
				if err := v.revertAll(context.WithoutCancel(t.Context()), half, random); err != nil {
					t.Error(err)
				}
			})
		}
		w.work(t, 3, 12)
		all.Wait()
		if len(v.reverts) == 0 {
			t.Error("nothing was reverted")
		}
		w.checkLosses(t, v.reverts)
	})
}

// What is committed and not captured yet is not overwritten either: the live rows
// decide.
func TestRevertsOfRandomRequestsBehindCapture(t *testing.T) {
	t.Parallel()
	inRealms(t, 2, func(t *testing.T, w *realm) {
		since := w.position(t)
		w.work(t, 4, 3)
		requests := w.requests(t, since)
		w.Stop(t)
		w.work(t, 4, 1)
		v := &reverter{w: w, asStored: true}
		random := rand.New(rand.NewPCG(w.seed, 17)) //nolint:gosec // It is to be repeatable.
		random.Shuffle(len(requests), func(i, j int) { requests[i], requests[j] = requests[j], requests[i] })
		if err := v.revertAll(t.Context(), requests, random); err != nil {
			t.Error(err)
		}
		if err := w.Client.Start(context.WithoutCancel(t.Context())); err != nil {
			t.Fatal(err)
		}
		w.checkLosses(t, v.reverts)
	})
}
