package auditpgx

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/internal/sqltext"
	"github.com/hindsight-go/audit/internal/stamp"
)

// batch is SendBatch. The stamp goes into the batch before the first write, and
// again before the first one behind a COMMIT.
func (r runner) batch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	texts := make([]sqltext.Text, len(b.QueuedQueries))
	wanted, ending, anew := false, false, false
	for i, query := range b.QueuedQueries {
		if i > 0 && query.SQL == b.QueuedQueries[i-1].SQL {
			texts[i] = texts[i-1] // one statement many times
			continue
		}
		texts[i] = r.s.Parse(query.SQL)
		switch {
		case texts[i].Prepares:
			r.state().names, anew = nil, true
		case stamp.InContext(ctx) && !anew: // else nothing is stamped, or not as it is now
			texts[i] = r.lookUp(ctx, query.SQL, texts[i])
		}
		wanted = wanted || stamp.Wants(ctx, texts[i])
		ending = ending || texts[i].Ends || texts[i].Class == sqltext.Unknown
	}
	var content []byte
	if wanted {
		// What a batch begins by itself it may also end by itself.
		content = r.dueBatch(ctx, texts, ending)
	}
	if ending {
		r.tx.forget()
	}
	if content == nil {
		return &batchResults{runner: r, BatchResults: r.q.SendBatch(ctx, b)}
	}
	s := r.pending(content)
	if s.guarded && !ending && r.state().mode == pgx.QueryExecModeCacheStatement {
		// pgx would prepare the savepoint, and one that was deallocated behind its back
		// takes the transaction with it.
		if err := r.alone(ctx, content); err != nil {
			return pgx.FailedBatchResults(b, err)
		}
		return &batchResults{runner: r, BatchResults: r.q.SendBatch(ctx, b)}
	}
	first := firstStamp(ctx, b, texts)
	if first > 0 && r.status() == 'I' && !r.state().proven {
		// What comes before may be something that cannot be undone and run again, as
		// CREATE INDEX CONCURRENTLY. So whether the server takes stamps is better
		// known before. Alone, one is of no effect.
		if err := r.alone(ctx, content); err != nil {
			return pgx.FailedBatchResults(b, err)
		}
		if r.isRefused() {
			return &batchResults{runner: r, BatchResults: r.q.SendBatch(ctx, b)}
		}
	}
	br := &batchResults{runner: r, ctx: ctx, batch: b, stamps: map[int]*batchStamp{}, forgetful: ending}
	br.restamp = func() *pgx.Batch { return br.stamped(first, texts, s) }
	br.send(br.restamp())
	return br
}

// enterBatch is Enter of a Stamper for a batch.
func enterBatch(ctx context.Context, s *stamp.Stamper, b *pgx.Batch, covered bool) (context.Context, bool) {
	ctx, ok := s.Asked(ctx)
	if ok || covered {
		return ctx, ok
	}
	for _, query := range b.QueuedQueries {
		if stamp.IsWrite(s.Parse(query.SQL)) {
			s.Without(ctx)
			break
		}
	}
	return ctx, false
}

// prepares reports whether a batch prepares statements, or deallocates them.
func prepares(s *stamp.Stamper, b *pgx.Batch) bool {
	for i, query := range b.QueuedQueries {
		if (i == 0 || query.SQL != b.QueuedQueries[i-1].SQL) && s.Parse(query.SQL).Prepares {
			return true
		}
	}
	return false
}

// stamped returns the batch with stamps in it.
func (br *batchResults) stamped(first int, texts []sqltext.Text, s pending) *pgx.Batch {
	stamped := *br.batch // with what BeginTx put in
	stamped.QueuedQueries = make([]*pgx.QueuedQuery, 0, len(br.batch.QueuedQueries)+3)
	due, from := true, 0
	for i, query := range br.batch.QueuedQueries {
		if due && i >= first && (i == first || stamp.Wants(br.ctx, texts[i])) {
			due = false
			here := s
			// A transaction that goes on from before the batch can only be saved by a
			// savepoint, unless there is nothing in it.
			here.guarded = s.status == 'T' && (s.guarded || i > 0)
			queries := br.runner.queries(here)
			br.stamps[len(stamped.QueuedQueries)] = &batchStamp{pending: here, results: len(queries), query: i, from: from}
			stamped.QueuedQueries = append(stamped.QueuedQueries, queries...)
		}
		if texts[i].Class == sqltext.Ends {
			due = true
			if !staysOpen(query.SQL) {
				from, s.status = i+1, 'I'
			}
		}
		stamped.QueuedQueries = append(stamped.QueuedQueries, query)
	}
	return &stamped
}

// staysOpen reports whether after a statement of class Ends there still is a
// transaction: ROLLBACK TO SAVEPOINT, COMMIT AND CHAIN.
func staysOpen(sql string) bool {
	for _, word := range strings.Fields(sql) {
		switch strings.ToUpper(word) {
		case "NO":
			return false
		case "TO", "CHAIN":
			return true
		}
	}
	return false
}

// firstStamp returns before which query the first stamp goes: the very first
// where possible, else the first write.
func firstStamp(ctx context.Context, b *pgx.Batch, texts []sqltext.Text) int {
	for i, c := range texts {
		switch {
		case stamp.Wants(ctx, c):
			return 0
		case !sqltext.IsQuery(b.QueuedQueries[i].SQL):
			// It may begin a transaction, or have to be alone.
			for i < len(texts) && !stamp.Wants(ctx, texts[i]) {
				i++
			}
			return i
		}
	}
	return 0
}

