package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hindsight-go/audit/internal/wal"
)

// How the writer batches. Small batches cost a commit each, large ones memory
// and latency; between 5,000 and 20,000 rows throughput is flat.
const (
	chunkSize    = 256 << 10 // a COPY message; the store works while the next is built
	chunks       = 16        // in flight at most, and
	inFlight     = 4 << 20   // no more than one chunk beyond so many bytes, since a row can be large
	batchSQL     = 1 << 20   // statements that a batch holds for its end
	batchRows    = 20_000
	batchBytes   = 16 << 20
	batchAge     = 200 * time.Millisecond
	fixupsPerRun = 256

	// idleStride is how far the checkpoint may fall behind a source whose writes
	// do not concern us. Less would make a store in the same database chase its
	// own writes; more would hold back WAL.
	idleStride = 1 << 20
	// When the writes end, what is left behind them would hold back WAL for good:
	// the source is followed a few more times, which covers the record of running
	// transactions that the server lets go of its WAL by.
	idleNudge  = 10 * time.Second
	idleNudges = 3

	// One commit_times row for so many changes or so much time.
	commitTimesRows = 1000
	commitTimesAge  = int64(100 * time.Millisecond / time.Microsecond)
)

// Caution says how carefully a writer works after the store refused data.
type Caution int

// The levels of caution. They rise only as far as needed, and only for the
// transactions that were refused.
const (
	CautionNone    Caution = iota
	CautionIsolate         // every source transaction in a store transaction of its own
	CautionText            // images hold plain strings but for numbers and booleans
	CautionContext         // the context is left out, which the defect says; images are as usual
	CautionBare            // images are left out as well
)

// WriterConfig configures a Writer.
type WriterConfig struct {
	// Database is the name of the source database, the key of its checkpoint.
	Database string
	// Environment is recorded with every change; empty is NULL.
	Environment string
	// MaxContext is the size in bytes over which a context is cut down.
	MaxContext int
	// MaxRow is how many bytes of text one image holds, and at most MaxImage, the
	// default.
	MaxRow int
	// DigestKey is the key of the digests that are stored in the place of values.
	DigestKey []byte
	// Caution applies to transactions up to CautionUntil.
	Caution      Caution
	CautionUntil wal.LSN
	// Progress, if set, is called from the writer's own goroutine after a batch
	// was stored, and after the writer failed. It must not block.
	Progress func()
	// Stored, if set, is called from the writer's own goroutine for every batch.
	Stored func(Batch)
	// Failed, if set, is called from the writer's own goroutine for the batch that could
	// not be stored, with what is known of it, and why. The writer has failed then.
	Failed func(Batch, error)
}

// Batch describes one store transaction.
type Batch struct {
	To       wal.LSN
	Changes  int64
	Bytes    int64
	Duration time.Duration // from the first byte sent to the commit
	// Committed is the latest commit time among the batch's transactions.
	Committed time.Time
	// Barriers are the messages of Sync in it.
	Barriers []Barrier
}

// RefusedError is returned when the store refused the data of a batch, and not
// the connection or the checkpoint: the writer should be opened again with more
// caution up to To.
type RefusedError struct {
	From, To wal.LSN
	Caution  Caution
	Cause    error
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("store refused the changes between %s and %s: %v", e.From, e.To, e.Cause)
}

func (e *RefusedError) Unwrap() error { return e.Cause }

// RetryAtOnce reports whether there is more caution to try, so that waiting would only
// hold up what comes behind.
func (e *RefusedError) RetryAtOnce() bool { return e.Caution < CautionBare }

// ErrFenced is returned when another instance of the program has taken over the
// source, so that this writer may not write any more.
var ErrFenced = errors.New("store: another instance has taken over")

