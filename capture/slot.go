package capture

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/deadpeer"
)

// Slot is the state of a replication slot.
type Slot struct {
	Name      string
	Active    bool
	ActivePID int
	// Confirmed is the position up to which the server believes us to hold
	// everything.
	Confirmed LSN
	// Restart is where the server has to keep WAL from; Retained how many bytes
	// that is at the moment.
	Restart  LSN
	Retained int64
	// Status is wal_status: reserved, extended, unreserved or lost. Reason is why
	// it was lost, where the server says so.
	Status string
	Reason string
	// Bound is max_slot_wal_keep_size in bytes: beyond it the server gives up the slot.
	// -1: never, until its disk is full. Safe is how much more WAL there may be until
	// then, -1 without a bound.
	Bound, Safe int64
	// IdleTimeout is idle_replication_slot_timeout, which came with 18, or 0: how long
	// a slot that nobody reads from is kept.
	IdleTimeout time.Duration
}

// Lost reports whether the slot can no longer be read from.
func (s Slot) Lost() bool { return s.Status == "lost" || s.Reason != "" }

// ErrNoSlot is returned when the slot does not exist.
var ErrNoSlot = errors.New("capture: no such replication slot")

// ForeignSlotError is returned when the slot's name belongs to something else.
type ForeignSlotError struct{ Slot, Plugin, Database string }

func (e *ForeignSlotError) Error() string {
	return fmt.Sprintf("capture: replication slot %q belongs to plugin %q in database %q: choose another name (Config.Slot), or drop it if nobody needs it: SELECT pg_drop_replication_slot('%s')",
		e.Slot, e.Plugin, e.Database, strings.ReplaceAll(e.Slot, "'", "''"))
}

// SlotBlockedError is returned when the slot could not be made in time: making
// one waits until every transaction that was writing has ended, anywhere in the
// cluster.
type SlotBlockedError struct {
	Slot     string
	Blockers []Blocker
	Cause    error
}

// Blocker is a session with an open transaction that the slot waits for, or a
// prepared transaction.
type Blocker struct {
	PID             int    // 0 of a prepared transaction
	GID             string // of a prepared transaction, else empty
	User, Database  string
	ApplicationName string
	State           string
	Age             time.Duration
}

func (e *SlotBlockedError) Error() string {
	var who []string
	for _, b := range e.Blockers {
		if b.GID != "" {
			who = append(who, fmt.Sprintf("prepared transaction %q (%s@%s, %s old; ROLLBACK PREPARED or COMMIT PREPARED ends it)", b.GID, b.User, b.Database, b.Age.Round(time.Second)))
			continue
		}
		who = append(who, fmt.Sprintf("pid %d (%s@%s, %s, %s, open for %s)", b.PID, b.User, b.Database, b.ApplicationName, b.State, b.Age.Round(time.Second)))
	}
	return fmt.Sprintf("capture: create slot %q: waiting for open writing transactions to end: %s: %v", e.Slot, strings.Join(who, "; "), e.Cause)
}

func (e *SlotBlockedError) Unwrap() error { return e.Cause }

// SlotState returns the state of the slot, ErrNoSlot, or a *ForeignSlotError.
func (s *Setup) SlotState(ctx context.Context) (Slot, error) {
	slot := Slot{Name: s.Slot}
	var plugin, database, kind, current string
	if err := s.DB.QueryRow(ctx, `
		SELECT coalesce(max(setting::bigint * 1048576) FILTER (WHERE name = 'max_slot_wal_keep_size' AND setting::bigint >= 0), -1)::bigint,
			coalesce(max(extract(epoch FROM (setting || CASE unit WHEN 's' THEN ' seconds' WHEN 'min' THEN ' minutes' ELSE ' milliseconds' END)::interval)) FILTER (WHERE name = 'idle_replication_slot_timeout'), 0)::bigint * 1000000000
		FROM pg_catalog.pg_settings
		WHERE name IN ('max_slot_wal_keep_size', 'idle_replication_slot_timeout')`).Scan(&slot.Bound, &slot.IdleTimeout); err != nil {
		return slot, fmt.Errorf("read the bounds of slot %q: %w", s.Slot, err)
	}
	// invalidation_reason came with 17; read through JSON it is simply NULL before.
	err := s.DB.QueryRow(ctx, `
		SELECT coalesce(s.plugin, ''), coalesce(s.database, ''), s.slot_type, current_database(), s.active, coalesce(s.active_pid, 0),
			coalesce(s.confirmed_flush_lsn, '0/0')::text, coalesce(s.restart_lsn, '0/0')::text,
			coalesce(pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END, s.restart_lsn), 0)::bigint,
			coalesce(s.wal_status, ''), coalesce(to_jsonb(s) ->> 'invalidation_reason', ''), coalesce(s.safe_wal_size, -1)
		FROM pg_catalog.pg_replication_slots s
		WHERE s.slot_name = $1`, s.Slot).
		Scan(&plugin, &database, &kind, &current, &slot.Active, &slot.ActivePID, &slot.Confirmed, &slot.Restart, &slot.Retained, &slot.Status, &slot.Reason, &slot.Safe)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return slot, ErrNoSlot
	case err != nil:
		return slot, fmt.Errorf("read state of slot %q: %w", s.Slot, err)
	case plugin != "pgoutput" || database != current:
		if kind == "physical" {
			plugin = "(physical)"
		}
		return slot, &ForeignSlotError{Slot: s.Slot, Plugin: plugin, Database: database}
	}
	return slot, nil
}

