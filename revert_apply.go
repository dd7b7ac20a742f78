package audit

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// Result is what a revert did.
type Result struct {
	// ID is the revert's own id: what [Redo] and [Query.InRevert] take. It is empty
	// if nothing was done.
	ID string `json:"id,omitempty"`
	// Of is what was reverted.
	Of Unit `json:"of"`
	// Plan is what was carried out, row by row.
	Plan *Plan `json:"plan,omitempty"`
	// Inserted, Updated and Deleted count the rows that were put back, restored and
	// removed. Unchanged counts those that were already as they should be, Skipped
	// those that the policy left alone.
	Inserted  int `json:"inserted"`
	Updated   int `json:"updated"`
	Deleted   int `json:"deleted"`
	Unchanged int `json:"unchanged"`
	Skipped   int `json:"skipped"`
	// Adjusted lists rows in which a trigger of the application has put something
	// else than what was restored, such as the time of the update, or which it kept
	// from being put back or removed at all.
	Adjusted []AdjustedRow `json:"adjusted,omitempty"`
	// TransactionID is the 64-bit id of the revert's transaction.
	TransactionID uint64 `json:"transactionId"`
	// Token stands for the revert in [Client.WaitFor]: when that returns, history
	// has it. It is empty if nothing was committed, also from ApplyTx.
	Token Token `json:"token,omitempty"`
	// Already is the revert that did the same before, in which case this one did
	// nothing.
	Already *PastRevert `json:"already,omitempty"`
	// DryRun reports whether it was all rolled back.
	DryRun bool `json:"dryRun,omitzero"`
}

// AdjustedRow is a row that a trigger has changed while it was restored.
type AdjustedRow struct {
	RowRef
	Columns []string `json:"columns"`
}

// ApplyTx carries the revert out in the caller's transaction, as the caller's
// role, and leaves it to the caller to commit. Rows are locked until then, and the
// constraints that can be deferred are checked before ApplyTx returns.
//
// What the caller wrote before and writes after keeps its own context, as far as
// ctx carries one. A ConflictError or StaleError leaves the transaction usable, with
// nothing written; after an ApplyError, treat it as aborted, as after any error of a
// statement.
func (r Reversal) ApplyTx(ctx context.Context, tx pgx.Tx) (*Result, error) {
	client, err := r.ready()
	if err != nil {
		return nil, err
	}
	return client.applyRevertIn(ctx, tx, r, nil)
}

// errRollback ends the transaction of a dry run.
var errRollback = errors.New("dry run")

// applyRevert carries out a plan, or makes one first, in a transaction of its own.
func (c *Client) applyRevert(ctx context.Context, r Reversal, plan *Plan, dry bool) (result *Result, err error) {
	name := spanApply
	if dry {
		name = spanDryRun
	}
	ctx, span := c.span(ctx, name)
	defer func() { span.end(err, result.attributes()...) }()
	// A connection of its own: it may wait for locks as long as it takes, while the
	// few of the pool are needed to find out how far capture is.
	// Without the settings of texts: triggers find what role and database have for them.
	config, err := connConfig(ctx, c.cfg.source, slices.Collect(maps.Keys(textSettings))...)
	if err != nil {
		return nil, history.OpError("connect to the source", err)
	}
	// Hardly a statement comes twice: to prepare them first would be another round trip
	// for each.
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, history.OpError("connect to the source", err)
	}
	defer closeConn(ctx, conn)
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite}, func(tx pgx.Tx) error {
		env, err := pinEnvironment(ctx, tx, r.noTriggers)
		if err != nil {
			return err
		}
		a := &applier{client: c, r: r, tx: tx, env: env, dry: dry}
		if result, err = a.run(ctx, plan); err == nil && dry {
			err = errRollback
		}
		return err
	})
	switch {
	case dry && errors.Is(err, errRollback):
		result.DryRun = true
		return result, nil
	case history.IsStandby(err):
		return nil, history.OpError("revert", err)
	case err != nil:
		return nil, err
	case result.ID != "":
		// Behind the commit record: whoever waits for this has the revert.
		var here LSN
		if err := conn.QueryRow(ctx, "SELECT pg_catalog.pg_current_wal_insert_lsn()::text").Scan(&here); err == nil {
			result.Token = Token(here.String())
			c.noteCommitted(ctx, result.ID, here)
		}
	}
	return result, nil
}

// noteCommitted registers that a revert was committed. If that fails, history will tell
// it: the revert itself has succeeded.
func (c *Client) noteCommitted(ctx context.Context, id string, here LSN) {
	database, err := c.history.Database(ctx)
	if err == nil {
		err = c.history.Records.CommittedRevert(ctx, database, id, here)
	}
	if err != nil {
		c.cfg.Logger.WarnContext(ctx, "audit: cannot register that a revert was committed", "revert", id, "error", err)
	}
}

// contextCloser is a session of pgx or pgconn.
type contextCloser interface {
	Close(ctx context.Context) error
}

