package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/wal"
)

// Coverage says from which position, and until which, a table is tracked.
type Coverage struct {
	Schema, Table string
	From          wal.LSN
	FromTime      time.Time
	// Until is zero while the table is tracked.
	Until      wal.LSN
	UntilTime  time.Time
	RelationID uint32
	// Membership tells one stay in the publication from another.
	Membership string
}

// Gap is a hole in the history that cannot be filled.
type Gap struct {
	From, To         wal.LSN
	FromTime, ToTime time.Time
	Reason           string
}

type gapJSON struct {
	From     string    `json:"from"`
	To       string    `json:"to"`
	FromTime time.Time `json:"fromTime,omitzero"`
	ToTime   time.Time `json:"toTime,omitzero"`
	Reason   string    `json:"reason"`
}

// MarshalJSON writes from and to, LSNs as texts, fromTime, toTime and reason.
func (g Gap) MarshalJSON() ([]byte, error) {
	return json.Marshal(gapJSON{g.From.String(), g.To.String(), g.FromTime, g.ToTime, g.Reason})
}

// UnmarshalJSON reads what [Gap.MarshalJSON] writes.
func (g *Gap) UnmarshalJSON(text []byte) error {
	var in gapJSON
	if err := json.Unmarshal(text, &in); err != nil {
		return err
	}
	from, err := pglogrepl.ParseLSN(in.From)
	if err != nil {
		return err
	}
	to, err := pglogrepl.ParseLSN(in.To)
	*g = Gap{from, to, in.FromTime, in.ToTime, in.Reason}
	return err
}

// OpenCoverage records that a table is tracked from a position on, and a time, which is
// compared with commit times: it is to be that of the source's clock. As all that is said
// of coverage, it fails with [ErrSetupTaken] once somebody else has set up.
func (s *Store) OpenCoverage(ctx context.Context, by SetupHolder, c Coverage) error {
	_, err := s.pool.Exec(ctx, `SELECT `+s.schema+`.open_coverage($1, $2, $3, $4, $5, $6, $7, $8)`,
		by.Database, by.token, c.Schema, c.Table, c.From.String(), c.FromTime, int64(c.RelationID), c.Membership)
	if err != nil {
		return fmt.Errorf("record coverage of %s.%s: %w", c.Schema, c.Table, fenced(err))
	}
	return nil
}

// CloseCoverage records that a table is tracked no longer, by its OID: another
// table of the same name may be. at is the time, by the source's clock.
func (s *Store) CloseCoverage(ctx context.Context, by SetupHolder, relation uint32, until wal.LSN, at time.Time) error {
	_, err := s.pool.Exec(ctx, `SELECT `+s.schema+`.close_coverage($1, $2, $3, $4, $5)`, by.Database, by.token, int64(relation), until.String(), at)
	if err != nil {
		return fmt.Errorf("close coverage of relation %d: %w", relation, fenced(err))
	}
	return nil
}

// SetMembership records that a table goes on being tracked with other entries in the
// publication: a part of it has come, or gone.
func (s *Store) SetMembership(ctx context.Context, by SetupHolder, relation uint32, membership string) error {
	_, err := s.pool.Exec(ctx, `SELECT `+s.schema+`.set_membership($1, $2, $3, $4)`, by.Database, by.token, int64(relation), membership)
	if err != nil {
		return fmt.Errorf("record membership of relation %d: %w", relation, fenced(err))
	}
	return nil
}

