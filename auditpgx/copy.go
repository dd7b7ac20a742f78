package auditpgx

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/sqltext"
)

// cleanupTimeout bounds the ROLLBACK after a ctx has ended.
const cleanupTimeout = 5 * time.Second

// copyFrom is CopyFrom. pgx makes the COPY by itself, so there is no putting a
// stamp in front of it: outside a transaction one has to be made.
func (r runner) copyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error) {
	content := r.dueAnyway(ctx, sqltext.Write)
	if content == nil {
		return r.q.CopyFrom(ctx, table, columns, rows)
	}
	if r.status() == 'T' {
		if err := r.alone(ctx, content); err != nil {
			return 0, err
		}
		return r.q.CopyFrom(ctx, table, columns, rows)
	}
	s := r.pending(content)
	if _, err := r.q.Exec(ctx, "BEGIN;"+r.s.Text(s.content)); err != nil {
		if !r.isRefusal(ctx, err) {
			r.rollback(ctx)
			return 0, err
		}
		if err := r.undo(ctx, s, err); err != nil {
			return 0, err
		}
		return r.q.CopyFrom(ctx, table, columns, rows)
	}
	n, err := r.q.CopyFrom(ctx, table, columns, rows)
	if err != nil {
		r.rollback(ctx)
		return n, err
	}
	if _, err := r.q.Exec(ctx, "COMMIT"); err != nil {
		r.rollback(ctx)
		return 0, err
	}
	r.took(s)
	return n, nil
}

// rollback ends a transaction of our own making.
func (r runner) rollback(ctx context.Context) {
	conn := r.q.Conn()
	if conn.IsClosed() || r.status() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if _, err := conn.Exec(ctx, "ROLLBACK"); err != nil {
		_ = conn.Close(ctx)
	}
}
