package audit

import (
	"context"
	"iter"
	"maps"
	"slices"
	"time"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
)

const (
	// The store is asked again after the shorter time while something is being stored,
	// and after the longer one when nothing has been for a while.
	watchBusy = 5 * time.Millisecond
	watchIdle = 250 * time.Millisecond
)

// Event is a change that a [Query.Watch] saw.
type Event struct {
	Change
	// Cursor continues the watch behind this change, in this or another process.
	Cursor Cursor
}

// Watch follows the history: it gives every matching change as soon as it is
// stored, each once, in commit order, and waits for the next, until ctx ends
// (which ends the sequence with ctx's error) or Limit changes were given.
//
// It begins with what is stored from now on; with Since, with everything since
// then; and with After, behind the event whose cursor that is, so that a program
// that keeps the cursor of the last event it handled misses nothing and sees
// nothing twice. A cursor of a page of changes, oldest first, does as well where
// the store holds one source. Where it holds several, commit order is within
// each of them. NewestFirst has no meaning here.
//
// In the program that captures, a change is seen at once when it is stored. In
// others, it is a few milliseconds later while the store is busy, and up to a
// quarter of a second after it was idle. No connection is held
// while the loop's body runs or while there is nothing new; a loop that is slow
// falls behind, but loses nothing. However many watches a client has, one asks the store
// whether there is anything new. Of more than a few different queries, it also reads what is
// new, once, and gives each watch that keeps up what matches.
//
// Each pair is a value and nil, or a zero value and an error; after an error the
// sequence ends. Each range runs the query again.
func (q Query) Watch(ctx context.Context) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		w, err := q.watch(ctx)
		if err != nil {
			yield(Event{}, err)
			return
		}
		t := &w.client.tail
		t.join()
		defer t.leave(w.follower)
		for {
			more, err := w.advance(ctx, yield)
			if err != nil {
				yield(Event{}, err)
			}
			if err != nil || !more {
				return
			}
		}
	}
}

// watcher follows each database by its own mark. One writer stores a database's
// transactions in commit order, each whole, together with the checkpoint. So
// whatever is visible is the beginning of the rest of history: nothing can
// appear later before a place that was read already.
type watcher struct {
	client *Client
	query  Query
	marks  map[string]Position
	left   int // of the limit; -1 without

	follower *follower
	attached bool // the tail gives the follower what matches
}

// checkpoint is how far the store holds the history of a database.
type checkpoint struct {
	database string
	position pglogrepl.LSN
}

// checkpoints reads the checkpoint of each database, in the order of their names.
func (c *Client) checkpoints(ctx context.Context) ([]checkpoint, error) {
	statement := `
		SELECT database, position
		FROM ` + c.history.Relation("checkpoints") + `
		ORDER BY database`
	return collect(ctx, c, "watch changes", sq.Expr(statement), func(row pgx.CollectableRow) (p checkpoint, err error) {
		var lsn lsnText
		err = row.Scan(&p.database, &lsn)
		p.position = pglogrepl.LSN(lsn)
		return p, err
	})
}

func (q Query) watch(ctx context.Context) (*watcher, error) {
	q.oldest = true
	client, err := q.ready()
	if err != nil {
		return nil, err
	}
	f, err := newFollower(q)
	if err != nil {
		return nil, history.OpError("watch changes", err)
	}
	w := &watcher{client: client, query: q, marks: map[string]Position{}, left: -1, follower: f}
	if q.limit > 0 {
		w.left = q.limit
	}
	if q.cursor != nil && q.cursor.kind != watchEvents && q.cursor.kind != oldestChanges {
		return nil, &CursorError{Reason: "it comes from " + q.cursor.kind.String() + ", and a watch needs the cursor of an event"}
	}
	reached, err := client.checkpoints(ctx)
	if err != nil {
		return nil, err
	}
	switch {
	case q.cursor == nil && !q.dated:
		for _, at := range reached {
			w.marks[at.database] = endOf(at)
		}
	case q.cursor == nil:
	case q.cursor.kind == watchEvents:
		for _, m := range q.cursor.marks {
			w.marks[m.database] = m.position
		}
	case len(reached) <= 1:
		w.marks[q.cursor.marks[0].database] = q.cursor.marks[0].position
	default:
		// LSNs of several sources have nothing to do with each other, so the end
		// of a page says nothing of where the other sources were.
		return nil, &CursorError{Reason: "it comes from a page, and the store holds several databases: a watch needs the cursor of an event"}
	}
	return w, nil
}

// endOf is the place behind everything that a checkpoint covers. The checkpoint
// is the end of a commit record, which may be where the next one begins, so that
// the next transaction may have this very position; its changes count from 1.
func endOf(at checkpoint) Position { return Position{LSN: at.position} }

// advance gives what came since the last time, or waits for something to come. It reports
// whether the caller wants more.
func (w *watcher) advance(ctx context.Context, yield func(Event, error) bool) (more bool, err error) {
	t := &w.client.tail
	now, moved := t.state()
	if now.err != nil {
		return false, now.err
	}
	wake := w.follower.wake
	if !w.attached {
		until, err := t.attach(ctx, w.follower)
		if err != nil {
			return false, err
		}
		if w.attached = until != nil; w.attached {
			// What is behind these places is given, what is before them is not.
			for _, database := range slices.Sorted(maps.Keys(until)) {
				if until[database].Compare(w.marks[database]) <= 0 {
					continue
				}
				if more, err := w.drain(ctx, now.n, database, until[database], yield); err != nil || !more {
					return more, err
				}
			}
			moved = nil
		}
	} else {
		moved = nil
	}
	given, behind, err := t.take(w.follower)
	for _, change := range given {
		if change.Position.Compare(w.marks[change.Database]) <= 0 {
			continue // the program was ahead of the tail
		}
		if more := w.give(change, yield); !more {
			return false, nil
		}
	}
	if err != nil {
		return false, err
	}
	if behind != nil {
		w.attached = false
		for database, position := range behind {
			if position.Compare(w.marks[database]) > 0 {
				w.marks[database] = position
			}
		}
		return true, nil
	}
	if len(given) > 0 {
		return true, nil
	}
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-w.client.closing:
		return false, ErrClosed
	case <-moved:
	case <-wake:
	}
	return true, nil
}

// give gives a change, and reports whether the caller wants more.
func (w *watcher) give(change Change, yield func(Event, error) bool) bool {
	w.marks[change.Database] = change.Position
	if !yield(Event{change, watchCursor(w.marks).encode()}, nil) {
		return false
	}
	if w.left > 0 {
		w.left--
	}
	return w.left != 0
}

// drain reads the changes of one database from its mark up to a place.
func (w *watcher) drain(ctx context.Context, n int, database string, until Position, yield func(Event, error) bool) (more bool, err error) {
	p := &pages{
		client: w.client,
		query:  w.query.InDatabase(database),
		size:   largestPage / 4,
		left:   w.left,
		after:  &mark{w.marks[database], database},
		shared: func(ctx context.Context, statement sq.Sqlizer, fetch func(context.Context) ([]Change, error)) ([]Change, error) {
			return w.client.tail.read(ctx, n, statement, fetch)
		},
	}
	for !p.done {
		changes, err := p.next(ctx)
		if err != nil {
			return false, err
		}
		for _, change := range changes {
			if change.Position.Compare(until) > 0 {
				p.done = true
				break
			}
			if !w.give(change, yield) {
				return false, nil
			}
		}
	}
	w.marks[database] = until
	return true, nil
}