// CreateSlot makes the slot and returns its consistent point: every transaction
// that commits after it is decoded whole. It waits for open writing transactions
// until ctx ends, and then says who they are.
func (s *Setup) CreateSlot(ctx context.Context) (LSN, error) {
	pool := s.DB.Config()
	config := pool.ConnConfig
	if pool.BeforeConnect != nil {
		if err := pool.BeforeConnect(ctx, config); err != nil {
			return 0, fmt.Errorf("connect to create slot %q: %w", s.Slot, err)
		}
	}
	config.RuntimeParams["statement_timeout"] = "0"
	config.RuntimeParams["lock_timeout"] = "0"
	config.RuntimeParams["application_name"] = "audit setup"
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return 0, fmt.Errorf("connect to create slot %q: %w", s.Slot, err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()

	type result struct {
		lsn LSN
		err error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		r.err = conn.QueryRow(deadpeer.Patient(ctx), "SELECT lsn::text FROM pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput')", s.Slot).Scan(&r.lsn)
		done <- r
	}()
	var blockers []Blocker
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case r := <-done:
			if r.err != nil && ctx.Err() != nil {
				if len(blockers) == 0 { // ctx was shorter than the first look
					short, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
					blockers, _ = s.blockers(short)
					cancel()
				}
				return 0, &SlotBlockedError{Slot: s.Slot, Blockers: blockers, Cause: ctx.Err()}
			}
			if r.err != nil {
				return 0, fmt.Errorf("create slot %q: %w", s.Slot, r.err)
			}
			return r.lsn, nil
		case <-ticker.C:
			if found, err := s.blockers(ctx); err == nil && len(found) > 0 {
				blockers = found
				s.Logger.WarnContext(ctx, "audit: creating the slot waits for open writing transactions", "slot", s.Slot, "transactions", len(found), "pid", found[0].PID, "gid", found[0].GID)
			}
		}
	}
}

func (s *Setup) blockers(ctx context.Context) ([]Blocker, error) {
	rows, err := s.DB.Query(ctx, `
		SELECT pid, '', coalesce(usename, ''), coalesce(datname, ''), coalesce(application_name, ''), coalesce(state, ''), coalesce(extract(epoch FROM now() - xact_start), 0)::float8
		FROM pg_catalog.pg_stat_activity
		WHERE backend_xid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid()
		UNION ALL
		SELECT 0, gid, owner, database, '', 'prepared', extract(epoch FROM now() - prepared)::float8
		FROM pg_catalog.pg_prepared_xacts
		ORDER BY 7 DESC
		LIMIT 5`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (Blocker, error) {
		var b Blocker
		var seconds float64
		err := row.Scan(&b.PID, &b.GID, &b.User, &b.Database, &b.ApplicationName, &b.State, &seconds)
		b.Age = time.Duration(seconds * float64(time.Second))
		return b, err
	})
}

// DropSlot drops a slot that was looked at, if it is still that one and nobody reads
// from it. One that was made since begins later, and is somebody's.
func (s *Setup) DropSlot(ctx context.Context, was Slot) error {
	_, err := s.DB.Exec(ctx, `
		SELECT pg_catalog.pg_drop_replication_slot(s.slot_name)
		FROM pg_catalog.pg_replication_slots s
		WHERE s.slot_name = $1 AND coalesce(s.confirmed_flush_lsn, '0/0') = $2::text::pg_lsn`, was.Name, was.Confirmed.String())
	if isCode(err, "42704") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("drop slot %q: %w", was.Name, err)
	}
	return nil
}
