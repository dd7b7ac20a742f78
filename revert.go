package audit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// DefaultMaxRows is how many rows a revert may touch unless [Reversal.MaxRows]
// says otherwise.
const DefaultMaxRows = 100_000

// Reversal is a revert that is being asked for: a selection of changes, and how
// to go about it. It begins with [RevertRequest], [Revert] or one of their
// siblings, and is carried out by one of its terminal methods, which take a ctx:
//
//	plan, err := audit.RevertRequest(id).Plan(ctx)     // what would happen
//	result, err := audit.RevertRequest(id).Apply(ctx)  // do it
//
// What the selected changes did to each row is put together and undone in one
// transaction. Columns that they did not change are left alone. Where somebody
// changed the same thing later, that is a [Conflict], and [Reversal.OnConflict]
// says what becomes of it; by default nothing is written. The live rows decide,
// under lock: also what was committed and is not in history yet is not
// overwritten.
//
// The revert is stamped and captured like any other write: [Query.Reverts] finds
// it, and reverting it is redo (see [Redo]).
//
// A Reversal is an immutable value: each method returns a new one. What a method
// cannot work with is kept, and returned by the terminal method as a
// [*RevertError].
type Reversal struct {
	client *Client // nil: the default client at the time of the terminal method
	err    error

	query Query
	unit  Unit
	// to is the moment to which rows or tables go back, after which everything is
	// selected; nil for the other units.
	to     *Point
	tables []string
	row    []any // the key of the row that goes back to it

	policy  Policy
	columns []string
	// except are columns, exceptTables tables, exceptUsers users that are left out.
	except, exceptTables []string
	exceptUsers          []any
	reason               string
	actor                any
	maxRows              int
	maxMemory            int64
	key                  string
	hash                 string
	noTriggers           bool
	asStored             bool
	// byClaim reports whether the unit is found by an id that contexts claim, and acrossUsers
	// that it may have several users.
	byClaim, acrossUsers bool
	allColumns           bool
	progress             func(Progress)
}

// RevertRequest reverts everything that a request changed, in whatever tables and
// transactions, on the default client. If several users have changes in it, that has to
// be said: see [Reversal.AcrossUsers].
func RevertRequest(id string) Reversal {
	return reversal("RevertRequest", "request", id, Changes().InRequest(id)).claimed()
}

// RevertTransaction reverts everything that the source transaction with this
// 64-bit id changed, on the default client.
func RevertTransaction(id uint64) Reversal {
	return reversal("RevertTransaction", "transaction", strconv.FormatUint(id, 10), Changes().InTransaction(id))
}

// RevertTrace reverts everything that was changed in a distributed trace, on the
// default client. If several users have changes in it, that has to be said: see
// [Reversal.AcrossUsers].
func RevertTrace(id string) Reversal {
	return reversal("RevertTrace", "trace", id, Changes().InTrace(id)).claimed()
}

// RevertChange reverts one change, on the default client.
func RevertChange(p Position) Reversal {
	r := reversal("RevertChange", "change", p.String(), Changes().AtPosition(p))
	if p.Sequence == 0 {
		return r.refuse("RevertChange", "the position is that of a transaction: give the position of a change, or use RevertTransaction", nil)
	}
	return r
}

// Redo reverts a revert, by the id that its [Result] has: what it undid is done
// again. It works on the default client.
func Redo(revertID string) Reversal {
	return reversal("Redo", "revert", revertID, Changes().InRevert(revertID))
}

// Revert reverts the changes that a query matches. The query must have a filter, and
// neither Limit nor After; its order does not matter. It works on the query's
// client.
func Revert(q Query) Reversal {
	r := Reversal{client: q.client, query: q}
	switch {
	case q.err != nil:
		r.err = q.err
	case len(q.where) == 0:
		return r.refuse("Revert", "the query has no filter: it would revert all of history", nil)
	case q.limit > 0 || q.cursor != nil:
		return r.refuse("Revert", "a query with a limit or a cursor selects changes by chance: filter them", nil)
	}
	r.unit = Unit{Kind: "query", ID: q.digest()}
	return r.claimed()
}