// Writer appends changes to the history, exactly once and in order.
//
// Begin, Relation, Stamp, Row, Commit, Advance, Flush and Full are called by one
// goroutine; they encode and never wait for the store. A second goroutine, the
// writer's own, sends what was encoded. Rows stream to the store as they come,
// so a transaction of any size is held in a bounded number of chunks; a store
// transaction ends only where a source transaction does, and moves the
// checkpoint to exactly there.
type Writer struct {
	cfg    WriterConfig
	conn   *copyConn
	store  *Store
	schema string
	epoch  int64

	// Owned by the encoding goroutine.
	enc   encoder
	plans map[uint32]*relationPlan
	last  *relationPlan
	// characters beyond ASCII that the store can hold; nil if that is all, or unknown
	characters map[rune]bool
	buf        []byte // the chunk being filled; nil while none is free
	tx         openTransaction
	batch      openBatch
	from       wal.LSN // the checkpoint before the open batch
	parts      partitions
	timesAt    int64 // read time of the last commit_times row
	timesN     int64
	sealed     time.Time // when the last batch ended
	swept      time.Time // when old barriers were removed
	nudges     int       // batches without a change of their own since
	back       int64     // how far the source's clock is known to have gone back

	work chan step
	free chan []byte

	pending atomic.Int64 // steps not finished
	unsent  atomic.Int64 // bytes of steps not sent
	durable atomic.Uint64

	mu   sync.Mutex
	err  error // guarded by mu: why the writer stopped
	done chan struct{}
}

// openTransaction is the source transaction being read.
type openTransaction struct {
	open     bool
	head     wal.Transaction
	prefix   []byte // its constant fields
	sequence int32
	stamp    stampField
	stamped  bool
	repeated int    // bytes of contexts that its rows are stored with
	content  []byte // the stamp's, if it is long
	force    bool   // a barrier: store the checkpoint even without rows
}

// openBatch is the store transaction being built.
type openBatch struct {
	to        wal.LSN
	rows      int64
	bytes     int64
	dirty     bool // has something that must be stored
	started   time.Time
	committed int64   // running maximum of commit times
	position  wal.LSN // commit LSN of the last transaction with rows, or of a barrier
	forced    bool    // there was a barrier
	barriers  []Barrier
	sql       []string
	sqlBytes  int
	fixups    []string
}

// step is one thing for the writer's goroutine to do.
type step struct {
	data   []byte // a CopyData message with its header
	middle []string
	seal   *seal
	size   int64 // bytes that it holds on to
	make   int64 // the commit time a partition is needed for, if not zero
}

type seal struct {
	from, to  wal.LSN
	rows      int64
	bytes     int64
	committed int64
	caution   Caution
	sql       []string
	barriers  []Barrier
}

const noTime = -1 << 62

const (
	// longContext is from which size on a context counts.
	longContext = 1 << 10
	// contextBudget is how many contexts of the largest size the rows of one transaction
	// are stored with; then long ones are cut down to their short members. Whoever stamps
	// a context once makes it be stored with every row.
	contextBudget = 64
)

// Close stops the writer at once. What was not stored will be read again.
func (w *Writer) Close() {
	w.fail(errClosed)
	w.conn.abort()
	<-w.done
}

// Err returns why the writer stopped, or nil.
func (w *Writer) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// Durable returns the position up to which the store holds everything: the slot
// may be confirmed up to there.
func (w *Writer) Durable() wal.LSN { return wal.LSN(w.durable.Load()) }

// Idle reports whether everything handed to the store is stored.
func (w *Writer) Idle() bool { return w.pending.Load() == 0 }

// Full reports whether nothing more should be passed until Progress was called: the
// store is behind, and the chunks are all in flight.
func (w *Writer) Full() bool {
	if w.unsent.Load() > inFlight {
		return true
	}
	if w.buf == nil {
		select {
		case w.buf = <-w.free:
		default:
			return true
		}
	}
	return len(w.work) >= cap(w.work)-4
}

