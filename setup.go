package audit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/store"
)

// startPatience is how long Start tries to get the locks for the tables before
// it leaves the rest to the background.
const startPatience = 10 * time.Second

// setupLock is the advisory lock on the source under which instances that start
// at the same time take turns. The number is the bytes of "audits".
const setupLock = 0x617564697473

// prepareSource checks the source and makes, in this order, the store, the
// publication with its tables, and the slot.
func (c *Client) prepareSource(ctx context.Context) (capture.Facts, error) {
	facts, err := c.setup.Check(ctx)
	if err != nil {
		return facts, fmt.Errorf("audit: start: %w", err)
	}
	release, err := c.lockSetup(ctx)
	if err != nil {
		return facts, err
	}
	defer release()
	if err := c.history.Migrate(ctx); err != nil {
		return facts, fmt.Errorf("audit: start: %w", err)
	}
	if err := c.keepPartitions(ctx); err != nil {
		return facts, fmt.Errorf("audit: start: %w", err)
	}
	if err := c.setup.EnsurePublication(ctx, facts.Version); err != nil {
		return facts, fmt.Errorf("audit: start: %w", err)
	}
	r := &run{facts: facts}
	if err := c.joinAtStart(ctx, r); err != nil {
		return facts, fmt.Errorf("audit: start: %w", err)
	}
	if _, err := c.prepareSlot(ctx, r); err != nil {
		return facts, fmt.Errorf("audit: start: %w", err)
	}
	// Again, now that there is a slot: coverage begins where the slot does.
	if err := c.joinTables(ctx, r); err != nil {
		return facts, fmt.Errorf("audit: start: %w", err)
	}
	if err := c.leaveTables(ctx, r); err != nil {
		return facts, fmt.Errorf("audit: start: %w", err)
	}
	return facts, nil
}

// lockSetup keeps other instances from setting up at the same time.
func (c *Client) lockSetup(ctx context.Context) (release func(), err error) {
	conn, err := c.source.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("audit: connect to the source: %w", err)
	}
	if _, err := conn.Exec(ctx, "SELECT pg_catalog.pg_advisory_lock($1)", int64(setupLock)); err != nil {
		conn.Release()
		return nil, fmt.Errorf("audit: wait for another instance to set up: %w", err)
	}
	return func() {
		_, err := conn.Exec(context.WithoutCancel(ctx), "SELECT pg_catalog.pg_advisory_unlock($1)", int64(setupLock))
		if err != nil {
			_ = conn.Conn().Close(context.WithoutCancel(ctx)) // which unlocks as well
		}
		conn.Release()
	}, nil
}

