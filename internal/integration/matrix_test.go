package integration_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// session is a way to write of a library: on a pool, or in a transaction.
type session interface {
	// write inserts a todo.
	write(ctx context.Context, cell, task string) error
	// inTx runs fn in a transaction or, within one, between savepoints. It rolls
	// back if fn fails.
	inTx(ctx context.Context, fn func(session) error) error
}

// writing is a session that writes to one cell.
type writing struct {
	s    session
	cell string
}

func (w writing) inTx(ctx context.Context, fn func(writing) error) error {
	return w.s.inTx(ctx, func(s session) error { return fn(writing{s, w.cell}) })
}

// tasks writes a todo for each user, named by a letter, or - for nobody. The
// tasks are numbered from from on.
func (w writing) tasks(ctx context.Context, users string, from int) error {
	for i, user := range users {
		c := ctx
		if user != '-' {
			c = by(ctx, string(user))
		}
		if err := w.s.write(c, w.cell, fmt.Sprint(from+i)); err != nil {
			return err
		}
	}
	return nil
}

// scenario is a course that transactions can take.
type scenario struct {
	name string
	run  func(ctx context.Context, w writing) error
	want []string // the tasks and whose they are
}

var errRollback = errors.New("roll back")

// expect turns an error that was meant to come into none.
func expect(meant, err error) error {
	if errors.Is(err, meant) {
		return nil
	}
	return fmt.Errorf("%w instead of: %w", err, meant)
}

func expectCode(want string, err error) error {
	if got := code(err); got != want {
		return fmt.Errorf("SQLSTATE %q instead of %q: %w", got, want, err)
	}
	return nil
}

const uniqueViolation = "23505"

var scenarios = []scenario{
	{"autocommit", func(ctx context.Context, w writing) error {
		return w.tasks(ctx, "ab-a", 1)
	}, []string{"1 by a", "2 by b", "3", "4 by a"}},
	{"transaction", func(ctx context.Context, w writing) error {
		return w.inTx(ctx, func(w writing) error { return w.tasks(ctx, "aaa", 1) })
	}, []string{"1 by a", "2 by a", "3 by a"}},
	{"without context", func(ctx context.Context, w writing) error {
		return w.inTx(ctx, func(w writing) error { return w.tasks(ctx, "--", 1) })
	}, []string{"1", "2"}},
	{"context changed in mid-transaction", func(ctx context.Context, w writing) error {
		return w.inTx(ctx, func(w writing) error { return w.tasks(ctx, "abbac-", 1) })
	}, []string{"1 by a", "2 by b", "3 by b", "4 by a", "5 by c", "6 by c"}},
	{"context only after the first write", func(ctx context.Context, w writing) error {
		return w.inTx(ctx, func(w writing) error { return w.tasks(ctx, "-ab", 1) })
	}, []string{"1 by a", "2 by a", "3 by b"}},
	{"context of the transaction", func(ctx context.Context, w writing) error {
		ctx = by(ctx, "a")
		return w.inTx(ctx, func(w writing) error { return w.tasks(ctx, "--", 1) })
	}, []string{"1 by a", "2 by a"}},
	{"rolled back", func(ctx context.Context, w writing) error {
		err := w.inTx(ctx, func(w writing) error { return errors.Join(w.tasks(ctx, "aa", 1), errRollback) })
		return errors.Join(expect(errRollback, err), w.tasks(ctx, "b-", 3))
	}, []string{"3 by b", "4"}},
	{"cancelled", func(ctx context.Context, w writing) error {
		cancelled, cancel := context.WithCancel(ctx)
		defer cancel()
		err := w.inTx(cancelled, func(w writing) error {
			err := w.tasks(cancelled, "aa", 1)
			cancel()
			return errors.Join(err, cancelled.Err())
		})
		return errors.Join(expect(context.Canceled, err), w.tasks(ctx, "-b", 3))
	}, []string{"3", "4 by b"}},
	{"nested", func(ctx context.Context, w writing) error {
		return w.inTx(ctx, func(w writing) error {
			return errors.Join(
				w.inTx(ctx, func(w writing) error { return w.tasks(ctx, "a", 1) }),
				w.tasks(ctx, "a", 2),
				w.inTx(ctx, func(w writing) error { return w.tasks(ctx, "b", 3) }),
				w.tasks(ctx, "b", 4))
		})
	}, []string{"1 by a", "2 by a", "3 by b", "4 by b"}},
	{"rolled-back savepoint took the stamp", func(ctx context.Context, w writing) error {
		return w.inTx(ctx, func(w writing) error {
			err := w.inTx(ctx, func(w writing) error { return errors.Join(w.tasks(ctx, "aa", 1), errRollback) })
			return errors.Join(expect(errRollback, err), w.tasks(ctx, "a", 3))
		})
	}, []string{"3 by a"}},
	{"rolled-back savepoint took a change of context", func(ctx context.Context, w writing) error {
		return w.inTx(ctx, func(w writing) error {
			first := w.tasks(ctx, "a", 1)
			err := w.inTx(ctx, func(w writing) error {
				return errors.Join(
					w.inTx(ctx, func(w writing) error { return w.tasks(ctx, "b", 2) }),
					w.tasks(ctx, "b", 3), errRollback)
			})
			return errors.Join(first, expect(errRollback, err), w.tasks(ctx, "ab", 4))
		})
	}, []string{"1 by a", "4 by a", "5 by b"}},
	{"statement failed in a savepoint", func(ctx context.Context, w writing) error {
		return w.inTx(ctx, func(w writing) error {
			first := w.inTx(ctx, func(w writing) error { return w.tasks(ctx, "b", 1) })
			err := w.inTx(ctx, func(w writing) error { return w.tasks(ctx, "a", 1) })
			return errors.Join(first, expectCode(uniqueViolation, err), w.tasks(ctx, "a", 2))
		})
	}, []string{"1 by b", "2 by a"}},
	{"statement failed in a transaction", func(ctx context.Context, w writing) error {
		first := w.tasks(ctx, "a", 1)
		err := w.inTx(ctx, func(w writing) error { return w.tasks(ctx, "bb", 0) })
		return errors.Join(first, expectCode(uniqueViolation, err), w.tasks(ctx, "b-", 2))
	}, []string{"1 by a", "2 by b", "3"}},
	{"statement failed alone", func(ctx context.Context, w writing) error {
		first := w.tasks(ctx, "a", 1)
		err := w.tasks(ctx, "b", 1)
		return errors.Join(first, expectCode(uniqueViolation, err), w.tasks(ctx, "-b", 2))
	}, []string{"1 by a", "2", "3 by b"}},
	{"many at once", func(ctx context.Context, w writing) error {
		group, ctx := errgroup.WithContext(ctx)
		for i := range 20 {
			group.Go(func() error {
				users := string("-abc"[i%4])
				if i%3 == 0 {
					return w.inTx(ctx, func(w writing) error { return w.tasks(ctx, users, i) })
				}
				return w.tasks(ctx, users, i)
			})
		}
		return group.Wait()
	}, manyAtOnce()},
}