// Begin opens a source transaction.
func (w *Writer) Begin(head wal.Transaction) {
	if !w.parts.covers(head.CommitTime) {
		// The COPY in progress would not see a partition made meanwhile.
		w.seal()
		w.submit(step{make: head.CommitTime})
		w.parts = partitionOf(head.CommitTime)
	}
	level := CautionNone
	if head.CommitLSN < w.cfg.CautionUntil {
		level = w.cfg.Caution
	}
	if level != w.enc.caution {
		w.setCaution(level)
	}
	p := w.tx.prefix[:0]
	p = append(p, 0, copyFields)
	p = appendInt64Field(p, uint64(head.CommitLSN))
	p = appendInt64Field(p, uint64(head.CommitTime))
	p = appendInt64Field(p, head.XID)
	p = appendInt64Field(p, uint64(head.ReadTime))
	p = appendField(p, w.cfg.Database)
	if w.cfg.Environment == "" {
		p = appendNull(p)
	} else {
		p = appendField(p, w.cfg.Environment)
	}
	w.tx = openTransaction{open: true, head: head, prefix: p, stamp: stampField{field: nullField}}
}

var nullField = appendNull(nil)

func (w *Writer) setCaution(level Caution) {
	w.enc.caution = level
	for oid, p := range w.plans {
		w.plans[oid] = newRelationPlan(p.relation, p.key, level)
	}
	w.last = nil
}

// Structure records a version of a table. It is called inside a transaction, at
// its place among the rows.
func (w *Writer) Structure(v *wal.Structure) {
	w.batch.sql = append(w.batch.sql, insertStructure(w.schema, w.cfg.Database, v, w.tx.head.CommitLSN, w.tx.sequence))
	w.batch.dirty = true
}

// Relation makes known how the rows of a table are to be written. It is called
// inside a transaction, before the first row of that version.
func (w *Writer) Relation(rel *wal.Relation) {
	w.plans[rel.OID] = newRelationPlan(rel, rel.Key, w.enc.caution)
	w.last = nil
}

// Stamp sets the context of the rows that follow in the open transaction, and of
// those before it if it is the transaction's first.
//
// Of a context of a larger size than content, content is the beginning.
func (w *Writer) Stamp(content []byte, size int) {
	if !w.tx.open {
		return
	}
	if w.enc.literal {
		before := len(content)
		content = withoutEscapes(content)
		size -= before - len(content)
	}
	lacking := 0
	if w.characters != nil {
		before := len(content)
		content, lacking = replaceLacking(withoutEscapes(content), w.characters)
		size -= before - len(content)
	}
	stamp := newStampField(content, size, w.cfg.MaxContext)
	if lacking > 0 && stamp.defect == "" {
		stamp.defect = "context: " + strconv.Itoa(lacking) + " characters that the store's encoding lacks are question marks"
	}
	if w.enc.caution >= CautionContext {
		stamp = stampField{field: appendNull(nil), defect: "context of " + strconv.Itoa(size) + " bytes left out: the store refused it"}
	}
	long := stamp.defect == "" && len(stamp.field) > longContext
	if !w.tx.stamped && w.tx.sequence > 0 {
		whole := int(w.tx.sequence)
		if long {
			whole = min(whole, contextBudget*w.cfg.MaxContext/len(content))
			w.tx.repeated += whole * len(content)
		}
		w.restamp(stamp, whole)
		if whole < int(w.tx.sequence) {
			w.restamp(trimContext(content, len(content)), int(w.tx.sequence))
		}
	}
	w.tx.stamp, w.tx.stamped, w.tx.content = stamp, true, nil
	if long {
		w.tx.content = bytes.Clone(content)
	}
}

// restamp gives the rows before the transaction's first stamp that stamp, through one
// of them, if they have none. They may be on their way already, so the store is told to
// update them before it commits: a stamp that comes after the write is the rare case.
func (w *Writer) restamp(stamp stampField, through int) {
	value := "NULL"
	if text := stamp.field[4:]; len(text) > 0 {
		value = quoteLiteral(string(text[1:])) + "::jsonb"
	}
	defect := "NULL"
	if stamp.defect != "" {
		defect = quoteLiteral(stamp.defect)
	}
	w.later(fmt.Sprintf(
		"SELECT %s.restamp(%s, '%s', %d, %s, %s, %s)",
		w.schema, quoteLiteral(w.cfg.Database), w.tx.head.CommitLSN, through, timeLiteral(w.tx.head.CommitTime), value, defect))
}

