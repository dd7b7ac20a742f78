package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// frameBatch is how many rows of a keyframe go to the server at a time.
const frameBatch = 1000

// FrameWriter stores the rows of a keyframe, in bounded memory. It belongs to one
// goroutine.
type FrameWriter struct {
	ctx   context.Context //nolint:containedctx // of the transaction, which ends with it
	tx    pgx.Tx
	store *Store
	frame int64

	ordinal int64 // the last one given
	rows    int64 // stored, but for those that stand for no row
	gone    bool  // some do
	write   []FrameRow
	unless  []FrameRow
}

// Write stores a row. One without an image stands for none: it keeps out what
// WriteUnlessThere has of its key.
func (w *FrameWriter) Write(row FrameRow) error {
	if row.Image == nil {
		row.Image, w.gone = []byte("null"), true
	} else {
		w.rows++
	}
	if w.write = append(w.write, row); len(w.write) < frameBatch {
		return nil
	}
	return w.flush()
}

// WriteUnlessThere stores a row if none of its key was written with Write.
func (w *FrameWriter) WriteUnlessThere(row FrameRow) error {
	if w.unless = append(w.unless, row); len(w.unless) < frameBatch {
		return nil
	}
	return w.flushUnless()
}

func (w *FrameWriter) flush() error {
	begin := w.ordinal
	_, err := w.tx.CopyFrom(w.ctx, pgx.Identifier{w.store.name, "keyframe_rows"}, frameColumns, pgx.CopyFromSlice(len(w.write), func(i int) ([]any, error) {
		return w.write[i].values(w.frame, begin+int64(i)+1), nil
	}))
	if err != nil {
		return fmt.Errorf("store keyframe: %w", err)
	}
	w.ordinal += int64(len(w.write))
	w.write = w.write[:0]
	return nil
}

// flushUnless stores those of the rows whose keys are not there.
func (w *FrameWriter) flushUnless() error {
	if err := w.flush(); err != nil {
		return err
	}
	keys := make([]string, len(w.unless))
	for i, row := range w.unless {
		keys[i] = row.Key
	}
	// One look into the index for each key, whatever the planner thinks of a table that
	// nobody has analysed.
	rows, err := w.tx.Query(w.ctx, `
		SELECT k.key
		FROM pg_catalog.unnest($2::text[]) k (key)
		CROSS JOIN LATERAL (SELECT FROM `+w.store.schema+`.keyframe_rows r WHERE r.keyframe = $1 AND r.primary_key = k.key LIMIT 1) there`, w.frame, keys)
	if err != nil {
		return fmt.Errorf("look for rows of keyframe: %w", err)
	}
	there := make(map[string]struct{})
	var key string
	if _, err := pgx.ForEachRow(rows, []any{&key}, func() error {
		there[key] = struct{}{}
		return nil
	}); err != nil {
		return fmt.Errorf("look for rows of keyframe: %w", err)
	}
	for _, row := range w.unless {
		if _, ok := there[row.Key]; !ok {
			w.write = append(w.write, row)
			w.rows++
		}
	}
	w.unless = w.unless[:0]
	return w.flush()
}

// finish stores what is left, and removes what stands for no row.
func (w *FrameWriter) finish() error {
	if err := w.flushUnless(); err != nil {
		return err
	}
	if !w.gone {
		return nil
	}
	_, err := w.tx.Exec(w.ctx, `SELECT `+w.store.schema+`.clear_keyframe($1, true)`, w.frame)
	return err
}
