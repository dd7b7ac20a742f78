package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/store"
)

// startPatience is how long Start tries to get the locks for the tables before
// it leaves the rest to the background.
const startPatience = 10 * time.Second

// Refresh looks for new tables that match Config.Tables and tracks them, now
// rather than within Config.RefreshInterval. Call it after a migration. A SQL
// client has the same effect with
//
//	SELECT pg_logical_emit_message(false, 'audit_refresh', '')
//
// It returns an error that joins those of the tables that could not be tracked
// yet, because the application held them; they are tried again in the
// background.
func (c *Client) Refresh(ctx context.Context) error {
	if err := c.open(); err != nil {
		return err
	}
	r := c.running()
	if r == nil {
		return ErrNotRunning
	}
	if err := c.refreshTables(ctx, r, true); err != nil {
		return fmt.Errorf("audit: refresh: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var problems []error
	for _, p := range c.last.pending {
		if !p.Never { // which Status says, and no waiting will change
			problems = append(problems, p.Reason)
		}
	}
	return errors.Join(problems...)
}

// refreshTables is joinTables while nobody else sets up.
func (c *Client) refreshTables(ctx context.Context, r *run, whole bool) error {
	locked, release, err := c.lockSetup(ctx, r, refreshPatience)
	if err != nil {
		c.setupBlocked(ctx, err)
		return err
	}
	defer release()
	ctx = locked
	repaired, err := c.setup.EnsurePublication(ctx, r.facts.Version)
	if err != nil {
		return err
	}
	return c.joinTables(ctx, r, nil, repaired, whole)
}

// join makes new tables tracked, whatever coverage says.
func (c *Client) join(ctx context.Context, r *run) ([]capture.Tracked, []capture.Pending, error) {
	here, err := c.history.Position(ctx)
	if err != nil {
		return nil, nil, err
	}
	// What the store knows is read before any table is locked.
	var known map[uint32]*capture.Structure
	var token string
	var may bool
	return c.setup.Join(ctx, func(ctx context.Context, identities map[uint32]string) (err error) {
		if known == nil {
			if known, err = c.history.Records.Structures(ctx, r.facts.Database); err != nil {
				return err
			}
			if token, err = c.history.Records.Token(ctx, r.facts.Database); err != nil {
				return err
			}
			if err = c.history.Source.QueryRow(ctx, `
				SELECT coalesce(pg_catalog.bool_and(pg_catalog.has_function_privilege(p.oid, 'EXECUTE')), false)
				FROM pg_catalog.pg_proc p -- which has another argument from 17 on
				WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = 'pg_logical_emit_message' AND p.proargtypes[2] = 'text'::regtype`).Scan(&may); err != nil {
				return fmt.Errorf("look for the right to write messages: %w", err)
			}
		}
		return c.history.Records.RememberIdentities(ctx, r.facts.Database, identities)
	}, func(ctx context.Context, tx pgx.Tx, oids []uint32) error {
		if !may {
			return nil // the next look at the structures says so
		}
		after := make([]LSN, len(oids))
		for i, oid := range oids {
			if k := known[oid]; k != nil {
				after[i] = max(k.At, r.looks.until(here), 1)
			}
		}
		return capture.TellStructures(ctx, tx, c.cfg.ContextPrefix, token, oids, after)
	})
}

// joinAtStart gives the tables some time to get their locks before the slot is
// made, and returns those that it published. The others will join later.
func (c *Client) joinAtStart(ctx context.Context, r *run) (map[uint32]capture.Tracked, error) {
	patience, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	joined := make(map[uint32]capture.Tracked)
	for wait := 50 * time.Millisecond; ; wait = min(wait*2, time.Second) {
		tracked, pending, err := c.join(patience, r)
		for _, t := range tracked {
			if t.From != 0 {
				joined[t.OID] = t
			}
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil && patience.Err() == nil {
			return nil, err
		}
		waiting := slices.ContainsFunc(pending, func(p capture.Pending) bool { return !p.Never })
		if !waiting || patience.Err() != nil {
			return joined, nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-patience.Done():
			timer.Stop()
			return joined, ctx.Err()
		}
	}
}

// joinTables makes new tables tracked and keeps coverage true. joined are those
// that were published just before; repaired tells that the publication may have
// left something out of every table, whole that all structures are looked at, whether they
// are known to have changed or not.
func (c *Client) joinTables(ctx context.Context, r *run, joined map[uint32]capture.Tracked, repaired, whole bool) error {
	whole = whole || r.seen.structures == ""
	seen := catalogSeen{structures: r.seen.structures}
	r.seen = catalogSeen{}
	r.rest.Store(0)
	checkpoint, err := c.history.Records.Checkpoint(ctx, r.facts.Database)
	if err != nil {
		return err
	}
	before, err := c.lookFrom(ctx)
	if err != nil {
		return err
	}
	// Before the look: what comes in between is another fingerprint.
	seen.timeline = checkpoint.Timeline
	if seen.tables, err = c.setup.TablesFingerprint(ctx, r.seed); err != nil {
		return err
	}
	if whole {
		if seen.structures, err = c.structuresFingerprint(ctx, r); err != nil {
			return err
		}
	}
	tracked, pending, err := c.join(ctx, r)
	if err != nil {
		return err
	}
	after, err := c.history.Position(ctx)
	if err != nil {
		return err
	}
	covered, err := c.history.Records.Coverage(ctx, r.facts.Database)
	if err != nil {
		return err
	}
	lasting, err := c.setup.TracedMembers(ctx, c.cfg.Schema)
	if err != nil {
		return err
	}
	lasting[""] = true // of a table that has no partition at the moment
	open := make(map[uint32]store.Coverage)
	for _, cov := range covered {
		if cov.Until == 0 {
			open[cov.RelationID] = cov
			for _, member := range strings.Split(cov.Membership, ",") {
				lasting[member] = true // also of a table that has become a part of another
			}
		}
	}
	verified := c.verified(checkpoint)
	r.looks.add(verified) // of whoever captured before
	if err := c.closeGone(ctx, r, open, tracked, pending, before.position, verified); err != nil {
		return err
	}
	wait := newStraddlers(c)
	for _, t := range tracked {
		if at, ok := joined[t.OID]; ok {
			t.From = max(t.From, at.From)
			t.Whole, t.Held = append(t.Whole, at.Whole...), t.Held || at.Held
		}
		stay := !repaired
		for _, member := range strings.Split(t.Membership, ",") {
			stay = stay && (lasting[member] || slices.Contains(t.Whole, member))
		}
		if repaired {
			t.From, t.Held = max(t.From, before.position), false
		}
		if err := c.cover(ctx, r, t, stay, open, checkpoint, verified, after, wait); err != nil {
			return err
		}
	}
	pending = append(pending, wait.pending...)
	c.setPending(pending)
	c.mu.Lock()
	c.last.straddled = wait.left
	c.mu.Unlock()
	told, err := c.lookAtStructures(ctx, r, tracked, before.position, whole)
	if err != nil || !told {
		return err
	}
	if !slices.ContainsFunc(pending, func(p capture.Pending) bool { return !p.Never }) {
		r.seen = seen
	}
	if !whole {
		return nil
	}
	return c.noteVerified(ctx, r, checkpoint, before)
}

// look is where a look at the tables begins. It does not see what was done by a
// transaction that committed before the position and is in progress still: it may wait for
// its WAL to be flushed, or for a standby.
type look struct {
	position LSN
	// writers are the ids of those that were in progress.
	writers []string
}

func (c *Client) lookFrom(ctx context.Context) (l look, err error) {
	if l.position, err = c.history.Position(ctx); err != nil {
		return l, err
	}
	rows, err := c.history.Source.Query(ctx, `
		WITH locks AS MATERIALIZED (SELECT * FROM pg_catalog.pg_locks)
		SELECT DISTINCT l.transactionid::text
		FROM locks l
		WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted
			AND l.virtualtransaction IN (
				SELECT r.virtualtransaction
				FROM locks r
				JOIN pg_catalog.pg_database d ON d.oid = r.database
				WHERE r.locktype = 'relation' AND d.datname = pg_catalog.current_database())`)
	if err != nil {
		return l, fmt.Errorf("look for transactions in progress: %w", err)
	}
	if l.writers, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
		return l, fmt.Errorf("look for transactions in progress: %w", err)
	}
	return l, nil
}

// publishedUntil is a position at which all tables were seen to be published, and as the
// stream was told of them, on a timeline.
type publishedUntil struct {
	position LSN
	timeline int32
	// next is a look of whose writers some were in progress still at the last.
	next look
	// stored is what the store knows of position, since a time.
	stored LSN
	at     time.Time
}

// verifiedEvery is how often the store is told until when tables were published: what
// was after it, the next holder cannot tell.
const verifiedEvery = 10 * time.Second

// verified returns a position at which all covered tables were published: one that is
// not now was until then, and what it misses has begun behind it.
func (c *Client) verified(checkpoint store.Checkpoint) LSN {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.last.published; p.timeline == checkpoint.Timeline {
		return max(p.position, checkpoint.Verified)
	}
	return checkpoint.Verified
}

// noteVerified takes down that all tables were published when a look began.
func (c *Client) noteVerified(ctx context.Context, r *run, checkpoint store.Checkpoint, l look) error {
	c.mu.Lock()
	p := c.last.published
	c.mu.Unlock()
	if p.timeline != checkpoint.Timeline {
		p = publishedUntil{timeline: checkpoint.Timeline}
	}
	switch left := slices.DeleteFunc(p.next.writers, func(id string) bool { return !slices.Contains(l.writers, id) }); {
	case len(l.writers) == 0:
		p.position, p.next = l.position, look{}
	case len(left) > 0:
		p.next.writers = left
	default:
		p.position, p.next = max(p.position, p.next.position), l
	}
	r.looks.add(p.position)
	if len(l.writers) == 0 && r.seen.tables != "" {
		r.rest.Store(uint64(l.position))
	}
	var err error
	if p.position > p.stored && time.Since(p.at) >= verifiedEvery {
		if err = c.history.Records.SetVerified(ctx, r.holder, p.position); err == nil {
			p.stored, p.at = p.position, time.Now()
		}
	}
	c.mu.Lock()
	c.last.published = p
	c.mu.Unlock()
	return err
}

// cover makes the coverage of one table true. stay tells that no part of it has been out
// of the publication.
func (c *Client) cover(ctx context.Context, r *run, t capture.Tracked, stay bool, open map[uint32]store.Coverage, checkpoint store.Checkpoint, verified, here LSN, wait *straddlers) error {
	cov, ok := open[t.OID]
	renamed := ok && (cov.Schema != t.Schema || cov.Table != t.Name)
	left := ok && !stay
	if ok && !left && !renamed {
		if cov.Membership == t.Membership {
			return nil
		}
		return c.history.Records.SetMembership(ctx, r.holder, t.OID, t.Membership)
	}
	from := t.From
	if from == 0 {
		// Published by somebody else, or by us just before a crash: it is certain
		// only from a position behind the one at which it was seen.
		from = here
	}
	now, err := c.history.SourceTime(ctx)
	if err != nil {
		return err
	}
	if ok {
		until := from
		if left {
			// It was out of the publication, or a part of it was. Until when it
			// was not is known only from the last look.
			until = max(verified, cov.From)
			c.cfg.Logger.Warn("audit: table was not tracked for a while", "schema", t.Schema, "table", t.Name, "from", until, "until", from)
		}
		if err := c.history.Records.CloseCoverage(ctx, r.holder, t.OID, until, now); err != nil {
			return err
		}
	}
	if !t.Held && (!ok || left) {
		over, err := wait.over(ctx, t)
		if err != nil || !over {
			return err
		}
		if from, err = c.history.Position(ctx); err != nil {
			return err
		}
		if now, err = c.history.SourceTime(ctx); err != nil {
			return err
		}
	}
	err = c.history.Records.OpenCoverage(ctx, r.holder, store.Coverage{Schema: t.Schema, Table: t.Name, From: max(from, checkpoint.Position), FromTime: now, RelationID: t.OID, Membership: t.Membership})
	if err != nil {
		return err
	}
	c.cfg.Logger.Info("audit: tracking", "schema", t.Schema, "table", t.Name, "from", from)
	if renamed {
		return nil
	}
	if err := c.noteEmpty(ctx, r.facts.Database, t.Schema, t.Name, t.OID); err != nil {
		c.cfg.Logger.Warn("audit: could not look whether the table is empty", "schema", t.Schema, "table", t.Name, "error", err)
	}
	return nil
}

// straddlers are the transactions that were in progress when tables were first seen in
// the publication, put there by somebody else or taken out for a while: the stream may
// have a part of what they wrote only, so what follows them is covered.
type straddlers struct {
	client  *Client
	known   map[uint32][]string // by OID, from earlier looks
	left    map[uint32][]string // of those that are still in progress
	until   time.Time           // how long to wait on the spot
	pending []capture.Pending
}

func newStraddlers(c *Client) *straddlers {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &straddlers{client: c, known: c.last.straddled, left: make(map[uint32][]string), until: time.Now().Add(straddlersPatience)}
}

// straddlersPatience is for how long transactions that end soon are waited for on the
// spot; the next refresh looks for the others.
const straddlersPatience = time.Second

// over reports whether the transactions that may straddle a table's coming are over.
func (s *straddlers) over(ctx context.Context, t capture.Tracked) (bool, error) {
	first, known := s.known[t.OID]
	for {
		now, err := s.client.setup.Writers(ctx, t.OID)
		if err != nil {
			return false, err
		}
		if known {
			now = slices.DeleteFunc(now, func(id string) bool { return !slices.Contains(first, id) })
		}
		if len(now) == 0 {
			return true, nil
		}
		first, known = now, true
		if time.Now().After(s.until) {
			s.left[t.OID] = now
			s.pending = append(s.pending, capture.Pending{
				OID: t.OID, Schema: t.Schema, Name: t.Name, Published: true,
				Reason: fmt.Errorf("%s was published by somebody else while %d transactions were writing to it: it is tracked when they are over", pgcatalog.Qualified(t.Schema, t.Name), len(now)),
			})
			return false, nil
		}
		timer := time.NewTimer(20 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return false, ctx.Err()
		}
	}
}

// closeGone ends the coverage of tables that are gone, have left what
// Config.Tables names by a new name or schema, or are not published.
func (c *Client) closeGone(ctx context.Context, r *run, open map[uint32]store.Coverage, tracked []capture.Tracked, pending []capture.Pending, here, verified LSN) error {
	seen, unpublished := make(map[uint32]bool), make(map[uint32]bool)
	for _, t := range tracked {
		seen[t.OID] = true
	}
	for _, p := range pending {
		seen[p.OID] = p.Published
		unpublished[p.OID] = !p.Published
	}
	for oid, cov := range open {
		if seen[oid] {
			continue
		}
		now, err := c.history.SourceTime(ctx)
		if err != nil {
			return err
		}
		until := here
		if unpublished[oid] {
			// Somebody took it out, or it has a part that is not in it: what it misses has
			// begun behind the last look.
			until = max(verified, cov.From)
		}
		if err := c.history.Records.CloseCoverage(ctx, r.holder, oid, until, now); err != nil {
			return err
		}
		delete(open, oid)
		c.cfg.Logger.Info("audit: table is not tracked any more; its history stays", "schema", cov.Schema, "table", cov.Table)
	}
	return nil
}

// leaveTables stops tracking what Config.Tables no longer names. Only Start does
// so: during a deployment two configurations would undo each other's work.
func (c *Client) leaveTables(ctx context.Context, r *run) error {
	unmatched, err := c.setup.Unmatched(ctx)
	if err != nil || len(unmatched) == 0 {
		return err
	}
	identities, err := c.history.Records.Identities(ctx, r.facts.Database)
	if err != nil {
		return err
	}
	for _, t := range unmatched {
		// Before: what is written after it may not be in the stream any more.
		here, err := c.history.Position(ctx)
		if err != nil {
			return err
		}
		restored, err := c.setup.Leave(ctx, t.OID, identities)
		if err != nil {
			c.cfg.Logger.Warn("audit: table is not in Config.Tables, but could not be left yet", "schema", t.Schema, "table", t.Name, "error", err)
			continue
		}
		now, err := c.history.SourceTime(ctx)
		if err != nil {
			return err
		}
		if err := c.history.Records.CloseCoverage(ctx, r.holder, t.OID, here, now); err != nil {
			return err
		}
		if err := c.history.Records.ForgetIdentities(ctx, r.holder, restored); err != nil {
			return err
		}
	}
	return nil
}