// Barrier makes the open transaction move the stored checkpoint even if it has
// no rows. Whoever waits knows it by its nonce, which a stranger's need not have.
func (w *Writer) Barrier(nonce string) {
	w.tx.force = true
	if !IsNonce(nonce) {
		return
	}
	w.batch.barriers = append(w.batch.barriers, Barrier{Nonce: nonce, Position: w.tx.head.CommitLSN})
	w.later(fmt.Sprintf("INSERT INTO %s.barriers (database, nonce, position) VALUES (%s, '%s', '%s') ON CONFLICT DO NOTHING",
		w.schema, quoteLiteral(w.cfg.Database), nonce, w.tx.head.CommitLSN))
	if now := time.Now(); now.Sub(w.swept) > barrierAge/10 {
		w.swept = now
		w.later("SELECT " + w.schema + ".sweep_barriers()")
	}
}

// Row appends a change to the open transaction.
func (w *Writer) Row(r *wal.Row) {
	plan := w.last
	if plan == nil || plan.relation != r.Relation {
		plan = w.plans[r.Relation.OID]
		if plan == nil || plan.relation != r.Relation {
			plan = newRelationPlan(r.Relation, r.Relation.Key, w.enc.caution)
			w.plans[r.Relation.OID] = plan
		}
		w.last = plan
	}
	if w.batch.rows == 0 {
		w.batch.started = time.Now()
	}
	w.tx.sequence++
	if w.tx.content != nil {
		if w.tx.repeated += len(w.tx.content); w.tx.repeated > contextBudget*w.cfg.MaxContext {
			w.tx.stamp, w.tx.content = trimContext(w.tx.content, len(w.tx.content)), nil
		}
	}
	w.batch.rows++
	w.batch.dirty = true
	if len(w.buf) == 0 {
		w.buf = append(w.buf, 'd', 0, 0, 0, 0)
	}
	w.buf = w.enc.row(w.buf, w.tx.prefix, plan, r, w.tx.sequence, &w.tx.stamp)
	if r.Operation == wal.Update || r.Operation == wal.Delete {
		if columns, incomplete := missing(r); incomplete {
			w.complete(columns)
		}
	}
	if len(w.buf) >= chunkSize {
		w.push()
	}
}

// complete asks the store to fill in what the stream left out of the last row,
// from the last stored image of the same row.
func (w *Writer) complete(columns []string) {
	w.batch.fixups = append(w.batch.fixups, fmt.Sprintf("SELECT %s.complete(%s, '%s', %d, %s, %s)",
		w.schema, quoteLiteral(w.cfg.Database), w.tx.head.CommitLSN, w.tx.sequence, timeLiteral(w.tx.head.CommitTime), arrayLiteral(columns)))
	if len(w.batch.fixups) >= fixupsPerRun {
		// The COPY has to end before its rows can be read: bounded memory is worth it.
		w.push()
		w.submit(step{middle: w.batch.fixups})
		w.batch.fixups = nil
	}
}

// push hands the chunk over.
func (w *Writer) push() {
	if len(w.buf) == 0 {
		return
	}
	binary.BigEndian.PutUint32(w.buf[1:], uint32(len(w.buf)-1))
	w.batch.bytes += int64(len(w.buf))
	w.submit(step{data: w.buf, size: int64(cap(w.buf))})
	w.buf = nil
	w.Full() // takes the next free chunk, if there is one
}

// later adds a statement that is run when the rows before it are there: at the end
// of the batch, or when there are many of them.
func (w *Writer) later(sql string) {
	w.batch.sql = append(w.batch.sql, sql)
	w.batch.dirty = true
	if w.batch.sqlBytes += len(sql); w.batch.sqlBytes >= batchSQL {
		w.push()
		w.submit(step{middle: append(w.batch.fixups, w.batch.sql...), size: int64(w.batch.sqlBytes)})
		w.batch.fixups, w.batch.sql, w.batch.sqlBytes = nil, nil, 0
	}
}

func (w *Writer) submit(s step) {
	w.pending.Add(1)
	w.unsent.Add(s.size)
	select {
	case w.work <- s:
	case <-w.done:
	}
}

