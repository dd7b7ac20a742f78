package audit

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/store"
)

// prepareSource checks the source and makes, in this order, the store, the
// publication with its tables, and the slot.
func (c *Client) prepareSource(ctx context.Context) (capture.Facts, error) {
	if field, err := c.pooledField(ctx); err != nil {
		return capture.Facts{}, fmt.Errorf("audit: start: %w", err)
	} else if field != "" {
		return capture.Facts{}, &PoolerError{Field: field}
	}
	if err := c.locateStore(ctx); err != nil {
		return capture.Facts{}, fmt.Errorf("audit: start: %w", err)
	}
	facts, err := c.check(ctx)
	var notReady *SetupError
	if errors.As(err, &notReady) {
		return facts, err // which says all there is to say
	}
	if err != nil {
		return facts, fmt.Errorf("audit: start: %w", err)
	}
	if err := c.checkColumns(ctx); err != nil {
		var secret *SecretKeyError
		if errors.As(err, &secret) {
			return facts, err
		}
		return facts, fmt.Errorf("audit: start: %w", err)
	}
	if err := c.history.Records.Migrate(ctx); err != nil {
		return facts, fmt.Errorf("audit: start: %w", err)
	}
	r := &run{facts: facts}
	locked, release, err := c.lockSetup(ctx, r, setupPatience)
	if err != nil {
		return facts, fmt.Errorf("audit: start: %w", err)
	}
	defer release()
	if err := c.makeSource(locked, r); err != nil {
		return facts, fmt.Errorf("audit: start: %w", err)
	}
	if slot, err := c.setup.SlotState(ctx); err == nil {
		for _, w := range walWarnings(slot) {
			c.cfg.Logger.Warn("audit: warning of the source", "code", string(w.Code), "text", w.Text)
		}
	}
	return facts, nil
}

// locateStore finds out whether the store is in the source itself, where its
// schema must not be tracked.
func (c *Client) locateStore(ctx context.Context) error {
	const identity = "SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) || '/' || current_database()"
	var source, stored string
	if err := c.history.Source.QueryRow(ctx, identity).Scan(&source); err != nil {
		return fmt.Errorf("connect to the source: %w", err)
	}
	if err := c.history.Store.QueryRow(ctx, identity).Scan(&stored); err != nil {
		return fmt.Errorf("connect to the store: %w", err)
	}
	c.setup.StoreSchema = ""
	if source == stored {
		c.setup.StoreSchema = c.cfg.Schema
	}
	return nil
}

// check looks at the source and at the store, so that one error says all.
func (c *Client) check(ctx context.Context) (capture.Facts, error) {
	facts, err := c.setup.Check(ctx)
	var notReady *SetupError
	if err != nil && !errors.As(err, &notReady) {
		return facts, err
	}
	var problems []capture.Problem
	what, sql, storeErr := c.history.Records.Check(ctx)
	if storeErr != nil {
		return facts, storeErr
	}
	if what != "" {
		problems = append(problems, capture.Problem{What: what, SQL: sql})
	}
	encoding, storeErr := c.encodingProblem(ctx)
	if storeErr != nil {
		return facts, storeErr
	}
	if encoding != "" {
		problems = append(problems, capture.Problem{What: encoding})
	}
	bounds, storeErr := c.boundProblems(ctx, facts, what == "")
	if storeErr != nil {
		return facts, storeErr
	}
	if problems = append(problems, bounds...); len(problems) == 0 {
		return facts, err
	}
	all := &SetupError{Problems: problems}
	if notReady != nil {
		all.Problems = append(notReady.Problems, all.Problems...)
	}
	return facts, all
}

