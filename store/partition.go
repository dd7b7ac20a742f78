package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/wal"
)

// partitions is the range of commit times whose partition is known to exist.
type partitions struct{ from, to int64 }

func (p partitions) covers(commitTime int64) bool { return commitTime >= p.from && commitTime < p.to }

// partitionOf returns the month, in UTC, of a commit time.
func partitionOf(commitTime int64) partitions {
	t := wal.Time(commitTime)
	month := time.Date(t.Year(), t.Month(), 1, 0, 0, 0, 0, time.UTC)
	return partitions{from: wal.Microseconds(month), to: wal.Microseconds(month.AddDate(0, 1, 0))}
}

// EnsurePartitions makes the partitions of the current month and of the next
// two, so that the turn of a month finds its partition there.
func (s *Store) EnsurePartitions(ctx context.Context) error {
	_, err := s.pool.Exec(ctx, `
		SELECT `+s.schema+`.ensure_partition(now() + months * interval '1 month')
		FROM generate_series(0, 2) months`)
	if err != nil {
		return fmt.Errorf("make partitions of the history: %w", err)
	}
	return nil
}

// analyzeFrom is the size in bytes from which the planner's ignorance costs more than
// reading a sample.
const analyzeFrom = 1 << 20

// AnalyzeNew analyses the partitions that have no statistics yet although there is
// something in them.
func (s *Store) AnalyzeNew(ctx context.Context) error {
	for {
		var name *string
		if err := s.pool.QueryRow(ctx, `SELECT `+s.schema+`.analyze_next($1)`, analyzeFrom).Scan(&name); err != nil {
			return fmt.Errorf("analyse partitions without statistics: %w", err)
		}
		if name == nil {
			return nil
		}
	}
}

// ErrHorizonMoved is returned when history has come that is to be dropped, and that
// nobody has carried along.
var ErrHorizonMoved = errors.New("store: history that is past its retention has come meanwhile")

// DropBefore drops the partitions that hold only changes committed before t and
// returns their names. History is never deleted row by row. If they hold a change behind
// horizon, up to which keyframes carry the state along, it drops nothing and returns
// ErrHorizonMoved.
func (s *Store) DropBefore(ctx context.Context, t time.Time, horizon wal.LSN) (dropped []string, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		var before string
		if err := tx.QueryRow(ctx, `SELECT coalesce(max(r.position), '0/0')::text FROM `+s.schema+`.retention r`).Scan(&before); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `SELECT `+s.schema+`.drop_before($1)`, t)
		if err != nil {
			return err
		}
		if dropped, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
			return err
		}
		var moved bool
		err = tx.QueryRow(ctx, `SELECT coalesce(max(r.position) > greatest($1::text::pg_lsn, $2::text::pg_lsn), false) FROM `+s.schema+`.retention r`, horizon.String(), before).Scan(&moved)
		if err == nil && moved {
			err = ErrHorizonMoved
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("drop history before %s: %w", t.Format(time.RFC3339), err)
	}
	return dropped, nil
}
