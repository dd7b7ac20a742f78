package store

import (
	"context"
	"fmt"
	"time"

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

// DropBefore drops the partitions that hold only changes committed before t and
// returns their names. History is never deleted row by row.
func (s *Store) DropBefore(ctx context.Context, t time.Time) ([]string, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+s.schema+`.drop_before($1)`, t)
	if err != nil {
		return nil, fmt.Errorf("drop history before %s: %w", t.Format(time.RFC3339), err)
	}
	defer rows.Close()
	var dropped []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, fmt.Errorf("drop history before %s: %w", t.Format(time.RFC3339), err)
		}
		dropped = append(dropped, name)
	}
	return dropped, rows.Err()
}
