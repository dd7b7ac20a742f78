package audit

import (
	"context"
	"fmt"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/history"
)

// changeColumns are the columns that scanChange reads.
var changeColumns = []string{
	"c.position", "c.sequence", "c.committed_at", "c.transaction_id",
	"c.database", "c.schema", `c."table"`, "c.primary_key", "c.previous_key",
	"c.operation", "c.before", "c.after", "c.context",
	"c.environment", "c.defect", "c.queued_at", "c.created_at",
}

// lsnText reads a pg_lsn, for which pgx knows no binary format.
type lsnText pglogrepl.LSN

// Scan implements sql.Scanner.
func (l *lsnText) Scan(src any) error {
	text, ok := src.(string)
	if !ok {
		return fmt.Errorf("a pg_lsn as %T", src)
	}
	lsn, err := parseLSN(text)
	*l = lsnText(lsn)
	return err
}

func scanChange(row pgx.CollectableRow) (Change, error) {
	var (
		c                            Change
		lsn                          lsnText
		transaction                  int64
		key, previous                *string
		before, after, stamped       []byte
		environment, defect, opcode  *string
		committed, queued, createdAt = &c.CommittedAt, &c.QueuedAt, &c.CreatedAt
	)
	err := row.Scan(&lsn, &c.Position.Sequence, committed, &transaction,
		&c.Database, &c.Schema, &c.Table, &key, &previous,
		&opcode, &before, &after, &stamped,
		&environment, &defect, queued, createdAt)
	if err != nil {
		return Change{}, err
	}
	c.Position.LSN = pglogrepl.LSN(lsn)
	c.TransactionID = uint64(transaction)
	c.CommittedAt, c.QueuedAt, c.CreatedAt = committed.UTC(), queued.UTC(), createdAt.UTC()
	c.Operation = Operation(text(opcode))
	c.PrimaryKey, c.HasKey = text(key), key != nil
	c.PreviousKey, c.KeyChanged = text(previous), previous != nil
	c.Before, c.After = before, after
	c.Environment, c.Defect = text(environment), text(defect)
	c.setContext(stamped)
	return c, nil
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// collect runs a statement on the store and reads all of its rows before it
// returns, so that the connection is free while the caller looks at them. It reads
// the changes that row-level security lets the role see.
func collect[T any](ctx context.Context, c *Client, operation string, b sq.Sqlizer, scan pgx.RowToFunc[T]) ([]T, error) {
	return collectFrom(ctx, c.history.Listings, operation, b, scan)
}

// collectAll is collect for answers that a part of the changes would make wrong:
// if row-level security hides any, it returns [ErrRowSecurity].
func collectAll[T any](ctx context.Context, c *Client, operation string, b sq.Sqlizer, scan pgx.RowToFunc[T]) ([]T, error) {
	return collectFrom(ctx, c.history.Store, operation, b, scan)
}

func collectFrom[T any](ctx context.Context, db capture.Querier, operation string, b sq.Sqlizer, scan pgx.RowToFunc[T]) ([]T, error) {
	statement, args, err := b.ToSql()
	if err != nil {
		return nil, history.OpError(operation, err)
	}
	rows, err := db.Query(ctx, statement, args...)
	if err != nil {
		return nil, history.OpError(operation, err)
	}
	result, err := pgx.CollectRows(rows, scan)
	return result, history.OpError(operation, err)
}
