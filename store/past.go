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

// Version is a version of a table's columns and key, valid from Position until
// the next version of the same relation.
type Version struct {
	Schema, Table string
	// Position is the transaction that made the version, behind Sequence changes of
	// it.
	Position wal.LSN
	Sequence int
	// After is zero where the version came to be just there; else it came to be
	// somewhere behind After, and until Position nobody can say.
	After      wal.LSN
	RelationID uint32
	// Kind is pg_class.relkind. Root is the partitioned table that the relation is a
	// part of; Parts are the leaves of a partitioned table, or the children of one
	// that others inherit from.
	Kind    string
	Root    uint32
	Parts   []uint32
	Columns []Column
	Key     []string
	// KeyConstraint is the OID of the primary key.
	KeyConstraint uint32
	// Dropped reports whether the table is gone from here on.
	Dropped bool
	// Guessed reports whether which column is which could not be decided.
	Guessed bool
	// Attached reports whether parts may have come with rows of their own.
	Attached bool
}

// KeyNumbers returns the attribute numbers of the key's columns, in key order: two
// versions with others tell rows apart by other keys.
func (v Version) KeyNumbers() []int16 {
	var numbers []int16
	for _, name := range v.Key {
		for _, c := range v.Columns {
			if c.Name == name {
				numbers = append(numbers, c.Attnum)
			}
		}
	}
	return numbers
}

// Horizon is up to where retention has dropped history: what is needed of it for
// a moment before is gone. It is zero where nothing was dropped.
type Horizon struct {
	Position wal.LSN
	Time     time.Time
}

// Keyframe is the whole state of a table at a position.
type Keyframe struct {
	ID            int64
	Schema, Table string
	RelationID    uint32
	Position      wal.LSN
	Rows          int64
}

// Facts is what the store knows of a source beside the changes: how far history
// reaches, and where it has holes.
type Facts struct {
	Checkpoint Checkpoint
	Coverage   []Coverage
	Gaps       []Gap
	Versions   []Version
	Keyframes  []Keyframe
	Horizon    Horizon
}

// Facts reads the facts of a source database in one round trip and one moment.
// It returns ErrNoCheckpoint if there are none.
func (s *Store) Facts(ctx context.Context, database string) (Facts, error) {
	var f Facts
	var document []byte
	err := s.pool.QueryRow(ctx, `
		SELECT pg_catalog.json_build_object(
			'checkpoint', (SELECT json_build_object('position', c.position, 'committedAt', c.committed_at, 'updatedAt', c.updated_at, 'timeline', c.timeline)
				FROM `+s.schema+`.checkpoints c WHERE c.database = $1),
			'coverage', (SELECT json_agg(json_build_object('schema', v.schema, 'table', v."table", 'from', v.from_position, 'fromTime', v.from_time,
					'until', coalesce(v.until_position, '0/0'), 'untilTime', v.until_time, 'relation', v.relation_id) ORDER BY v.from_position)
				FROM `+s.schema+`.coverage v WHERE v.database = $1),
			'gaps', (SELECT json_agg(json_build_object('from', g.from_position, 'to', g.to_position, 'fromTime', nullif(g.from_time, '-infinity'),
					'toTime', g.to_time, 'reason', g.reason) ORDER BY g.from_position)
				FROM `+s.schema+`.gaps g WHERE g.database = $1),
			'versions', (SELECT json_agg(json_build_object('schema', r.schema, 'table', r."table", 'position', r.position, 'relation', r.relation_id,
					'sequence', r.sequence, 'after', r.after, 'kind', r.kind, 'root', coalesce(r.root_id, 0), 'parts', r.parts, 'dropped', r.dropped, 'guessed', r.guessed, 'keyConstraint', r.key_constraint, 'attached', r.attached,
					'columns', r.columns, 'key', r.primary_key) ORDER BY r.position, r.sequence, r.relation_id)
				FROM `+s.schema+`.relations r WHERE r.database = $1),
			'keyframes', (SELECT json_agg(json_build_object('id', k.id, 'schema', k.schema, 'table', k."table", 'relation', k.relation_id,
					'position', k.position, 'rows', k.done) ORDER BY k.position)
				FROM `+s.schema+`.keyframes k WHERE k.database = $1 AND k.complete),
			'horizon', (SELECT json_build_object('position', coalesce(max(h.position), '0/0'), 'time', max(h.until_time))
				FROM `+s.schema+`.retention h))`, database).Scan(&document)
	if err != nil {
		return f, fmt.Errorf("read what is known of %q: %w", database, err)
	}
	var d factsDocument
	if err := json.Unmarshal(document, &d); err != nil {
		return f, fmt.Errorf("read what is known of %q: %w", database, err)
	}
	if d.Checkpoint == nil {
		return f, ErrNoCheckpoint
	}
	return d.facts(database), nil
}

// textLSN is an LSN in a JSON document.
type textLSN wal.LSN