// Commit ends the open transaction. end is its end LSN: the position from which
// the stream has to go on after it.
func (w *Writer) Commit(end wal.LSN) {
	w.batch.to = end
	if w.tx.sequence > 0 || w.tx.force {
		w.noteClock()
	}
	if w.tx.sequence > 0 {
		w.batch.position = w.tx.head.CommitLSN
		w.raiseClock()
	}
	if w.tx.force {
		// It also says that everything that comes behind it is later: by this, a
		// time up to now maps to one position for good.
		w.batch.position, w.batch.forced = w.tx.head.CommitLSN, true
		w.raiseClock()
		w.batch.dirty = true
	}
	w.tx.open = false
	if w.batch.dirty && (w.enc.caution != CautionNone || w.batch.rows >= batchRows || w.batch.bytes+int64(len(w.buf)) >= batchBytes ||
		w.batch.rows > 0 && time.Since(w.batch.started) > batchAge) {
		w.seal()
	}
}

// raiseClock follows the running maximum of commit times.
func (w *Writer) raiseClock() {
	if w.tx.head.CommitTime > w.batch.committed {
		w.batch.committed, w.back = w.tx.head.CommitTime, 0
	}
}

// clockSkew is how much commit times may run backwards under concurrency before
// it was the clock.
const clockSkew = int64(time.Second / time.Microsecond)

// noteClock records that the source's clock was ahead for a while: the commit times
// until then say nothing of the times in between.
func (w *Writer) noteClock() {
	ahead, now := w.batch.committed, w.tx.head.CommitTime
	if ahead == noTime || now >= ahead-clockSkew || w.back != 0 && now >= w.back {
		return
	}
	w.back = now
	w.batch.sql = append(w.batch.sql, fmt.Sprintf(
		"SELECT %s.note_jump(%s, %s, %s, '%s')",
		w.schema, quoteLiteral(w.cfg.Database), timeLiteral(ahead), timeLiteral(now), w.tx.head.CommitLSN))
}

// Advance says that the source has nothing for us before lsn. It is called only
// between transactions.
func (w *Writer) Advance(lsn wal.LSN) {
	if w.tx.open || lsn <= w.batch.to {
		return
	}
	w.batch.to = lsn
	behind := lsn - w.from
	switch {
	case behind >= idleStride:
		w.batch.dirty, w.nudges = true, 0
	case behind > 0 && w.nudges < idleNudges && time.Since(w.sealed) > idleNudge:
		w.batch.dirty = true
		w.nudges++
	}
}

// Flush says that the input has run dry: if the store is idle, what there is is
// stored now.
func (w *Writer) Flush() {
	if w.batch.dirty && !w.tx.open && w.Idle() {
		w.seal()
	}
}

// Finish hands over everything up to the last whole transaction, progress
// included, and then says when the store has it by calling Progress: Idle is
// true and Err nil.
func (w *Writer) Finish() {
	if w.tx.open {
		return
	}
	if w.batch.to > w.from {
		w.batch.dirty = true
	}
	if w.batch.dirty {
		w.seal()
	}
}

// seal ends the batch.
func (w *Writer) seal() {
	if !w.batch.dirty {
		return
	}
	w.push()
	b := &w.batch
	s := &seal{from: w.from, to: b.to, rows: b.rows, bytes: b.bytes, committed: b.committed, caution: w.enc.caution, barriers: b.barriers}
	s.sql = append(b.fixups, b.sql...)
	if b.rows > 0 || b.forced {
		w.timesN += b.rows
		if now := wal.Microseconds(time.Now()); b.forced || w.timesN >= commitTimesRows || now-w.timesAt >= commitTimesAge {
			s.sql = append(s.sql, fmt.Sprintf("SELECT %s.note_time(%s, '%s', %s)",
				w.schema, quoteLiteral(w.cfg.Database), b.position, timeLiteral(b.committed)))
			w.timesAt, w.timesN = now, 0
		}
	}
	if b.rows > 0 {
		w.nudges = 0
	}
	w.sealed = time.Now()
	w.from = b.to
	w.batch = openBatch{to: b.to, committed: b.committed}
	w.submit(step{seal: s})
}