// boundProblems lists a slot without a bound, where one is required, and the slot that
// a database of another name has left behind, by the history, if that may be read.
func (c *Client) boundProblems(ctx context.Context, facts capture.Facts, readable bool) (problems []capture.Problem, err error) {
	slot, err := c.setup.SlotState(ctx)
	var foreign *ForeignSlotError
	if err != nil && !errors.Is(err, capture.ErrNoSlot) && !errors.As(err, &foreign) {
		return nil, err
	}
	if c.cfg.RequireWALBound && slot.Bound < 0 {
		problems = append(problems, capture.Problem{
			What: "max_slot_wal_keep_size is -1, so that a slot that nobody reads from fills the disk (Config.RequireWALBound): give it a size that the disk has, for instance a third of it",
			SQL:  []string{"ALTER SYSTEM SET max_slot_wal_keep_size = '64GB'", "SELECT pg_reload_conf()"},
		})
	}
	if !readable {
		return problems, nil
	}
	checkpoints, err := c.history.Records.Checkpoints(ctx)
	if err != nil && !history.IsUndefined(err) {
		return nil, err
	}
	for _, cp := range checkpoints {
		if cp.Database == facts.Database {
			return problems, nil
		}
	}
	for _, cp := range checkpoints {
		if cp.Slot == c.cfg.Slot {
			continue // it goes on where it ended
		}
		var left bool
		err := c.history.Source.QueryRow(ctx, `
			SELECT s.system_identifier::text = $3 AND NOT EXISTS (SELECT FROM pg_catalog.pg_database d WHERE d.datname = $1)
				AND EXISTS (SELECT FROM pg_catalog.pg_replication_slots r WHERE r.slot_name = $2 AND r.database = current_database())
			FROM pg_catalog.pg_control_system() s`, cp.Database, cp.Slot, cp.SystemIdentifier).Scan(&left)
		if err != nil {
			return nil, fmt.Errorf("look for slots: %w", err)
		}
		if left {
			problems = append(problems, capture.Problem{
				What: fmt.Sprintf("this database was called %s, its history has that name, and its slot %s is there still: set Config.Slot to %q to go on, under the name of now, where it ended, or drop the slot to lose what was written since and begin anew", cp.Database, cp.Slot, cp.Slot),
			})
		}
	}
	return problems, nil
}

// encodingProblem says what the store cannot hold of what the source has, or nothing:
// sooner or later a key or a name would come that it refuses.
func (c *Client) encodingProblem(ctx context.Context) (string, error) {
	var source, stored string
	if err := c.history.Source.QueryRow(ctx, "SELECT current_setting('server_encoding')").Scan(&source); err != nil {
		return "", fmt.Errorf("look at the source: %w", err)
	}
	if err := c.history.Store.QueryRow(ctx, "SELECT current_setting('server_encoding')").Scan(&stored); err != nil {
		return "", fmt.Errorf("look at the store: %w", err)
	}
	if stored != source && stored != "UTF8" && stored != "SQL_ASCII" {
		return fmt.Sprintf("the store's encoding, %s, lacks characters that the source's, %s, has: keep the history in a database made with ENCODING 'UTF8' (Config.StoreURL)", stored, source), nil
	}
	var same string
	err := c.history.Store.QueryRow(ctx, "SELECT $1::text", c.cfg.Environment).Scan(&same)
	if history.IsCode(err, "22P05", "22021") {
		return fmt.Sprintf("Config.Environment has a character that the store's encoding, %s, lacks: choose another name", stored), nil
	}
	if err != nil {
		return "", fmt.Errorf("look at the store: %w", err)
	}
	return "", nil
}

