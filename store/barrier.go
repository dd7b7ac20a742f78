package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/wal"
)

// barrierAge is how long the place of a barrier is kept for those who wait for it.
const barrierAge = 10 * time.Minute

// Barrier is the place of a message that somebody waits for.
type Barrier struct {
	Nonce string
	// Position is that of the message's transaction: all that committed before it is
	// before it.
	Position wal.LSN
}

// nonceLength is the length of a nonce: 16 bytes in hexadecimal digits.
const nonceLength = 32

// IsNonce reports whether a text is one by which a barrier is known.
func IsNonce(text string) bool {
	return len(text) == nonceLength && strings.Trim(text, "0123456789abcdef") == ""
}

// Barrier returns where the first message with one of the nonces stands, once the store
// holds everything before it; 0 until then.
func (s *Store) Barrier(ctx context.Context, database string, nonces []string) (wal.LSN, error) {
	var position wal.LSN
	err := s.pool.QueryRow(ctx, `
		SELECT b.position::text
		FROM `+s.schema+`.barriers b
		WHERE b.database = $1 AND b.nonce = ANY ($2)
		ORDER BY b.position
		LIMIT 1`, database, nonces).Scan(&position)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look for barrier: %w", err)
	}
	return position, nil
}
