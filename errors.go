package audit

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/store"
)

// When capture starts.
type (
	// SetupError is returned by [Client.Start] when the source is not ready. It
	// lists everything that is missing, each with the SQL that sets it right.
	SetupError = capture.SetupError
	// SlotBlockedError is returned by [Client.Start] when the replication slot
	// could not be made in time, because of transactions that it names.
	SlotBlockedError = capture.SlotBlockedError
	// SetupLockedError is returned by [Client.Start] and [Client.Refresh], and shown by
	// Status, when somebody holds the lock under which instances set up. It names who.
	SetupLockedError = store.SetupLockedError
	// ForeignSlotError is returned by [Client.Start] when the slot's name belongs
	// to something else.
	ForeignSlotError = capture.ForeignSlotError
	// SourceMismatchError is returned by [Client.Start] when the server is not the
	// one that the history was captured from.
	SourceMismatchError = capture.SourceMismatchError
	// NewerSchemaError is returned by [Client.Start] when the store was migrated
	// by a newer version of this package.
	NewerSchemaError = store.NewerSchemaError
)

// ErrClosed is returned after [Client.Close] by everything that would ask a server, and
// by what waits when the client is closed.
var ErrClosed = history.ErrClosed

// ErrStandby is returned where a connection string leads to a standby by what needs the
// primary: the past, reverts, and all that writes. [Changes] and [Client.Status] answer.
var ErrStandby = history.ErrStandby

// ErrNotRunning is returned by [Client.Refresh] on a client that does not
// capture, and by [Client.Sync] and [Client.Mark] where no instance does.
var ErrNotRunning = errors.New("audit: capture is not running: call Start first")

// GapError is returned by [Client.Start], and shown by Status, when a part of the
// history is lost for good and [Config.OnGap] says to stop there.
type GapError struct{ Gap Gap }

func (e *GapError) Error() string {
	return fmt.Sprintf("audit: history is lost from %s on: %s: set Config.OnGap to ContinueAfterGap to go on behind the gap", e.Gap.From, e.Gap.Reason)
}

// Before a query runs.
var (
	// ErrNoDefaultClient is returned when a package-level function, or a query
	// that began with the package-level [Changes], is used before [SetDefault].
	ErrNoDefaultClient = errors.New("audit: no default client: call audit.SetDefault with an opened client, or use the client's own method of the same name")
)

// FilterError is returned by the terminal method of a [Query] when one of the
// query's own methods was given something that it cannot filter by. Nothing was
// asked of the database.
type FilterError struct {
	// Filter is the name of the method: "ForTable".
	Filter string
	// Reason says what is wrong, without the value.
	Reason string

	cause error
}

func (e *FilterError) Error() string { return "audit: " + e.Filter + ": " + e.Reason }

// Unwrap returns the error behind the reason, or nil.
func (e *FilterError) Unwrap() error { return e.cause }

// CursorError is returned when a [Cursor] cannot be continued from: it was
// damaged, was made by a newer version of this package, or comes from another
// kind of query or from the opposite order.
type CursorError struct {
	// Reason says why, without the cursor.
	Reason string
}

func (e *CursorError) Error() string { return "audit: cursor: " + e.Reason }

// While a query runs.
var (
	// ErrNoHistory is returned by a query of a store that was never set up: the
	// schema is another one, or capture was never started.
	ErrNoHistory = history.ErrNoHistory

	// ErrRowSecurity is returned by what computes a past or a revert when row-level
	// security hides rows, of a tracked table or of the history, from the role. A
	// part of them would give a wrong answer. Use a role with BYPASSRLS, or the
	// owner. [Changes] lists what the role may see.
	ErrRowSecurity = history.ErrRowSecurity

	// ErrNotFound is returned by [Query.First] when no change matches.
	ErrNotFound = errors.New("audit: no change matches the query")
)

// When a change is read.
var (
	// ErrNoImage is returned by [Change.DecodeBefore] and [Change.DecodeAfter]
	// when history has no such image of the row: before of a CREATE, after of a
	// DELETE, both of a TRUNCATE, and before of an UPDATE whose table did not log
	// the old row.
	ErrNoImage = errors.New("audit: the change has no such image")
)

// DecodeError is returned when an image or one of its values does not fit into
// the Go value given for it. It never holds the value.
type DecodeError struct {
	// Column is the column, or empty if the destination as a whole is wrong.
	Column string
	// Type is the Go type that was to receive the value. It is nil if the
	// destination is missing altogether.
	Type reflect.Type
	// Reason says what is wrong, without the value.
	Reason string

	cause error
}

func (e *DecodeError) Error() string {
	switch {
	case e.Column == "":
		return "audit: decode image: " + e.Reason
	case e.Type == nil:
		return fmt.Sprintf("audit: decode column %q: %s", e.Column, e.Reason)
	default:
		return fmt.Sprintf("audit: decode column %q into %s: %s", e.Column, e.Type, e.Reason)
	}
}

// Unwrap returns what the destination's own Scan or Unmarshal method said, or
// nil. Its text may contain the value.
func (e *DecodeError) Unwrap() error { return e.cause }

// When a write is stamped.

// ContextError is returned by [Stamp] when a member of a [Context] cannot be
// written as JSON. It names the member and never holds its value.
type ContextError struct {
	// Key is the member's JSON name, with the name of the parameter where it is
	// one: "params.file".
	Key string
	// Type is the Go type of the value.
	Type reflect.Type

	cause error
}

func (e *ContextError) Error() string {
	return fmt.Sprintf("audit: context member %q: a value of type %v cannot be written as JSON", e.Key, e.Type)
}

// Unwrap returns what the value's marshaller said. Its text may contain the
// value.
func (e *ContextError) Unwrap() error { return e.cause }
