package audit_test

import (
	cmporder "cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
)

// model is a random history in memory with the questions that can be asked of
// it, each in two ways: of the store, and of the changes themselves.
type model struct {
	*rand.Rand
	changes []audit.Change // oldest first
}

type condition struct {
	name  string
	apply func(audit.Query) audit.Query
	holds func(audit.Change) bool
}

func pick[T any](m *model, from ...T) T { return from[m.IntN(len(from))] }

func (m *model) fill(size int) {
	n, sequence := 0, 0
	for range size {
		if sequence++; sequence > 1 && m.IntN(3) > 0 {
			n, sequence = n+1, 1
		}
		c := change(n, sequence, in(pick(m, "public", "billing"), pick(m, "todo", "users", "Odd Table")), key(pick(m, "1", "2", "3", "4")))
		// Commit times run backwards now and then.
		c.CommittedAt = epoch.Add(time.Duration(n)*6*time.Hour - time.Duration(m.IntN(8))*time.Hour).Truncate(time.Hour)
		c.TransactionID = uint64(5000 + n ^ 3)
		c.Database = pick(m, "shop", "shop", "archive")
		c.Environment = pick(m, "", "test", "production")
		c.Before, c.After = m.image(), m.image()
		did(pick(m, audit.Create, audit.Update, audit.Update, audit.Delete, audit.Truncate))(&c)
		if c.Operation == audit.Truncate {
			c.PrimaryKey = ""
		}
		if c.Operation == audit.Update && m.IntN(4) == 0 {
			c.PreviousKey, c.KeyChanged = pick(m, "1", "9"), true
		}
		if m.IntN(5) > 0 {
			with(m.context())(&c)
		}
		m.changes = append(m.changes, c)
	}
	slices.SortStableFunc(m.changes, func(a, b audit.Change) int {
		if by := a.Position.Compare(b.Position); by != 0 {
			return by
		}
		return strings.Compare(a.Database, b.Database)
	})
}

func (m *model) image() audit.Image {
	members := []string{fmt.Sprintf(`"id": %d`, m.IntN(3))}
	for _, column := range []string{"state", "price"} {
		if m.IntN(4) > 0 {
			members = append(members, fmt.Sprintf("%q: %s", column, pick(m, `"new"`, `"paid"`, `1`, `1.0`, `2.50`, `null`)))
		}
	}
	return audit.Image("{" + strings.Join(members, ", ") + "}")
}

func (m *model) context() string {
	if m.IntN(10) == 0 {
		return "{}"
	}
	var members []string
	add := func(names []string, values ...string) {
		if m.IntN(4) > 0 {
			members = append(members, fmt.Sprintf("%q: %s", pick(m, names...), pick(m, values...)))
		}
	}
	add([]string{"userId", "user_id"}, `1`, `"1"`, `"ann"`, `"bob"`)
	add([]string{"requestId", "request_id"}, `"r1"`, `"r2"`, `"r3"`, `7`, `"7"`)
	add([]string{"traceId", "trace_id"}, `"t1"`, `"t2"`)
	add([]string{"endpoint"}, `"GET /"`, `"POST /"`)
	return "{" + strings.Join(members, ", ") + "}"
}

// member is the text of a context's member, by either name.
func member(c audit.Change, names ...string) (string, bool) {
	var members map[string]json.RawMessage
	_ = json.Unmarshal(c.RawContext, &members)
	for _, name := range names {
		if raw, ok := members[name]; ok {
			return strings.Trim(string(raw), `"`), true
		}
	}
	return "", false
}

func hasMember(c audit.Change, value string, names ...string) bool {
	text, ok := member(c, names...)
	return ok && text == value
}

