package audit_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
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

// revertAll reverts some requests, each by some policy, and redoes some of them.
func (v *reverter) revertAll(ctx context.Context, random *rand.Rand, requests iter.Seq[string]) error {
	changes := v.w.Client.Changes()
	for request := range requests {
		done, err := v.revert(ctx, random, request, v.w.Client.RevertRequest(request), changes.InRequest(request))
		if err == nil && done != nil && random.IntN(3) == 0 && !v.asStored {
			_, err = v.revert(ctx, random, "revert of "+request, v.w.Client.Redo(done.ID), changes.InRevert(done.ID))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// revert reverts something by some policy, and keeps in mind what it did. The
// result is nil if that was nothing.
func (v *reverter) revert(ctx context.Context, random *rand.Rand, what string, r audit.Reversal, selection audit.Query) (*audit.Result, error) {
	policy := audit.Abort + audit.Resolution(random.IntN(4))
	if r = r.OnConflict(policy); v.asStored {
		r = r.AsStored()
	}
	result, err := applyPatiently(ctx, r, random.IntN(2) == 0)
	v.w.note("%v of %s: %v", policy, what, err)
	if err != nil && !mayFail(err) {
		return nil, errors.Join(err, errors.Unwrap(err))
	}
	if err != nil || result.ID == "" {
		return nil, nil //nolint:nilnil // Nothing was done, and nothing is wrong.
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.reverts = append(v.reverts, &applied{what: what, policy: policy, result: result, selection: selection})
	return result, nil
}

// settle does and reverts something when nobody else works, and looks whether
// history has the live rows as of then.
func (v *reverter) settle(t *testing.T) {
	t.Helper()
	before := v.w.live(t)
	id := v.w.next.Add(1)
	insert := fmt.Sprintf("INSERT INTO t0 (id) VALUES (%d)", id)
	if v.w.tables[0].composite {
		insert = fmt.Sprintf("INSERT INTO t0 (id, k) VALUES (%d, 1)", id)
	}
	v.w.request(t, "last", insert, "UPDATE t0 SET b = "+v.w.word())
	result := v.w.undoOne(t, "revert of the last request", v.w.Client.RevertRequest("last"), before)
	v.reverts = append(v.reverts, &applied{what: "last", result: result, selection: v.w.Client.Changes().InRequest("last")})
}

// applyPatiently applies a revert, perhaps by a plan that it makes before, and again
// if it falls victim to a deadlock.
func applyPatiently(ctx context.Context, r audit.Reversal, planned bool) (*audit.Result, error) {
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
			continue
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

// While two sessions revert what was done just before, by all policies, others go on
// working on the same rows. Whatever those have written stays, but for what a
// cascade lists, and what Overwrite is there for.
func TestRevertsWhileOthersWork(t *testing.T) {
	t.Parallel()
	for i, seed := range realmSeeds(t, 2) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			w := newRealm(t, seed)
			w.work(t, 4, 3)
			v := &reverter{w: w}
			var all sync.WaitGroup
			for n := range 2 {
				random := rand.New(rand.NewPCG(w.seed, uint64(n))) //nolint:gosec // It is to be repeatable.
				all.Go(func() {
					if err := v.revertAll(t.Context(), random, w.recently(random, 15)); err != nil {
						t.Error(err)
					}
				})
			}
			stop := make(chan struct{})
			go func() {
				all.Wait()
				close(stop)
			}()
			w.workUntil(t, stop, 3, 100)
			all.Wait()
			v.settle(t)
			w.checkLosses(t, v.reverts)
		})
	}
}

// recently gives some requests, each one of those that were committed last by then.
func (w *realm) recently(random *rand.Rand, n int) iter.Seq[string] {
	return func(yield func(string) bool) {
		for range n {
			if !yield(w.latest(random)) {
				return
			}
		}
	}
}

// What is committed and not captured yet is not overwritten either: the live rows
// decide.
func TestRevertsOfRandomRequestsBehindCapture(t *testing.T) {
	t.Parallel()
	for i, seed := range realmSeeds(t, 2) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			w := newRealm(t, seed)
			since := w.position(t)
			w.work(t, 4, 3)
			requests := w.requests(t, since)
			w.Stop(t)
			w.work(t, 4, 1)
			v := &reverter{w: w, asStored: true}
			random := rand.New(rand.NewPCG(w.seed, 17)) //nolint:gosec // It is to be repeatable.
			random.Shuffle(len(requests), func(i, j int) { requests[i], requests[j] = requests[j], requests[i] })
			if err := v.revertAll(t.Context(), random, slices.Values(requests)); err != nil {
				t.Error(err)
			}
			if err := w.Client.Start(context.WithoutCancel(t.Context())); err != nil {
				t.Fatal(err)
			}
			v.settle(t)
			w.checkLosses(t, v.reverts)
		})
	}
}
