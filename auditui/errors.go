package auditui

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
)

var (
	// errNoPage is for what is not there, or not for whoever asks: the two look alike.
	errNoPage  = errors.New("auditui: there is no such page")
	errTimeout = errors.New("auditui: the page took too long")
	errBusy    = errors.New("auditui: too many streams are open")
)

// requestError is something wrong with an address, in words for whoever made it.
type requestError struct{ text string }

func (e *requestError) Error() string { return "auditui: " + e.text }

// errorView is what a page says of an error.
type errorView struct {
	Code  int
	Title string
	Text  string
	// Advice is what to do about it.
	Advice string
	// Nearest is the address of the nearest moment that history can tell, and NearestTime
	// when that was.
	Nearest     string
	NearestTime time.Time
}

// fail makes the page of an error, and logs what somebody has to look after.
func (q *request) fail(err error) {
	if q.sent {
		return
	}
	if errors.Is(q.r.Context().Err(), context.Canceled) {
		q.refuse(http.StatusServiceUnavailable) // whoever asked has gone
		return
	}
	view := q.explain(err)
	if view.Code >= http.StatusInternalServerError {
		q.cfg.Logger.ErrorContext(q.r.Context(), "auditui: a page could not be made", "route", q.r.Pattern, "status", view.Code, "kind", errorKind(err))
	}
	q.status = nil // the page is about the error, and must not ask for anything more
	if failed := q.render(view.Code, "error", "", view.Title, View{}, view); failed != nil {
		q.refuse(http.StatusInternalServerError)
	}
}

// explain says in words what an error means. Texts of the server are not shown, as they
// may hold values.
func (q *request) explain(err error) errorView {
	var (
		bad      *requestError
		filter   *audit.FilterError
		cursor   *audit.CursorError
		history  *audit.HistoryError
		point    *audit.PointError
		columns  *audit.ColumnsError
		revert   *audit.RevertError
		never    *audit.UnrevertableError
		apply    *audit.ApplyError
		tooMany  *audit.TooManyRowsError
		tooLarge *audit.TooLargeError
		several  *audit.SeveralUsersError
	)
	switch {
	case errors.Is(err, errNoPage), errors.Is(err, audit.ErrNotFound), errors.Is(err, audit.ErrNothingSelected):
		return errorView{
			Code: 404, Title: "Not here", Text: "There is nothing at this address that you may see.",
			Advice: "It may be older than the history, mistyped, or outside of what you have access to.",
		}
	case errors.Is(err, errPartly):
		return errorView{
			Code: 403, Title: "Not all of this is yours to see", Text: "It touches rows, or has later work in its way, outside of what you have access to. Nothing was written.",
			Advice: "Ask somebody who may see all of it.",
		}
	case errors.Is(err, errForm):
		return errorView{
			Code: 403, Title: "This form does not hold any more", Text: "It was made for somebody else, for something else, or too long ago. Nothing was written.",
			Advice: "Look at the plan again, and send that.",
		}
	case errors.As(err, &bad):
		return errorView{Code: 400, Title: "That does not work", Text: bad.text}
	case errors.As(err, &filter):
		return errorView{Code: 400, Title: "That does not work", Text: filterText(filter)}
	case errors.As(err, &cursor):
		return errorView{Code: 400, Title: "That does not work", Text: "This is no place in the list: " + cursor.Reason + ".", Advice: "Begin the list anew."}
	case errors.As(err, &history):
		return q.explainHistory(history)
	case errors.As(err, &point):
		return errorView{Code: 404, Title: "No such moment", Text: point.Error()}
	case errors.Is(err, audit.ErrNoRow):
		return errorView{Code: 404, Title: "No such row then", Text: "The table is known at that moment, and had no row of this key."}
	case errors.As(err, &columns):
		return errorView{Code: 422, Title: "The columns were others then", Text: columns.Error()}
	case errors.As(err, &several):
		return errorView{Code: 409, Title: "Several users", Text: several.Error()}
	case errors.As(err, &tooMany):
		return errorView{
			Code: 422, Title: "Too much at once", Text: fmt.Sprintf("This would touch more than %s rows. Nothing was written.", groupedNumber(tooMany.Max)),
			Advice: "Undo it in parts, or from the program, which may say that more is meant.",
		}
	case errors.As(err, &tooLarge):
		return errorView{Code: 422, Title: "Too much at once", Text: "The rows of this take more memory than a revert may. Nothing was written.", Advice: "Undo it in parts."}
	case errors.As(err, &never):
		return errorView{Code: 422, Title: "This cannot be undone", Text: never.Error(), Advice: "Nothing was written."}
	case errors.As(err, &apply):
		return errorView{Code: 409, Title: "The database refused", Text: apply.Error(), Advice: "Nothing was written."}
	case errors.As(err, &revert):
		return errorView{Code: 400, Title: "That does not work", Text: revert.Error(), Advice: "Nothing was written."}
	case errors.Is(err, audit.ErrRowSecurity):
		return errorView{Code: 503, Title: "History cannot be computed", Text: audit.ErrRowSecurity.Error()}
	case errors.Is(err, audit.ErrStandby):
		return errorView{Code: 503, Title: "The database only reads", Text: audit.ErrStandby.Error()}
	case errors.Is(err, audit.ErrNoHistory):
		return errorView{
			Code: 503, Title: "There is no history yet", Text: "Nothing has been captured in this database and schema.",
			Advice: "Start capture once; from then on every change is here.",
		}
	case errors.Is(err, audit.ErrClosed):
		return errorView{Code: 503, Title: "The program is stopping", Text: "The history was closed. Try again in a moment."}
	case errors.Is(err, errBusy):
		return errorView{Code: 503, Title: "Too many at once", Text: "All streams of this program are taken. Try again in a moment."}
	case timedOut(err):
		return errorView{
			Code: 504, Title: "That took too long", Text: "The history did not answer in time, so this page shows nothing rather than a part.",
			Advice: "Narrow it to a table, a user or a shorter time. If every page says this, the database is slow or busy.",
		}
	case isAway(err):
		return errorView{
			Code: 503, Title: "The database is away", Text: "The history could not be reached, so nothing can be said about it.",
			Advice: "Nothing is lost by that: capture goes on where it was. Try again in a moment.",
		}
	}
	return errorView{Code: 500, Title: "Something went wrong", Text: "The page could not be made. The log of the program says which kind of error it was."}
}