func manyAtOnce() []string {
	var want []string
	for i := range 20 {
		want = append(want, fmt.Sprint(i)+[]string{"", " by a", " by b", " by c"}[i%4])
	}
	return want
}

func byNumber(a, b string) int {
	number := func(task string) int {
		digits, _, _ := strings.Cut(task, " ")
		n, _ := strconv.Atoi(digits)
		return n
	}
	return cmp.Compare(number(a), number(b))
}

// TestMatrix runs every way of writing of every library, over every driver,
// through every course of transactions, and looks which changes are in history
// and whose they are.
func TestMatrix(t *testing.T) {
	t.Parallel()
	for _, driver := range drivers() {
		t.Run(driver.name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{}, schemaSQL)
			want := map[string][]string{}
			for _, subject := range subjects(t, driver, a.URL()) {
				for _, s := range scenarios {
					cell := subject.name + ", " + s.name
					if err := s.run(t.Context(), writing{subject.session, cell}); err != nil {
						t.Errorf("%s: %v", cell, err)
					}
					want[cell] = s.want
				}
			}
			if diff := gocmp.Diff(want, cells(t, a)); diff != "" {
				t.Errorf("history (-want +got):\n%s", diff)
			}
		})
	}
}

// cells are the changes of each cell, in commit order or, where many were made
// at once, by number.
func cells(t *testing.T, a *audittest.Audited) map[string][]string {
	t.Helper()
	a.Sync(t)
	got := map[string][]string{}
	for change, err := range a.Client.Changes().OldestFirst().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		cell, _ := change.Row().Text("cell")
		task, _ := change.Row().Text("task")
		if change.Operation != audit.Create {
			task = line(change)
		}
		got[cell] = append(got[cell], task+source(change))
	}
	for cell, tasks := range got {
		if strings.HasSuffix(cell, "many at once") {
			slices.SortFunc(tasks, byNumber)
		}
	}
	return got
}
