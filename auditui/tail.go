package auditui

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hindsight-go/audit"
)

const (
	// tailTime is how long a stream runs before the browser has to come again, with its
	// place in history and a new question for access.
	tailTime = 2 * time.Minute
	// tailPause is for how long events are gathered, tailBatch how many at most.
	tailPause = 100 * time.Millisecond
	tailBatch = 200
	// tailBeat is how often a quiet stream shows that it lives.
	tailBeat = 15 * time.Second
	// tailWrite is how long a browser may take for what it is sent.
	tailWrite = 10 * time.Second
)

// tailView is the page that follows history.
type tailView struct {
	filterView
	Events string
}

func (q *request) tailPage() error {
	q.loadStatus()
	view := tailView{Events: q.link("tail/events", nil, q.filters())}
	code, err := q.fillFilter(&view.filterView, func(filter) error { return nil })
	if err != nil {
		return err
	}
	return q.render(code, "tail", "tail", "Live", View{}, view)
}

// tailEvents streams changes as they are stored. An event is a JSON array of changes, and
// its id the place behind them.
func (q *request) tailEvents() error {
	q.loadStatus()
	matching, err := q.filtered()
	if err != nil {
		return err
	}
	release, err := q.stream()
	if err != nil {
		return err
	}
	defer release()
	starting, started := q.context(q.cfg.Timeout)
	defer started()
	// What is wrong with a filter shows before the stream begins; there is no such change.
	if _, err := matching.AtPosition(audit.Position{LSN: 1, Sequence: 1}).List(starting); err != nil {
		return err
	}
	at := audit.Cursor(q.r.Header.Get("Last-Event-ID"))
	if at == "" {
		at = audit.Cursor(q.query.Get("after"))
	}
	if at == "" {
		if at, err = q.tailStart(starting, matching); err != nil {
			return err
		}
	}
	q.view(View{Page: "tail", Tables: q.tables})
	header := q.w.Header()
	header.Set("Content-Type", "text/event-stream; charset=utf-8")
	header.Set("X-Accel-Buffering", "no") // nginx would keep events back
	q.sent = true
	if q.r.Method == http.MethodHead {
		return nil
	}
	ctx, cancel := context.WithTimeout(q.r.Context(), tailTime)
	defer cancel()
	err = q.follow(ctx, matching, at)
	if err != nil && ctx.Err() == nil {
		q.cfg.Logger.ErrorContext(ctx, "auditui: a live tail ended early", "kind", errorKind(err))
	}
	return nil
}

// tailStart is the place where history ends now, so that a stream that breaks off before
// its first event goes on without a hole. It is empty where history is.
func (q *request) tailStart(ctx context.Context, matching audit.Query) (audit.Cursor, error) {
	newest, err := q.inDatabase(q.client.Changes()).First(ctx)
	if errors.Is(err, audit.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return matching.OldestFirst().CursorAfter(newest), nil
}

// follow writes events until ctx ends or the browser has gone.
func (q *request) follow(ctx context.Context, matching audit.Query, at audit.Cursor) error {
	ctx, cancel := context.WithCancel(ctx)
	events := make(chan audit.Event, tailBatch)
	var watchErr error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer close(events)
		watchErr = watch(ctx, matching.After(at), events)
		// In a store of several sources, the end of one is no place for all to go on from.
		if cursor := new(audit.CursorError); errors.As(watchErr, &cursor) {
			watchErr = watch(ctx, matching, events)
		}
	}()
	defer func() { <-ended }()
	defer cancel()
	if err := q.send("retry: 1000\nid: %s\nevent: begin\ndata: {}\n\n", at); err != nil {
		return err
	}
	beat := time.NewTicker(tailBeat)
	defer beat.Stop()
	for {
		select {
		case event, ok := <-events:
			if !ok {
				return watchErr
			}
			if err := q.sendEvents(gather(ctx, event, events)); err != nil {
				return err
			}
		case <-beat.C:
			if err := q.send(": alive\n\n"); err != nil {
				return err
			}
		}
	}
}

// watch passes on what is stored from a place on.
func watch(ctx context.Context, from audit.Query, events chan<- audit.Event) error {
	for event, err := range from.Watch(ctx) {
		if err != nil {
			return err
		}
		select {
		case events <- event:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// gather waits a little for what comes with an event.
func gather(ctx context.Context, first audit.Event, events <-chan audit.Event) []audit.Event {
	batch := []audit.Event{first}
	pause := time.NewTimer(tailPause)
	defer pause.Stop()
	for len(batch) < tailBatch {
		select {
		case event, ok := <-events:
			if !ok {
				return batch
			}
			batch = append(batch, event)
		case <-pause.C:
			return batch
		case <-ctx.Done():
			return batch
		}
	}
	return batch
}

// tailLine is a change in an event, with the name of its user.
type tailLine struct {
	changeView
	Name string
}

func (q *request) sendEvents(batch []audit.Event) error {
	var changes []audit.Change
	for _, event := range batch {
		changes = append(changes, event.Change)
	}
	clear(q.users)
	views := q.changeViews(changes, shownColumns, shortValue)
	names := q.names()
	lines := make([]tailLine, len(views))
	for i, v := range views {
		lines[i] = tailLine{v, names[v.User]}
	}
	text, err := json.Marshal(lines)
	if err != nil {
		return err
	}
	return q.send("id: %s\ndata: %s\n\n", batch[len(batch)-1].Cursor, text)
}

// send writes a part of the stream, and does not wait for ever for whoever reads it.
func (q *request) send(format string, args ...any) error {
	control := http.NewResponseController(q.w)
	// A server without deadlines has none to set.
	if err := control.SetWriteDeadline(time.Now().Add(tailWrite)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := fmt.Fprintf(q.w, format, args...); err != nil {
		return err
	}
	return control.Flush()
}
