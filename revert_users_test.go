package audit_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// refusedFor fails the test unless every way to carry a revert out is refused because of
// these users, with nothing written.
func (u *undo) refusedFor(t *testing.T, r audit.Reversal, users ...string) *audit.SeveralUsersError {
	t.Helper()
	now := u.state(t)
	plan, err := r.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if plan.SQL() != "" || plan.Refused() == nil {
		t.Errorf("a plan that is refused (%v) has SQL %q", plan.Refused(), plan.SQL())
	}
	tx, err := u.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, applyErr := r.Apply(t.Context())
	_, planErr := plan.Apply(t.Context())
	_, dryErr := r.DryRun(t.Context())
	_, txErr := r.ApplyTx(t.Context(), tx)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	var refused *audit.SeveralUsersError
	for name, err := range map[string]error{"Apply": applyErr, "Plan.Apply": planErr, "DryRun": dryErr, "ApplyTx": txErr} {
		if !errors.As(err, &refused) {
			t.Fatalf("%s gives %v", name, err)
		}
		if diff := cmp.Diff(users, refused.Users()); diff != "" {
			t.Errorf("users of %s (-want +got):\n%s", name, diff)
		}
	}
	u.want(t, "a revert that is refused wrote something", now)
	return refused
}

// A request id that two users stamped is no unit, unless both are meant.
func TestRevert_RequestOfTwoUsers(t *testing.T) {
	t.Parallel()
	for _, rows := range []int{1, 2} { // the second is reverted without a look first
		a := audittest.New(t, audit.Config{Environment: "test"}, shop)
		u := (&undo{Audited: a, conn: a.Connect(t)}).direct(uint64(rows))
		before := u.state(t)
		u.as(t, audit.Context{UserID: "ann", RequestID: "r", Endpoint: "POST /a"}, "UPDATE customer SET city = 'Bonn' WHERE id = 1", "UPDATE customer SET city = 'Bonn' WHERE id = 3")
		u.as(t, audit.Context{UserID: 7, RequestID: "r", Endpoint: "POST /b"}, "UPDATE customer SET city = 'Kyiv' WHERE id = 2")
		both := u.state(t)
		want := []audit.Origin{{User: "ann", Endpoint: "POST /a", Environment: "test", Changes: 2}, {User: "7", Endpoint: "POST /b", Environment: "test", Changes: 1}}
		refused := u.refusedFor(t, u.Client.RevertRequest("r"), "7", "ann")
		if diff := cmp.Diff(want, refused.Origins); diff != "" || refused.Of != (audit.Unit{Kind: "request", ID: "r"}) {
			t.Errorf("the error is of %s (-want +got):\n%s", refused.Of, diff)
		}
		plan, err := u.Client.RevertRequest("r").AcrossUsers().Plan(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, plan.Origins); diff != "" {
			t.Errorf("origins of the plan (-want +got):\n%s", diff)
		}
		if text := plan.String(); !strings.Contains(text, "made by 2 users:\n  ann at POST /a") || !strings.Contains(text, "7 at POST /b") {
			t.Errorf("the plan says:\n%s", text)
		}
		page, err := u.Client.Changes().RequestsPage(t.Context(), 10)
		if err != nil || len(page.Requests) != 1 {
			t.Fatalf("%+v, %v", page, err)
		}
		if diff := cmp.Diff(want, page.Requests[0].Origins); diff != "" {
			t.Errorf("origins of the request (-want +got):\n%s", diff)
		}
		result := apply(t, u.Client.RevertRequest("r").AcrossUsers())
		u.want(t, "after the revert of both", before)
		// Redo goes by the revert's own id, which is no claim.
		apply(t, u.Client.Redo(result.ID))
		u.want(t, "after the redo", both)
		apply(t, u.Client.RevertRequest("r").ExceptUser(7).ExceptUser("cyd"))
		u.holds(t, "(SELECT city = 'Kyiv' FROM customer WHERE id = 2) AND (SELECT city = 'Rome' FROM customer WHERE id = 1)")
		apply(t, u.Client.Revert(u.Client.Changes().InRequest("r").ByUser(7)))
		u.want(t, "after the revert of each alone", before)
	}
}

