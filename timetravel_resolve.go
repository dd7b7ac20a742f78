package audit

import (
	"context"
	"errors"
	"time"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/store"
)

// travel is one question about the past: the facts it rests on and the moment it
// is about.
type travel struct {
	client   *Client
	point    Point
	database string
	facts    *store.Facts
	// through is the moment: transactions with a commit LSN up to it are in it.
	// Every position from same to through means the same state, since no change
	// lies between; where it was given by a position they are equal.
	through, same LSN
	// at is the time that was asked for, zero where it was not by time.
	at time.Time
}

// travel begins a question: it finds out which position the point means, and
// waits until the store holds everything up to it.
func (c *Client) travel(ctx context.Context, p Point) (*travel, error) {
	t := &travel{client: c, point: p}
	var err error
	if t.database, err = c.history.Database(ctx); err != nil {
		return nil, err
	}
	if t.facts, err = c.history.Facts(ctx, t.database); err != nil {
		return nil, err
	}
	if err := t.resolve(ctx); err != nil {
		if p.report != nil {
			*p.report = t.completeness(nil)
		}
		return nil, err
	}
	if t.through >= t.facts.Checkpoint.Position {
		if err := t.catchUp(ctx); err != nil {
			return nil, err
		}
	}
	if p.report != nil {
		*p.report = t.completeness(nil)
	}
	return t, nil
}

// travel is Client.travel on the point's client.
func (p Point) travel(ctx context.Context) (*travel, error) {
	c, err := p.ready()
	if err != nil {
		return nil, err
	}
	return c.travel(ctx, p)
}

// catchUp waits until the store holds everything that was committed before the
// call, and reads the facts anew.
func (t *travel) catchUp(ctx context.Context) error {
	if err := t.client.awaitCapture(ctx, t.fail); err != nil {
		return err
	}
	facts, err := t.client.history.FreshFacts(ctx, t.database)
	if err != nil {
		return err
	}
	t.facts = facts
	return nil
}

// captureGrace is how long nobody may hold the slot before a question that needs
// what is not captured yet is given up.
const captureGrace = 3 * time.Second

// awaitCapture is Sync that gives up when nobody captures.
func (c *Client) awaitCapture(ctx context.Context, fail func(reason error, detail string) error) error {
	waiting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		c.watchSlot(waiting, func() {
			cancel(fail(ErrNotCaptured, "no instance of the program reads the replication slot: call Client.Start"))
		})
	}()
	b, err := c.barrier(waiting)
	if err == nil {
		// Somebody may be about to take over: it is watchSlot that gives up.
		_, err = c.waitFor(waiting, b, func(context.Context, string) error { return nil })
	}
	cause := context.Cause(waiting)
	cancel(nil)
	<-watched
	var refusal *HistoryError
	if err != nil && errors.As(cause, &refusal) {
		return refusal
	}
	return history.OpError("wait for capture", err)
}

// watchSlot calls abandoned once if nobody reads from the slot for a while.
func (c *Client) watchSlot(ctx context.Context, abandoned func()) {
	ticker := time.NewTicker(captureGrace / 6)
	defer ticker.Stop()
	for idle := 0; idle < 6; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if c.state() == capture.Streaming {
			return
		}
		slot, err := c.setup.SlotState(ctx)
		switch {
		case errors.Is(err, capture.ErrNoSlot), err == nil && !slot.Active:
			idle++
		case err == nil:
			idle = 0
		}
	}
	abandoned()
}

// fail makes a HistoryError about no table in particular.
func (t *travel) fail(reason error, detail string) error {
	return &HistoryError{Asked: t.point.String(), Reason: reason, Detail: detail}
}

// resolve finds the position.
func (t *travel) resolve(ctx context.Context) error {
	switch t.point.kind {
	case pointAsOf, pointBefore:
		return t.resolveTime(ctx)
	case pointPosition:
		t.through = t.point.lsn
		if t.through > t.facts.Checkpoint.Position {
			return t.refuseFuture(ctx)
		}
	case pointBeforeTransaction, pointAfterTransaction, pointBeforeRequest, pointAfterRequest:
		return t.resolveUnit(ctx)
	case pointMark:
		position, ok, err := t.client.history.Records.Mark(ctx, t.database, t.point.name)
		if err != nil {
			return history.OpError("read mark", err)
		}
		if !ok {
			return &PointError{Point: t.point.String(), Reason: "there is no mark of that name", cause: ErrNotFound}
		}
		t.through = position
	case pointNow:
		here, err := t.client.history.Position(ctx)
		if err != nil {
			return history.OpError("ask the source", err)
		}
		t.through = here
	case pointUnset:
	}
	t.same = t.through
	return nil
}