func (m *model) condition() condition {
	switch m.IntN(15) {
	case 0:
		table := pick(m, "todo", "users", "Odd Table", "none")
		return condition{
			"table " + table, func(q audit.Query) audit.Query { return q.ForTable(table) },
			func(c audit.Change) bool { return c.Table == table },
		}
	case 1:
		schema, table := pick(m, "public", "billing"), pick(m, "todo", "users")
		return condition{
			"table " + schema + "." + table, func(q audit.Query) audit.Query { return q.ForTable(schema+"."+table, "none") },
			func(c audit.Change) bool { return c.Schema == schema && c.Table == table },
		}
	case 2:
		row := pick(m, "1", "2", "9")
		return condition{
			"row " + row, func(q audit.Query) audit.Query { return q.ForTable("todo").ForRow(row) },
			func(c audit.Change) bool {
				return c.Table == "todo" && (c.HasKey && c.PrimaryKey == row || c.KeyChanged && c.PreviousKey == row)
			},
		}
	case 3:
		user := pick[any](m, 1, "1", "ann", "nobody")
		return condition{
			fmt.Sprint("user ", user), func(q audit.Query) audit.Query { return q.ByUser(user) },
			func(c audit.Change) bool {
				return c.Context.User() == fmt.Sprint(user) || hasMember(c, fmt.Sprint(user), "userId", "user_id")
			},
		}
	case 4:
		request := pick(m, "r1", "r2", "7", "none")
		return condition{
			"request " + request, func(q audit.Query) audit.Query { return q.InRequest(request) },
			func(c audit.Change) bool { return hasMember(c, request, "requestId", "request_id") },
		}
	case 5:
		return condition{
			"trace", func(q audit.Query) audit.Query { return q.InTrace("t1") },
			func(c audit.Change) bool { return hasMember(c, "t1", "traceId", "trace_id") },
		}
	case 6:
		return condition{
			"endpoint", func(q audit.Query) audit.Query { return q.ByEndpoint("POST /") },
			func(c audit.Change) bool { return hasMember(c, "POST /", "endpoint") },
		}
	case 7:
		return condition{
			"without context", audit.Query.WithoutContext,
			func(c audit.Change) bool { return !c.Stamped || string(c.RawContext) == "{}" },
		}
	case 8:
		operations := []audit.Operation{pick(m, audit.Create, audit.Update), pick(m, audit.Update, audit.Truncate)}
		return condition{
			fmt.Sprint(operations), func(q audit.Query) audit.Query { return q.Operations(operations...) },
			func(c audit.Change) bool { return slices.Contains(operations, c.Operation) },
		}
	case 9: // before every until: a window that ends before it begins is an error
		t := epoch.Add(time.Duration(m.IntN(500)) * time.Hour)
		return condition{
			"since " + t.String(), func(q audit.Query) audit.Query { return q.Since(t) },
			func(c audit.Change) bool { return !c.CommittedAt.Before(t) },
		}
	case 10:
		t := epoch.Add(time.Duration(500+m.IntN(500)) * time.Hour)
		return condition{
			"until " + t.String(), func(q audit.Query) audit.Query { return q.Until(t) },
			func(c audit.Change) bool { return c.CommittedAt.Before(t) },
		}
	case 11:
		id := pick(m, m.changes...).TransactionID
		return condition{
			fmt.Sprint("transaction ", id), func(q audit.Query) audit.Query { return q.InTransaction(id) },
			func(c audit.Change) bool { return c.TransactionID == id },
		}
	case 12:
		environment, database := pick(m, "test", "production"), pick(m, "shop", "archive")
		return condition{
			environment + " " + database, func(q audit.Query) audit.Query { return q.InEnvironment(environment).InDatabase(database) },
			func(c audit.Change) bool { return c.Environment == environment && c.Database == database },
		}
	case 13:
		columns := []string{pick(m, "id", "state", "price"), pick(m, "state", "none")}
		return condition{
			fmt.Sprint("changed ", columns), func(q audit.Query) audit.Query { return q.Changed(columns...) },
			func(c audit.Change) bool { return c.Changed(columns...) },
		}
	default:
		value := pick[any](m, "new", 1, 1.0, nil)
		text := map[any]string{"new": `"new"`, 1: "1", 1.0: "1", nil: "null"}[value]
		return condition{
			fmt.Sprint("state changed to ", value), func(q audit.Query) audit.Query { return q.ChangedTo("state", value) },
			func(c audit.Change) bool {
				for _, d := range c.Diff() {
					if d.Column == "state" && strings.TrimSuffix(string(d.New), ".0") == text {
						return true
					}
				}
				return false
			},
		}
	}
}

// rowOf names a change among those of all databases.
func rowOf(c audit.Change) string { return c.Position.String() + " " + c.Database }

func rowsOf(changes []audit.Change) []string {
	rows := []string{}
	for _, c := range changes {
		rows = append(rows, rowOf(c))
	}
	return rows
}

// TestQueriesAgreeWithAModel asks random questions of a random history.
func TestQueriesAgreeWithAModel(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	m := &model{Rand: rand.New(rand.NewPCG(seed, 0))}
	m.fill(400)
	h := newHistory(t)
	h.store(t, m.changes...)

	for range 150 {
		q, names := h.client.Changes(), []string{}
		want := slices.Clone(m.changes)
		for range m.IntN(3) {
			condition := m.condition()
			names = append(names, condition.name)
			q = condition.apply(q)
			want = slices.DeleteFunc(want, func(c audit.Change) bool { return !condition.holds(c) })
		}
		if m.IntN(2) == 0 {
			names, q = append(names, "oldest first"), q.OldestFirst()
		} else {
			slices.Reverse(want)
		}
		if len(want) > 1 && m.IntN(3) == 0 {
			skip := m.IntN(len(want) - 1)
			names, q = append(names, fmt.Sprint("after ", skip)), q.After(q.CursorAfter(want[skip]))
			want = want[skip+1:]
		}
		all := want
		if m.IntN(3) == 0 {
			limit := 1 + m.IntN(20)
			names, q = append(names, fmt.Sprint("limit ", limit)), q.Limit(limit)
			want = want[:min(limit, len(want))]
		}
		name := strings.Join(names, ", ")
		got, err := q.List(t.Context())
		if diff := cmp.Diff(rowsOf(want), rowsOf(got)); err != nil || diff != "" {
			t.Fatalf("%s: %v %s", name, err, diff)
		}
		m.checkCounts(t, name, q, want)
		m.checkGroups(t, name, q, all)
	}
}

