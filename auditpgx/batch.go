package auditpgx

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// batch is SendBatch. The stamp goes into the batch before the first write, and
// again before the first one behind a COMMIT.
func (r runner) batch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	classes := make([]class, len(b.QueuedQueries))
	wanted, ending := false, false
	for i, query := range b.QueuedQueries {
		if i > 0 && query.SQL == b.QueuedQueries[i-1].SQL {
			classes[i] = classes[i-1] // one statement many times
			continue
		}
		classes[i] = classify(query.SQL)
		wanted = wanted || wants(ctx, classes[i])
		ending = ending || endsTransaction(query.SQL)
	}
	var content []byte
	if wanted {
		// What a batch begins by itself it may also end by itself.
		content = r.dueBatch(ctx, classes, ending)
	}
	if ending {
		r.tx.forget()
	}
	if content == nil {
		return &batchResults{runner: r, BatchResults: r.q.SendBatch(ctx, b)}
	}
	s := r.stamp(content)
	br := &batchResults{runner: r, ctx: ctx, batch: b, stamp: s, stamps: map[int]bool{}, forgetful: ending}
	stamped := *b // with what BeginTx put in
	stamped.QueuedQueries = make([]*pgx.QueuedQuery, 0, len(b.QueuedQueries)+3)
	due := true
	first := firstStamp(ctx, b, classes)
	if first > 0 && !r.state().proven {
		// Results that the caller has read cannot be taken back, so a refusal has
		// to be known before. Alone, the stamp is of no effect.
		if err := r.alone(ctx, content); err != nil {
			return pgx.FailedBatchResults(b, err)
		}
		if r.state().refused {
			return &batchResults{runner: r, BatchResults: r.q.SendBatch(ctx, b)}
		}
	}
	for i, query := range b.QueuedQueries {
		if due && i >= first && (i == first || wants(ctx, classes[i])) {
			for _, q := range r.queries(s) {
				br.stamps[len(stamped.QueuedQueries)] = true
				stamped.QueuedQueries = append(stamped.QueuedQueries, q)
			}
			s.guarded = false // the first one proves it
			due = false
		}
		due = due || classes[i] == ends
		stamped.QueuedQueries = append(stamped.QueuedQueries, query)
	}
	br.BatchResults = r.q.SendBatch(ctx, &stamped)
	return br
}

// firstStamp returns before which query the first stamp goes: the very first
// where possible, else the first write.
func firstStamp(ctx context.Context, b *pgx.Batch, classes []class) int {
	for i, c := range classes {
		switch {
		case wants(ctx, c):
			return 0
		case !isQuery(b.QueuedQueries[i].SQL):
			// It may begin a transaction, or have to be alone.
			for i < len(classes) && !wants(ctx, classes[i]) {
				i++
			}
			return i
		}
	}
	return 0
}

// isQuery reports whether a statement is a query, which can follow a stamp.
func isQuery(sql string) bool {
	w := words{text: sql}
	for {
		kind, text := w.next()
		switch {
		case kind == mark && text == "(":
		case kind == word:
			switch keyword(text) {
			case "SELECT", "VALUES", "TABLE", "WITH", "SHOW":
				return true
			}
			return false
		default:
			return false
		}
	}
}

func (r runner) dueBatch(ctx context.Context, classes []class, ending bool) []byte {
	strongest := read
	for _, c := range classes {
		if c == procedure {
			strongest = c
		}
		strongest = max(strongest, min(c, write))
	}
	if ending {
		r.tx = nil // what it holds may be gone by then
	}
	return r.dueAnyway(ctx, strongest)
}

// batchResults are the results of a batch without those of its stamps.
type batchResults struct {
	pgx.BatchResults
	runner runner

	// What follows is zero if there are no stamps.
	ctx       context.Context //nolint:containedctx // the batch's, for sending it again
	batch     *pgx.Batch
	stamp     stamp
	stamps    map[int]bool // the places of stamps in the batch as sent
	at        int          // the place of the result that is next
	seen      bool         // whether the caller had a result
	forgetful bool         // the batch ends transactions
	tx        *Tx
}

// skip reads the answers to stamps that are next.
func (br *batchResults) skip() {
	for br.stamps[br.at] {
		_, err := br.BatchResults.Exec()
		if err != nil {
			br.failed(err)
			return
		}
		br.at++
		if !br.stamps[br.at] {
			s := br.stamp
			br.runner.took(s)
			if br.forgetful {
				br.runner.tx.forget()
			}
		}
	}
}

// failed runs the batch again without stamps if it was the stamp that failed.
// Nothing of it has happened then.
func (br *batchResults) failed(err error) {
	if br.seen || !br.runner.isRefusal(br.ctx, err) {
		br.stamps = nil // the caller meets the error by itself
		return
	}
	br.stamps = nil
	_ = br.BatchResults.Close() // the same
	if br.runner.undo(br.ctx, br.stamp, err) != nil {
		return
	}
	again := *br.batch
	again.QueuedQueries = nil
	for _, q := range br.batch.QueuedQueries {
		again.QueuedQueries = append(again.QueuedQueries, &pgx.QueuedQuery{SQL: q.SQL, Arguments: q.Arguments, Fn: q.Fn})
	}
	br.BatchResults = br.runner.q.SendBatch(br.ctx, &again)
}

func (br *batchResults) step() {
	br.skip()
	br.at++
	br.seen = true
}

func (br *batchResults) Exec() (pgconn.CommandTag, error) {
	br.step()
	return br.BatchResults.Exec()
}

func (br *batchResults) Query() (pgx.Rows, error) {
	br.step()
	return br.BatchResults.Query()
}

func (br *batchResults) QueryRow() pgx.Row {
	br.step()
	return br.BatchResults.QueryRow()
}

func (br *batchResults) Close() error {
	br.skip()
	br.stamps = nil
	return br.BatchResults.Close()
}

// Tx returns the transaction that the batch began, which stamps as well.
func (br *batchResults) Tx() pgx.Tx {
	tx := br.BatchResults.Tx()
	if tx == nil {
		return nil
	}
	if br.tx == nil || br.tx.tx != tx {
		br.tx = wrapTx(tx, br.runner.s)
	}
	return br.tx
}
