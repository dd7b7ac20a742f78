package audit

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// When the past is asked for. A [*HistoryError] is each of them but the first, by
// its Reason.
var (
	// ErrNoRow is returned when the table is known at the moment asked for and had
	// no row of the key.
	ErrNoRow = errors.New("audit: the row did not exist then")

	// ErrNotTracked is returned when a table was not tracked at the moment asked
	// for, or never.
	ErrNotTracked = errors.New("audit: the table is not tracked")
	// ErrBeforeHistory is returned when the moment lies before the table was
	// tracked.
	ErrBeforeHistory = errors.New("audit: the moment is before the table's history begins")
	// ErrPastRetention is returned when what is needed was dropped.
	ErrPastRetention = errors.New("audit: the moment is past the retention of history")
	// ErrInGap is returned when the answer would cross a hole in history.
	ErrInGap = errors.New("audit: history has a gap there")
	// ErrFuture is returned when the moment has not come yet.
	ErrFuture = errors.New("audit: the moment is in the future")
	// ErrClockJumped is returned when the source's clock ran ahead and was set back:
	// a time in between stands for no one moment. A position or a mark does.
	ErrClockJumped = errors.New("audit: the source's clock jumped then")
	// ErrNotCaptured is returned when the answer needs what was committed lately,
	// and nobody captures.
	ErrNotCaptured = errors.New("audit: nobody captures, so history is behind the tables")
	// ErrIncomplete is returned when history does not know all of the answer: rows
	// that were truncated or dropped before history saw them, values of a column
	// that was dropped.
	ErrIncomplete = errors.New("audit: history does not know all of it")
	// ErrUntrusted is returned when the answer takes code that another role owns, see
	// Config.TrustOwners.
	ErrUntrusted = errors.New("audit: it would run code of another role")
)

// HistoryError is returned when the past asked for cannot be told truly. It names
// the nearest moments for which it can.
type HistoryError struct {
	// Table is the table, or empty where it is not about one.
	Table string
	// Asked is the Point in words.
	Asked string
	// Reason is one of the sentinel errors: errors.Is tells it.
	Reason error
	// Detail says more, without values.
	Detail string
	// Earliest is the earliest position after the one asked for that can be
	// answered, and EarliestTime about when that was. Both are zero where there is
	// none.
	Earliest     Position
	EarliestTime time.Time
}

func (e *HistoryError) Error() string {
	var b strings.Builder
	b.WriteString("audit: ")
	if e.Table != "" {
		b.WriteString(printable(e.Table) + " ")
	}
	fmt.Fprintf(&b, "as of %s: %s", e.Asked, strings.TrimPrefix(e.Reason.Error(), "audit: "))
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	if !e.Earliest.IsZero() {
		b.WriteString(": the nearest moment with an answer is AtPosition " + e.Earliest.LSN.String())
		if !e.EarliestTime.IsZero() {
			b.WriteString(", about " + e.EarliestTime.UTC().Format(time.RFC3339))
		}
	}
	return b.String()
}

// Unwrap returns the Reason.
func (e *HistoryError) Unwrap() error { return e.Reason }

// ColumnsError is returned when the columns that a table had do not go with those
// that were asked for, or with the fields of a struct.
type ColumnsError struct {
	// Table is the table, Asked the Point in words.
	Table, Asked string
	// Missing are columns that were asked for, or that a field is for, and that the
	// table did not have then.
	Missing []string
	// Unused are columns that the table had, and the struct has no field for.
	Unused []string
	// Columns are those that the table had, and that history tells.
	Columns []string
	// Withheld are those of which history does not store the values: see Config.Columns.
	Withheld []string
}

func (e *ColumnsError) Error() string {
	var problems []string
	if len(e.Missing) > 0 {
		problems = append(problems, "it had no column "+strings.Join(e.Missing, ", "))
	}
	if len(e.Unused) > 0 {
		problems = append(problems, "the struct has no field for "+strings.Join(e.Unused, ", "))
	}
	if len(e.Withheld) > 0 {
		problems = append(problems, "history withholds "+strings.Join(e.Withheld, ", ")+" (Config.Columns)")
	}
	return fmt.Sprintf("audit: %s as of %s: %s (it had %s): ask for fewer with Point.Columns, or let them differ with Point.Lax",
		e.Table, e.Asked, strings.Join(problems, ", and "), strings.Join(e.Columns, ", "))
}