func (m *model) checkCounts(t *testing.T, name string, q audit.Query, want []audit.Change) {
	t.Helper()
	if n, err := q.Count(t.Context()); err != nil || int(n) != len(want) {
		t.Fatalf("%s: Count = %d, %v; want %d", name, n, err, len(want))
	}
	counts := map[string]int64{}
	for _, c := range want {
		user, known := member(c, "userId", "user_id")
		counts[fmt.Sprint(user, known)]++
	}
	groups, err := q.CountBy(t.Context(), audit.PerUser)
	got := map[string]int64{}
	for i, g := range groups {
		got[fmt.Sprint(g.Value, g.Known)] = g.Changes
		if i > 0 && g.Changes > groups[i-1].Changes {
			t.Fatalf("%s: groups out of order: %v", name, groups)
		}
	}
	if diff := cmp.Diff(counts, got); err != nil || diff != "" {
		t.Fatalf("%s: CountBy: %v %s", name, err, diff)
	}
	steps, err := q.Trend(t.Context(), audit.EveryDay)
	total := int64(0)
	for i, s := range steps {
		total += s.Total()
		if s.Start != s.End.AddDate(0, 0, -1) || i > 0 && steps[i-1].End != s.Start {
			t.Fatalf("%s: steps with a hole: %v", name, steps)
		}
	}
	if err != nil || int(total) != len(want) {
		t.Fatalf("%s: Trend counts %d, %v; want %d", name, total, err, len(want))
	}
}

// checkGroups compares the transactions and requests of the query, in order. It
// leaves out queries with a cursor, which is one of changes.
func (m *model) checkGroups(t *testing.T, name string, q audit.Query, want []audit.Change) {
	t.Helper()
	if strings.Contains(name, "after ") {
		return
	}
	limit := 1 << 30
	if _, text, found := strings.Cut(name, "limit "); found {
		_, _ = fmt.Sscan(text, &limit)
	}
	var transactions, requests []string
	counts := map[string]int64{}
	// Transactions of two sources at one position go by database.
	byTransaction := slices.SortedStableFunc(slices.Values(want), func(a, b audit.Change) int {
		by := cmporder.Or(cmporder.Compare(a.Position.LSN, b.Position.LSN), strings.Compare(a.Database, b.Database))
		if strings.Contains(name, "oldest first") {
			return by
		}
		return -by
	})
	for _, c := range byTransaction {
		id := fmt.Sprint(c.Position.LSN, " ", c.Database)
		if counts[id]++; counts[id] == 1 {
			transactions = append(transactions, id)
		}
	}
	for _, c := range want {
		if request, ok := member(c, "requestId", "request_id"); ok {
			if counts[request]++; counts[request] == 1 {
				requests = append(requests, request)
			}
		}
	}
	transactions, requests = transactions[:min(limit, len(transactions))], requests[:min(limit, len(requests))]
	var got []string
	for transaction, err := range q.Transactions(t.Context()) {
		if err != nil {
			t.Fatalf("%s: Transactions: %v", name, err)
		}
		id := fmt.Sprint(transaction.Position, " ", transaction.Database)
		got = append(got, id)
		if transaction.Total() != counts[id] {
			t.Fatalf("%s: transaction %s has %d changes, not %d", name, id, counts[id], transaction.Total())
		}
	}
	if diff := cmp.Diff(transactions, got); diff != "" {
		t.Fatalf("%s: Transactions: %s", name, diff)
	}
	got = nil
	for request, err := range q.Requests(t.Context()) {
		if err != nil {
			t.Fatalf("%s: Requests: %v", name, err)
		}
		got = append(got, request.ID)
		if request.Total() != counts[request.ID] {
			t.Fatalf("%s: request %s has %d changes, not %d", name, request.ID, counts[request.ID], request.Total())
		}
	}
	if diff := cmp.Diff(requests, got); diff != "" {
		t.Fatalf("%s: Requests: %s", name, diff)
	}
}