func (c *Client) makeSource(ctx context.Context, r *run) error {
	// Before anything is made here: is it the source that the history is of?
	checkpoint, err := c.history.Records.Checkpoint(ctx, r.facts.Database)
	switch {
	case err == nil:
		if _, err := c.sameSource(ctx, checkpoint); err != nil {
			return err
		}
	case !errors.Is(err, store.ErrNoCheckpoint):
		return err
	}
	if err := c.history.Records.EnsurePartitions(ctx); err != nil {
		return err
	}
	repaired, err := c.setup.EnsurePublication(ctx, r.facts.Version)
	if err != nil {
		return err
	}
	if !c.cfg.NoEventTrigger {
		on, err := c.setup.EnsureTrace(ctx, c.cfg.Schema, c.cfg.ContextPrefix)
		if err != nil {
			return err
		}
		if !on {
			c.cfg.Logger.Info("audit: no event triggers: the role may not make them; moments around an ALTER TABLE are known only as exactly as Config.RefreshInterval")
		}
	}
	if left, err := c.setup.Machinery(ctx); err != nil {
		return err
	} else if len(left) > 0 {
		c.cfg.Logger.Info("audit: tables of migration tools and job queues are not tracked unless Config.Tables names them", "tables", left)
	}
	c.cfg.Logger.Info("audit: reverts leave these columns alone", "NeverRestored", c.cfg.NeverRestored, "VersionColumns", c.cfg.VersionColumns)
	if err := c.leaveTables(ctx, r); err != nil {
		return err
	}
	joined, err := c.joinAtStart(ctx, r)
	if err != nil {
		return err
	}
	if _, err := c.ensureSlot(ctx, r, true); err != nil {
		return err
	}
	// Again, now that there is a slot: coverage begins where the slot does.
	return c.joinTables(ctx, r, joined, repaired, true)
}

// attempts is how often the server may fail at sending a transaction before that is
// left out.
const attempts = 2

// errMustSetUp reports whether there is something to make, which takes the lock.
var errMustSetUp = errors.New("audit: the slot has to be made")

// prepareSlot makes sure that there is a slot and a checkpoint to stream from. What
// has to be made or dropped is looked at again while nobody else sets up: of two
// instances that see a lost slot, one drops it, and the other must not drop the
// slot that was made in its place.
func (c *Client) prepareSlot(ctx context.Context, r *run) (capture.Resume, error) {
	resume, err := c.ensureSlot(ctx, r, false)
	if !errors.Is(err, errMustSetUp) {
		return resume, err
	}
	locked, release, err := c.lockSetup(ctx, r, setupPatience)
	if err != nil {
		return resume, err
	}
	defer release()
	return c.ensureSlot(locked, r, true)
}

// ensureSlot is prepareSlot; locked tells that nobody else sets up.
func (c *Client) ensureSlot(ctx context.Context, r *run, locked bool) (capture.Resume, error) {
	// The slot before the checkpoint: it is confirmed only up to a checkpoint,
	// so read in this order it can be ahead of one only if history was lost.
	slot, slotErr := c.setup.SlotState(ctx)
	var foreign *capture.ForeignSlotError
	if errors.As(slotErr, &foreign) {
		return capture.Resume{}, capture.Permanent(slotErr)
	}
	if slotErr != nil && !errors.Is(slotErr, capture.ErrNoSlot) {
		return capture.Resume{}, slotErr
	}
	checkpoint, err := c.history.Records.Checkpoint(ctx, r.facts.Database)
	first := errors.Is(err, store.ErrNoCheckpoint)
	if err != nil && !first {
		return capture.Resume{}, err
	}
	timeline := int32(0)
	if !first {
		if timeline, err = c.sameSource(ctx, checkpoint); err != nil {
			return capture.Resume{}, err
		}
	}
	reason, useless := "", true // a slot that is there and of no use
	switch {
	case slotErr != nil:
		reason, useless = "the replication slot was gone", false
	case slot.Lost():
		reason = "the replication slot was invalidated"
		if slot.Reason != "" {
			reason += ": " + slot.Reason
		}
	case r.undecodable != 0 && slot.Confirmed <= r.undecodable:
		reason = "the publication was dropped under the slot"
	case !first && slot.Confirmed > checkpoint.Position:
		reason, useless = "the replication slot was recreated or moved by somebody else", false
	}
	if (first || reason != "") && !locked {
		return capture.Resume{}, errMustSetUp
	}
	switch {
	case first && reason == "":
		checkpoint, err = c.firstCheckpoint(ctx, r, slot.Confirmed)
	case first:
		checkpoint, err = c.newSlot(ctx, r, slot, useless)
	case reason != "":
		checkpoint, err = c.bridgeGap(ctx, r, checkpoint, slot, slotErr == nil && !useless, reason)
	}
	if err != nil {
		return capture.Resume{}, err
	}
	resume := capture.Resume{Position: checkpoint.Position, SystemIdentifier: checkpoint.SystemIdentifier, Timeline: timeline, Held: slot.Active}
	if r.failures >= attempts {
		resume.Before = r.unsendable
	}
	return resume, nil
}