func (t *travel) refuseFuture(ctx context.Context) error {
	here, err := t.client.history.Position(ctx)
	if err != nil {
		return history.OpError("ask the source", err)
	}
	if t.through > here {
		return t.fail(ErrFuture, "the source's write-ahead log has not come there yet")
	}
	t.same = t.through
	return nil
}

// cutSQL finds the first transaction that is not in the moment any more: the
// first one up to which the running maximum of commit times is later. commit_times
// holds that maximum here and there; in between, the changes decide. A barrier has
// no changes, but a row in commit_times.
func cutSQL(c *Client, comparison string) string {
	return `
		SELECT least(
			(SELECT m.position FROM ` + c.history.Relation("commit_times") + ` m
			 WHERE m.database = $1 AND m.committed_at ` + comparison + ` $2
			 ORDER BY m.committed_at, m.position
			 LIMIT 1),
			(SELECT c.position FROM ` + c.history.Relation("changes") + ` c
			 WHERE c.database = $1 AND c.committed_at ` + comparison + ` $2
			   AND c.position > coalesce((
				SELECT m.position FROM ` + c.history.Relation("commit_times") + ` m
				WHERE m.database = $1 AND NOT m.committed_at ` + comparison + ` $2
				ORDER BY m.committed_at DESC, m.position DESC
				LIMIT 1), '0/0')
			 ORDER BY c.position
			 LIMIT 1)),
			(SELECT max(h.until_time) FROM ` + c.history.Relation("retention") + ` h),
			(SELECT max(j.ahead_at) FROM ` + c.history.Relation("clock_jumps") + ` j WHERE j.database = $1 AND j.back_to <= $2 AND j.ahead_at > $2)`
}

// resolveTime maps a time to a position.
func (t *travel) resolveTime(ctx context.Context) error {
	comparison := ">"
	// A time between two microseconds is no commit time: before it is at the one
	// before it.
	t.at = t.point.time.Truncate(time.Microsecond)
	if t.point.kind == pointBefore && t.at.Equal(t.point.time) {
		comparison = ">="
	}
	for range 3 {
		var cut *lsnText
		var dropped, ahead *time.Time
		if err := t.client.history.Store.QueryRow(ctx, cutSQL(t.client, comparison), t.database, storeTime(t.at)).Scan(&cut, &dropped, &ahead); err != nil {
			return history.OpError("find the position of a time", err)
		}
		if dropped != nil && dropped.After(t.facts.Horizon.Time) {
			facts, err := t.client.history.FreshFacts(ctx, t.database) // somebody else did so just now
			if err != nil {
				return err
			}
			t.facts = facts
		}
		if cut != nil {
			t.through = LSN(*cut) - 1
			t.same = t.through
			if err := t.refuseTime(); err != nil || ahead == nil {
				return err
			}
			return t.fail(ErrClockJumped, "commit times reached "+ahead.UTC().Format(time.RFC3339Nano)+" and then ran back: ask by a position, a transaction, a request or a mark")
		}
		// Everything there is was committed until then, but more may come. What
		// comes behind a barrier that is later than the time does not.
		now, err := t.client.history.SourceTime(ctx)
		if err != nil {
			return history.OpError("ask the source for its time", err)
		}
		if t.at.After(now) {
			return t.fail(ErrFuture, "the source's clock says "+now.UTC().Format(time.RFC3339Nano))
		}
		if err := t.catchUp(ctx); err != nil {
			return err
		}
	}
	return history.OpError("find the position of a time", errors.New("the source's clock runs backwards"))
}

