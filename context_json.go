package audit

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/hindsight-go/audit/internal/rowimage"
)

// maxMember is what an identifying member is cut to when the context is still
// too large after everything else was left out. The index entry of a user must
// fit into a page.
const maxMember = 1000

// members lists the members of the object with the fields behind them,
// in the order in which they are written.
func (c *Context) members() []contextField {
	return []contextField{
		{userMember, nil},
		{tenantMember, &c.Tenant},
		{requestMember, &c.RequestID},
		{traceMember, &c.TraceID},
		{spanMember, &c.SpanID},
		{endpointMember, &c.Endpoint},
		{workerMember, &c.Worker},
		{sqlMember, &c.SQL},
	}
}

// contextField is a member with the field of a Context that holds it, which is UserID
// where text is nil.
type contextField struct {
	member contextMember
	text   *string
}

// contextPart is a member ready to be written.
type contextPart struct {
	name string
	json []byte
	kind partKind
}

// partKind orders the parts by when they are given up.
type partKind int

const (
	partIdentity partKind = iota
	partExtra
	partSQL
	partParams
)

// MarshalJSON returns the context as a JSON object that PostgreSQL's jsonb
// accepts whatever the values are: a NUL, invalid UTF-8 and half of a surrogate
// pair become U+FFFD, numbers far outside the range of a float64 and what is
// nested deeper than 64 levels become strings. It is not cut to
// [MaxContextBytes]. The error is a [*ContextError].
func (c Context) MarshalJSON() ([]byte, error) {
	parts, err := c.parts()
	if err != nil {
		return nil, err
	}
	return joinParts(parts, c.Truncated), nil
}

// UnmarshalJSON reads an object that this or another client stamped, without
// complaint about members of an unexpected type: they are in Extra. Of userId
// and user_id, requestId and request_id and so on the first counts that is a number or
// a string with something in it.
func (c *Context) UnmarshalJSON(text []byte) error {
	if !json.Valid(text) {
		return errors.New("audit: context: no JSON")
	}
	*c = readContext(text)
	return nil
}

func (c *Context) parts() ([]contextPart, error) {
	var parts []contextPart
	taken := map[string]bool{"truncated": true}
	add := func(name string, kind partKind, value any) error {
		text, err := safeJSON(name, value)
		if err != nil {
			return err
		}
		taken[name] = true
		parts = append(parts, contextPart{name, text, kind})
		return nil
	}
	for _, field := range c.members() {
		name, kind := field.member.name(), partIdentity
		if name == sqlMember.name() {
			kind = partSQL
		}
		var err error
		switch {
		case field.text == nil && c.UserID != nil && c.UserID != "":
			err = add(name, kind, idValue{c.UserID})
		case field.text != nil && *field.text != "":
			err = add(name, kind, *field.text)
		}
		if err != nil {
			return nil, err
		}
	}
	if len(c.Params) > 0 {
		text, err := paramsJSON(c.Params)
		if err != nil {
			return nil, err
		}
		taken["params"] = true
		parts = append(parts, contextPart{"params", text, partParams})
	}
	for _, name := range sortedKeys(c.Extra) {
		if taken[name] {
			continue
		}
		if err := add(name, partExtra, c.Extra[name]); err != nil {
			return nil, err
		}
	}
	return parts, nil
}

// stampJSON is MarshalJSON within MaxContextBytes.
func (c Context) stampJSON() ([]byte, error) {
	parts, err := c.parts()
	if err != nil {
		return nil, err
	}
	truncated := c.Truncated
	content := joinParts(parts, truncated)
	for _, drop := range []partKind{partParams, partSQL, partExtra} {
		if len(content) <= MaxContextBytes {
			return c.cutUser(parts, truncated, content), nil
		}
		if !slices.ContainsFunc(parts, func(p contextPart) bool { return p.kind == drop }) {
			continue
		}
		parts = slices.DeleteFunc(parts, func(p contextPart) bool { return p.kind == drop })
		truncated = append(slices.Clip(truncated), map[partKind]string{partParams: "params", partSQL: "SQL", partExtra: "extra"}[drop])
		content = joinParts(parts, truncated)
	}
	if len(content) <= MaxContextBytes {
		return c.cutUser(parts, truncated, content), nil
	}
	truncated = truncated[:min(len(truncated), 8)]
	for i, name := range truncated {
		truncated[i] = clip(name, 100)
	}
	return cutParts(parts, truncated, func(contextPart) bool { return true }), nil
}

// cutUser cuts a user id that is too long for the index, whatever the size of
// the rest.
func (c Context) cutUser(parts []contextPart, truncated []string, content []byte) []byte {
	isLongUser := func(p contextPart) bool { return p.name == "userId" && len(p.json) > maxMember }
	if !slices.ContainsFunc(parts, isLongUser) {
		return content
	}
	return cutParts(parts, truncated, isLongUser)
}

