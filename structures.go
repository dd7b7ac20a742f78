package audit

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/internal/wal"
)

// looks are the positions at which all tracked tables were looked at.
type looks struct {
	mu        sync.Mutex
	positions []LSN // guarded by mu; ascending
}

// looksKept bounds what is remembered: more than two hours of looks.
const looksKept = 4096

// add adds a look that is behind all others; of another it knows already, or need not.
func (l *looks) add(at LSN) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at == 0 || len(l.positions) > 0 && at <= l.positions[len(l.positions)-1] {
		return
	}
	if len(l.positions) == looksKept {
		l.positions = slices.Delete(l.positions, 0, looksKept/4)
	}
	l.positions = append(l.positions, at)
}

// until returns the last look at or before a position, 0 if there was none.
func (l *looks) until(position LSN) LSN {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, found := slices.BinarySearch(l.positions, position)
	switch {
	case found:
		return position
	case at == 0:
		return 0
	}
	return l.positions[at-1]
}

// lookAtStructures tells the stream of tables that are not as they were at the
// last look: the event triggers tell it at the very place, but not every role may
// make them, and nobody is told by the stream before the next change of a row.
// here is a position before the look. Unless it is a look at the whole, those that were
// looked at before are taken for what they were. It reports whether the stream was told of all.
func (c *Client) lookAtStructures(ctx context.Context, r *run, tracked []capture.Tracked, here LSN, whole bool) (all bool, err error) {
	shapes := make(map[uint32]string, len(tracked))
	oids := make([]uint32, 0, len(tracked))
	for _, t := range tracked {
		if digest, ok := r.shapes[t.OID]; ok && !whole {
			shapes[t.OID] = digest
		} else {
			oids = append(oids, t.OID)
		}
	}
	rows, err := c.history.Source.Query(ctx, capture.DigestsSQL, oids)
	if err != nil {
		return false, fmt.Errorf("look at structures: %w", err)
	}
	var oid uint32
	var digest string
	if _, err := pgx.ForEachRow(rows, []any{&oid, &digest}, func() error {
		shapes[oid] = digest
		return nil
	}); err != nil {
		return false, fmt.Errorf("look at structures: %w", err)
	}
	all = true
	var changed []*wal.Structure
	for _, oid := range oids {
		if digest, there := shapes[oid]; !there || r.shapes[oid] == digest {
			continue
		}
		s, err := capture.LookUpStructure(ctx, c.history.Source, oid)
		if err != nil {
			return false, err
		}
		if s == nil {
			delete(shapes, oid)
			continue
		}
		changed = append(changed, s)
	}
	if len(changed) > 0 {
		known, err := c.history.Records.Structures(ctx, r.facts.Database)
		if err != nil {
			return false, err
		}
		for _, s := range changed {
			if k := known[s.OID]; k != nil && k.Matches(s) {
				continue
			}
			if s.Attached, err = c.attached(ctx, known[s.OID], s); err != nil {
				return false, err
			}
			var after LSN
			if k := known[s.OID]; k != nil {
				after = max(k.At, r.looks.until(here), 1)
			}
			told, err := c.tellStructure(ctx, r, s, after)
			if err != nil {
				return false, err
			}
			if !told {
				delete(shapes, s.OID) // the next look will see it
				all = false
			}
		}
	}
	if err := c.lookForDropped(ctx, r, shapes, here); err != nil {
		return false, err
	}
	r.shapes = shapes
	return all, nil
}

// lookForDropped tells the stream of tables that are gone since the last look: somewhere
// behind it they may have been altered, too, and their types.
func (c *Client) lookForDropped(ctx context.Context, r *run, shapes map[uint32]string, here LSN) error {
	if r.shapes != nil && !slices.ContainsFunc(slices.Collect(maps.Keys(r.shapes)), func(oid uint32) bool { return shapes[oid] == "" }) {
		return nil
	}
	known, err := c.history.Records.Structures(ctx, r.facts.Database)
	if err != nil {
		return err
	}
	token, err := c.history.Records.Token(ctx, r.facts.Database)
	if err != nil {
		return err
	}
	for oid, k := range known {
		if k.Dropped || k.Root != 0 || shapes[oid] != "" {
			continue
		}
		s, err := capture.LookUpStructure(ctx, c.history.Source, oid)
		if err != nil {
			return err
		}
		if s != nil {
			continue // it has another name, or is a part of another table
		}
		gone := wal.Structure{OID: oid, Schema: k.Schema, Table: k.Table, Dropped: true}
		if err := c.emitStructure(ctx, c.history.Source, token, &gone, max(k.At, r.looks.until(here), 1)); err != nil {
			return fmt.Errorf("tell that %s is gone: %w", pgcatalog.Qualified(k.Schema, k.Table), err)
		}
	}
	return nil
}