// refuseTime says that a time is one of which history knows nothing: what was left
// of it would be the state of another time.
func (t *travel) refuseTime() error {
	if horizon := t.facts.Horizon; t.at.Before(horizon.Time) {
		return &HistoryError{Asked: t.point.String(), Reason: ErrPastRetention, Earliest: Position{LSN: horizon.Position}, EarliestTime: horizon.Time.UTC()}
	}
	for _, g := range t.facts.Gaps {
		if g.From <= t.through && !t.at.Before(g.FromTime) && t.at.Before(g.ToTime) {
			return &HistoryError{Asked: t.point.String(), Reason: ErrInGap, Detail: g.Reason, Earliest: Position{LSN: g.To}, EarliestTime: g.ToTime.UTC()}
		}
	}
	return nil
}

// widen finds the least position that means the same state as through, which is
// needed only where the two may be told apart: at the edges of coverage.
func (t *travel) widen(ctx context.Context) error {
	if t.at.IsZero() || t.same < t.through {
		return nil
	}
	var last *lsnText
	err := t.client.history.Store.QueryRow(ctx, `
		SELECT (SELECT c.position FROM `+t.client.history.Relation("changes")+` c
			WHERE c.database = $1 AND c.position <= $2
			ORDER BY c.position DESC
			LIMIT 1)`, t.database, t.through.String()).Scan(&last)
	if err != nil {
		return history.OpError("find the position of a time", err)
	}
	t.same = 0
	if last != nil {
		t.same = LSN(*last)
	}
	return nil
}

// resolveUnit finds the position of a transaction or a request.
func (t *travel) resolveUnit(ctx context.Context) error {
	query := t.client.Changes().wholly().InDatabase(t.database)
	switch t.point.kind {
	case pointBeforeTransaction, pointAfterTransaction:
		query = query.InTransaction(t.point.id)
	default:
		query = query.InRequest(t.point.name)
	}
	before := t.point.kind == pointBeforeTransaction || t.point.kind == pointBeforeRequest
	if before {
		query = query.OldestFirst()
	}
	change, err := query.First(ctx)
	if errors.Is(err, ErrNotFound) || err == nil && t.point.kind == pointAfterRequest {
		// It may have been committed a moment ago; a request may go on.
		if err := t.catchUp(ctx); err != nil {
			return err
		}
		change, err = query.First(ctx)
	}
	if errors.Is(err, ErrNotFound) {
		return &PointError{Point: t.point.String(), Reason: "there is no change of it in history", cause: err}
	}
	if err != nil {
		return err
	}
	t.through = change.Position.LSN
	if before {
		t.through--
	}
	t.same = t.through
	return nil
}

// completeness describes the answer; covered is the stay in coverage that it
// rests on, or nil.
func (t *travel) completeness(covered *store.Coverage) Completeness {
	f := t.facts
	r := Completeness{
		Position:  Position{LSN: t.through},
		CoveredTo: Position{LSN: f.Checkpoint.Position},
		Gaps:      f.Gaps,
	}
	if covered == nil {
		for i, cov := range f.Coverage {
			if cov.Until == 0 && (covered == nil || cov.From < covered.From) {
				covered = &f.Coverage[i]
			}
		}
	}
	if covered != nil {
		r.CoveredFrom, r.CoveredFromTime = Position{LSN: covered.From}, covered.FromTime.UTC()
	}
	if f.Horizon.Position > r.CoveredFrom.LSN {
		r.CoveredFrom, r.CoveredFromTime = Position{LSN: f.Horizon.Position}, f.Horizon.Time.UTC()
	}
	for _, g := range f.Gaps {
		if g.From <= t.through && g.To > r.CoveredFrom.LSN {
			r.CoveredFrom, r.CoveredFromTime = Position{LSN: g.To}, g.ToTime.UTC()
		}
	}
	if !f.Checkpoint.CommittedAt.IsZero() && t.through >= f.Checkpoint.Position {
		r.Lag = max(0, time.Since(f.Checkpoint.UpdatedAt))
	}
	return r
}