// Coverage returns the coverage of every table of a database, oldest first.
func (s *Store) Coverage(ctx context.Context, database string) ([]Coverage, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT schema, "table", from_position::text, from_time, coalesce(until_position, '0/0')::text, until_time, relation_id, membership
		FROM `+s.schema+`.coverage
		WHERE database = $1
		ORDER BY schema, "table", from_position`, database)
	if err != nil {
		return nil, fmt.Errorf("read coverage: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c Coverage, err error) {
		var until *time.Time
		var oid int64
		err = row.Scan(&c.Schema, &c.Table, &c.From, &c.FromTime, &c.Until, &until, &oid, &c.Membership)
		if until != nil {
			c.UntilTime = *until
		}
		c.RelationID = uint32(oid)
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("read coverage: %w", err)
	}
	return all, nil
}

// RememberIdentities notes replica identities before they are changed. What was
// noted before stays.
func (s *Store) RememberIdentities(ctx context.Context, database string, identities map[uint32]string) error {
	for relation, identity := range identities {
		_, err := s.pool.Exec(ctx, `
			INSERT INTO `+s.schema+`.replica_identities (database, relation_id, identity)
			VALUES ($1, $2, $3)
			ON CONFLICT DO NOTHING`, database, int64(relation), identity)
		if err != nil {
			return fmt.Errorf("note replica identity of relation %d: %w", relation, err)
		}
	}
	return nil
}

// ForgetIdentities drops the notes of identities that were put back.
func (s *Store) ForgetIdentities(ctx context.Context, by SetupHolder, identities map[uint32]string) error {
	for relation := range identities {
		_, err := s.pool.Exec(ctx, `SELECT `+s.schema+`.forget_identity($1, $2, $3)`, by.Database, by.token, int64(relation))
		if err != nil {
			return fmt.Errorf("forget replica identity of relation %d: %w", relation, fenced(err))
		}
	}
	return nil
}

// Identities returns the replica identities that were noted, by relation.
func (s *Store) Identities(ctx context.Context, database string) (map[uint32]string, error) {
	rows, err := s.pool.Query(ctx, `SELECT relation_id, identity FROM `+s.schema+`.replica_identities WHERE database = $1`, database)
	if err != nil {
		return nil, fmt.Errorf("read replica identities: %w", err)
	}
	identities := make(map[uint32]string)
	var relation int64
	var identity string
	_, err = pgx.ForEachRow(rows, []any{&relation, &identity}, func() error {
		identities[uint32(relation)] = identity
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read replica identities: %w", err)
	}
	return identities, nil
}

// Gaps returns the holes in the history of a database, oldest first.
func (s *Store) Gaps(ctx context.Context, database string) ([]Gap, error) {
	return s.gaps(ctx, s.pool, database)
}

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func (s *Store) gaps(ctx context.Context, from querier, database string) ([]Gap, error) {
	rows, err := from.Query(ctx, `
		SELECT from_position::text, to_position::text, coalesce(from_time, '-infinity') = '-infinity', coalesce(from_time, to_time), to_time, reason
		FROM `+s.schema+`.gaps
		WHERE database = $1
		ORDER BY from_position`, database)
	if err != nil {
		return nil, fmt.Errorf("read gaps: %w", err)
	}
	gaps, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (g Gap, err error) {
		var unknown bool
		err = row.Scan(&g.From, &g.To, &unknown, &g.FromTime, &g.ToTime, &g.Reason)
		if unknown {
			g.FromTime = time.Time{}
		}
		return g, err
	})
	if err != nil {
		return nil, fmt.Errorf("read gaps: %w", err)
	}
	return gaps, nil
}

// ErrCheckpointMoved is returned when the checkpoint is not where it was
// expected, because another instance has moved it.
var ErrCheckpointMoved = errors.New("store: the checkpoint was moved meanwhile")

// RecordGap records a hole from the checkpoint to a later position and moves the
// checkpoint behind it, both or neither. The writer of before is fenced. at is the
// time, by the source's clock.
func (s *Store) RecordGap(ctx context.Context, database string, checkpoint Checkpoint, to wal.LSN, at time.Time, reason string) error {
	var moved bool
	err := s.pool.QueryRow(ctx, `SELECT `+s.schema+`.record_gap($1, $2, $3, $4, $5, $6)`,
		database, checkpoint.Position.String(), to.String(), checkpoint.Slot, at, reason).Scan(&moved)
	if err == nil && !moved {
		err = ErrCheckpointMoved
	}
	if err != nil {
		return fmt.Errorf("record gap of %q from %s to %s: %w", database, checkpoint.Position, to, err)
	}
	return nil
}
