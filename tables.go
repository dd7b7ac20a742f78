package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/capture"
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
	if err := c.refreshTables(ctx, r); err != nil {
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
func (c *Client) refreshTables(ctx context.Context, r *run) error {
	locked, release, err := c.lockSetup(ctx, refreshPatience)
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
	return c.joinTables(ctx, r, nil, repaired)
}

// join makes new tables tracked, whatever coverage says.
func (c *Client) join(ctx context.Context, r *run) ([]capture.Tracked, []capture.Pending, error) {
	return c.setup.Join(ctx, func(ctx context.Context, identities map[uint32]string) error {
		return c.history.RememberIdentities(ctx, r.facts.Database, identities)
	})
}

// joinAtStart gives the tables some time to get their locks before the slot is
// made, and returns from which positions those that it published are. The others
// will join later.
func (c *Client) joinAtStart(ctx context.Context, r *run) (map[uint32]LSN, error) {
	patience, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	joined := make(map[uint32]LSN)
	for wait := 50 * time.Millisecond; ; wait = min(wait*2, time.Second) {
		tracked, pending, err := c.join(patience, r)
		for _, t := range tracked {
			if t.From != 0 {
				joined[t.OID] = t.From
			}
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil && patience.Err() == nil {
			return nil, err
		}
		if len(pending) == 0 || patience.Err() != nil {
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
// left something out of every table.
func (c *Client) joinTables(ctx context.Context, r *run, joined map[uint32]LSN, repaired bool) error {
	checkpoint, err := c.history.Checkpoint(ctx, r.facts.Database)
	if err != nil {
		return err
	}
	before, err := c.position(ctx)
	if err != nil {
		return err
	}
	tracked, pending, err := c.join(ctx, r)
	if err != nil {
		return err
	}
	c.setPending(pending)
	after, err := c.position(ctx)
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
	if err := c.closeGone(ctx, r, open, tracked, pending, before); err != nil {
		return err
	}
	for _, t := range tracked {
		if from, ok := joined[t.OID]; ok && t.From == 0 {
			t.From = from
		}
		if repaired {
			t.From = max(t.From, before)
		}
		if err := c.cover(ctx, r, t, open, checkpoint, after); err != nil {
			return err
		}
	}
	c.mu.Lock()
	c.last.verified = before
	c.mu.Unlock()
	return c.noteVersions(ctx, r, tracked)
}

// noteVersions records tables whose columns, key or name are not those that
// history knows. The stream tells of that only with the next change of a row, and
// until then nobody could say from when on the columns were others.
func (c *Client) noteVersions(ctx context.Context, r *run, tracked []capture.Tracked) error {
	oids := make([]uint32, len(tracked))
	for i, t := range tracked {
		oids[i] = t.OID
	}
	rows, err := c.source.Query(ctx, `
		SELECT c.oid, pg_catalog.md5(pg_catalog.concat_ws('.', c.relnamespace, c.relname,
			(SELECT pg_catalog.string_agg(pg_catalog.concat_ws('.', a.attnum, a.attname, a.atttypid, a.atttypmod), ',' ORDER BY a.attnum)
				FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
			(SELECT i.indkey FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)))
		FROM pg_catalog.pg_class c
		WHERE c.oid = ANY ($1)`, oids)
	if err != nil {
		return err
	}
	shapes := make(map[uint32]string)
	var oid uint32
	var shape string
	if _, err := pgx.ForEachRow(rows, []any{&oid, &shape}, func() error {
		shapes[oid] = shape
		return nil
	}); err != nil {
		return err
	}
	var changed []uint32
	for _, oid := range oids {
		if r.shapes[oid] != shapes[oid] {
			changed = append(changed, oid)
		}
	}
	if len(changed) == 0 {
		return nil
	}
	facts, err := c.freshFacts(ctx, r.facts.Database)
	if err != nil {
		return err
	}
	tables := make(map[uint32]*sourceTable)
	for _, oid := range changed {
		table, err := c.describeTable(ctx, c.source, oid)
		if errors.Is(err, errNoTable) {
			continue
		}
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(facts.Versions, func(v store.Version) bool { return v.RelationID == oid }) {
			// The first of all versions holds for whatever was before it, too.
			here, err := c.position(ctx)
			if err != nil {
				return err
			}
			if err := c.noteVersion(ctx, r.facts.Database, table, here, facts); err != nil {
				return err
			}
			continue
		}
		tables[oid] = table
	}
	if len(tables) > 0 && c.state() != capture.Streaming {
		return nil // later
	}
	if len(tables) == 0 {
		r.shapes = shapes
		return nil
	}
	// Only behind everything that the stream has to say of them until here.
	database, here, err := c.barrier(ctx)
	if err != nil {
		return err
	}
	// Not for long: the stream itself may need the lock that is held here.
	short, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := c.waitFor(short, database, here, c.capturedElsewhere); err != nil {
		return err
	}
	if facts, err = c.freshFacts(ctx, database); err != nil {
		return err
	}
	for _, table := range tables {
		if err := c.noteVersion(ctx, database, table, here, facts); err != nil {
			return err
		}
	}
	r.shapes = shapes
	return nil
}

// noteVersion records the version of a table that there was around a position, if
// it is news, and if it is still the same: else it is not known when it was.
func (c *Client) noteVersion(ctx context.Context, database string, table *sourceTable, here LSN, facts *store.Facts) error {
	if len(table.key) == 0 && table.kind == "p" {
		return nil // its partitions stand for it, each with a version of its own
	}
	again, err := c.describeTable(ctx, c.source, table.oid)
	if errors.Is(err, errNoTable) {
		return nil
	}
	if err != nil {
		return err
	}
	if again.schema != table.schema || again.name != table.name || !slices.Equal(again.key, table.key) || !again.columns.same(table.columns) {
		return nil // the next look will see it
	}
	v := store.Version{Schema: table.schema, Table: table.name, Position: here, RelationID: table.oid, Key: table.key}
	for _, col := range table.columns.list {
		if col.derived {
			continue // the stream does not tell of them either
		}
		v.Columns = append(v.Columns, store.Column{Name: col.name, Type: col.typeName, TypeOID: col.typeOID, TypeMod: col.typeMod, Attnum: col.attnum, Identity: col.identity})
	}
	for _, known := range slices.Backward(facts.Versions) {
		if known.RelationID == table.oid {
			if known.Same(v) {
				return nil
			}
			break
		}
	}
	return c.history.NoteVersion(ctx, database, "f", v)
}

// cover makes the coverage of one table true.
func (c *Client) cover(ctx context.Context, r *run, t capture.Tracked, open map[uint32]store.Coverage, checkpoint store.Checkpoint, here LSN) error {
	cov, ok := open[t.OID]
	renamed := ok && (cov.Schema != t.Schema || cov.Table != t.Name)
	left := ok && (t.From != 0 || cov.Membership != t.Membership)
	if ok && !left && !renamed {
		return nil
	}
	from := t.From
	if from == 0 {
		// Published by somebody else, or by us just before a crash: it is certain
		// only from a position behind the one at which it was seen.
		from = here
	}
	if ok {
		until := from
		if left {
			// It was out of the publication, or a part of it was. Until when it
			// was not is known only from the last look.
			c.mu.Lock()
			until = max(c.last.verified, cov.From)
			c.mu.Unlock()
			c.cfg.Logger.Warn("audit: table was not tracked for a while", "schema", t.Schema, "table", t.Name, "from", until, "until", from)
		}
		if err := c.history.CloseCoverage(ctx, r.facts.Database, t.OID, until); err != nil {
			return err
		}
	}
	err := c.history.OpenCoverage(ctx, r.facts.Database, store.Coverage{Schema: t.Schema, Table: t.Name, From: max(from, checkpoint.Position), RelationID: t.OID, Membership: t.Membership})
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

// closeGone ends the coverage of tables that are gone, have left what
// Config.Tables names by a new name or schema, or are not published.
func (c *Client) closeGone(ctx context.Context, r *run, open map[uint32]store.Coverage, tracked []capture.Tracked, pending []capture.Pending, here LSN) error {
	c.mu.Lock()
	verified := c.last.verified
	c.mu.Unlock()
	seen, unpublished := make(map[uint32]bool), make(map[uint32]bool)
	for _, t := range tracked {
		seen[t.OID] = true
	}
	for _, p := range pending {
		seen[p.OID] = p.Published
		unpublished[p.OID] = !p.Published && !p.Never
	}
	for oid, cov := range open {
		if seen[oid] {
			continue
		}
		until := here
		if unpublished[oid] {
			// Somebody took it out, and it could not be put back yet: what it
			// misses has begun behind the last look.
			until = max(verified, cov.From)
		}
		if err := c.history.CloseCoverage(ctx, r.facts.Database, oid, until); err != nil {
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
	identities, err := c.history.Identities(ctx, r.facts.Database)
	if err != nil {
		return err
	}
	for _, t := range unmatched {
		// Before: what is written after it may not be in the stream any more.
		here, err := c.position(ctx)
		if err != nil {
			return err
		}
		restored, err := c.setup.Leave(ctx, t.OID, identities)
		if err != nil {
			c.cfg.Logger.Warn("audit: table is not in Config.Tables, but could not be left yet", "schema", t.Schema, "table", t.Name, "error", err)
			continue
		}
		if err := c.history.CloseCoverage(ctx, r.facts.Database, t.OID, here); err != nil {
			return err
		}
		if err := c.history.ForgetIdentities(ctx, r.facts.Database, restored); err != nil {
			return err
		}
	}
	return nil
}

// position returns where the source is.
func (c *Client) position(ctx context.Context) (LSN, error) {
	var here LSN
	if err := c.source.QueryRow(ctx, "SELECT pg_catalog.pg_current_wal_insert_lsn()::text").Scan(&here); err != nil {
		return 0, fmt.Errorf("read position: %w", err)
	}
	return here, nil
}