// emitStructure writes a message about a structure into the source's WAL.
func (c *Client) emitStructure(ctx context.Context, on Execer, token string, s *wal.Structure, after LSN) error {
	content, err := capture.StructureMessage(token, after, *s)
	if err != nil {
		return err
	}
	_, err = on.Exec(ctx, "SELECT pg_catalog.pg_logical_emit_message(true, $1, $2)", c.cfg.ContextPrefix+capture.StructureSuffix, string(content))
	return err
}

// attached reports whether a table has a new partition with rows in it, which may
// have come with it.
func (c *Client) attached(ctx context.Context, known, found *wal.Structure) (bool, error) {
	if known == nil || found.Kind != "p" {
		return false, nil
	}
	for _, oid := range found.Parts {
		if slices.Contains(known.Parts, oid) {
			continue
		}
		part, err := capture.LookUpStructure(ctx, c.history.Source, oid)
		if err != nil {
			return false, err
		}
		if part == nil {
			continue
		}
		var rows bool
		err = pgx.BeginTxFunc(ctx, c.history.Source, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "SET LOCAL row_security = off"); err != nil { // a policy is code of the table's owner
				return err
			}
			return tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM ONLY "+pgx.Identifier{part.Schema, part.Table}.Sanitize()+")").Scan(&rows)
		})
		if rows || history.IsCode(err, "42501", "42P01") { // who may not look cannot tell
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("look into partition %s: %w", pgcatalog.Qualified(part.Schema, part.Table), err)
		}
	}
	return false, nil
}

// tellStructure writes a table's structure into the source's WAL. While it does,
// nobody can alter the table, if the role may lock it.
func (c *Client) tellStructure(ctx context.Context, r *run, s *wal.Structure, after LSN) (told bool, err error) {
	token, err := c.history.Records.Token(ctx, r.facts.Database)
	if err != nil {
		return false, err
	}
	err = pgx.BeginFunc(ctx, c.history.Source, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '100ms'; SET LOCAL idle_in_transaction_session_timeout = '3s'"); err != nil {
			return err
		}
		var may bool
		if err := tx.QueryRow(ctx, "SELECT coalesce(pg_catalog.has_table_privilege($1::oid, 'SELECT'), false)", s.OID).Scan(&may); err != nil {
			return err
		}
		if may {
			if _, err := tx.Exec(ctx, "LOCK TABLE ONLY "+pgx.Identifier{s.Schema, s.Table}.Sanitize()+" IN ACCESS SHARE MODE"); err != nil {
				return err
			}
		}
		now, err := capture.LookUpStructure(ctx, tx, s.OID)
		if err != nil || now == nil || !now.Same(s) {
			return err
		}
		told = true
		return c.emitStructure(ctx, tx, token, s, after)
	})
	if history.IsCode(err, "55P03", "42P01") { // it is being altered, or is gone
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("tell structure of %s: %w", pgcatalog.Qualified(s.Schema, s.Table), err)
	}
	return told, nil
}

// structures returns what capture goes on from: the tables as they are known, and
// the tokens of messages about them.
func (c *Client) structures(ctx context.Context, r *run) (map[uint32]*wal.Structure, []string, error) {
	known, err := c.history.Records.Structures(ctx, r.facts.Database)
	if err != nil {
		return nil, nil, err
	}
	own, err := c.history.Records.Token(ctx, r.facts.Database)
	if err != nil {
		return nil, nil, err
	}
	trace, err := c.setup.TraceToken(ctx, c.cfg.Schema)
	if err != nil {
		return nil, nil, err
	}
	return known, []string{own, trace}, nil
}
