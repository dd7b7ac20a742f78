package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/wal"
)

// Version is a version of a table's columns and key, valid from Position until
// the next version of the same relation.
type Version struct {
	Schema, Table string
	Position      wal.LSN
	RelationID    uint32
	Columns       []Column
	Key           []string
}

// Same tells that the columns, the key and the name of two versions are the same,
// those aside that the server computes.
func (v Version) Same(o Version) bool {
	plain := func(columns []Column) []Column {
		return slices.DeleteFunc(slices.Clone(columns), func(c Column) bool { return c.Generated != "" })
	}
	return v.Schema == o.Schema && v.Table == o.Table && slices.Equal(v.Key, o.Key) &&
		slices.EqualFunc(plain(v.Columns), plain(o.Columns), func(a, b Column) bool {
			return a.Name == b.Name && a.TypeOID == b.TypeOID && a.TypeMod == b.TypeMod && a.Attnum == b.Attnum
		})
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
					'columns', r.columns, 'key', r.primary_key) ORDER BY r.position, r.schema, r."table")
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
		Relation      uint32
		Columns       []Column
		Key           []string
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
		f.Versions = append(f.Versions, Version{Schema: v.Schema, Table: v.Table, Position: wal.LSN(v.Position), RelationID: v.Relation, Columns: v.Columns, Key: v.Key})
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

// NoteVersion records a version of a table that was found in the catalog rather
// than in the stream: a change of its columns that no change of its rows
// followed yet.
func (s *Store) NoteVersion(ctx context.Context, database, identity string, v Version) error {
	columns, err := json.Marshal(v.Columns)
	if err != nil {
		return fmt.Errorf("note version of %s.%s: %w", v.Schema, v.Table, err)
	}
	_, err = s.pool.Exec(ctx, `
		INSERT INTO `+s.schema+`.relations (database, schema, "table", position, relation_id, replica_identity, columns, primary_key)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
		ON CONFLICT DO NOTHING`, database, v.Schema, v.Table, v.Position.String(), int64(v.RelationID), identity, string(columns), v.Key)
	if err != nil {
		return fmt.Errorf("note version of %s.%s: %w", v.Schema, v.Table, err)
	}
	return nil
}
