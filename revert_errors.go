package audit

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// When a revert is asked for.
var (
	// ErrNothingSelected is returned when a revert's selection has no changes: the
	// request, the transaction or whatever it was is not in history. A query, a row or
	// tables of which there is nothing to revert are no error: the plan is empty.
	ErrNothingSelected = errors.New("audit: there are no changes to revert")
)

// RevertError is returned by the terminal method of a [Reversal] when one of its
// methods was given something it cannot work with. Nothing was written.
type RevertError struct {
	// Method is the name of the method: "MaxRows".
	Method string
	// Reason says what is wrong, without values of rows.
	Reason string

	cause error
}

func (e *RevertError) Error() string { return "audit: " + e.Method + ": " + e.Reason }

// Unwrap returns the error behind the reason, or nil.
func (e *RevertError) Unwrap() error { return e.cause }

// When a revert is planned.

// ConflictError is returned when a revert would undo what others did later, and
// its policy does not say to go on. Nothing was written.
type ConflictError struct {
	// Plan is the plan, with all its conflicts.
	Plan *Plan
	// Conflicts are those that stand in the way.
	Conflicts []Conflict
}

func (e *ConflictError) Error() string {
	tables := map[string]bool{}
	var names []string
	for _, c := range e.Conflicts {
		if !tables[c.Table] {
			tables[c.Table] = true
			names = append(names, printable(c.Table))
		}
	}
	return fmt.Sprintf("audit: revert %s: %d conflicts with later work in %s: nothing was written; see Conflicts, and OnConflict for what to do about them",
		e.Plan.Of, len(e.Conflicts), strings.Join(names, ", "))
}

// TooManyRowsError is returned when a revert would touch more rows than
// [Reversal.MaxRows] allows. Nothing was written.
type TooManyRowsError struct {
	// Max is the cap.
	Max int
}

func (e *TooManyRowsError) Error() string {
	return fmt.Sprintf("audit: the revert selects changes of more than %d rows: narrow the selection, or raise MaxRows", e.Max)
}

// TooLargeError is returned when the rows that a revert touches, and the conflicts
// about them, would take more memory than [Reversal.MaxMemory] allows. Nothing was
// written.
type TooLargeError struct {
	// Max is the cap, in bytes.
	Max int64
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("audit: the rows of the revert and their conflicts take more than %d bytes of memory: narrow the selection, or raise MaxMemory", e.Max)
}

// UnrevertableError is returned when a part of the selection cannot be reverted,
// whatever the policy: history does not know it, or the table is no longer one
// that it could be put back into. Nothing was written.
type UnrevertableError struct {
	// Table is the table as history names it.
	Table string
	// Position is the first change that cannot be reverted, or zero where it is
	// not about one.
	Position Position
	// Reason says why, without values.
	Reason string

	cause error
}

func (e *UnrevertableError) Error() string {
	at := ""
	if !e.Position.IsZero() {
		at = " (change " + e.Position.String() + ")"
	}
	return "audit: revert " + printable(e.Table) + at + ": " + e.Reason
}

// Unwrap returns the error behind the reason, or nil.
func (e *UnrevertableError) Unwrap() error { return e.cause }

// When a revert is applied.

// StaleError is returned when the live rows are no longer as the plan saw them.
// Nothing was written; a new plan shows what has become of them.
type StaleError struct {
	// Table and Key name a row that has changed, where it is about one.
	Table string
	Key   []string
	// Reason says what is different, without values.
	Reason string
}

func (e *StaleError) Error() string {
	if e.Table == "" {
		return "audit: the plan is stale: " + e.Reason
	}
	if len(e.Key) == 0 {
		return fmt.Sprintf("audit: the plan is stale: %s %s", printable(e.Table), e.Reason)
	}
	return fmt.Sprintf("audit: the plan is stale: %s[%s] %s", printable(e.Table), printableKey(e.Key), e.Reason)
}

// errTakenAlong is the cause of an ApplyError.
var errTakenAlong = errors.New("the revert removes a row that they reference through a foreign key ON DELETE CASCADE; leave that row out, or resolve its conflict with Skip")

// ApplyError is returned when the source refused one of a revert's statements: a
// constraint that was added since, a trigger or a policy of row-level security
// that says no. The whole revert is undone; in the caller's own transaction, that
// transaction is aborted.
type ApplyError struct {
	// Table is the table of the statement, or empty if it was to turn triggers off
	// ([Reversal.WithoutTriggers]).
	Table string
	// Action is what was to be done: Create, Update or Delete.
	Action Operation
	// Constraint is the constraint that was violated, if it was one.
	Constraint string

	cause error
}

func (e *ApplyError) Error() string {
	if e.Table == "" {
		return "audit: revert: the source refused to turn triggers off: WithoutTriggers needs a role that may set session_replication_role"
	}
	refused := fmt.Sprintf("audit: revert: the source refused to %s rows of %s", e.verb(), printable(e.Table))
	var pg *pgconn.PgError
	switch {
	case e.Constraint != "":
		return fmt.Sprintf("%s: constraint %q is violated", refused, e.Constraint)
	case errors.Is(e.cause, errTakenAlong):
		return refused + ": " + errTakenAlong.Error()
	case isDenied(e.cause):
		return refused + ": the role lacks a privilege, or a policy of row-level security forbids it"
	case errors.As(e.cause, &pg):
		return refused + " (SQLSTATE " + pg.Code + "; the error behind this one has the server's words)"
	}
	return refused
}

func (e *ApplyError) verb() string {
	switch e.Action {
	case Create:
		return "insert"
	case Delete:
		return "delete"
	default:
		return "update"
	}
}

// Unwrap returns what the server said, a *pgconn.PgError. Its text may contain
// values.
func (e *ApplyError) Unwrap() error { return e.cause }