// RevertRow puts one row back to what it was at a moment, by its primary key: one
// value, or one for each column of the key in key order, as in [Query.ForRow].
// (Go has no variadic parameter in the middle, so the moment comes first.) The
// moment's client is used.
func RevertRow(to Point, table string, key ...any) Reversal {
	q := Query{client: to.client}.ForTable(table).ForRow(key...)
	r := reversal("RevertRow", "row", fmt.Sprintf("%s to %s", clip(table, 130), to), q)
	r.client, r.to, r.tables, r.row = to.client, &to, []string{table}, slices.Clone(key)
	return r
}

// RevertTables puts tables back to what they were at a moment: everything that was
// changed in them since is reverted, whoever did it. The moment's client is used.
func RevertTables(to Point, tables ...string) Reversal {
	q := Query{client: to.client}.ForTable(tables...)
	r := reversal("RevertTables", "tables", fmt.Sprintf("%s to %s", clip(strings.Join(tables, ", "), 300), to), q)
	r.client, r.to, r.tables = to.client, &to, slices.Clone(tables)
	return r
}

// reversal selects by a query; method is what the caller called, and an error names.
func reversal(method, kind, id string, q Query) Reversal {
	r := Reversal{query: q, unit: Unit{Kind: kind, ID: id}}
	if filter := (*FilterError)(nil); errors.As(q.err, &filter) {
		return r.refuse(method, filter.Reason, filter)
	}
	r.err = q.err
	return r
}

// claimed notes whether the unit is found by an id that anybody can stamp, and by nothing
// that says whose changes are meant.
func (r Reversal) claimed() Reversal {
	r.byClaim = r.query.byClaim && len(r.query.users) == 0
	return r
}

// digest tells apart queries that ask for different things.
func (q Query) digest() string {
	h := sha256.New()
	for _, condition := range q.where {
		sql, args, err := condition.ToSql()
		_, _ = fmt.Fprintf(h, "%s %v %v\n", sql, args, err)
	}
	return hex.EncodeToString(h.Sum(nil)[:12])
}

// RevertRequest is [RevertRequest] on the client.
func (c *Client) RevertRequest(id string) Reversal { return RevertRequest(id).on(c) }

// RevertTransaction is [RevertTransaction] on the client.
func (c *Client) RevertTransaction(id uint64) Reversal { return RevertTransaction(id).on(c) }

// RevertTrace is [RevertTrace] on the client.
func (c *Client) RevertTrace(id string) Reversal { return RevertTrace(id).on(c) }

// RevertChange is [RevertChange] on the client.
func (c *Client) RevertChange(p Position) Reversal { return RevertChange(p).on(c) }

// Redo is [Redo] on the client.
func (c *Client) Redo(revertID string) Reversal { return Redo(revertID).on(c) }

// Revert is [Revert] on the client, whatever client the query began with.
func (c *Client) Revert(q Query) Reversal { return Revert(q).on(c) }

// RevertRow is [RevertRow] on the client.
func (c *Client) RevertRow(to Point, table string, key ...any) Reversal {
	return RevertRow(to, table, key...).on(c)
}

// RevertTables is [RevertTables] on the client.
func (c *Client) RevertTables(to Point, tables ...string) Reversal {
	return RevertTables(to, tables...).on(c)
}

func (r Reversal) on(c *Client) Reversal {
	r.client = c
	return r
}

// refuse keeps the first error.
func (r Reversal) refuse(method, reason string, cause error) Reversal {
	if r.err == nil {
		r.err = &RevertError{Method: method, Reason: reason, cause: cause}
	}
	return r
}

// OnConflict says what becomes of conflicts with later work: [Abort], which is the
// default, [Skip], [Cascade], [CascadeRequests], [Overwrite] or a [Resolve].
func (r Reversal) OnConflict(policy Policy) Reversal {
	resolution, fixed := policy.(Resolution)
	ask, asks := policy.(Resolve)
	if policy == nil || fixed && (resolution < Abort || resolution > Overwrite) || asks && ask == nil {
		return r.refuse("OnConflict", "no such policy: give Abort, Skip, Cascade, CascadeRequests, Overwrite or a Resolve", nil)
	}
	r.policy = policy
	return r
}