// joinAtStart gives the tables some time to get their locks before the slot is
// made. Those that do not will join later; coverage says from when.
func (c *Client) joinAtStart(ctx context.Context, r *run) error {
	patience, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for wait := 50 * time.Millisecond; ; wait = min(wait*2, time.Second) {
		_, pending, err := c.setup.Join(patience)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && patience.Err() == nil {
			return err
		}
		if len(pending) == 0 || patience.Err() != nil {
			return nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-patience.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// joinTables makes new tables tracked and keeps coverage true.
func (c *Client) joinTables(ctx context.Context, r *run) error {
	tracked, pending, err := c.setup.Join(ctx)
	if err != nil {
		return err
	}
	c.setPending(pending)
	checkpoint, err := c.history.Checkpoint(ctx, r.facts.Database)
	if err != nil {
		return err
	}
	covered, err := c.history.Coverage(ctx, r.facts.Database)
	if err != nil {
		return err
	}
	open := make(map[uint32]store.Coverage)
	for _, cov := range covered {
		if cov.Until == 0 {
			open[cov.RelationID] = cov
		}
	}
	var here capture.LSN
	position := func() (capture.LSN, error) {
		if here == 0 {
			err := c.source.QueryRow(ctx, "SELECT pg_catalog.pg_current_wal_insert_lsn()::text").Scan(&here)
			return here, err
		}
		return here, nil
	}
	seen := make(map[uint32]bool)
	for _, t := range tracked {
		seen[t.OID] = true
		cov, ok := open[t.OID]
		if ok && cov.Schema == t.Schema && cov.Table == t.Name && !t.PartOnly {
			continue
		}
		if !t.Joined {
			// Tracked by somebody else, or by us just before a crash, or in
			// prepareSource before there was a slot: from here on it is certain.
			if t.From, err = position(); err != nil {
				return fmt.Errorf("read position: %w", err)
			}
		}
		if ok {
			if err := c.history.CloseCoverage(ctx, r.facts.Database, cov.Schema, cov.Table, t.From); err != nil {
				return err
			}
			for name, identity := range cov.Identities {
				if t.Identities == nil {
					t.Identities = make(map[string]string)
				}
				if _, newer := t.Identities[name]; !newer {
					t.Identities[name] = identity
				}
			}
		}
		from := max(t.From, checkpoint.Position)
		if !t.Joined && !ok && checkpoint.Changes == 0 {
			from = checkpoint.Position
		}
		if err := c.history.OpenCoverage(ctx, r.facts.Database, store.Coverage{Schema: t.Schema, Table: t.Name, From: from, RelationID: t.OID, Identities: t.Identities}); err != nil {
			return err
		}
		c.cfg.Logger.Info("audit: tracking", "schema", t.Schema, "table", t.Name, "from", from)
	}
	return c.closeDropped(ctx, r, open, seen, position)
}

// closeDropped ends the coverage of tables that are gone.
func (c *Client) closeDropped(ctx context.Context, r *run, open map[uint32]store.Coverage, seen map[uint32]bool, position func() (capture.LSN, error)) error {
	for oid, cov := range open {
		if seen[oid] {
			continue
		}
		var exists bool
		if err := c.source.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = $1)", oid).Scan(&exists); err != nil {
			return fmt.Errorf("look for table %s.%s: %w", cov.Schema, cov.Table, err)
		}
		if exists {
			continue
		}
		here, err := position()
		if err != nil {
			return fmt.Errorf("read position: %w", err)
		}
		if err := c.history.CloseCoverage(ctx, r.facts.Database, cov.Schema, cov.Table, here); err != nil {
			return err
		}
		c.cfg.Logger.Info("audit: table is gone; its history stays", "schema", cov.Schema, "table", cov.Table)
	}
	return nil
}

// leaveTables stops tracking what Config.Tables no longer names. Only Start does
// so: during a deployment two configurations would undo each other's work.
func (c *Client) leaveTables(ctx context.Context, r *run) error {
	covered, err := c.history.Coverage(ctx, r.facts.Database)
	if err != nil {
		return err
	}
	for _, cov := range covered {
		if track, _ := c.cfg.patterns.Match(cov.Schema, cov.Table); track || cov.Until != 0 {
			continue
		}
		if err := c.setup.Leave(ctx, cov.RelationID, cov.Identities); err != nil {
			c.cfg.Logger.Warn("audit: table is not in Config.Tables any more, but could not be left yet", "schema", cov.Schema, "table", cov.Table, "error", err)
			continue
		}
		var here capture.LSN
		if err := c.source.QueryRow(ctx, "SELECT pg_catalog.pg_current_wal_insert_lsn()::text").Scan(&here); err != nil {
			return fmt.Errorf("read position: %w", err)
		}
		if err := c.history.CloseCoverage(ctx, r.facts.Database, cov.Schema, cov.Table, here); err != nil {
			return err
		}
	}
	return nil
}

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
	r := c.running()
	if r == nil {
		return errStopped
	}
	if err := c.joinTables(ctx, r); err != nil {
		return fmt.Errorf("audit: refresh: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var problems []error
	for _, p := range c.last.pending {
		problems = append(problems, p.Reason)
	}
	return errors.Join(problems...)
}

// prepareSlot makes sure that there is a slot and a checkpoint to stream from.
func (c *Client) prepareSlot(ctx context.Context, r *run) (capture.Resume, error) {
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
	checkpoint, err := c.history.Checkpoint(ctx, r.facts.Database)
	first := errors.Is(err, store.ErrNoCheckpoint)
	if err != nil && !first {
		return capture.Resume{}, err
	}
	if !first {
		if err := c.sameSource(ctx, checkpoint); err != nil {
			return capture.Resume{}, err
		}
	}
	reason := ""
	switch {
	case slotErr != nil:
		reason = "the replication slot was gone"
	case slot.Lost():
		reason = "the replication slot was invalidated"
		if slot.Reason != "" {
			reason += ": " + slot.Reason
		}
	case !first && slot.Confirmed > checkpoint.Position:
		reason = "the replication slot was recreated or moved by somebody else"
	}
	switch {
	case first && reason == "":
		checkpoint, err = c.firstCheckpoint(ctx, r, slot.Confirmed)
	case first:
		checkpoint, err = c.newSlot(ctx, r, slotErr == nil)
	case reason != "":
		checkpoint, err = c.bridgeGap(ctx, r, checkpoint, slot, slotErr == nil, reason)
	}
	if err != nil {
		return capture.Resume{}, err
	}
	return capture.Resume{Position: checkpoint.Position, SystemIdentifier: checkpoint.SystemIdentifier}, nil
}

// sameSource refuses to go on from a checkpoint of another cluster, before
// anything is made there.
func (c *Client) sameSource(ctx context.Context, checkpoint store.Checkpoint) error {
	var system string
	var end capture.LSN
	err := c.source.QueryRow(ctx, `
		SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()), pg_catalog.pg_current_wal_flush_lsn()::text`).Scan(&system, &end)
	if err != nil {
		return fmt.Errorf("identify the source: %w", err)
	}
	return capture.Permanent(capture.CheckSource(system, end, capture.Resume{Position: checkpoint.Position, SystemIdentifier: checkpoint.SystemIdentifier}))
}

func (c *Client) firstCheckpoint(ctx context.Context, r *run, at capture.LSN) (store.Checkpoint, error) {
	err := c.history.CreateCheckpoint(ctx, store.Checkpoint{
		Database: r.facts.Database, Slot: c.cfg.Slot, SystemIdentifier: r.facts.SystemIdentifier, Timeline: r.facts.Timeline, Position: at,
	})
	if err != nil {
		return store.Checkpoint{}, err
	}
	return c.history.Checkpoint(ctx, r.facts.Database)
}

func (c *Client) newSlot(ctx context.Context, r *run, drop bool) (store.Checkpoint, error) {
	if drop {
		if err := c.setup.DropSlot(ctx); err != nil {
			return store.Checkpoint{}, err
		}
	}
	at, err := c.setup.CreateSlot(ctx)
	if err != nil {
		return store.Checkpoint{}, err
	}
	return c.firstCheckpoint(ctx, r, at)
}

// bridgeGap records the hole that a lost slot leaves, and goes on behind it.
func (c *Client) bridgeGap(ctx context.Context, r *run, checkpoint store.Checkpoint, slot capture.Slot, exists bool, reason string) (store.Checkpoint, error) {
	gap := &GapError{Gap: Gap{From: checkpoint.Position, To: slot.Confirmed, FromTime: checkpoint.UpdatedAt, Reason: reason}}
	if c.cfg.OnGap == StopAtGap {
		return checkpoint, capture.Permanent(gap)
	}
	to := slot.Confirmed
	if !exists || slot.Lost() {
		if exists {
			if err := c.setup.DropSlot(ctx); err != nil {
				return checkpoint, err
			}
		}
		if err := c.setup.EnsurePublication(ctx, r.facts.Version); err != nil {
			return checkpoint, err
		}
		if _, _, err := c.setup.Join(ctx); err != nil {
			return checkpoint, err
		}
		at, err := c.setup.CreateSlot(ctx)
		if err != nil {
			return checkpoint, err
		}
		to = at
	}
	checkpoint.Slot = c.cfg.Slot
	if err := c.history.RecordGap(ctx, r.facts.Database, checkpoint, to, reason); err != nil {
		return checkpoint, err
	}
	c.metrics.failed(gap)
	c.cfg.Logger.Error("audit: history has a gap", "from", checkpoint.Position, "to", to, "reason", reason)
	return c.history.Checkpoint(ctx, r.facts.Database)
}

// SetupSQL returns the script that makes, beforehand, everything Start would
// make on the source and in the store, for a DBA to review and run where the
// program's role may not: rights for role, the publication, the replica
// identities, the slot, the store's schema. It looks at the source's catalog and
// changes nothing.
func (c *Client) SetupSQL(ctx context.Context, role string) (string, error) {
	if role == "" {
		return "", &ConfigError{Field: "role", Problem: "is empty: name the role that the program connects as"}
	}
	source, err := c.setup.Script(ctx, role)
	if err != nil {
		return "", fmt.Errorf("audit: setup script: %w", err)
	}
	migrations, err := store.MigrationSQL(c.cfg.Schema)
	if err != nil {
		return "", fmt.Errorf("audit: setup script: %w", err)
	}
	where := "in the source database"
	if c.cfg.StoreURL != c.cfg.SourceURL {
		where = "in the store's database"
	}
	quoted := pgx.Identifier{role}.Sanitize()
	return fmt.Sprintf("%s\n-- The store, %s. Run as %s, which has to own it.\n%s", source, where, quoted, migrations), nil
}

// UninstallSQL returns the scripts that Uninstall runs, on the source and on the
// store, for reading or for running by hand. In between, capture has to be
// stopped.
func (c *Client) UninstallSQL(ctx context.Context) (source, history []string, err error) {
	var database string
	if err := c.source.QueryRow(ctx, "SELECT current_database()").Scan(&database); err != nil {
		return nil, nil, fmt.Errorf("audit: uninstall: %w", err)
	}
	identities := make(map[string]string)
	covered, err := c.history.Coverage(ctx, database)
	if err != nil && !isUndefined(err) {
		return nil, nil, fmt.Errorf("audit: uninstall: %w", err)
	}
	for _, cov := range covered {
		for name, identity := range cov.Identities {
			if _, older := identities[name]; !older {
				identities[name] = identity
			}
		}
	}
	source = append(source,
		"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '"+strings.ReplaceAll(c.cfg.Slot, "'", "''")+"'",
		"DROP PUBLICATION IF EXISTS "+pgx.Identifier{c.cfg.Publication}.Sanitize())
	source = append(source, capture.RestoreIdentities(identities)...)
	return source, []string{"DROP SCHEMA IF EXISTS " + pgx.Identifier{c.cfg.Schema}.Sanitize() + " CASCADE"}, nil
}

// Uninstall removes everything that Start made, history included: the slot, the
// publication, the store's schema; and it puts the replica identities back to
// what they were. Capture has to be stopped, in every instance of the program.
func (c *Client) Uninstall(ctx context.Context) error {
	if c.running() != nil {
		return errors.New("audit: uninstall: capture is running: call Stop first")
	}
	source, history, err := c.UninstallSQL(ctx)
	if err != nil {
		return err
	}
	for _, sql := range source {
		if err := c.runWithRetry(ctx, sql); err != nil {
			return fmt.Errorf("audit: uninstall: %s: %w", sql, err)
		}
	}
	for _, sql := range history {
		if _, err := c.store.Exec(ctx, sql); err != nil {
			return fmt.Errorf("audit: uninstall: %s: %w", sql, err)
		}
	}
	return nil
}

// runWithRetry runs a statement that needs a lock without standing in the
// application's way, again and again until ctx ends.
func (c *Client) runWithRetry(ctx context.Context, sql string) error {
	for wait := 50 * time.Millisecond; ; wait = min(wait*2, time.Second) {
		err := pgx.BeginFunc(ctx, c.source, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '100ms'"); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, sql)
			return err
		})
		// 55P03: the lock was not to be had. 55006: the server still holds the
		// slot for a session that has just ended.
		if err == nil || !isCode(err, "55P03", "55006") {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}
