package auditpgx

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// sendBatch is SendBatch.
func (r runner) sendBatch2(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	return nil
}

var _ = errors.New
var _ pgconn.CommandTag
