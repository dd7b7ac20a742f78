package audit

import (
	"encoding/json"
	"errors"
	"strings"

	sq "github.com/Masterminds/squirrel"
)

const (
	// userOf has to be the expression of the index to the letter.
	userOf = `coalesce(c.context ->> 'userId', c.context ->> 'user_id')`
	// requestOf is the request of a change, whoever wrote it.
	requestOf = `coalesce(c.context ->> 'requestId', c.context ->> 'request_id')`
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
// "42" are the same user.
func (q Query) ByUser(id any) Query {
	text, err := filterID(id)
	if err != nil {
		return q.refuseFor("ByUser", err)
	}
	// The index is partial, and the planner cannot see through coalesce that the
	// context is there.
	return q.filter(sq.Expr(`(c.context IS NOT NULL AND `+userOf+` = ?)`, text))
}

// InRequest keeps the changes of one request, whatever their tables and
// transactions.
func (q Query) InRequest(id string) Query {
	q.rare = true
	return q.contextMember("InRequest", id, "requestId", "request_id")
}

// InTrace keeps the changes of one distributed trace.
func (q Query) InTrace(id string) Query {
	q.rare = true
	return q.contextMember("InTrace", id, "traceId", "trace_id")
}

// ByEndpoint keeps the changes made at an endpoint, as stamped: "POST /todo".
func (q Query) ByEndpoint(endpoint string) Query {
	return q.contextMember("ByEndpoint", endpoint, "endpoint")
}

// ByWorker keeps the changes made by a background worker.
func (q Query) ByWorker(name string) Query {
	return q.contextMember("ByWorker", name, "worker")
}

// contextMember keeps the changes whose context has one of the members with this
// value. It is asked by containment, which is what the index serves.
func (q Query) contextMember(filter, value string, names ...string) Query {
	if _, err := filterID(value); err != nil {
		return q.refuseFor(filter, err)
	}
	var anyOf sq.Or
	for _, form := range memberForms(value, names...) {
		anyOf = append(anyOf, sq.Expr(`c.context @> ?::jsonb`, form))
	}
	return q.filter(sq.And{sq.Expr(`c.context IS NOT NULL`), anyOf})
}

// memberForms lists the objects that a context with this member contains. Other
// clients may have stamped a number.
func memberForms(value string, names ...string) []string {
	values := []string{string(appendSafeJSON(nil, jsonString(value)))}
	if isCanonicalInteger(value) {
		values = append(values, value)
	}
	var forms []string
	for _, name := range names {
		for _, v := range values {
			forms = append(forms, `{"`+name+`":`+v+`}`)
		}
	}
	return forms
}

// isCanonicalInteger tells that text is what jsonb prints for a number.
func isCanonicalInteger(text string) bool {
	digits := strings.TrimPrefix(text, "-")
	if len(digits) > 100 || text == "-0" || strings.Trim(digits, "0123456789") != "" {
		return false
	}
	return json.Valid([]byte(text))
}

// WithContext keeps the changes whose context contains value: a map, a struct or
// a [Context] that is written as a JSON object. Types count: {"userId": 42} does
// not contain {"userId": "42"}; [Query.ByUser] does not mind.
func (q Query) WithContext(value any) Query {
	document, err := filterObject(value)
	if err != nil {
		return q.refuseFor("WithContext", err)
	}
	return q.filter(sq.Expr(`(c.context IS NOT NULL AND c.context @> ?::jsonb)`, document))
}

// WithoutContext keeps the changes about which the application said nothing: no
// context was stamped, or an empty one. They were made in psql, by a migration,
// or by code that is not instrumented, and are what auditors look for.
func (q Query) WithoutContext() Query {
	return q.filter(sq.Expr(`(c.context IS NULL OR c.context = '{}'::jsonb)`))
}
