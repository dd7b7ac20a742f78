package audit_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
)

// contextsOfManyClients are contexts as programs of all kinds stamp them.
var contextsOfManyClients = []string{
	`{"%[1]s": "a", "%[2]s": "b"}`,
	`{"%[2]s": "b"}`,
	`{"%[1]s": null, "%[2]s": "b"}`,
	`{"%[1]s": "", "%[2]s": "b"}`,
	`{"%[1]s": true, "%[2]s": "b"}`,
	`{"%[1]s": {"id": "a"}, "%[2]s": "b"}`,
	`{"%[1]s": 7.5}`,
	`{"%[1]s": 7.50}`,
	`{"%[1]s": "7.5"}`,
	`{"%[1]s": 7}`,
	`{"%[1]s": -7}`,
	`{"%[1]s": 1e3}`,
	`{"%[1]s": 12345678901234567890}`,
	`{"%[1]s": 1e400}`,
	`{"%[1]s": 1e-400}`,
	`{"%[1]s": -0}`,
	`{"%[1]s": " "}`,
	`{"%[1]s": true}`,
	`{"%[1]s": "true"}`,
	`{"%[1]s": {"id": 7}}`,
	`{"%[1]s": ["a"]}`,
	`{"%[1]s": "say \"hi\""}`,
	`{"%[1]s": "snowman ☃"}`,
	`["%[1]s"]`,
	`{}`,
}

// TestQuery_IDHasOneMeaning asks for each member of a context by group, by filter and
// in the context that is read back. The three have to say the same.
func TestQuery_IDHasOneMeaning(t *testing.T) {
	t.Parallel()
	for name, member := range map[string]struct {
		names  [2]string
		by     audit.Dimension
		filter func(audit.Query, string) audit.Query
		read   func(audit.Context) string
	}{
		"user": {
			[2]string{"userId", "user_id"},
			audit.PerUser,
			func(q audit.Query, id string) audit.Query { return q.ByUser(id) }, audit.Context.User,
		},
		"request": {
			[2]string{"requestId", "request_id"},
			audit.PerRequest, audit.Query.InRequest,
			func(c audit.Context) string { return c.RequestID },
		},
		"trace": {
			[2]string{"traceId", "trace_id"},
			audit.PerTrace, audit.Query.InTrace,
			func(c audit.Context) string { return c.TraceID },
		},
		"endpoint": {
			[2]string{"endpoint", "endpoint2"},
			audit.PerEndpoint, audit.Query.ByEndpoint,
			func(c audit.Context) string { return c.Endpoint },
		},
		"worker": {
			[2]string{"worker", "worker2"},
			audit.PerWorker, audit.Query.ByWorker,
			func(c audit.Context) string { return c.Worker },
		},
		"tenant": {
			[2]string{"tenant", "tenant2"},
			audit.PerTenant, audit.Query.ByTenant,
			func(c audit.Context) string { return c.Tenant },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHistory(t)
			var changes []audit.Change
			for i, format := range contextsOfManyClients {
				context := format
				if strings.Contains(format, "%") {
					context = fmt.Sprintf(format+"%.0[2]s", member.names[0], member.names[1])
				}
				changes = append(changes, change(i, 1, with(context)))
			}
			h.store(t, append(changes, change(len(changes), 1))...)
			q := h.client.Changes()

			// What the contexts say when they are read back.
			all, err := q.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			read := map[string]int64{}
			for _, c := range all {
				read[member.read(c.Context)]++
			}
			groups, err := q.CountBy(t.Context(), member.by)
			if err != nil {
				t.Fatal(err)
			}
			counted := map[string]int64{}
			for _, g := range groups {
				if g.Known == (g.Value == "") {
					t.Errorf("group %+v", g)
				}
				counted[g.Value] = g.Changes
			}
			if diff := cmp.Diff(read, counted); diff != "" {
				t.Errorf("the groups are not those of the contexts: %s", diff)
			}
			for value, n := range counted {
				if value == "" {
					continue
				}
				if found, err := member.filter(q, value).Count(t.Context()); err != nil || found != n {
					t.Errorf("%q: the filter finds %d, the group has %d: %v", value, found, n, err)
				}
			}
			for _, none := range []string{`{"id": 7}`, `{"id":7}`, `["a"]`, "null", "1e3", "7.500"} {
				if found, err := member.filter(q, none).Count(t.Context()); err != nil || found != 0 {
					t.Errorf("%q: the filter finds %d: %v", none, found, err)
				}
			}
		})
	}
}

// A request of two names is one request in lists, in the past and in reverts.
func TestRequests_TwoNamesInOneContext(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t,
		change(1, 1, with(`{"requestId": "a", "request_id": "b"}`)),
		change(2, 1, with(`{"request_id": "b"}`)),
		change(3, 1, with(`{"requestId": 7.5}`)),
		change(4, 1, with(`{"requestId": true}`)))
	var got []string
	for request, err := range h.client.Changes().Requests(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %d", request.ID, request.Updates))
		if n, err := h.client.Changes().InRequest(request.ID).Count(t.Context()); err != nil || n != request.Total() {
			t.Errorf("%s: %d changes found, %d listed: %v", request.ID, n, request.Total(), err)
		}
	}
	if diff := cmp.Diff([]string{"7.5 1", "b 1", "a 1"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestByTenant_Empty(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	var refused *audit.FilterError
	if _, err := h.client.Changes().ByTenant("").Count(t.Context()); !errors.As(err, &refused) || refused.Filter != "ByTenant" {
		t.Error(err)
	}
}