// sameSource refuses to go on from a checkpoint of another cluster, before
// anything is made there, and returns the timeline that the source is on.
func (c *Client) sameSource(ctx context.Context, checkpoint store.Checkpoint) (timeline int32, err error) {
	var system, walFile string
	var end capture.LSN
	err = c.history.Source.QueryRow(ctx, `
		SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()), pg_catalog.pg_current_wal_flush_lsn()::text,
			pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn())`).Scan(&system, &end, &walFile)
	if err != nil {
		return 0, fmt.Errorf("identify the source: %w", err)
	}
	if err := capture.CheckSource(system, end, capture.Resume{Position: checkpoint.Position, SystemIdentifier: checkpoint.SystemIdentifier}); err != nil {
		return 0, capture.Permanent(err)
	}
	// The name of a WAL file begins with its timeline; the control file would
	// name the one before until the first checkpoint after a promotion.
	number, err := strconv.ParseInt(walFile[:8], 16, 32)
	if err != nil {
		return 0, fmt.Errorf("identify the source: %w", err)
	}
	timeline = int32(number)
	if timeline == checkpoint.Timeline {
		return timeline, nil
	}
	connect, err := connConfig(ctx, c.cfg.source)
	if err != nil {
		return 0, fmt.Errorf("identify the source: %w", err)
	}
	if err := capture.CheckTimeline(ctx, &connect.Config, timeline, checkpoint.Timeline, checkpoint.Position); err != nil {
		return 0, err
	}
	c.cfg.Logger.Info("audit: the source is on a new timeline", "from", checkpoint.Timeline, "to", timeline)
	return timeline, c.history.Records.SetTimeline(ctx, checkpoint.Database, timeline)
}

func (c *Client) firstCheckpoint(ctx context.Context, r *run, at capture.LSN) (store.Checkpoint, error) {
	now, err := c.history.SourceTime(ctx)
	if err != nil {
		return store.Checkpoint{}, err
	}
	err = c.history.Records.CreateCheckpoint(ctx, store.Checkpoint{
		Database: r.facts.Database, Slot: c.cfg.Slot, SystemIdentifier: r.facts.SystemIdentifier, Timeline: r.facts.Timeline, Position: at,
	}, now)
	if err != nil {
		return store.Checkpoint{}, err
	}
	return c.history.Records.Checkpoint(ctx, r.facts.Database)
}

func (c *Client) newSlot(ctx context.Context, r *run, was capture.Slot, drop bool) (store.Checkpoint, error) {
	if drop {
		if err := c.setup.DropSlot(ctx, was); err != nil {
			return store.Checkpoint{}, err
		}
	}
	at, err := c.setup.CreateSlot(ctx)
	if err != nil {
		return store.Checkpoint{}, err
	}
	r.forgetLooks()
	return c.firstCheckpoint(ctx, r, at)
}

