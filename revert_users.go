package audit

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pgx/v5"
)

// maxOrigins is how many origins a plan lists.
const maxOrigins = 1000

// Origin is where changes came from, as their contexts say.
type Origin struct {
	// User is who made them, as [Query.ByUser] takes it, or "" if they carry no user.
	User string `json:"user,omitempty"`
	// Endpoint and Worker are where in the program they were made.
	Endpoint string `json:"endpoint,omitempty"`
	Worker   string `json:"worker,omitempty"`
	// Environment is that of the program that captured them.
	Environment string `json:"environment,omitempty"`
	// Changes is how many there are.
	Changes int64 `json:"changes"`
}

func (o Origin) String() string {
	who := "nobody"
	if o.User != "" {
		who = printable(clip(o.User, lineValue))
	}
	for _, part := range []struct{ word, text string }{{" at ", o.Endpoint}, {" in ", o.Worker}, {" on ", o.Environment}} {
		if part.text != "" {
			who += part.word + printable(clip(part.text, lineValue))
		}
	}
	return fmt.Sprintf("%s: %s", who, counted(int(o.Changes), "change"))
}

// counted is a number of things: "1 change", "2 changes".
func counted(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// usersOf lists the users who share a unit. A change without a user belongs to the user
// who has changed something at the same endpoint or worker: a request learns who makes it
// on its way. Elsewhere, it is somebody else's, and "" stands for them.
func usersOf(origins []Origin) []string {
	type place struct{ endpoint, worker, environment string }
	var users []string
	known := make(map[place]bool)
	for _, o := range origins {
		if o.User != "" {
			users = append(users, o.User)
			known[place{o.Endpoint, o.Worker, o.Environment}] = true
		}
	}
	for _, o := range origins {
		if o.User == "" && !known[place{o.Endpoint, o.Worker, o.Environment}] {
			users = append(users, "")
		}
	}
	slices.Sort(users)
	return slices.Compact(users)
}

// SeveralUsersError is returned when a revert was asked for by an id that several users
// have stamped, and [Reversal.AcrossUsers] does not say that all of their work is meant.
// Nothing was written.
type SeveralUsersError struct {
	// Of is the unit: that of the revert, or a request that [CascadeRequests] would
	// revert as well.
	Of Unit
	// Origins says who made its changes, and where.
	Origins []Origin
}

func (e *SeveralUsersError) Error() string {
	return fmt.Sprintf("audit: revert %s: it has changes of %s: nothing was written; ExceptUser leaves out those of some users, AcrossUsers reverts them all",
		e.Of, counted(len(e.Users()), "user"))
}

// Users lists the users, sorted. An empty one stands for changes that carry no user and
// were made elsewhere than those that do.
func (e *SeveralUsersError) Users() []string { return usersOf(e.Origins) }

// AcrossUsers reverts the unit also if several users have changes in it. An id of a
// request or a trace is a claim: whoever stamps it joins the unit. So without this,
// [RevertRequest] and [RevertTrace] are refused with a [*SeveralUsersError] then, and so
// are [Revert] of a query that selects by such an id and names no user, and the
// requests that [CascadeRequests] would take along. A change without a user counts as
// another user's, unless a change with a user was made at the same endpoint and worker.
// Plan lists them all in [Plan.Origins].
func (r Reversal) AcrossUsers() Reversal {
	r.acrossUsers = true
	return r
}

// findUsers finds out who made the selected changes.
func (p *planner) findUsers(ctx context.Context) (err error) {
	q := p.sel.query
	if p.sel.after != nil {
		q = q.filter(sq.Expr("c.position > ?::pg_lsn", p.sel.after.String()))
	}
	if p.origins, err = p.originsOf(ctx, q); err != nil {
		return err
	}
	if p.r.byClaim {
		p.refuseSeveral(p.r.unit, p.origins)
	}
	return nil
}

// refuseSeveral notes that a unit has changes of several users.
func (p *planner) refuseSeveral(of Unit, origins []Origin) {
	if !p.r.acrossUsers && p.refused == nil && len(usersOf(origins)) > 1 {
		p.refused = &SeveralUsersError{Of: of, Origins: origins}
	}
}

// originsOf groups the changes that a query matches by where they came from, those with
// the most changes first.
func (p *planner) originsOf(ctx context.Context, q Query) ([]Origin, error) {
	contexts := q.from(p.client, "c.context", "c.environment", "count(*) AS changes").
		Where(sq.Expr("c.database = ?", p.database)).GroupBy("c.context", "c.environment")
	b := sq.StatementBuilder.PlaceholderFormat(sq.Dollar).Select(append(originColumns(), "sum(c.changes)::bigint")...).
		FromSelect(contexts.PlaceholderFormat(sq.Question), "c").
		GroupBy("1", "2", "3", "4").OrderBy("5 DESC").Limit(maxOrigins)
	origins, err := collectAll(ctx, p.client, "find users", b, scanOrigin)
	return mergeOrigins(origins), err
}

// originColumns are those that tell where a change came from.
func originColumns() []string {
	columns := make([]string, 0, 5)
	for _, member := range []contextMember{userMember, endpointMember, workerMember} {
		columns = append(columns, "coalesce("+member.sql()+", '')")
	}
	return append(columns, "coalesce(c.environment, '')")
}

// mergeOrigins counts the changes of each origin once, and sorts them as they are listed.
func mergeOrigins(origins []Origin) []Origin {
	place := func(a, b Origin) int {
		return cmp.Or(cmp.Compare(a.User, b.User), cmp.Compare(a.Endpoint, b.Endpoint), cmp.Compare(a.Worker, b.Worker), cmp.Compare(a.Environment, b.Environment))
	}
	slices.SortFunc(origins, place)
	merged := origins[:0]
	for _, o := range origins {
		if n := len(merged); n > 0 && place(merged[n-1], o) == 0 {
			merged[n-1].Changes += o.Changes
			continue
		}
		merged = append(merged, o)
	}
	slices.SortStableFunc(merged, func(a, b Origin) int { return cmp.Compare(b.Changes, a.Changes) })
	return merged[:min(len(merged), maxOrigins)]
}

func scanOrigin(row pgx.CollectableRow) (o Origin, err error) {
	err = row.Scan(&o.User, &o.Endpoint, &o.Worker, &o.Environment, &o.Changes)
	return o, err
}

// writeOrigins says who made the changes, if that is worth a word.
func (p *Plan) writeOrigins(b *strings.Builder) {
	if len(p.Origins) < 2 {
		return
	}
	fmt.Fprintf(b, "made by %s:\n", counted(len(usersOf(p.Origins)), "user"))
	for i, o := range p.Origins {
		if i == printedRows {
			fmt.Fprintf(b, "  ... and %d more\n", len(p.Origins)-i)
			break
		}
		b.WriteString("  " + o.String() + "\n")
	}
}

// Refused returns the error with which the plan cannot be applied whatever its conflicts
// are, a [*SeveralUsersError], or nil.
func (p *Plan) Refused() error {
	if p.p == nil || p.p.refused == nil {
		return nil
	}
	return p.p.refused
}
