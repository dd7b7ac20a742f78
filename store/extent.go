package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/wal"
)

// Extent is how far the history of a database reaches, and what is missing of it, at one
// moment.
type Extent struct {
	// Stored is up to where the store holds everything.
	Stored wal.LSN
	// Dropped is the last position in what retention has dropped, of any database of
	// the store, and DroppedUntil the commit time that it was dropped up to. They are zero
	// where nothing was.
	Dropped      wal.LSN
	DroppedUntil time.Time
	// Gaps are the holes, oldest first.
	Gaps []Gap
	// AskedAt is the moment, by the clock of the store.
	AskedAt time.Time
}

// Extent reads it. It returns ErrNoCheckpoint if nothing was ever captured.
func (s *Store) Extent(ctx context.Context, database string) (e Extent, err error) {
	// What was committed before the statement began is in its snapshot.
	err = pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		var until *time.Time
		err := tx.QueryRow(ctx, `
			SELECT c.position::text, coalesce(r.position, '0/0')::text, r.until_time, pg_catalog.statement_timestamp()
			FROM `+s.schema+`.checkpoints c
			CROSS JOIN (SELECT max(h.position) AS position, max(h.until_time) AS until_time FROM `+s.schema+`.retention h) r
			WHERE c.database = $1`, database).Scan(&e.Stored, &e.Dropped, &until, &e.AskedAt)
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrNoCheckpoint
		}
		if until != nil {
			e.DroppedUntil = *until
		}
		if err != nil {
			return err
		}
		e.Gaps, err = s.gaps(ctx, tx, database)
		return err
	})
	if err != nil {
		return Extent{}, fmt.Errorf("read how far the history of %q reaches: %w", database, err)
	}
	return e, nil
}
