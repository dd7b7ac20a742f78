package auditui

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/hindsight-go/audit"
)

// errStatusUnknown is for pages that cannot tell what somebody may see without knowing
// the tables of the history.
var errStatusUnknown = &statusError{}

type statusError struct{}

func (*statusError) Error() string   { return "auditui: it is not known how history stands" }
func (*statusError) Timeout() bool   { return true }
func (*statusError) Temporary() bool { return true }

// completeness is what a page says of how complete its history is.
type completeness struct {
	// Known is false if nobody could be asked.
	Known bool
	// To is the latest commit that history has; LagBytes is the WAL behind it.
	To       time.Time
	LagBytes int64
	// Captured reports whether somebody captures.
	Captured bool
	// Since is from when on the tables of the page are tracked; Late tells that the page
	// asks for earlier, or for everything.
	Since time.Time
	Late  bool
	// Gaps are the holes in what the page is about.
	Gaps []audit.Gap
	// Untracked are tables of the page that are not tracked any more.
	Untracked []string
}

// completeness is that of what the page is about, if that is known.
func (q *request) completeness() *completeness {
	if q.status == nil {
		if q.statusErr == nil {
			return nil // the page is not about history
		}
		return &completeness{}
	}
	c := &completeness{Known: true, To: q.status.CommittedAt, LagBytes: q.status.LagBytes, Captured: q.status.Slot.Active}
	tracked := make(map[string]bool)
	for _, t := range q.status.Tables {
		name := tableName(t.Schema, t.Table)
		if !q.concerned(t.Table, name) || !q.mayTable(name) {
			continue
		}
		tracked[name] = tracked[name] || t.Until == 0 && t.Pending == nil
		if !t.FromTime.IsZero() && (c.Since.IsZero() || t.FromTime.Before(c.Since)) {
			c.Since = t.FromTime
		}
	}
	for name, now := range tracked {
		if !now {
			c.Untracked = append(c.Untracked, name)
		}
	}
	slices.Sort(c.Untracked)
	c.Late = !q.from.IsZero() && q.from.Before(c.Since)
	for _, gap := range q.status.Gaps {
		if (q.until.IsZero() || gap.FromTime.IsZero() || gap.FromTime.Before(q.until)) &&
			(q.from.IsZero() || gap.ToTime.IsZero() || gap.ToTime.After(q.from)) {
			c.Gaps = append(c.Gaps, gap)
		}
	}
	return c
}

// concerned reports whether the page is about a table.
func (q *request) concerned(table, name string) bool {
	return len(q.tables) == 0 || slices.Contains(q.tables, name) || slices.Contains(q.tables, table)
}

// statusView is the page on how capture stands.
type statusView struct {
	Status   audit.Status
	Ready    bool
	Why      string
	Tables   []tableLine
	State    string
	Position string
	Source   string
	// Unstamped is how many of the newest changes carry no context, of Recent.
	Unstamped, Recent int64
	UnstampedLink     string
	Shared            bool
	Reason            string
}

type tableLine struct {
	Name, Link, Changes string
	Since, Until        time.Time
	Pending             string
}

// readyOf says whether history is being kept, and why not.
func readyOf(s *audit.Status, err error) (bool, string) {
	switch {
	case s == nil && timedOut(err):
		return false, "the database does not answer in time"
	case s == nil:
		return false, "the database is away"
	case !s.Slot.Exists:
		return false, "there is no replication slot: capture was never started, or the slot was dropped"
	case s.Slot.Status == "lost":
		return false, "the replication slot was lost, which leaves a gap"
	case !s.Slot.Active:
		return false, "nobody captures at present"
	}
	return true, ""
}

func (q *request) statusPage() error {
	q.loadStatus()
	ready, why := readyOf(q.status, q.statusErr)
	view := statusView{Ready: ready, Why: why}
	code := http.StatusOK
	if !ready {
		code = http.StatusServiceUnavailable
	}
	if q.status != nil {
		q.fillStatus(&view)
	}
	return q.render(code, "status", "status", "Status", View{}, view)
}

func (q *request) fillStatus(view *statusView) {
	s := *q.status
	view.Status, view.State = s, string(s.State)
	view.Position, view.Source = s.Position.String(), s.SourcePosition.String()
	q.fillTables(view)
	view.UnstampedLink = q.base() + "?nocontext=1"
	ctx, cancel := q.context(q.cfg.Timeout)
	defer cancel()
	all, err := q.changes()
	if err != nil {
		return
	}
	newest, err := all.Limit(1_000).List(ctx)
	if err != nil {
		return
	}
	for i := range newest {
		if len(newest[i].RawContext) == 0 || string(newest[i].RawContext) == "{}" || string(newest[i].RawContext) == "null" {
			view.Unstamped++
		}
	}
	view.Recent, view.Shared = int64(len(newest)), true
}

// fillTables lists the tables that whoever asks may see.
func (q *request) fillTables(view *statusView) {
	for _, t := range q.status.Tables {
		name := tableName(t.Schema, t.Table)
		if !q.mayTable(name) {
			continue
		}
		line := tableLine{Name: name, Since: t.FromTime, Until: t.UntilTime, Changes: q.base() + "?" + (url.Values{"table": {name}}).Encode()}
		if q.rowPages() {
			line.Link = q.link("tables", []string{name}, nil)
		}
		if t.Pending != nil {
			line.Pending = t.Pending.Error()
		}
		view.Tables = append(view.Tables, line)
	}
}

// statusJSON is for probes: 200 while somebody captures, and 503.
func (q *request) statusJSON() error {
	q.loadStatus()
	ready, why := readyOf(q.status, q.statusErr)
	answer := struct {
		Ready  bool          `json:"ready"`
		Reason string        `json:"reason,omitempty"`
		Status *audit.Status `json:"status,omitempty"`
	}{ready, why, nil}
	if q.status != nil {
		visible := *q.status
		visible.Tables = slices.DeleteFunc(slices.Clone(visible.Tables), func(t audit.TableStatus) bool { return !q.mayTable(tableName(t.Schema, t.Table)) })
		answer.Status = &visible
	}
	code := http.StatusOK
	if !ready {
		code = http.StatusServiceUnavailable
	}
	text, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	q.write(code, "application/json; charset=utf-8", append(text, '\n'))
	return nil
}

// jsonText is a value as indented JSON.
func jsonText(v any) string {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
