package audit

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pgx/v5/pgtype"
)

// tail follows the store for all watches of a client: one asks how far it has come, reads
// what is new once, and gives each watch what matches its filters. Watches that are not so
// far yet read for themselves, those that ask the same, at the same place, once. It runs
// while there are watches.
type tail struct {
	client *Client

	mu      sync.Mutex
	watches int                    // guarded by mu
	stop    context.CancelFunc     // guarded by mu: ends the poller, nil if there is none
	ctx     context.Context        //nolint:containedctx // guarded by mu: of the poller, whose reads are nobody's alone
	now     tailState              // guarded by mu
	pages   map[string]*sharedPage // guarded by mu: what was read since now came to be
	moved   chan struct{}          // guarded by mu: closed when now is another

	feeding chan struct{}             // holds one while a page is given to the followers
	groups  map[string]*filterGroup   // guarded by mu: who is attached
	fed     map[string]Position       // guarded by mu: up to where they were given what matches
	types   map[string][]*pgtype.Type // guarded by mu: of the values of conditions
}

// sharedPages bounds the pages that are kept for other watches: each holds what a page of
// a query does. Beyond it watches read for themselves.
const sharedPages = 64

// tailState is how far the store has come, as it was seen for the nth time; 0: never.
type tailState struct {
	n       int
	reached []checkpoint
	err     error
}

// sharedPage is a page of changes that several watches read. Once done is closed, it is
// not altered any more.
type sharedPage struct {
	done    chan struct{}
	changes []Change
	err     error
}

// join begins to follow for one more watch. leave has to be called at its end.
func (t *tail) join() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.watches++; t.stop == nil {
		t.begin()
	}
}

// begin starts the poller, with mu held.
func (t *tail) begin() {
	t.ctx, t.stop = context.WithCancel(context.Background())
	t.now, t.pages, t.moved = tailState{}, make(map[string]*sharedPage), make(chan struct{})
	t.groups, t.fed, t.types = make(map[string]*filterGroup), make(map[string]Position), make(map[string][]*pgtype.Type)
	go t.poll(t.ctx)
}

func (t *tail) leave(f *follower) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.detach(f)
	if t.watches--; t.watches == 0 && t.stop != nil {
		t.stop()
		t.stop = nil
	}
}

// state returns how far the store has come, and what is closed when it has come further.
func (t *tail) state() (tailState, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.now, t.moved
}

// poll asks how far the store has come, again and again, until an error, which all
// watches are told.
func (t *tail) poll(ctx context.Context) {
	var last []checkpoint
	for wait := watchBusy; ; wait = min(wait*3/2, watchIdle) {
		stored := t.client.stored.next()
		reached, err := t.client.checkpoints(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil || last == nil || !slices.Equal(last, reached) {
			if err == nil {
				err = t.feed(ctx, reached)
			}
			if ctx.Err() != nil {
				return
			}
			last, wait = append([]checkpoint{}, reached...), watchBusy
			if !t.publish(ctx, reached, err) {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-t.client.closing: // which every watch sees for itself
			return
		case <-stored: // this program captures, and has just stored something
		case <-time.After(wait):
		}
	}
}

// publish makes a state that of now. It reports whether the poller goes on.
func (t *tail) publish(ctx context.Context, reached []checkpoint, err error) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ctx.Err() != nil {
		return false // another poller has begun
	}
	t.now = tailState{n: t.now.n + 1, reached: reached, err: err}
	clear(t.pages)
	close(t.moved)
	t.moved = make(chan struct{})
	if err != nil {
		for _, g := range t.groups {
			for f := range g.followers {
				f.err = err
				f.wakeUp()
			}
		}
		t.stop()
		t.stop = nil
	}
	return err == nil
}

// read reads a page of changes, once for all watches that ask for it since the store was
// seen to have come as far as in the nth state. What is read later is there already.
func (t *tail) read(ctx context.Context, n int, statement sq.Sqlizer, fetch func(context.Context) ([]Change, error)) ([]Change, error) {
	sql, args, err := statement.ToSql()
	if err != nil {
		return nil, err
	}
	key := fmt.Sprintf("%d %s %#v", n, sql, args)
	t.mu.Lock()
	page, ok := t.pages[key]
	if !ok && len(t.pages) >= sharedPages {
		t.mu.Unlock()
		return fetch(ctx)
	}
	if !ok {
		page = &sharedPage{done: make(chan struct{})}
		t.pages[key] = page
		reads := t.ctx
		go func() {
			defer close(page.done)
			page.changes, page.err = fetch(reads)
		}()
	}
	t.mu.Unlock()
	select {
	case <-page.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-t.client.closing:
		return nil, ErrClosed
	}
	if page.err != nil {
		if now, _ := t.state(); now.err != nil { // for which the read was given up
			return nil, now.err
		}
		return nil, page.err
	}
	changes := slices.Clone(page.changes) // whoever gets one may do with it what he likes
	for i := range changes {
		changes[i] = changes[i].clone()
	}
	return changes, nil
}
