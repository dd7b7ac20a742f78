package audit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/hindsight-go/audit"
)

func TestPackageLevelQueryNeedsADefaultClient(t *testing.T) {
	if _, err := audit.Changes().List(t.Context()); !errors.Is(err, audit.ErrNoDefaultClient) {
		t.Errorf("List: %v", err)
	}
	if _, err := audit.Changes().ForTable("").Limit(-1).Count(t.Context()); errors.Is(err, audit.ErrNoDefaultClient) {
		t.Errorf("the query's own error comes first: %v", err)
	}
	h := newHistory(t)
	h.store(t, change(1, 1))
	audit.SetDefault(h.client)
	defer audit.SetDefault(nil)
	if n, err := audit.Changes().Count(t.Context()); n != 1 || err != nil {
		t.Errorf("Count = %d, %v", n, err)
	}
}

func TestFiltersRefuseWhatTheyCannotWorkWith(t *testing.T) {
	t.Parallel()
	base := (&audit.Client{}).Changes()
	var nowhere *uuid.UUID
	now := time.Now()
	for name, q := range map[string]audit.Query{
		"ForTable":          base.ForTable(),
		"ForTable empty":    base.ForTable(""),
		"ForTable dots":     base.ForTable("a.b.c"),
		"ForTable dot":      base.ForTable("public."),
		"ForTable quote":    base.ForTable(`"open`),
		"ForTable inner":    base.ForTable(`pub"lic`),
		"ForTable behind":   base.ForTable(`"public"x.todo`),
		"ForTable NUL":      base.ForTable("a\x00"),
		"ForTable quoted":   base.ForTable(`""`),
		"ForRow":            base.ForTable("todo").ForRow(),
		"ForRow alone":      base.ForRow(1),
		"ForRow nil":        base.ForTable("todo").ForRow(nil),
		"ForRow pointer":    base.ForTable("todo").ForRow(nowhere),
		"ForRow struct":     base.ForTable("todo").ForRow(struct{}{}),
		"ForRow NUL":        base.ForTable("todo").ForRow("a\x00"),
		"ForRow times":      base.ForTable("todo").ForRow(now, now, now, now, now, now, now, now, now),
		"ByUser":            base.ByUser(nil),
		"ByUser empty":      base.ByUser(""),
		"ByUser struct":     base.ByUser(struct{}{}),
		"ByUser NaN":        base.ByUser(math.NaN()),
		"InRequest":         base.InRequest(""),
		"InTrace NUL":       base.InTrace("\x00"),
		"ByEndpoint":        base.ByEndpoint(""),
		"ByWorker":          base.ByWorker(""),
		"WhereContext":      base.WhereContext([]int{1}),
		"WhereContext nil":  base.WhereContext(nil),
		"WhereContext chan": base.WhereContext(map[string]any{"a": make(chan int)}),
		"WhereContext NUL":  base.WhereContext(map[string]string{"a": "\x00"}),
		"WhereBefore":       base.WhereBefore("x"),
		"WhereAfter":        base.WhereAfter(1),
		"Operations":        base.Operations(),
		"Operations other":  base.Operations("INSERT"),
		"Until":             base.Until(time.Time{}),
		"Between":           base.Between(now, now.Add(-time.Second)),
		"Changed":           base.Changed(),
		"Changed empty":     base.Changed(""),
		"ChangedTo":         base.ChangedTo("", 1),
		"ChangedTo NUL":     base.ChangedTo("a", "\x00"),
		"ChangedTo chan":    base.ChangedTo("a", make(chan int)),
		"Limit":             base.Limit(0),
	} {
		if name != "ForRow alone" {
			q = q.ForTable("todo").Limit(1).OldestFirst()
		}
		_, err := q.List(t.Context())
		var filterErr *audit.FilterError
		if filter, _, _ := strings.Cut(name, " "); !errors.As(err, &filterErr) || filterErr.Filter != filter {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, call := range map[string]func() error{
		"Page":             func() error { _, err := base.Page(t.Context(), 0); return err },
		"TransactionsPage": func() error { _, err := base.TransactionsPage(t.Context(), 10_001); return err },
		"RequestsPage":     func() error { _, err := base.RequestsPage(t.Context(), -1); return err },
		"CountBy":          func() error { _, err := base.CountBy(t.Context(), 0); return err },
		"Trend":            func() error { _, err := base.Trend(t.Context(), 99); return err },
		"Export":           func() error { _, err := base.Export(t.Context(), &bytes.Buffer{}, 0); return err },
	} {
		var filterErr *audit.FilterError
		if err := call(); !errors.As(err, &filterErr) || filterErr.Filter != name {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := base.ByUser("").ForTable("").First(t.Context())
	if err == nil || !strings.Contains(err.Error(), "ByUser") {
		t.Errorf("not the first error: %v", err)
	}
}

// A position that no change can have has none.
func TestAtPosition_OutOfRange(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t, change(1, 1))
	for _, sequence := range []int{-1, 2, 1 << 40} {
		if n, err := h.client.Changes().AtPosition(at(1, sequence)).Count(t.Context()); err != nil || n != 0 {
			t.Errorf("sequence %d: %d, %v", sequence, n, err)
		}
	}
}

func TestQueryIsImmutable(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t, change(1, 1), change(2, 1, in("public", "users")), change(3, 1))
	base := h.client.Changes().Since(epoch)
	todos, users := base.ForTable("todo"), base.ForTable("users")
	_ = todos.ForRow(99).Limit(1).OldestFirst()
	for _, q := range []struct {
		query audit.Query
		want  []string
	}{{base, []string{"3#1", "2#1", "1#1"}}, {todos, []string{"3#1", "1#1"}}, {users, []string{"2#1"}}} {
		got, err := q.query.List(t.Context())
		if diff := cmp.Diff(q.want, places(got)); err != nil || diff != "" {
			t.Error(err, diff)
		}
	}
}

func TestForTableReadsNames(t *testing.T) {
	t.Parallel()
	h := newHistoryIn(t, `odd "schema"`)
	h.store(t,
		change(1, 1), change(2, 1, in("billing", "todo")), change(3, 1, in("odd.schema", "odd table")),
		change(4, 1, in("public", `say "hi"`)), change(5, 1, in("public", "Todo")), change(6, 1, in("public", "täble.x")))
	for name, want := range map[string][]string{
		"todo":                      {"2#1", "1#1"},
		"public.todo":               {"1#1"},
		`"public"."todo"`:           {"1#1"},
		`billing."todo"`:            {"2#1"},
		`"odd.schema"."odd table"`:  {"3#1"},
		`"odd.schema".odd table`:    {"3#1"},
		`public."say ""hi"""`:       {"4#1"},
		"Todo":                      {"5#1"},
		`"täble.x"`:                 {"6#1"},
		"nowhere":                   nil,
		"odd.schema":                nil,
		`'; DROP TABLE changes; --`: nil,
	} {
		got, err := h.client.Changes().ForTable(name).List(t.Context())
		if diff := cmp.Diff(want, places(got)); err != nil || diff != "" {
			t.Errorf("%s: %v %s", name, err, diff)
		}
		for _, c := range got {
			if n, err := h.client.Changes().ForTable(c.TableName()).Count(t.Context()); err != nil || n != 1 {
				t.Errorf("TableName %s: %d, %v", c.TableName(), n, err)
			}
		}
	}
	got, err := h.client.Changes().ForTable("Todo", "billing.todo").List(t.Context())
	if diff := cmp.Diff([]string{"5#1", "2#1"}, places(got)); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestForRowFindsTheRowUnderBothKeys(t *testing.T) {
	t.Parallel()
	u := uuid.MustParse("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
	moved := func(from string) func(*audit.Change) {
		return func(c *audit.Change) { c.PreviousKey, c.KeyChanged = from, true }
	}
	h := newHistory(t)
	h.store(t,
		change(1, 1, key("1")), change(2, 1, key("7"), moved("1")), change(3, 1, key("7")),
		change(4, 1, key(u.String())), change(5, 1, key(`["7","2024-01-02"]`)), change(6, 1, key(`\xdeadbeef`)),
		change(7, 1, key("2024-01-02 03:04:05.5+00")), change(8, 1, key("t")), change(9, 1, key("")), change(10, 1, key("1e+20")))
	for _, test := range []struct {
		key  []any
		want []string
	}{
		{[]any{1}, []string{"2#1", "1#1"}},
		{[]any{"7"}, []string{"3#1", "2#1"}},
		{[]any{uint8(7)}, []string{"3#1", "2#1"}},
		{[]any{u}, []string{"4#1"}},
		{[]any{[16]byte(u)}, []string{"4#1"}},
		{[]any{7, "2024-01-02"}, []string{"5#1"}},
		{[]any{7, time.Date(2024, 1, 2, 0, 0, 0, 0, time.UTC)}, []string{"5#1"}},
		{[]any{[]byte{0xde, 0xad, 0xbe, 0xef}}, []string{"6#1"}},
		{[]any{time.Date(2024, 1, 2, 4, 4, 5, 5e8, time.FixedZone("", 3600))}, []string{"7#1"}},
		{[]any{true}, []string{"8#1"}},
		{[]any{""}, []string{"9#1"}},
		{[]any{1e20}, []string{"10#1"}},
		{[]any{"7", "8"}, nil},
	} {
		got, err := h.client.Changes().ForTable("todo").ForRow(test.key...).List(t.Context())
		if diff := cmp.Diff(test.want, places(got)); err != nil || diff != "" {
			t.Errorf("%v: %v %s", test.key, err, diff)
		}
	}
}

func TestContextFilters(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t,
		change(1, 1, with(`{"userId": 42, "requestId": "r1", "endpoint": "POST /todo", "plan": {"name": "pro", "seats": 3}}`)),
		change(2, 1, with(`{"user_id": "42", "request_id": "r1", "trace_id": "t"}`)),
		change(3, 1, with(`{"userId": "O'Brien", "requestId": 7, "traceId": "t", "worker": "mail"}`)),
		change(4, 1, with(`{}`)), change(5, 1), change(6, 1, with(`[1, 2]`)))
	changes := h.client.Changes()
	for name, test := range map[string]struct {
		query audit.Query
		want  []string
	}{
		"user number":      {changes.ByUser(42), []string{"2#1", "1#1"}},
		"user text":        {changes.ByUser("42"), []string{"2#1", "1#1"}},
		"user with quote":  {changes.ByUser("O'Brien"), []string{"3#1"}},
		"user float":       {changes.ByUser(42.0), []string{"2#1", "1#1"}},
		"injection":        {changes.ByUser("' OR true --"), nil},
		"request":          {changes.InRequest("r1"), []string{"2#1", "1#1"}},
		"request number":   {changes.InRequest("7"), []string{"3#1"}},
		"trace":            {changes.InTrace("t"), []string{"3#1", "2#1"}},
		"endpoint":         {changes.ByEndpoint("POST /todo"), []string{"1#1"}},
		"worker":           {changes.ByWorker("mail"), []string{"3#1"}},
		"containment":      {changes.WhereContext(map[string]any{"plan": map[string]int{"seats": 3}}), []string{"1#1"}},
		"Context":          {changes.WhereContext(audit.Context{UserID: 42, Endpoint: "POST /todo"}), []string{"1#1"}},
		"no context":       {changes.WithoutContext(), []string{"5#1", "4#1"}},
		"and":              {changes.ByUser(42).InTrace("t"), []string{"2#1"}},
		"user and without": {changes.ByUser(42).WithoutContext(), nil},
	} {
		got, err := test.query.List(t.Context())
		if diff := cmp.Diff(test.want, places(got)); err != nil || diff != "" {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
	odd, err := changes.AtPosition(at(6, 1)).First(t.Context())
	if err != nil || !odd.Stamped || string(odd.RawContext) != "[1, 2]" || !odd.Context.IsZero() {
		t.Errorf("a context that is an array: %+v, %v", odd, err)
	}
}

func TestValueFilters(t *testing.T) {
	t.Parallel()
	images := func(before, after string) func(*audit.Change) {
		return func(c *audit.Change) { c.Before, c.After = audit.Image(before), audit.Image(after) }
	}
	day := time.Date(2024, 1, 2, 0, 0, 0, 0, time.UTC)
	h := newHistory(t)
	h.store(t,
		change(1, 1, did(audit.Create), images(`{}`, `{"state": "new", "price": 1.50, "due": "2024-01-02", "note": null}`)),
		change(2, 1, images(`{"state": "new", "price": 1.50}`, `{"state": "paid", "price": 1.5}`)),
		change(3, 1, images(`{"state": "paid", "price": 1.5, "due": "2024-01-02"}`, `{"state": "paid", "price": "NaN", "due": null}`)),
		change(4, 1, images(`{"big": "x", "ok": true}`, `{"ok": false}`)), // big was left alone and is unknown
		change(5, 1, images(`{}`, `{"big": "y", "meta": {"a": [1, 2]}, "bytes": "\\xff"}`)),
		change(6, 1, did(audit.Delete), images(`{"state": "paid"}`, `{}`)),
		change(7, 1, did(audit.Truncate)))
	changes := h.client.Changes()
	for name, test := range map[string]struct {
		query audit.Query
		want  []string
	}{
		"state":         {changes.Changed("state"), []string{"6#1", "2#1", "1#1"}},
		"price":         {changes.Changed("price"), []string{"3#1", "1#1"}},
		"big":           {changes.Changed("big"), []string{"5#1"}},
		"several":       {changes.Changed("big", "ok"), []string{"5#1", "4#1"}},
		"updates":       {changes.Changed("state").Operations(audit.Update), []string{"2#1"}},
		"note":          {changes.Changed("note"), []string{"1#1"}},
		"to paid":       {changes.ChangedTo("state", "paid"), []string{"2#1"}},
		"to new":        {changes.ChangedTo("state", "new"), []string{"1#1"}},
		"to 1.5":        {changes.ChangedTo("price", 1.5), []string{"1#1"}},
		"to 1.500":      {changes.ChangedTo("price", json.Number("1.500")), []string{"1#1"}},
		"to NaN":        {changes.ChangedTo("price", math.NaN()), []string{"3#1"}},
		"to false":      {changes.ChangedTo("ok", false), []string{"4#1"}},
		"to NULL":       {changes.ChangedTo("due", nil), []string{"3#1"}},
		"to a date":     {changes.ChangedTo("due", day), []string{"1#1"}},
		"to a document": {changes.ChangedTo("meta", map[string]any{"a": []int{1, 2}}), []string{"5#1"}},
		"to bytes":      {changes.ChangedTo("bytes", []byte{255}), []string{"5#1"}},
		"before":        {changes.WhereBefore(map[string]any{"state": "paid"}), []string{"6#1", "3#1"}},
		"after":         {changes.WhereAfter(map[string]any{"price": 1.5}), []string{"2#1", "1#1"}},
		"operations":    {changes.Operations(audit.Create, audit.Truncate), []string{"7#1", "1#1"}},
	} {
		got, err := test.query.List(t.Context())
		if diff := cmp.Diff(test.want, places(got)); err != nil || diff != "" {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
}

func TestWindowsMeetWithoutOverlap(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t, change(0, 1), change(1, 1), change(2, 1))
	changes := h.client.Changes().OldestFirst()
	minute := func(n int) time.Time { return epoch.Add(time.Duration(n) * time.Minute) }
	for name, test := range map[string]struct {
		query audit.Query
		want  []string
	}{
		"since":         {changes.Since(minute(1)), []string{"1#1", "2#1"}},
		"since a nano":  {changes.Since(minute(1).Add(1)), []string{"2#1"}},
		"until":         {changes.Until(minute(1)), []string{"0#1"}},
		"until a nano":  {changes.Until(minute(1).Add(1)), []string{"0#1", "1#1"}},
		"between":       {changes.Between(minute(0), minute(2)), []string{"0#1", "1#1"}},
		"other zone":    {changes.Between(minute(1).In(time.FixedZone("", -3600)), minute(2)), []string{"1#1"}},
		"zero since":    {changes.Since(time.Time{}), []string{"0#1", "1#1", "2#1"}},
		"empty":         {changes.Between(minute(1), minute(1)), nil},
		"transaction":   {changes.InTransaction(1001), []string{"1#1"}},
		"position":      {changes.AtPosition(at(2, 0)), []string{"2#1"}},
		"position far":  {changes.AtPosition(at(2, 2)), nil},
		"environment":   {changes.InEnvironment("test"), nil},
		"database":      {changes.InDatabase("shop").Limit(1), []string{"0#1"}},
		"with a defect": {changes.WithDefect(), nil},
	} {
		got, err := test.query.List(t.Context())
		if diff := cmp.Diff(test.want, places(got)); err != nil || diff != "" {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
}

func TestAChangeComesBackAsItWasStored(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	want := sampleChange()
	want.Environment, want.Defect = "test", "said in words"
	want.PreviousKey, want.KeyChanged = "25", true
	bare := change(1, 2, did(audit.Truncate))
	h.store(t, want, bare)
	got, err := h.client.Changes().First(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.QueuedAt.IsZero() || got.CreatedAt.IsZero() || got.QueuedAt.Location() != time.UTC {
		t.Errorf("QueuedAt %v, CreatedAt %v", got.QueuedAt, got.CreatedAt)
	}
	got.QueuedAt, got.CreatedAt = want.QueuedAt, want.CreatedAt
	var a, b any
	_ = json.Unmarshal(want.RawContext, &a)
	_ = json.Unmarshal(got.RawContext, &b)
	if diff := cmp.Diff(a, b); diff != "" {
		t.Error(diff)
	}
	got.RawContext, got.Before, got.After = want.RawContext, want.Before, want.After // jsonb orders members
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	got, err = h.client.Changes().OldestFirst().First(t.Context())
	if err != nil || got.HasKey || got.KeyChanged || got.Stamped || got.RawContext != nil || !got.Before.IsEmpty() || got.Environment != "" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestEmptyHistory(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	changes := h.client.Changes()
	if _, err := changes.First(t.Context()); !errors.Is(err, audit.ErrNotFound) {
		t.Errorf("First: %v", err)
	}
	if list, err := changes.List(t.Context()); err != nil || list != nil {
		t.Errorf("List: %v, %v", list, err)
	}
	if page, err := changes.Page(t.Context(), 10); err != nil || page.More || page.Next != "" {
		t.Errorf("Page: %+v, %v", page, err)
	}
	if steps, err := changes.Trend(t.Context(), audit.EveryDay); err != nil || steps != nil {
		t.Errorf("Trend: %v, %v", steps, err)
	}
	for request, err := range changes.Requests(t.Context()) {
		t.Errorf("Requests: %v, %v", request, err)
	}
	var csv bytes.Buffer
	if n, err := changes.Export(t.Context(), &csv, audit.CSV); n != 0 || err != nil || strings.Count(csv.String(), "\n") != 1 {
		t.Errorf("Export: %d, %v, %s", n, err, csv.String())
	}
}

var errFull = errors.New("full")

type fullDisk struct{ left int }

func (d *fullDisk) Write(p []byte) (int, error) {
	if d.left -= len(p); d.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestNastyContextsReachTheDatabase(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	conn := h.db.Connect(t)
	for i, c := range nastyContexts() {
		ctx := audit.WithContext(t.Context(), c)
		tx, err := conn.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := audit.Stamp(ctx, tx); err != nil {
			t.Errorf("%d: Stamp: %v", i, err)
		}
		content, err := audit.StampContent(ctx)
		if err != nil {
			t.Errorf("%d: %v", i, err)
		}
		var length int
		if err := tx.QueryRow(ctx, "SELECT length($1::text::jsonb::text)", string(content)).Scan(&length); err != nil {
			t.Errorf("%d: jsonb: %v", i, err)
		}
		if length > 2*audit.MaxContextBytes {
			t.Errorf("%d: %d characters in jsonb", i, length)
		}
		if err := tx.Commit(ctx); err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
}