var historyReasons = []struct {
	reason      error
	title, text string
}{
	{audit.ErrNotTracked, "This table is not in the history", "It is not tracked, or was not at that moment."},
	{audit.ErrBeforeHistory, "Before the history begins", "The table was not tracked yet at that moment, so nobody knows how it was."},
	{audit.ErrPastRetention, "Past the retention", "What is needed to tell that moment was dropped by the retention of the history."},
	{audit.ErrInGap, "In a gap", "History has a hole there, and an answer across it would be a guess."},
	{audit.ErrFuture, "Not yet", "That moment has not come."},
	{audit.ErrClockJumped, "The clock jumped then", "The clock of the database was set back, so that time stands for no one moment. Take a position or a mark."},
	{audit.ErrNotCaptured, "History is behind", "Nobody captures at present, and this needs what was committed lately."},
	{audit.ErrIncomplete, "History does not know all of it", "Some of what is needed was gone before history saw it."},
	{audit.ErrUntrusted, "Refused", "It would run code of another role with the rights of this program."},
}

// explainHistory says why the past cannot be told, and offers the nearest moment for which
// it can.
func (q *request) explainHistory(err *audit.HistoryError) errorView {
	view := errorView{Code: http.StatusUnprocessableEntity, Title: "History cannot tell", Text: err.Error()}
	for _, r := range historyReasons {
		if errors.Is(err.Reason, r.reason) {
			view.Title, view.Text = r.title, r.text
			if err.Detail != "" {
				view.Text += " (" + err.Detail + ")"
			}
		}
	}
	if !err.Earliest.IsZero() {
		query := url.Values{}
		for name, values := range q.query {
			query[name] = values
		}
		at := positionSegment(err.Earliest)
		switch {
		case query.Has("from"):
			query.Set("from", at)
		case query.Has("at"):
			query.Set("at", at)
		default:
			query.Set("as-of", at)
		}
		view.Nearest, view.NearestTime = "?"+query.Encode(), err.EarliestTime
	}
	return view
}

// filterText is what is wrong with a filter, without the names of methods.
func filterText(err *audit.FilterError) string {
	switch err.Filter {
	case "ForRow":
		return "A key means nothing without its table: choose a table, too."
	case "Between":
		return "The time ends before it begins."
	}
	return "The filter does not work: " + err.Reason + "."
}

func timedOut(err error) bool {
	var network net.Error
	return errors.Is(err, errTimeout) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &network) && network.Timeout()
}

func isAway(err error) bool {
	var connect *pgconn.ConnectError
	var network *net.OpError
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		// Class 08 is about connections, 57P of a server that goes or comes, 53 of one that is full.
		return len(pg.Code) == 5 && (pg.Code[:2] == "08" || pg.Code[:3] == "57P" || pg.Code[:2] == "53")
	}
	return errors.As(err, &connect) || errors.As(err, &network) || pgconn.SafeToRetry(err)
}

// errorKind names an error for the log, without its text.
func errorKind(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return "SQLSTATE " + pg.Code
	}
	if timedOut(err) {
		return "timeout"
	}
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		err = inner
	}
	return fmt.Sprintf("%T", err)
}
