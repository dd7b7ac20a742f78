package audit

import (
	"errors"
	"slices"
	"strings"

	sq "github.com/Masterminds/squirrel"
)

var errEmptyID = errors.New("an empty value: it would match nothing, as empty members are not stamped; see WithoutContext for writes without any context")

// filterID is the text of an id that a filter was given.
func filterID(id any) (string, error) {
	text, err := idText(id)
	switch {
	case err != nil:
		return "", err
	case text == "":
		return "", errEmptyID
	case strings.IndexByte(text, 0) >= 0:
		return "", errNUL
	}
	return text, nil
}

// ByUser keeps the changes that this user made: the userId of the context, or
// the user_id of clients in other languages. The id may be a string, an integer,
// a UUID or anything that [Context] takes; ids are compared as text, so 42 and
// "42" are the same user. What is neither a text nor a number in a context is no id.
func (q Query) ByUser(id any) Query {
	text, err := filterID(id)
	if err != nil {
		return q.refuseFor("ByUser", err)
	}
	q.users = append(slices.Clip(q.users), text)
	return q.filter(mentioning(userMember.is(text), text))
}

// NotUser leaves out the changes that these users made, by ids as in [Query.ByUser].
// Changes without a user stay. To revert all of a unit but some users' work, use
// [Reversal.ExceptUser].
func (q Query) NotUser(ids ...any) Query {
	if len(ids) == 0 {
		return q.refuse("NotUser", "no user given", nil)
	}
	for _, id := range ids {
		text, err := filterID(id)
		if err != nil {
			return q.refuseFor("NotUser", err)
		}
		q = q.scan(sq.Expr(userMember.sql()+" IS DISTINCT FROM ?", text))
	}
	return q
}

// ByTenant keeps the changes made on behalf of a tenant.
func (q Query) ByTenant(name string) Query {
	return q.withMember("ByTenant", tenantMember, name)
}

// InRequest keeps the changes of one request, whatever their tables and
// transactions: the requestId of the context, or the request_id of clients in other
// languages. A change belongs to one request at most.
func (q Query) InRequest(id string) Query {
	if _, err := filterID(id); err != nil {
		return q.refuseFor("InRequest", err)
	}
	q.rare, q.byClaim = true, true
	return q.filter(mentioning(requestMember.is(id), id))
}

// InTrace keeps the changes of one distributed trace.
func (q Query) InTrace(id string) Query {
	q.rare, q.byClaim = true, true
	return q.withMember("InTrace", traceMember, id)
}

// ByEndpoint keeps the changes made at an endpoint, as stamped: "POST /todo".
func (q Query) ByEndpoint(endpoint string) Query {
	return q.withMember("ByEndpoint", endpointMember, endpoint)
}

// ByWorker keeps the changes made by a background worker.
func (q Query) ByWorker(name string) Query {
	return q.withMember("ByWorker", workerMember, name)
}

// withMember keeps the changes whose context has this text for a member.
func (q Query) withMember(filter string, member contextMember, text string) Query {
	if _, err := filterID(text); err != nil {
		return q.refuseFor(filter, err)
	}
	return q.filter(mentioning(member.contains(text), text))
}

// WhereContext keeps the changes whose context contains value: a map, a struct or
// a [Context] that is written as a JSON object. Types count: {"userId": 42} does
// not contain {"userId": "42"}; [Query.ByUser] does not mind.
func (q Query) WhereContext(value any) Query {
	document, err := filterObject(value)
	if err != nil {
		return q.refuseFor("WhereContext", err)
	}
	var asked Context
	if err := asked.UnmarshalJSON([]byte(document)); err != nil {
		return q.refuseFor("WhereContext", err)
	}
	for _, name := range []string{"clientRequestId", "clientTraceId"} { // see audithttp
		q.byClaim = q.byClaim || asked.Extra[name] != nil
	}
	q.byClaim = q.byClaim || asked.RequestID != "" || asked.TraceID != ""
	if user := asked.User(); user != "" {
		q.users = append(slices.Clip(q.users), user)
	}
	return q.filter(sq.Expr(`(c.context IS NOT NULL AND c.context @> ?::jsonb)`, document))
}

// WithContext is WhereContext.
//
// Deprecated: Elsewhere a method of this name takes a ctx to run with, which this one has
// nothing to do with. Use [Query.WhereContext].
func (q Query) WithContext(value any) Query { return q.WhereContext(value) }

// WithoutContext keeps the changes about which the application said nothing: no
// context was stamped, or an empty one, or a null. They were made in psql, by a migration,
// or by code that is not instrumented, and are what auditors look for.
func (q Query) WithoutContext() Query {
	// As changes_time_idx has it, to the letter.
	return q.scanSparsely(sq.Expr(`(c.context IS NULL OR c.context IN ('{}'::jsonb, 'null'::jsonb))::integer = 1`))
}
