package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/wal"
)

// Revert is an entry of the register of reverts. The applier writes it before the
// revert's transaction can commit; it stands for a revert that happened if Done is
// set, or if history holds changes of the transaction that name the revert.
type Revert struct {
	// ID is the revert's own id.
	ID string
	// TransactionID is the 64-bit id of the revert's transaction on the source.
	TransactionID uint64
	// UnitKind and UnitID say what it reverts.
	UnitKind, UnitID string
	// Key is the idempotency key, or empty.
	Key string
	// Partial reports that the revert leaves out a part of the unit.
	Partial bool
	// User is who reverts, Reason why; both may be empty.
	User, Reason string
	// Done is a position of the source at which the revert was committed, or 0 if
	// the applier did not live to see the commit, or left it to its caller.
	Done wal.LSN
}

// RegisterRevert enters a revert that is about to be written.
func (s *Store) RegisterRevert(ctx context.Context, database string, r Revert) error {
	_, err := s.pool.Exec(ctx, `
		INSERT INTO `+s.schema+`.reverts (database, id, transaction_id, unit_kind, unit_id, idempotency_key, partial, user_id, reason)
		VALUES ($1, $2, $3, $4, $5, nullif($6, ''), $7, nullif($8, ''), nullif($9, ''))`,
		database, r.ID, int64(r.TransactionID), r.UnitKind, r.UnitID, r.Key, r.Partial, r.User, r.Reason)
	if err != nil {
		return fmt.Errorf("register the revert: %w", err)
	}
	return nil
}

// CommittedRevert notes that a registered revert was committed, at or before a
// position of the source.
func (s *Store) CommittedRevert(ctx context.Context, database, id string, done wal.LSN) error {
	_, err := s.pool.Exec(ctx, `SELECT `+s.schema+`.committed_revert($1, $2, $3)`, database, id, done.String())
	if err != nil {
		return fmt.Errorf("register the end of the revert: %w", err)
	}
	return nil
}

const revertColumns = `r.id, r.transaction_id, r.unit_kind, r.unit_id, coalesce(r.idempotency_key, ''), r.partial,
	coalesce(r.user_id, ''), coalesce(r.reason, ''), coalesce(r.done_position, '0/0')::text`

func scanRevert(row pgx.CollectableRow) (r Revert, err error) {
	var transaction int64
	err = row.Scan(&r.ID, &transaction, &r.UnitKind, &r.UnitID, &r.Key, &r.Partial, &r.User, &r.Reason, &r.Done)
	r.TransactionID = uint64(transaction)
	return r, err
}

// RevertsSince returns the registered reverts that may have been committed at or
// behind a position, in the order in which they were registered.
func (s *Store) RevertsSince(ctx context.Context, database string, position wal.LSN) ([]Revert, error) {
	return s.reverts(ctx, `(r.done_position IS NULL OR r.done_position >= $2::text::pg_lsn)`, database, position.String())
}

// RevertsOf returns the registered reverts of a unit, in the order in which they
// were registered.
func (s *Store) RevertsOf(ctx context.Context, database, kind, id string) ([]Revert, error) {
	return s.reverts(ctx, `r.unit_kind = $2 AND r.unit_id = $3`, database, kind, id)
}

// RevertsWithKey returns the registered reverts with an idempotency key, in the
// order in which they were registered.
func (s *Store) RevertsWithKey(ctx context.Context, database, key string) ([]Revert, error) {
	return s.reverts(ctx, `r.idempotency_key = $2`, database, key)
}

// Revert returns the entry of a revert. It reports false if there is none.
func (s *Store) Revert(ctx context.Context, database, id string) (Revert, bool, error) {
	found, err := s.reverts(ctx, `r.id = $2`, database, id)
	if err != nil || len(found) == 0 {
		return Revert{}, false, err
	}
	return found[0], true, nil
}

func (s *Store) reverts(ctx context.Context, where string, args ...any) ([]Revert, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT `+revertColumns+`
		FROM `+s.schema+`.reverts r
		WHERE r.database = $1 AND `+where+`
		ORDER BY r.number`, args...)
	if err != nil {
		return nil, fmt.Errorf("read the register of reverts: %w", err)
	}
	found, err := pgx.CollectRows(rows, scanRevert)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("read the register of reverts: %w", err)
	}
	return found, nil
}