// What finds changes by an id that anybody can stamp is refused; what says whose changes
// are meant, or goes by what the server knows, is not.
func TestRevert_UnitsOfTwoUsers(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	mark := u.Client.AtPosition(u.position(t))
	ann := audit.Context{UserID: "ann", RequestID: "r", TraceID: "t", Endpoint: "POST /a", Worker: "w", Extra: map[string]any{"clientRequestId": "theirs"}}
	bob := ann
	bob.UserID = "bob"
	u.as(t, ann, "UPDATE customer SET city = 'Bonn' WHERE id = 1")
	u.as(t, bob, "UPDATE customer SET city = 'Kyiv' WHERE id = 2")
	c := u.Client
	for _, r := range []audit.Reversal{
		c.RevertRequest("r"), c.RevertTrace("t"), c.Revert(c.Changes().InRequest("r")), c.Revert(c.Changes().InTrace("t").ByWorker("w")),
		c.Revert(c.Changes().InRequest("r").NotUser("cyd")),
		c.Revert(c.Changes().WhereContext(audit.Context{RequestID: "r"})), c.Revert(c.Changes().WhereContext(map[string]any{"traceId": "t"})),
		c.Revert(c.Changes().WhereContext(map[string]any{"clientRequestId": "theirs"})),
	} {
		_ = u.refusedFor(t, r, "ann", "bob")
	}
	for _, r := range []audit.Reversal{
		c.Revert(c.Changes().InRequest("r").ByUser("ann")), c.Revert(c.Changes().ByEndpoint("POST /a")), c.Revert(c.Changes().ByWorker("w")),
		c.Revert(c.Changes().InRequest("r").WhereContext(map[string]any{"userId": "bob"})), c.Revert(c.Changes().InRequest("r").NotUser("ann")),
		c.Revert(c.Changes().ForTable("customer")), c.RevertTables(mark, "customer"), c.RevertRow(mark, "customer", 1),
		c.RevertTrace("t").AcrossUsers(), c.RevertRequest("r").ExceptUser("bob"),
	} {
		result, err := r.DryRun(t.Context())
		if err != nil || result.Updated == 0 {
			t.Errorf("%+v, %v", result, err)
		}
	}
	for _, r := range []audit.Reversal{c.RevertRequest("r").ExceptUser(), c.RevertRequest("r").ExceptUser(""), c.Revert(c.Changes().NotUser())} {
		if _, err := r.Plan(t.Context()); err == nil || !strings.Contains(err.Error(), "User") {
			t.Errorf("no user gives %v", err)
		}
	}
	n, err := c.Changes().NotUser("bob", 7).Count(t.Context())
	if err != nil || n != 1 {
		t.Errorf("NotUser counts %d, %v", n, err)
	}
}

// What a request changes before it knows its user is that user's; what nobody changes
// elsewhere in the program is somebody else's.
func TestRevert_RequestOfNobody(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.as(t, audit.Context{RequestID: "login", Endpoint: "POST /login"}, "UPDATE customer SET city = 'Bonn' WHERE id = 1")
	u.as(t, audit.Context{UserID: "ann", RequestID: "login", Endpoint: "POST /login"}, "UPDATE customer SET city = 'Bonn' WHERE id = 2")
	if result := apply(t, u.Client.RevertRequest("login")); result.Updated != 2 {
		t.Errorf("%+v", result)
	}
	u.as(t, audit.Context{RequestID: "anonymous"}, "UPDATE customer SET city = 'Nice' WHERE id = 1")
	if result := apply(t, u.Client.RevertRequest("anonymous")); result.Updated != 1 {
		t.Errorf("%+v", result)
	}
	u.as(t, audit.Context{RequestID: "login", Endpoint: "POST /forged"}, "UPDATE customer SET city = 'Oslo' WHERE id = 3")
	_ = u.refusedFor(t, u.Client.RevertRequest("login"), "", "ann")
}

// A cascade takes no request along that two users share.
func TestRevert_CascadeToRequestOfTwoUsers(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	before := u.state(t)
	u.by(t, "ann", "first", "UPDATE customer SET city = 'Bonn' WHERE id = 1")
	u.by(t, "bob", "second", "UPDATE customer SET city = 'Kyiv' WHERE id = 1")
	u.by(t, "cyd", "second", "UPDATE customer SET city = 'Kyiv' WHERE id = 2")
	refused := u.refusedFor(t, u.Client.RevertRequest("first").OnConflict(audit.CascadeRequests), "bob", "cyd")
	if refused.Of != (audit.Unit{Kind: "request", ID: "second"}) {
		t.Errorf("the error is of %s", refused.Of)
	}
	if _, err := u.Client.RevertRequest("first").OnConflict(audit.Cascade).DryRun(t.Context()); err != nil {
		t.Errorf("Cascade takes one transaction along, and gives %v", err)
	}
	apply(t, u.Client.RevertRequest("first").OnConflict(audit.CascadeRequests).AcrossUsers())
	u.want(t, "after the cascade across users", before)
}
