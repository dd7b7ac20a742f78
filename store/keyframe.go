package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/wal"
)

// Frame is a keyframe in the making: the rows of a table at a position.
type Frame struct {
	ID            int64
	Database      string
	Schema, Table string
	RelationID    uint32
	Position      wal.LSN
	// LastKey is the key of the last row stored so far, Rows how many there are.
	LastKey []string
	Rows    int64
}

// FrameRow is a row of a keyframe.
type FrameRow struct {
	Key    string
	HasKey bool
	Image  []byte
}

// BeginFrame begins a keyframe, or returns the one of the same relation that was
// begun and is not complete.
func (s *Store) BeginFrame(ctx context.Context, f Frame) (Frame, error) {
	err := s.pool.QueryRow(ctx, `
		SELECT k.id, k.schema, k."table", k.position::text, k.last_key, k.done
		FROM `+s.schema+`.keyframes k
		WHERE k.database = $1 AND k.relation_id = $2 AND NOT k.complete
		ORDER BY k.id
		LIMIT 1`, f.Database, int64(f.RelationID)).Scan(&f.ID, &f.Schema, &f.Table, &f.Position, &f.LastKey, &f.Rows)
	if err == nil {
		return f, nil
	}
	if !errors.Is(err, pgx.ErrNoRows) {
		return f, fmt.Errorf("begin keyframe: %w", err)
	}
	return f, s.insertFrame(ctx, s.pool, &f)
}

// insertFrame enters a keyframe that is not complete, and gives it its ID.
func (s *Store) insertFrame(ctx context.Context, db interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}, f *Frame,
) error {
	err := db.QueryRow(ctx, `
		INSERT INTO `+s.schema+`.keyframes (database, schema, "table", relation_id, position)
		VALUES ($1, $2, $3, $4, $5)
		RETURNING id`, f.Database, f.Schema, f.Table, int64(f.RelationID), f.Position.String()).Scan(&f.ID)
	if err != nil {
		return fmt.Errorf("begin keyframe: %w", err)
	}
	return nil
}

// AppendFrame stores further rows of a keyframe, and up to which key it has come.
func (s *Store) AppendFrame(ctx context.Context, f Frame, rows []FrameRow) error {
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		n := f.Rows
		_, err := tx.CopyFrom(ctx, pgx.Identifier{s.name, "keyframe_rows"}, frameColumns, pgx.CopyFromSlice(len(rows), func(i int) ([]any, error) {
			n++
			return rows[i].values(f.ID, n), nil
		}))
		if err != nil {
			return fmt.Errorf("store rows of keyframe: %w", err)
		}
		var noted bool
		err = tx.QueryRow(ctx, `SELECT `+s.schema+`.note_progress($1, $2, $3, $4)`, f.ID, f.LastKey, f.Rows, n).Scan(&noted)
		if err == nil && !noted {
			err = errors.New("somebody else goes on with it, too")
		}
		if err != nil {
			return fmt.Errorf("store rows of keyframe: %w", err)
		}
		return nil
	})
}

var frameColumns = []string{"keyframe", "ordinal", "primary_key", "image"}

func (r FrameRow) values(frame, ordinal int64) []any {
	var key any
	if r.HasKey {
		key = r.Key
	}
	return []any{frame, ordinal, key, r.Image}
}

// FrameBase is what a keyframe is made from: what has to be there still when it is
// complete.
type FrameBase struct {
	// Keyframe is the keyframe that it goes on from, or 0.
	Keyframe int64
	// Horizon is up to where retention had dropped history.
	Horizon wal.LSN
}

// ErrFrameBase is returned when history was dropped while a keyframe was made of it.
var ErrFrameBase = errors.New("store: what the keyframe is made of was dropped meanwhile")