// closeConn ends a session, also when ctx is over.
func closeConn(ctx context.Context, conn contextCloser) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = conn.Close(ctx) // it is gone either way
}

// commitError makes an ApplyError of what a deferred constraint or trigger says; the
// group stands for the table where it names none.
func (g *group) commitError(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || isTransient(pg.Code) {
		return err
	}
	table := g.table.label()
	if pg.TableName != "" {
		table = pgcatalog.Qualified(pg.SchemaName, pg.TableName)
	}
	return &ApplyError{Table: table, Action: Update, Constraint: pg.ConstraintName, cause: err}
}

// applyRevertIn is applyRevert in a transaction of the caller's.
func (c *Client) applyRevertIn(ctx context.Context, tx pgx.Tx, r Reversal, plan *Plan) (result *Result, err error) {
	ctx, span := c.span(ctx, spanApply)
	defer func() { span.end(err, result.attributes()...) }()
	env, err := pinEnvironment(ctx, tx, r.noTriggers)
	if err != nil {
		return nil, err
	}
	a := &applier{client: c, r: r, tx: tx, env: env, borrowed: true}
	result, err = a.run(ctx, plan)
	if back := env.leave(ctx, tx); err == nil {
		err = back
	}
	if err != nil {
		return nil, err
	}
	return result, nil
}

// applier carries out a revert.
type applier struct {
	client *Client
	r      Reversal
	tx     pgx.Tx
	env    *environment
	// borrowed reports whether the transaction is the caller's, dry whether it is going to be
	// rolled back.
	borrowed, dry bool

	id     string
	p      *planner
	plan   *Plan
	result *Result
	stages int // temporary tables made
	// guarded reports whether the statements compare by themselves: see direct.
	guarded bool
	// early are the columns that triggers set otherwise at once, by row.
	early map[string]map[string]bool
}

// run does everything but COMMIT.
func (a *applier) run(ctx context.Context, plan *Plan) (*Result, error) {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	a.id = hex.EncodeToString(id[:])
	// One revert of the same thing at a time, so that the second can see the first.
	for _, name := range []string{"unit " + a.r.unit.Kind + " " + a.r.unit.ID, "key " + a.r.key} {
		if name == "key " {
			continue
		}
		if _, err := a.tx.Exec(ctx, "SELECT pg_catalog.pg_advisory_xact_lock($1)", lockKey(name)); err != nil {
			return nil, history.OpError("lock the revert", err)
		}
	}
	p, err := a.client.newPlanner(ctx, a.r)
	if err != nil {
		return nil, err
	}
	p.tx, p.lock = a.tx, true
	if plan != nil && len(plan.Blocked()) == 0 {
		if err := plan.p.unaltered(ctx, a.tx); err != nil {
			return nil, err
		}
	}
	if done, err := a.direct(ctx, p, plan); err != nil {
		return nil, err
	} else if done {
		return a.result, nil
	}
	if err := a.prepare(ctx, p, plan); err != nil {
		return nil, err
	}
	a.result = &Result{Of: a.r.unit, Plan: a.plan, Unchanged: a.plan.Unchanged, Skipped: a.plan.Skipped, Already: a.plan.Already}
	switch blocked := a.plan.Blocked(); {
	case a.plan.Already != nil:
		a.result.Unchanged, a.result.Skipped = 0, 0
		return a.result, nil
	case a.plan.Refused() != nil:
		return nil, a.plan.Refused()
	case a.r.hash != "" && a.r.hash != a.plan.Hash:
		return nil, &StaleError{Reason: "its hash is another than the one given to IfHash"}
	case len(blocked) > 0:
		return nil, &ConflictError{Plan: a.plan, Conflicts: blocked}
	case a.plan.Empty():
		return a.result, nil
	}
	if a.borrowed {
		return a.result, a.writeOrNothing(ctx)
	}
	return a.result, a.write(ctx)
}

// writeOrNothing is write in the caller's transaction. That may go on after an error
// that is not the server's: behind a savepoint, nothing is left of what was written.
func (a *applier) writeOrNothing(ctx context.Context) error {
	return a.behindSavepoint(ctx, func() error { return a.write(ctx) }, func(error) bool {
		return a.tx.Conn().PgConn().TxStatus() == 'T'
	})
}

func lockKey(name string) int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte("audit revert " + name))
	return int64(h.Sum64())
}

// prepare makes the plan, or makes sure that the one given still holds, with the
// rows locked.
func (a *applier) prepare(ctx context.Context, p *planner, plan *Plan) (err error) {
	if plan == nil {
		if a.plan, err = p.build(ctx); err != nil {
			return err
		}
		a.p = p
		a.plan.Already, err = p.alreadyReverted(ctx, a.plan)
		return err
	}
	a.plan, a.p = plan, plan.p
	already, err := a.revertedSince(ctx, p)
	if err != nil {
		return err
	}
	if already != nil {
		again := *plan
		again.Already = already
		a.plan = &again
		return nil
	}
	if len(plan.Blocked()) > 0 {
		return nil // nothing is going to be written
	}
	return a.recheck(ctx)
}

