package capture

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/wal"
)

// lookupTimeout bounds a look into the catalog in the midst of the stream.
const lookupTimeout = 10 * time.Second

// lookupError marks an error of the catalog connection, not of the stream.
type lookupError struct{ err error }

func (e *lookupError) Error() string { return e.err.Error() }
func (e *lookupError) Unwrap() error { return e.err }

// describe makes a relation of a Relation message and of what that does not say:
// the primary key (with REPLICA IDENTITY FULL the message flags every column), the
// numbers of the columns, the root of a partition, the kinds of types that are not
// built in. It is called at the first row that the message is for.
func (s *session) describe(ctx context.Context, m relationMessage) (*wal.Relation, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	rel := &wal.Relation{OID: m.OID, Schema: m.Schema, Table: m.Table, ReplicaIdentity: m.ReplicaIdentity, Columns: m.Columns}
	for i := range rel.Columns {
		var err error
		c := &rel.Columns[i]
		if c.Kind, err = s.kinds.Of(ctx, c.TypeOID); err != nil {
			return nil, &lookupError{fmt.Errorf("look up type %d of column %s.%s.%s: %w", c.TypeOID, m.Schema, m.Table, c.Name, err)}
		}
	}
	known, err := s.structureOf(ctx, m)
	if err != nil {
		return nil, &lookupError{fmt.Errorf("look up table %s.%s: %w", m.Schema, m.Table, err)}
	}
	if known.Root != 0 {
		rel.Partition = pgx.Identifier{m.Schema, m.Table}.Sanitize()
		rel.Schema, rel.Table = known.RootSchema, known.RootTable
		rel.Root = known.Root
	}
	if s.cfg.Policy != nil { // also of columns of which nobody can tell which they are
		for i := range rel.Columns {
			c := &rel.Columns[i]
			if c.Policy, _ = s.cfg.Policy(rel.Schema, rel.Table, c.Name); c.Policy == "" {
				c.Policy = known.PolicyOf(c.Name)
			}
		}
	}
	var described bool
	if rel.Key, described = known.Describe(rel.Columns); !described && m.ReplicaIdentity == 'd' {
		// With the default identity the flags are the primary key.
		for i, c := range rel.Columns {
			if c.Identity {
				rel.Key = append(rel.Key, i)
			}
		}
	}
	return rel, nil
}

// structureOf returns the structure of a table at this place of the stream. If it
// is another than the one that was known before, it is told to the sink.
//
// The stream is the witness: what it said of the table last, in messages about
// structures, holds as long as the Relation message has the same columns under the
// same names. Else the table was altered and nobody told: the message has the
// columns of then, and which is which is found out by the catalog of now, where
// that leaves only one way.
func (s *session) structureOf(ctx context.Context, m relationMessage) (*wal.Structure, error) {
	known := s.structures[m.OID]
	if known != nil && !known.Dropped && known.Sends(m.Columns) && (known.Root != 0 || known.Schema == m.Schema && known.Table == m.Table) {
		if s.cfg.Policy != nil {
			if with := known.WithPolicies(s.cfg.Policy, known, s.structures[known.Root]); !slices.Equal(with.Columns, known.Columns) {
				with.After = 0 // they hold from this very place on
				s.tell(with)
				return with, nil
			}
		}
		if s.lent(known) {
			back := *known
			back.After = 0
			s.tell(&back)
			return &back, nil
		}
		return known, nil
	}
	found, err := LookUpStructure(ctx, s.cfg.Catalog, m.OID)
	if err != nil {
		return nil, err
	}
	switch {
	case found == nil && known == nil:
		found = s.namesake(m)
	case found == nil:
		found = known.As(m.Schema, m.Table, m.Columns)
	case known == nil:
		root := s.rootOf(m.OID)
		if root != nil { // it may have been detached since
			found.Root, found.RootSchema, found.RootTable = root.OID, root.Schema, root.Table
		}
		if !found.Sends(m.Columns) {
			err = s.align(ctx, found, known, m)
		}
		if root != nil {
			found.KeyOf(root) // which the stream told, and may be another by now
		}
	case !found.Sends(m.Columns):
		err = s.align(ctx, found, known, m)
	}
	if err != nil {
		return nil, err
	}
	if found.Root == 0 {
		found.Schema, found.Table = m.Schema, m.Table // those of then
	}
	if known != nil {
		// It was altered at some time since it was seen last.
		found.After = s.seen(known)
	}
	s.tell(found)
	if found.Root != 0 && known != nil {
		return found, s.lookAtRoot(ctx, found)
	}
	return found, nil
}
