package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/internal/wal"
)

// run is the writer's own goroutine: it sends what was encoded and waits for the
// store to have it.
func (w *Writer) run() {
	defer close(w.done)
	for {
		select {
		case s := <-w.work:
			err := w.execute(s)
			w.unsent.Add(-s.size)
			if err != nil {
				if s.seal == nil {
					err = w.orFenced(fmt.Errorf("store changes: %w", err))
				}
				w.fail(err)
				if w.cfg.Failed != nil {
					w.cfg.Failed(w.attempted(s), err)
				}
				w.conn.abort()
				if w.cfg.Progress != nil {
					w.cfg.Progress()
				}
				return
			}
			w.pending.Add(-1)
			if w.cfg.Progress != nil {
				w.cfg.Progress()
			}
		case <-w.conn.aborted:
			w.fail(errClosed)
			return
		}
	}
}

// attempted is what is known of the batch that a step was of. Only the last step of a batch
// knows how large it is.
func (w *Writer) attempted(s step) (b Batch) {
	if s.seal != nil {
		b = Batch{To: s.seal.to, Changes: s.seal.rows, Bytes: s.seal.bytes}
	}
	if w.conn.open {
		b.Duration = time.Since(w.conn.begun)
	}
	return b
}

func (w *Writer) execute(s step) error {
	switch {
	case s.make != 0:
		return w.conn.run(fmt.Sprintf("SELECT %s.ensure_partition(%s)", w.schema, timeLiteral(s.make)))
	case s.data != nil:
		err := w.conn.copyData(s.data)
		if cap(s.data) > 4*chunkSize { // a giant row: its memory is not kept
			s.data = make([]byte, 0, chunkSize+chunkSize/4)
		}
		w.free <- s.data[:0]
		return err
	case s.middle != nil:
		return w.conn.between(strings.Join(s.middle, ";\n"))
	}
	return w.commit(s.seal)
}

// commit ends the store transaction. The rows and the checkpoint become durable
// together or not at all: advance raises unless the checkpoint is where this
// writer left it, and then there is no COMMIT.
func (w *Writer) commit(s *seal) error {
	var q strings.Builder
	for _, statement := range s.sql {
		q.WriteString(statement)
		q.WriteString(";\n")
	}
	through := "NULL"
	if s.committed != noTime {
		through = timeLiteral(s.committed)
	}
	fmt.Fprintf(&q, "SELECT %s.advance(%s, %d, '%s', '%s', %s, %d);\nCOMMIT",
		w.schema, quoteLiteral(w.cfg.Database), w.epoch, s.from, s.to, through, s.rows)
	begun, err := w.conn.commit(q.String())
	if err != nil {
		return w.explain(s, err)
	}
	w.durable.Store(uint64(s.to))
	if w.cfg.Stored != nil {
		b := Batch{To: s.to, Changes: s.rows, Bytes: s.bytes, Duration: time.Since(begun), Barriers: s.barriers}
		if s.committed != noTime {
			b.Committed = wal.Time(s.committed)
		}
		w.cfg.Stored(b)
	}
	return nil
}

func (w *Writer) explain(s *seal, err error) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return w.orFenced(fmt.Errorf("store changes: %w", err))
	}
	switch class := pgErr.Code[:min(2, len(pgErr.Code))]; {
	case pgErr.Code == "AU001":
		return fmt.Errorf("%w: %w", ErrFenced, err)
	case (class == "22" || class == "54" || class == "0A") && s.rows > 0:
		// 0A000 is what jsonb says of an escape that the encoding has no character for.
		return &RefusedError{From: s.from, To: s.to, Caution: s.caution, Cause: redact(pgErr)}
	}
	return fmt.Errorf("store changes: %w", redact(pgErr))
}

// orFenced tells a connection that was cut by whoever took over from one that
// broke.
func (w *Writer) orFenced(err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if c, readErr := w.store.Checkpoint(ctx, w.cfg.Database); readErr == nil && c.Epoch != w.epoch {
		return fmt.Errorf("%w: %w", ErrFenced, err)
	}
	return err
}

// redact drops what of a server error may quote a row: COPY puts values into
// the context, constraints into the detail.
func redact(e *pgconn.PgError) *pgconn.PgError {
	c := *e
	c.Detail, c.Where = "", ""
	if strings.HasPrefix(c.Code, "22") {
		c.Message = "invalid value (its text is not shown)"
	}
	return &c
}

func (w *Writer) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
}

// Wait returns when everything handed over is stored, the writer failed, or ctx
// ended.
func (w *Writer) Wait(ctx context.Context, progress <-chan struct{}) error {
	for !w.Idle() {
		if err := w.Err(); err != nil {
			return err
		}
		select {
		case <-progress:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return w.Err()
}