// revertedSince returns the revert that leaves nothing to be done of a plan that was
// made before.
func (a *applier) revertedSince(ctx context.Context, p *planner) (*PastRevert, error) {
	past, err := p.pastWithKey(ctx)
	if past != nil || err != nil {
		return past, err
	}
	if past, err = p.pastOfUnit(ctx); past == nil || err != nil {
		return nil, err
	}
	now, err := p.build(ctx)
	if err != nil {
		return nil, err
	}
	return p.alreadyReverted(ctx, now)
}

// recheck locks the rows of a plan that was made before, and compares them with
// what it saw. Others can have come to depend on them since without changing them.
func (a *applier) recheck(ctx context.Context) error {
	rows := cloneRows(a.p.activeRows())
	if err := findAgain(ctx, a.tx, rows); err != nil {
		return err
	}
	spare := *a.p.budget // a plan is applied as often as one likes, also at once
	for _, g := range groupRows(rows) {
		for _, part := range g.chunks() {
			if err := part.inspect(ctx, a.tx, part.stageArrays(), true, &spare); err != nil {
				return err
			}
		}
	}
	leaving := leavingKeys(rows)
	for _, r := range rows {
		if reason := r.staleness(leaving[r.table][r.liveText()]); reason != "" {
			return &StaleError{Table: r.table.label(), Key: r.ref().Key, Reason: reason}
		}
		r.done = false
	}
	known := make(map[string]bool)
	for _, c := range a.plan.Conflicts {
		known[c.about()] = true
	}
	now := *a.p // the plan's own planner stays as it is
	now.tx, now.rows, now.restored = a.tx, rows, nil
	now.budget = &budget{max: a.r.memory()}
	found, err := now.structure(ctx)
	if err != nil {
		return err
	}
	for _, c := range found {
		if !known[c.about()] {
			return &StaleError{Table: c.Table, Key: c.Key, Reason: "has a new conflict: " + c.Kind.String()}
		}
	}
	if len(keylessRows(rows)) > 0 {
		// They are elsewhere now.
		a.p = &now
		now.steps, err = now.order()
	}
	return err
}

// cloneRows copies rows so that they expect what the plan saw.
func cloneRows(rows []*netRow) []*netRow {
	clones := make([]*netRow, len(rows))
	for i, r := range rows {
		clone := *r
		clone.cells = make([]cell, len(r.cells))
		for j, c := range r.cells {
			clone.cells[j] = cell{column: c.column, restore: c.restore, expect: c.seen()}
		}
		clone.done, clone.missing, clone.parkedKey = false, false, nil
		clones[i] = &clone
	}
	return clones
}

// staleness says how the live row differs from what the plan saw, or nothing.
// leaving tells that the row under its key is one that the revert takes away.
func (r *netRow) staleness(leaving bool) string {
	if r.action == Create {
		if !r.missing && !leaving {
			return "is there again"
		}
		return ""
	}
	if r.missing {
		return "is not there any more"
	}
	for i := range r.cells {
		if r.cells[i].live != nil && !r.table.leaves(r.cells[i].column) {
			return fmt.Sprintf("has another value in column %q", r.table.Columns.List[r.cells[i].column].Name)
		}
	}
	return ""
}

// write carries the plan out.
func (a *applier) write(ctx context.Context) error {
	own := ctx
	if a.borrowed {
		// What the caller wrote before must not take the revert's context for its own.
		if err := stampOr(ctx, a.tx, "{}"); err != nil {
			return err
		}
	}
	ctx = a.stampContext(ctx)
	if err := Stamp(ctx, a.tx); err != nil {
		return err
	}
	if err := a.constraints(ctx, "DEFERRED", false); err != nil {
		return err
	}
	done, total := 0, a.plan.Inserts+a.plan.Updates+a.plan.Deletes
	for i := range a.p.steps {
		s := &a.p.steps[i]
		if err := a.do(ctx, s); err != nil {
			return err
		}
		if !s.side {
			done += len(s.group.rows)
			a.r.report(Progress{Step: "apply", Table: s.group.table.label(), Done: done, Total: total})
		}
	}
	if err := a.check(ctx); err != nil {
		return err
	}
	if err := a.tx.QueryRow(ctx, "SELECT pg_catalog.pg_current_xact_id()::text::bigint").Scan(&a.result.TransactionID); err != nil {
		return history.OpError("read transaction id", err)
	}
	a.result.ID = a.id
	a.result.Inserted, a.result.Updated, a.result.Deleted = a.plan.Inserts, a.plan.Updates, a.plan.Deletes
	if !a.dry {
		if err := a.register(ctx); err != nil {
			return err
		}
	}
	if a.borrowed {
		return stampOr(own, a.tx, "{}")
	}
	return nil
}
