package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	sq "github.com/Masterminds/squirrel"
)

const (
	// fewWatches is up to how many different watches read for themselves: to read
	// everything in order to look for little costs more.
	fewWatches = 4
	// maxGiven is how many changes wait for a slow watch. It reads the rest for itself.
	maxGiven = 1024
	// askedAtOnce is of how many watches with unlike filters one statement asks the server.
	askedAtOnce = 100
)

// follower is a watch. While it is attached, the tail gives it what matches; before that,
// and when it has fallen behind, it reads for itself.
type follower struct {
	query Query
	sql   string // of its filters, and their values
	args  []any
	key   string        // of both
	wake  chan struct{} // holds one: there is something to take

	// Guarded by the mu of the tail.
	attached bool
	given    []Change
	marks    map[string]Position // where what was given ends, once it is detached
	err      error               // of the tail, which ends the watch
}

func newFollower(q Query) (*follower, error) {
	sql, args, err := sq.And(q.where).ToSql()
	if err != nil {
		return nil, err
	}
	return &follower{query: q, sql: sql, args: args, key: fmt.Sprintf("%s %#v", sql, args), wake: make(chan struct{}, 1)}, nil
}

// filterGroup is the followers with the same filters.
type filterGroup struct {
	where     []sq.Sqlizer
	sql       string
	args      []any
	texts     []*string // of the values, once they were asked with; of whoever feeds
	followers map[*follower]struct{}
}

// attach begins to give a follower what comes behind the places that it returns, by
// database. Up to there the follower has to read for itself. It returns nil while nobody
// knows yet how far the store has come.
func (t *tail) attach(ctx context.Context, f *follower) (map[string]Position, error) {
	select {
	case t.feeding <- struct{}{}: // not in the middle of a page
		defer func() { <-t.feeding }()
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-t.client.closing:
		return nil, ErrClosed
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.err != nil || t.now.n == 0 {
		return nil, f.err
	}
	f.attached, f.given = true, nil
	g := t.groups[f.key]
	if g == nil {
		g = &filterGroup{where: f.query.where, sql: f.sql, args: f.args, followers: make(map[*follower]struct{})}
		t.groups[f.key] = g
	}
	g.followers[f] = struct{}{}
	return maps.Clone(t.fed), nil
}

// take returns what a follower was given. If it was detached, it also returns the places
// up to which that is all there is.
func (t *tail) take(f *follower) (given []Change, behind map[string]Position, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	given, f.given = f.given, nil
	if !f.attached {
		behind, f.marks = f.marks, nil
	}
	return given, behind, f.err
}

// detach lets a follower read for itself from here on, with mu held.
func (t *tail) detach(f *follower) {
	if !f.attached {
		return
	}
	f.attached, f.marks = false, maps.Clone(t.fed)
	if g := t.groups[f.key]; g != nil {
		if delete(g.followers, f); len(g.followers) == 0 {
			delete(t.groups, f.key)
		}
	}
	f.wakeUp()
}

func (f *follower) wakeUp() {
	select {
	case f.wake <- struct{}{}:
	default: // it is to wake up already
	}
}

// feed gives the followers what came to the store, up to where it has come now: it is read
// once for all.
func (t *tail) feed(ctx context.Context, reached []checkpoint) error {
	t.feeding <- struct{}{}
	defer func() { <-t.feeding }()
	for _, at := range reached {
		if err := t.feedDatabase(ctx, at); err != nil {
			return err
		}
	}
	return nil
}

func (t *tail) feedDatabase(ctx context.Context, at checkpoint) error {
	t.mu.Lock()
	end, from := endOf(at), t.fed[at.database]
	first := t.now.n == 0
	few := len(t.groups) <= fewWatches
	if few && end.Compare(from) > 0 {
		for _, g := range t.groups {
			for f := range g.followers {
				t.detach(f)
			}
		}
	}
	if first || few && end.Compare(from) > 0 {
		t.fed[at.database] = end
	}
	t.mu.Unlock()
	if first || few || end.Compare(from) <= 0 {
		return nil
	}
	p := &pages{client: t.client, query: Query{oldest: true}.InDatabase(at.database), size: firstPage, left: -1, after: &mark{from, at.database}}
	for done := false; !done; {
		changes, err := p.next(ctx)
		if err != nil {
			return err
		}
		done = p.done
		// What is visible may go on behind the checkpoint that was read before.
		if i := slices.IndexFunc(changes, func(c Change) bool { return c.Position.Compare(end) > 0 }); i >= 0 {
			changes, done = changes[:i], true
		}
		to := end
		if !done {
			to = changes[len(changes)-1].Position
		}
		t.give(ctx, at.database, changes, to)
	}
	return nil
}

// matches are the changes of a page that a group gets, by their index.
type matches struct {
	group *filterGroup
	sure  []int
	asked []int // of which the server has to say
}

// give gives the followers what matches of a page, which reaches to a place.
func (t *tail) give(ctx context.Context, database string, changes []Change, to Position) {
	var found, asked []*matches
	seen := make([]seenChange, len(changes))
	for i := range changes {
		seen[i].Change = &changes[i]
	}
	t.mu.Lock()
	for _, g := range t.groups {
		m := &matches{group: g}
		for i := range changes {
			switch judge(g.where, &seen[i]) {
			case certain:
				m.sure = append(m.sure, i)
			case possible:
				m.asked = append(m.asked, i)
			case impossible:
			}
		}
		if len(m.asked) > 0 {
			asked = append(asked, m)
		}
		if len(m.sure)+len(m.asked) > 0 {
			found = append(found, m)
		}
	}
	after := t.fed[database]
	t.mu.Unlock()
	refused := t.askAll(ctx, &question{database: database, after: after, changes: changes}, asked)
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range found {
		for f := range m.group.followers {
			if refused[m.group] || len(f.given)+len(m.sure) > maxGiven {
				t.detach(f)
				continue
			}
			for _, i := range m.sure {
				f.given = append(f.given, changes[i].clone())
			}
			if len(m.sure) > 0 {
				f.wakeUp()
			}
		}
	}
	t.fed[database] = to
}

// errChangeGone is for a change that retention has dropped since it was read.
var errChangeGone = errors.New("audit: a change has gone while it was looked at")

// clone is a copy with which its owner may do as he likes.
func (c Change) clone() Change {
	c.Before, c.After, c.RawContext = bytes.Clone(c.Before), bytes.Clone(c.After), bytes.Clone(c.RawContext)
	return c
}
