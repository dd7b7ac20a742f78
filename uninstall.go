package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/store"
)

// UninstallSQL returns the statements that Uninstall runs, on the source and
// then in the store, for reading or for running by hand. Before, capture has to
// be stopped.
func (c *Client) UninstallSQL(ctx context.Context) (source, records []string, err error) {
	if err := c.open(); err != nil {
		return nil, nil, err
	}
	var database string
	if err := c.history.Source.QueryRow(ctx, "SELECT current_database()").Scan(&database); err != nil {
		return nil, nil, fmt.Errorf("audit: uninstall: %w", err)
	}
	identities, err := c.history.Records.Identities(ctx, database)
	if err != nil && !history.IsUndefined(err) {
		return nil, nil, fmt.Errorf("audit: uninstall: %w", err)
	}
	restore, err := c.setup.RestoreSQL(ctx, identities)
	if err != nil {
		return nil, nil, fmt.Errorf("audit: uninstall: %w", err)
	}
	untrace, err := c.setup.UntraceSQL(ctx, c.cfg.Schema)
	if err != nil {
		return nil, nil, fmt.Errorf("audit: uninstall: %w", err)
	}
	source = append([]string{
		"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '" + strings.ReplaceAll(c.cfg.Slot, "'", "''") + "'",
		"DROP PUBLICATION IF EXISTS " + pgx.Identifier{c.cfg.Publication}.Sanitize(),
	}, append(untrace, restore...)...)
	return source, store.UninstallSQL(c.cfg.Schema), nil
}

// Uninstall removes everything that Start made, history included: the slot, the
// publication, the store; and it puts the replica identities back to what they
// were. The store's schema goes with it unless it is public or holds something
// else. Capture has to be stopped, in every instance of the program.
func (c *Client) Uninstall(ctx context.Context) error {
	if c.running() != nil {
		return errors.New("audit: uninstall: capture is running: call Stop first")
	}
	source, records, err := c.UninstallSQL(ctx)
	if err != nil {
		return err
	}
	untrace, err := c.setup.UntraceSQL(ctx, c.cfg.Schema)
	if err != nil {
		return fmt.Errorf("audit: uninstall: %w", err)
	}
	for _, sql := range source {
		err := c.runWithRetry(ctx, sql)
		if history.IsCode(err, "42501") && slices.Contains(untrace, sql) {
			// A superuser made the event triggers. They do no harm.
			c.cfg.Logger.Warn("audit: uninstall: left for a superuser", "sql", sql)
			continue
		}
		if err != nil {
			return fmt.Errorf("audit: uninstall: %s: %w", sql, err)
		}
	}
	for _, sql := range records {
		// 2BP01: the schema holds something that is not ours, and stays.
		if _, err := c.history.Store.Exec(ctx, sql); err != nil && !history.IsCode(err, "2BP01") {
			return fmt.Errorf("audit: uninstall: %s: %w", sql, err)
		}
	}
	return nil
}

// runWithRetry runs a statement that needs a lock without standing in the
// application's way, again and again until ctx ends.
func (c *Client) runWithRetry(ctx context.Context, sql string) error {
	for wait := 50 * time.Millisecond; ; wait = min(wait*2, time.Second) {
		err := pgx.BeginFunc(ctx, c.history.Source, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '100ms'"); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, sql)
			return err
		})
		// 55P03: the lock was not to be had. 55006: the server still holds the
		// slot for a session that has just ended.
		if err == nil || !history.IsCode(err, "55P03", "55006") {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}