// cutParts cuts the parts that are chosen to maxMember and marks them.
func cutParts(parts []contextPart, truncated []string, chosen func(contextPart) bool) []byte {
	parts = slices.Clone(parts)
	truncated = slices.Clone(truncated)
	for i, part := range parts {
		if len(part.json) <= maxMember || !chosen(part) {
			continue
		}
		text := rowimage.RawText(part.json)
		for size := maxMember; len(parts[i].json) > maxMember; size /= 2 {
			parts[i].json = rowimage.AppendSafeJSON(nil, rowimage.Quote(clip(text, size)))
		}
		truncated = append(truncated, part.name)
	}
	return joinParts(parts, truncated)
}

func joinParts(parts []contextPart, truncated []string) []byte {
	size := 64
	for _, part := range parts {
		size += len(part.name) + len(part.json) + 4
	}
	out := append(make([]byte, 0, size), '{')
	comma := func() {
		if len(out) > 1 {
			out = append(out, ',')
		}
	}
	for _, part := range parts {
		comma()
		out = rowimage.AppendSafeJSON(out, rowimage.Quote(part.name))
		out = append(out, ':')
		out = append(out, part.json...)
	}
	if len(truncated) > 0 {
		comma()
		out = append(out, `"truncated":`...)
		text, _ := json.Marshal(truncated)
		out = rowimage.AppendSafeJSON(out, text)
	}
	return append(out, '}')
}

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// paramsJSON marshals each parameter by itself, so that an error can name it.
func paramsJSON(params map[string]any) ([]byte, error) {
	var parts []contextPart
	for _, name := range sortedKeys(params) {
		text, err := safeJSON("params."+clip(name, 100), params[name])
		if err != nil {
			return nil, err
		}
		parts = append(parts, contextPart{name: name, json: text})
	}
	return joinParts(parts, nil), nil
}

// safeJSON marshals one value. A marshaller of the application's that panics
// must not take its write down.
func safeJSON(key string, value any) (text []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			text, err = nil, &ContextError{Key: key, Type: reflect.TypeOf(value), cause: fmt.Errorf("panic: %v", p)}
		}
	}()
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		t := reflect.TypeOf(value)
		if id, ok := value.(idValue); ok {
			t = reflect.TypeOf(id.value)
		}
		return nil, &ContextError{Key: key, Type: t, cause: err}
	}
	return rowimage.AppendSafeJSON(make([]byte, 0, b.Len()), bytes.TrimSpace(b.Bytes())), nil
}

// idValue writes an id as JSON: integers as numbers, everything else as its
// text, so that what is stamped has the text that queries compare.
type idValue struct{ value any }

func (id idValue) MarshalJSON() ([]byte, error) {
	text, err := idText(id.value)
	if err != nil {
		return nil, err
	}
	if _, isText := id.value.(encoding.TextMarshaler); !isText {
		switch indirect(reflect.ValueOf(id.value)).Kind() {
		case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
			reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64,
			reflect.Float32, reflect.Float64:
			return []byte(text), nil
		}
		if number, ok := id.value.(json.Number); ok && json.Valid([]byte(number)) {
			return []byte(text), nil
		}
	}
	return json.Marshal(text)
}

// readContext reads a stored context. It has to make the best of whatever other
// clients stamped; what is no object gives the zero Context.
func readContext(text []byte) Context {
	var c Context
	value, err := rowimage.ParseJSON(text)
	members, ok := value.(map[string]any)
	if err != nil || !ok {
		return c
	}
	for _, field := range c.members() {
		name, value, ok := field.member.in(members)
		switch {
		case !ok:
			continue
		case field.text == nil:
			c.UserID = idOf(value)
		default:
			*field.text = fmt.Sprint(value)
		}
		delete(members, name)
	}
	if params, ok := members["params"].(map[string]any); ok {
		c.Params = params
		delete(members, "params")
	}
	if names, ok := members["truncated"].([]any); ok {
		for _, name := range names {
			if name, ok := name.(string); ok {
				c.Truncated = append(c.Truncated, name)
			}
		}
		delete(members, "truncated")
	}
	for name, member := range members {
		if member == nil {
			delete(members, name)
		}
	}
	if len(members) > 0 {
		c.Extra = members
	}
	return c
}

// idOf is a user's id: a string, an int64, or a json.Number that is no int64.
func idOf(value any) any {
	number, ok := value.(json.Number)
	if !ok {
		return value
	}
	if n, err := strconv.ParseInt(number.String(), 10, 64); err == nil && !strings.HasPrefix(number.String(), "-0") {
		return n
	}
	return number
}