// Mark names the moment of the call, so that [AtMark] finds it again: before a
// migration, an import, a release. Everything that was committed before the call
// is in it. It waits until the store holds that. A name can be given once for
// each source; giving it again is a [*PointError].
func (c *Client) Mark(ctx context.Context, name string) (Position, error) {
	if name == "" {
		return Position{}, &PointError{Reason: "Mark: the name is empty"}
	}
	b, err := c.barrier(ctx)
	if err != nil {
		return Position{}, history.OpError("mark", err)
	}
	target, err := c.waitFor(ctx, b, c.capturedElsewhere)
	if err != nil {
		return Position{}, history.OpError("mark", err)
	}
	set, err := c.history.Records.SetMark(ctx, b.database, name, target, time.Now())
	if err != nil {
		return Position{}, history.OpError("mark", err)
	}
	if !set {
		return Position{}, &PointError{Point: AtMark(name).String(), Reason: "there is a mark of that name already"}
	}
	return Position{LSN: target}, nil
}

// NamedMark is a moment that [Client.Mark] gave a name.
type NamedMark struct {
	// Name is what [AtMark] takes.
	Name     string   `json:"name"`
	Position Position `json:"position"`
	// MarkedAt is when the mark was set, by the clock of the program that did.
	MarkedAt time.Time `json:"markedAt"`
}

// Marks returns the marks of the source, the latest first.
func (c *Client) Marks(ctx context.Context) ([]NamedMark, error) {
	if err := c.open(); err != nil {
		return nil, err
	}
	database, err := c.history.Database(ctx)
	if err != nil {
		return nil, err
	}
	stored, err := c.history.Records.Marks(ctx, database)
	if err != nil {
		return nil, history.OpError("read marks", err)
	}
	marks := make([]NamedMark, len(stored))
	for i, m := range stored {
		marks[i] = NamedMark{m.Name, Position{LSN: m.Position}, m.MarkedAt.UTC()}
	}
	return marks, nil
}

// Token stands for a moment of the source, in a form that can be handed from one
// program to another: in a response header, a job. It is empty or the text of an
// LSN.
type Token string

// Token returns a token for everything that has been committed before the call,
// so that a program that has just written can have somebody else, or itself
// later, read history with its write in it. Any SQL client gets the same with
// SELECT pg_current_wal_insert_lsn().
func (c *Client) Token(ctx context.Context) (Token, error) {
	here, err := c.history.Position(ctx)
	if err != nil {
		return "", history.OpError("make token", err)
	}
	return Token(here.String()), nil
}

// WaitFor returns when history holds everything that the token stands for. The
// empty token stands for nothing. It returns a [*HistoryError] if nobody captures
// or the token is from the future, and a [*PointError] if it is no token.
func (c *Client) WaitFor(ctx context.Context, token Token) error {
	if token == "" {
		return nil
	}
	if err := c.open(); err != nil {
		return err
	}
	lsn, err := parseLSN(string(token))
	if err != nil {
		return &PointError{Reason: "WaitFor: the token is " + err.Error()}
	}
	t := &travel{client: c, point: AtPosition(Position{LSN: lsn})}
	if t.database, err = c.history.Database(ctx); err != nil {
		return err
	}
	if t.facts, err = c.history.Facts(ctx, t.database); err != nil {
		return err
	}
	if lsn <= t.facts.Checkpoint.Position {
		return nil
	}
	t.through = lsn
	if err := t.refuseFuture(ctx); err != nil {
		return err
	}
	return t.catchUp(ctx)
}

// Mark is Client.Mark on the default client.
func Mark(ctx context.Context, name string) (Position, error) {
	var p Position
	err := withDefault(func(c *Client) (err error) {
		p, err = c.Mark(ctx, name)
		return err
	})
	return p, err
}

// Marks is Client.Marks on the default client.
func Marks(ctx context.Context) ([]NamedMark, error) {
	var marks []NamedMark
	err := withDefault(func(c *Client) (err error) {
		marks, err = c.Marks(ctx)
		return err
	})
	return marks, err
}

// WaitFor is Client.WaitFor on the default client.
func WaitFor(ctx context.Context, token Token) error {
	return withDefault(func(c *Client) error { return c.WaitFor(ctx, token) })
}

// CurrentToken is Client.Token on the default client.
func CurrentToken(ctx context.Context) (Token, error) {
	var token Token
	err := withDefault(func(c *Client) (err error) {
		token, err = c.Token(ctx)
		return err
	})
	return token, err
}