// WriteFrame stores all rows of a keyframe and completes it, in one transaction, unless
// what it is made from is not there any more: then the error is an ErrFrameBase. A frame
// without ID is begun in the same transaction. WriteFrame returns how many rows there are.
// Of one that is there already, complete, nothing is stored.
func (s *Store) WriteFrame(ctx context.Context, f Frame, from *FrameBase, write func(*FrameWriter) error) (int64, error) {
	w := &FrameWriter{store: s}
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if f.ID == 0 {
			if err := s.insertFrame(ctx, tx, &f); err != nil {
				return err
			}
		}
		*w = FrameWriter{ctx: ctx, tx: tx, store: s, frame: f.ID}
		if _, err := tx.Exec(ctx, `SELECT `+s.schema+`.clear_keyframe($1, false)`, f.ID); err != nil {
			return fmt.Errorf("store keyframe: %w", err)
		}
		if err := write(w); err != nil {
			return err
		}
		if err := w.finish(); err != nil {
			return fmt.Errorf("store keyframe: %w", err)
		}
		if from != nil {
			if err := s.verifyBase(ctx, tx, *from); err != nil {
				return err
			}
		}
		var completed bool
		err := tx.QueryRow(ctx, `SELECT `+s.schema+`.complete_keyframe($1, NULL, $2)`, f.ID, w.rows).Scan(&completed)
		if err == nil && !completed {
			err = errors.New("somebody else has completed or dropped it")
		}
		if err != nil {
			return fmt.Errorf("store keyframe: %w", err)
		}
		return nil
	})
	if isCode(err, "23505") {
		return w.rows, s.DropFrame(ctx, f.ID)
	}
	return w.rows, err
}

// verifyBase fails if history was dropped since the base was looked at.
func (s *Store) verifyBase(ctx context.Context, tx pgx.Tx, from FrameBase) error {
	var there bool
	err := tx.QueryRow(ctx, `
		SELECT (SELECT coalesce(max(r.position), '0/0') FROM `+s.schema+`.retention r) = $1::text::pg_lsn
			AND ($2::bigint = 0 OR EXISTS (SELECT FROM `+s.schema+`.keyframes k WHERE k.id = $2 AND k.complete))`, from.Horizon.String(), from.Keyframe).Scan(&there)
	if err != nil {
		return fmt.Errorf("look whether history is still there: %w", err)
	}
	if !there {
		return ErrFrameBase
	}
	return nil
}

// CompleteFrame says that a keyframe has all its rows, which are f.Rows: one that
// holds others is left incomplete.
func (s *Store) CompleteFrame(ctx context.Context, f Frame) error {
	var completed bool
	err := s.pool.QueryRow(ctx, `SELECT `+s.schema+`.complete_keyframe($1, $2, $2)`, f.ID, f.Rows).Scan(&completed)
	if isCode(err, "23505") { // there is one of the same position
		return s.DropFrame(ctx, f.ID)
	}
	if err == nil && !completed {
		err = fmt.Errorf("it does not hold the %d rows that it should", f.Rows)
	}
	if err != nil {
		return fmt.Errorf("complete keyframe: %w", err)
	}
	return nil
}

// DropFrame drops a keyframe in the making, with its rows.
func (s *Store) DropFrame(ctx context.Context, id int64) error {
	if _, err := s.pool.Exec(ctx, `SELECT `+s.schema+`.drop_keyframe($1)`, id); err != nil {
		return fmt.Errorf("drop keyframe: %w", err)
	}
	return nil
}

// HorizonAt returns the last position in the partitions that DropBefore would
// drop, or 0.
func (s *Store) HorizonAt(ctx context.Context, t time.Time) (wal.LSN, error) {
	var position *wal.LSN
	err := s.pool.QueryRow(ctx, `
		SELECT max(c.position)::text
		FROM `+s.schema+`.changes c
		WHERE c.committed_at < date_trunc('month', $1::timestamptz, 'UTC')`, t).Scan(&position)
	if err != nil {
		return 0, fmt.Errorf("find the horizon of retention: %w", err)
	}
	if position == nil {
		return 0, nil
	}
	return *position, nil
}

// DropFramesBefore drops the keyframes that lie before the horizon of retention,
// from which nothing can be reached any more.
func (s *Store) DropFramesBefore(ctx context.Context, database string) error {
	_, err := s.pool.Exec(ctx, `SELECT `+s.schema+`.drop_keyframes($1)`, database)
	if err != nil {
		return fmt.Errorf("drop keyframes before the horizon: %w", err)
	}
	return nil
}