// Columns reverts these columns only. Rows that the selection created stay, and
// rows that it deleted do not come back, since those are more than their columns. A
// name that none of the selected tables has is refused.
func (r Reversal) Columns(names ...string) Reversal {
	if len(names) == 0 {
		return r.refuse("Columns", "no column given", nil)
	}
	for _, name := range names {
		if err := checkColumn(name); err != nil {
			return r.refuse("Columns", err.Error(), err)
		}
	}
	r.columns = slices.Clone(names)
	return r
}

// Except leaves these columns out, in whatever table: they are neither restored nor
// counted as conflicts, such as counters, times of updates and the versions of optimistic
// locks. Rows that come back do so whole. A name that none of the selected tables has is
// refused.
func (r Reversal) Except(columns ...string) Reversal {
	if len(columns) == 0 {
		return r.refuse("Except", "no column given", nil)
	}
	for _, name := range columns {
		if err := checkColumn(name); err != nil {
			return r.refuse("Except", err.Error(), err)
		}
	}
	r.except = append(slices.Clip(r.except), columns...)
	return r
}

// ExceptTable leaves tables out, by names as in [Query.ForTable]. What is reverted is
// the same unit nevertheless, of which this leaves out a part.
func (r Reversal) ExceptTable(names ...string) Reversal {
	if len(names) == 0 {
		return r.refuse("ExceptTable", "no table given", nil)
	}
	for _, name := range names {
		if _, err := pgcatalog.ParseName(name); err != nil {
			return r.refuse("ExceptTable", fmt.Sprintf("the name %q has %v", clip(name, 130), err), err)
		}
	}
	r.exceptTables = append(slices.Clip(r.exceptTables), names...)
	return r
}

// ExceptUser leaves out what some users have changed, by ids as in [Query.ByUser]. What
// is reverted is the same unit nevertheless, of which this leaves out a part.
func (r Reversal) ExceptUser(ids ...any) Reversal {
	if len(ids) == 0 {
		return r.refuse("ExceptUser", "no user given", nil)
	}
	for _, id := range ids {
		if _, err := filterID(id); err != nil {
			return r.refuse("ExceptUser", err.Error(), err)
		}
	}
	r.exceptUsers = append(slices.Clip(r.exceptUsers), ids...)
	return r
}

// Reason is recorded with the revert.
func (r Reversal) Reason(text string) Reversal {
	r.reason = text
	return r
}

// Actor is who reverts, if that is not the user whom ctx carries (see
// [WithContext]): anything that [Context.UserID] takes.
func (r Reversal) Actor(id any) Reversal {
	if _, err := filterID(id); err != nil {
		return r.refuse("Actor", err.Error(), err)
	}
	r.actor = id
	return r
}

// MaxRows is how many rows the revert may touch at most; beyond, it is refused
// with a [*TooManyRowsError]. Default: [DefaultMaxRows].
func (r Reversal) MaxRows(n int) Reversal {
	if n < 1 {
		return r.refuse("MaxRows", "must be at least 1", nil)
	}
	r.maxRows = n
	return r
}

// MaxMemory is how many bytes the rows that the revert touches, and the conflicts
// about them, may take in this program's memory; beyond, it is refused with a [*TooLargeError]. A row takes what
// its changed values take, before and after, and some hundred bytes more; of a row
// that was inserted or deleted, that is all of it. Default: [DefaultMaxMemory].
func (r Reversal) MaxMemory(bytes int64) Reversal {
	if bytes < 1 {
		return r.refuse("MaxMemory", "must be at least 1", nil)
	}
	r.maxMemory = bytes
	return r
}

// IdempotencyKey makes the revert happen once: a second one with the same key
// finds that out, and gives the first in [Result.Already].
func (r Reversal) IdempotencyKey(key string) Reversal {
	if _, err := filterID(key); err != nil || len(key) > 500 {
		return r.refuse("IdempotencyKey", "must have from 1 to 500 bytes, none of them NUL", err)
	}
	r.key = key
	return r
}

