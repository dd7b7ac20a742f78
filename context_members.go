package audit

import (
	"encoding/json"
	"regexp"
	"strings"

	sq "github.com/Masterminds/squirrel"

	"github.com/hindsight-go/audit/internal/rowimage"
)

// contextMember is a member of a context that names something, under the names that
// clients give it. Its value is that of the first name that has a text, which is a
// string but the empty one, or a number. Filters, groups, the indexes and what is read
// back all go by it.
type contextMember []string

var (
	userMember     = contextMember{"userId", "user_id"}
	tenantMember   = contextMember{"tenant"}
	requestMember  = contextMember{"requestId", "request_id"}
	traceMember    = contextMember{"traceId", "trace_id"}
	spanMember     = contextMember{"spanId", "span_id"}
	endpointMember = contextMember{"endpoint"}
	workerMember   = contextMember{"worker"}
	sqlMember      = contextMember{"SQL", "sql"}
)

// name is the one that this package writes.
func (m contextMember) name() string { return m[0] }

// sql is the member's text in SQL, or NULL. Of users and requests, it has to be the
// expression of the index.
func (m contextMember) sql() string {
	var texts []string
	for _, name := range m {
		texts = append(texts, `CASE WHEN jsonb_typeof(c.context -> '`+name+`') IN ('string', 'number')`+
			` THEN nullif(c.context ->> '`+name+`', '') END`)
	}
	if len(texts) == 1 {
		return "(" + texts[0] + ")"
	}
	return "coalesce(" + strings.Join(texts, ", ") + ")"
}

// in returns the name under which the members of a context hold the value, and the
// value, which is a string or a json.Number.
func (m contextMember) in(members map[string]any) (name string, value any, ok bool) {
	for _, name := range m {
		switch value := members[name].(type) {
		case string:
			if value != "" {
				return name, value, true
			}
		case json.Number:
			return name, value, true
		}
	}
	return "", nil, false
}

// is keeps the changes with this text of the member. An index on the expression, if
// there is one, is partial, and the planner does not see that there has to be a context.
func (m contextMember) is(text string) sq.Sqlizer {
	return sq.Expr("(c.context IS NOT NULL AND "+m.sql()+" = ?)", text)
}

// contains is is for a member that only the index on the whole context serves.
func (m contextMember) contains(text string) sq.Sqlizer {
	if len(text) > rowimage.MaxNumberDigits && numberText.MatchString(text) {
		return m.is(text) // which may be a number that is no document by itself
	}
	var anyOf sq.Or
	for _, form := range m.forms(text) {
		anyOf = append(anyOf, sq.Expr(`c.context @> ?::jsonb`, form))
	}
	// Whoever contains one of the forms mostly is one. An equality would have the planner
	// expect next to nothing; it takes coalesce for a coin.
	return sq.And{sq.Expr("c.context IS NOT NULL"), anyOf, sq.Expr("coalesce("+m.sql()+" = ?, false)", text)}
}

// numberText is how jsonb prints a number.
var numberText = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?$`)

// forms lists the objects of which every context with this text of the member contains
// one.
func (m contextMember) forms(text string) []string {
	values := []string{string(rowimage.AppendSafeJSON(nil, rowimage.Quote(text)))}
	if numberText.MatchString(text) {
		values = append(values, text)
	}
	var forms []string
	for _, name := range m {
		for _, value := range values {
			forms = append(forms, `{"`+name+`":`+value+`}`)
		}
	}
	return forms
}