// bridgeGap records the hole that a lost slot leaves, and goes on behind it: from
// where the slot begins if it is usable, else with another one.
func (c *Client) bridgeGap(ctx context.Context, r *run, checkpoint store.Checkpoint, slot capture.Slot, usable bool, reason string) (store.Checkpoint, error) {
	gap := &GapError{Gap: Gap{From: checkpoint.Position, To: slot.Confirmed, FromTime: checkpoint.CommittedAt, Reason: reason}}
	if c.cfg.OnGap == StopAtGap {
		return checkpoint, capture.Permanent(gap)
	}
	to := slot.Confirmed
	if !usable {
		if err := c.setup.DropSlot(ctx, slot); err != nil {
			return checkpoint, err
		}
		if _, err := c.setup.EnsurePublication(ctx, r.facts.Version); err != nil {
			return checkpoint, err
		}
		if _, _, err := c.join(ctx, r); err != nil {
			return checkpoint, err
		}
		at, err := c.setup.CreateSlot(ctx)
		if err != nil {
			return checkpoint, err
		}
		to = at
	}
	checkpoint.Slot = c.cfg.Slot
	now, err := c.history.SourceTime(ctx)
	if err != nil {
		return checkpoint, err
	}
	if err := c.history.Records.RecordGap(ctx, r.facts.Database, checkpoint, to, now, reason); err != nil {
		return checkpoint, err
	}
	c.metrics.failed(gap)
	c.cfg.Logger.Error("audit: history has a gap", "from", checkpoint.Position, "to", to, "reason", reason)
	r.forgetLooks()
	c.requestRefresh()
	return c.history.Records.Checkpoint(ctx, r.facts.Database)
}

// SetupSQL returns the script that makes, beforehand, everything Start would
// make on the source and in the store, for a DBA to review and run where the
// program's role may not: rights for role, the publication, the replica
// identities, the slot, the store's schema. It looks at the source's catalog and
// changes nothing.
//
// With Config.StoreRoles it makes a store with least rights, and the roles that are not
// there. role is then the program's role in the source. Config.Retention becomes the
// least age of what may be dropped of the history.
func (c *Client) SetupSQL(ctx context.Context, role string) (string, error) {
	if role == "" {
		return "", &ConfigError{Field: "role", Problem: "is empty: name the role that the program connects as"}
	}
	c.starting.Lock() // which decides what the store's schema means
	defer c.starting.Unlock()
	if err := c.open(); err != nil {
		return "", err
	}
	if err := c.locateStore(ctx); err != nil {
		return "", fmt.Errorf("audit: setup script: %w", err)
	}
	source, identities, err := c.setup.Script(ctx, role)
	if err != nil {
		return "", fmt.Errorf("audit: setup script: %w", err)
	}
	var database string
	if err := c.history.Source.QueryRow(ctx, "SELECT current_database()").Scan(&database); err != nil {
		return "", fmt.Errorf("audit: setup script: %w", err)
	}
	roles := store.Roles{Owner: c.cfg.StoreRoles.Owner, Writer: c.cfg.StoreRoles.Writer, Reader: c.cfg.StoreRoles.Reader}
	if roles.Writer == "" {
		roles.Writer = role
	}
	if roles.Writer == roles.Owner {
		return "", &ConfigError{Field: "role", Problem: "owns the history by Config.StoreRoles: name the role that the program connects as"}
	}
	history, err := store.SetupSQL(store.Setup{Schema: c.cfg.Schema, Roles: roles, Retention: c.cfg.Retention, Database: database, Identities: identities})
	if err != nil {
		return "", fmt.Errorf("audit: setup script: %w", err)
	}
	where := "in the source database"
	if c.setup.StoreSchema == "" {
		where = "in the store's database"
	}
	trace := ""
	if !c.cfg.NoEventTrigger {
		trace = c.setup.TraceScript(c.cfg.Schema, c.cfg.ContextPrefix, role)
	}
	first := ""
	if roles.Owner == "" {
		first = " A DBA who is no superuser needs this first: GRANT " + inComment.Replace(pgx.Identifier{role}.Sanitize()) + " TO CURRENT_USER;"
	}
	return fmt.Sprintf("%s\n-- The store, %s.%s\n%s%s", source, where, first, history, trace), nil
}

// inComment keeps a name from ending the comment of SQL that it stands in.
var inComment = strings.NewReplacer("\n", `\n`, "\r", `\r`)