// IfHash makes Apply, ApplyTx and DryRun refuse, with a [*StaleError], to do anything
// but what the plan with this [Plan.Hash] says: for programs that show a plan in one
// request and apply it in the next.
func (r Reversal) IfHash(hash string) Reversal {
	r.hash = hash
	return r
}

// WithoutTriggers applies the revert with the application's triggers off
// (session_replication_role = replica), which only some roles may. Foreign keys
// are off with them, so they are checked again afterwards. Triggers that are
// marked ENABLE ALWAYS or ENABLE REPLICA run nevertheless.
func (r Reversal) WithoutTriggers() Reversal {
	r.noTriggers = true
	return r
}

// AsStored takes history as it is, without waiting until capture has stored what
// was committed last, and also if the selection reaches across a gap. It is for
// when nobody captures. What the selected unit did and history does not have is
// then not reverted; that nothing of it is overwritten holds all the same.
func (r Reversal) AsStored() Reversal {
	r.asStored = true
	return r
}

// Progress is told how far a revert has come, from the goroutine that carries it
// out and while it may hold locks. A large revert that needs no look at its rows
// before it writes has no step "compare".
func (r Reversal) Progress(report func(Progress)) Reversal {
	r.progress = report
	return r
}

// Progress is how far a revert has come.
type Progress struct {
	// Step is what is being done: "select", "compare" or "apply". A step can begin
	// anew: when a cascade has added to the selection, and when a large revert finds
	// that it has to look at its rows first.
	Step string `json:"step"`
	// Table is the table that it is being done to, or empty.
	Table string `json:"table,omitempty"`
	// Done is how many changes were read, or rows were dealt with, in this step.
	Done int `json:"done"`
	// Total is how many there will be, or 0 if that is not known yet.
	Total int `json:"total"`
}

func (r Reversal) report(p Progress) {
	if r.progress != nil {
		r.progress(p)
	}
}

// ready returns the client to work on, or what is wrong with the Reversal.
func (r Reversal) ready() (*Client, error) {
	if r.err != nil {
		return nil, r.err
	}
	if r.unit.Kind == "" { // without a filter, it would be all of history
		return nil, &RevertError{Method: "Reversal", Reason: "it says not what to revert: begin with RevertRequest, Revert or one of their siblings"}
	}
	q := r.query
	q.client = r.client
	return q.ready()
}

func (r Reversal) limit() int {
	if r.maxRows == 0 {
		return DefaultMaxRows
	}
	return r.maxRows
}

func (r Reversal) memory() int64 {
	if r.maxMemory == 0 {
		return DefaultMaxMemory
	}
	return r.maxMemory
}

// decide asks the policy.
func (r Reversal) decide(c Conflict) Resolution {
	if r.policy == nil {
		return Abort
	}
	resolution := r.policy.resolve(c)
	if resolution < Abort || resolution > Overwrite {
		return Abort
	}
	return resolution
}

// Plan finds out what the revert would do, conflicts included. It writes nothing,
// takes no locks, and returns the plan also if there are conflicts: look at
// [Plan.Blocked].
func (r Reversal) Plan(ctx context.Context) (*Plan, error) {
	client, err := r.ready()
	if err != nil {
		return nil, err
	}
	return client.planRevert(ctx, r)
}

// Apply plans the revert and carries it out, in one transaction of its own. The
// rows are locked before they are looked at, so the plan cannot become stale.
//
// It returns a [*ConflictError] if the policy stops at a conflict, an
// [*ApplyError] if the source refuses; nothing was written then.
func (r Reversal) Apply(ctx context.Context) (*Result, error) {
	client, err := r.ready()
	if err != nil {
		return nil, err
	}
	return client.applyRevert(ctx, r, nil, false)
}

// DryRun does all that Apply does, triggers and constraints included, and rolls
// it back. The result says what would have happened.
func (r Reversal) DryRun(ctx context.Context) (*Result, error) {
	client, err := r.ready()
	if err != nil {
		return nil, err
	}
	return client.applyRevert(ctx, r, nil, true)
}