// UnmarshalText reads PostgreSQL's notation.
func (l *textLSN) UnmarshalText(text []byte) error {
	lsn, err := pglogrepl.ParseLSN(string(text))
	*l = textLSN(lsn)
	return err
}

type factsDocument struct {
	Checkpoint *struct {
		Position    textLSN
		CommittedAt *time.Time
		UpdatedAt   time.Time
		Timeline    int32
	}
	Coverage []struct {
		Schema, Table string
		From, Until   textLSN
		FromTime      time.Time
		UntilTime     *time.Time
		Relation      uint32
	}
	Gaps []struct {
		From, To textLSN
		FromTime *time.Time
		ToTime   time.Time
		Reason   string
	}
	Versions []struct {
		Schema, Table string
		Position      textLSN
		Sequence      int
		After         *textLSN
		Relation      uint32
		Kind          string
		Root          uint32
		Parts         []uint32
		Columns       []Column
		Key           []string
		Dropped       bool
		Guessed       bool
		KeyConstraint uint32
		Attached      bool
	}
	Keyframes []struct {
		ID            int64
		Schema, Table string
		Relation      uint32
		Position      textLSN
		Rows          int64
	}
	Horizon struct {
		Position textLSN
		Time     *time.Time
	}
}

func (d factsDocument) facts(database string) Facts {
	f := Facts{
		Checkpoint: Checkpoint{Database: database, Position: wal.LSN(d.Checkpoint.Position), UpdatedAt: d.Checkpoint.UpdatedAt, Timeline: d.Checkpoint.Timeline, CommittedAt: orZero(d.Checkpoint.CommittedAt)},
		Horizon:    Horizon{Position: wal.LSN(d.Horizon.Position), Time: orZero(d.Horizon.Time)},
	}
	for _, v := range d.Coverage {
		f.Coverage = append(f.Coverage, Coverage{Schema: v.Schema, Table: v.Table, From: wal.LSN(v.From), FromTime: v.FromTime, Until: wal.LSN(v.Until), UntilTime: orZero(v.UntilTime), RelationID: v.Relation})
	}
	for _, g := range d.Gaps {
		f.Gaps = append(f.Gaps, Gap{From: wal.LSN(g.From), To: wal.LSN(g.To), FromTime: orZero(g.FromTime), ToTime: g.ToTime, Reason: g.Reason})
	}
	for _, v := range d.Versions {
		version := Version{
			Schema: v.Schema, Table: v.Table, Position: wal.LSN(v.Position), Sequence: v.Sequence, RelationID: v.Relation, Kind: v.Kind,
			Root: v.Root, Parts: v.Parts, Columns: v.Columns, Key: v.Key, Dropped: v.Dropped, Guessed: v.Guessed, KeyConstraint: v.KeyConstraint, Attached: v.Attached,
		}
		if v.After != nil {
			version.After = wal.LSN(*v.After)
		}
		f.Versions = append(f.Versions, version)
	}
	for _, k := range d.Keyframes {
		f.Keyframes = append(f.Keyframes, Keyframe{ID: k.ID, Schema: k.Schema, Table: k.Table, RelationID: k.Relation, Position: wal.LSN(k.Position), Rows: k.Rows})
	}
	return f
}

func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

// SetMark names a position. It reports false if the name is taken.
func (s *Store) SetMark(ctx context.Context, database, name string, position wal.LSN, at time.Time) (bool, error) {
	tag, err := s.pool.Exec(ctx, `
		INSERT INTO `+s.schema+`.marks (database, name, position, marked_at)
		VALUES ($1, $2, $3, $4)
		ON CONFLICT DO NOTHING`, database, name, position.String(), at)
	if err != nil {
		return false, fmt.Errorf("set mark: %w", err)
	}
	return tag.RowsAffected() == 1, nil
}

// NamedMark is a moment that was given a name.
type NamedMark struct {
	Name     string
	Position wal.LSN
	MarkedAt time.Time
}

// Marks returns the marks of a database, the latest first.
func (s *Store) Marks(ctx context.Context, database string) ([]NamedMark, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT name, position::text, marked_at
		FROM `+s.schema+`.marks
		WHERE database = $1
		ORDER BY position DESC, name`, database)
	if err != nil {
		return nil, fmt.Errorf("read marks: %w", err)
	}
	marks, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (m NamedMark, err error) {
		err = row.Scan(&m.Name, &m.Position, &m.MarkedAt)
		return m, err
	})
	if err != nil {
		return nil, fmt.Errorf("read marks: %w", err)
	}
	return marks, nil
}

// Mark returns the position of a mark. It reports false if there is none of the
// name.
func (s *Store) Mark(ctx context.Context, database, name string) (wal.LSN, bool, error) {
	var position wal.LSN
	err := s.pool.QueryRow(ctx, `SELECT position::text FROM `+s.schema+`.marks WHERE database = $1 AND name = $2`, database, name).Scan(&position)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("read mark: %w", err)
	}
	return position, true, nil
}