func (r runner) dueBatch(ctx context.Context, texts []sqltext.Text, ending bool) []byte {
	strongest := sqltext.Read
	for _, c := range texts {
		if c.Class == sqltext.Procedure {
			strongest = sqltext.Procedure
		}
		strongest = max(strongest, min(c.Class, sqltext.Write))
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
	stamps    map[int]*batchStamp // by the places of their first results in the batch as sent
	at        int                 // the place of the result that is next
	query     int                 // the query of the caller's batch whose result is next
	forgetful bool                // the batch ends transactions
	restamp   func() *pgx.Batch   // puts the stamps in again; nil once it has
	sent      *pgx.Batch
	err       error // a callback's
	closed    bool
	tx        *Tx
}

func (br *batchResults) send(b *pgx.Batch) {
	br.sent = b
	br.BatchResults = br.runner.q.SendBatch(br.ctx, b)
}

// batchStamp is a stamp in a batch.
type batchStamp struct {
	pending
	results int // how many results it has
	query   int // the query that it goes before
	from    int // the query at which the transaction begins that both are in
}

// skip reads the answers to a stamp that is next.
func (br *batchResults) skip() {
	bs := br.stamps[br.at]
	if bs == nil {
		return
	}
	for range bs.results {
		if _, err := br.BatchResults.Exec(); err != nil {
			br.failed(bs, err)
			return
		}
		delete(br.stamps, br.at)
		br.at++
	}
	br.runner.took(bs.pending)
	if br.forgetful {
		br.runner.tx.forget()
	}
}

// failed sends again without stamps what was undone, if it was the stamp that
// failed. Else the caller meets the error by itself.
func (br *batchResults) failed(bs *batchStamp, err error) {
	if isDeallocated(err) && bs.from == 0 && !bs.guarded && br.restamp != nil {
		br.again(bs)
		return
	}
	br.stamps = nil
	if !br.runner.isRefusal(br.ctx, err) {
		return
	}
	from := bs.from
	if bs.guarded {
		from = bs.query
	}
	again := br.from(from)
	br.dropCallbacks()
	_ = br.BatchResults.Close() // the same
	if br.runner.undo(br.ctx, bs.pending, err) != nil {
		return
	}
	br.send(again)
	br.Tx()
	for range br.query - from {
		if _, err := br.BatchResults.Exec(); err != nil {
			return // the caller meets it
		}
	}
}

// again sends everything again, after the prepared statement of the stamp was found
// to be gone. pgx has forgotten it by then.
func (br *batchResults) again(bs *batchStamp) {
	done := br.query
	br.dropCallbacks()
	_ = br.BatchResults.Close() // what is known
	if br.runner.backOut(br.ctx, bs.pending) != nil {
		br.stamps = nil
		return
	}
	br.batch = br.from(0)
	br.stamps = map[int]*batchStamp{}
	restamp := br.restamp
	br.restamp, br.at, br.query = nil, 0, 0
	br.send(restamp())
	br.Tx()
	for range done {
		if _, err := br.Exec(); err != nil {
			return // the caller meets it
		}
	}
	br.skip()
}

// from returns what is left of the caller's batch from a query on.
func (br *batchResults) from(first int) *pgx.Batch {
	var rest pgx.Batch
	if first == 0 {
		rest = *br.batch // with what BeginTx put in
		rest.QueuedQueries = nil
	}
	for _, q := range br.batch.QueuedQueries[first:] {
		rest.QueuedQueries = append(rest.QueuedQueries, &pgx.QueuedQuery{SQL: q.SQL, Arguments: q.Arguments, Fn: q.Fn})
	}
	return &rest
}

// dropCallbacks keeps pgx from running the callbacks that are left when it is
// closed.
func (br *batchResults) dropCallbacks() {
	for _, query := range br.sent.QueuedQueries {
		query.Fn = nil
	}
}

func (br *batchResults) step() {
	br.skip()
	br.at++
	br.query++
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

// Close runs the callbacks that are left, as pgx does, as long as there are
// answers to stamps among them. After one that fails the others are not run, but
// the server goes on with the batch all the same.
func (br *batchResults) Close() error {
	for !br.closed && len(br.stamps) > 0 && br.query < len(br.batch.QueuedQueries) {
		if fn := br.batch.QueuedQueries[br.query].Fn; fn != nil && br.err == nil {
			br.err = fn(br)
			continue
		}
		if _, err := br.Exec(); err != nil {
			break
		}
	}
	br.closed = true
	if br.err == nil {
		return br.BatchResults.Close()
	}
	br.dropCallbacks()
	_ = br.BatchResults.Close() // pgx gives the callback's as well
	return br.err
}

// Tx returns the transaction that the batch began, which stamps as well.
func (br *batchResults) Tx() pgx.Tx {
	tx := br.BatchResults.Tx()
	switch {
	case tx != nil && br.tx == nil:
		br.tx = wrapTx(tx, br.runner.s)
	case tx != nil:
		br.tx.tx = tx // another one, if the batch was sent again
	case br.tx == nil:
		return nil
	}
	return br.tx
}
