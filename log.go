package audit

import (
	"context"
	"log/slog"
	"time"
)

// The members of a context that logs have, named as in history, so that one finds the other.
const (
	logRequest = "requestId"
	logUser    = "userId"
)

// LogValue is the context in a log: who, where and on behalf of which request, under the
// names that the members have in history. SQL, Params and Extra are left out, since they
// hold what users type.
func (c Context) LogValue() slog.Value {
	attrs := make([]slog.Attr, 0, 8)
	add := func(name, text string) {
		if text != "" {
			attrs = append(attrs, slog.String(name, text))
		}
	}
	add(logUser, c.logUser())
	add("tenant", c.Tenant)
	add(logRequest, c.RequestID)
	add("traceId", c.TraceID)
	add("spanId", c.SpanID)
	add("endpoint", c.Endpoint)
	add("worker", c.Worker)
	return slog.GroupValue(attrs...)
}

// logUser is User, whatever the type of a user's id does when it is asked for its text.
func (c Context) logUser() (text string) {
	defer func() {
		if recover() != nil {
			text = ""
		}
	}()
	return c.User()
}

// LogValue is the change in a log: its place in history, what was done to which table, when,
// and its context as [Context.LogValue] has it, or stamped=false. It has no value of the row, and
// so not its key either, which may be somebody's name: [Query.After], or `hindsight show` with
// the position, finds the change. That holds where the change itself is the value of an
// attribute. A slice of changes is written by the handler as it likes, with all values.
func (c Change) LogValue() slog.Value {
	attrs := []slog.Attr{
		slog.String("position", c.Position.String()),
		slog.String("operation", string(c.Operation)),
		slog.String("table", c.TableName()),
		slog.String("database", c.Database),
		slog.String("committedAt", c.CommittedAt.UTC().Format(time.RFC3339Nano)),
	}
	if c.Environment != "" {
		attrs = append(attrs, slog.String("environment", c.Environment))
	}
	if c.Defect != "" {
		attrs = append(attrs, slog.String("defect", c.Defect))
	}
	if c.Stamped {
		attrs = append(attrs, slog.Any("context", c.Context))
	} else {
		attrs = append(attrs, slog.Bool("stamped", false))
	}
	return slog.GroupValue(attrs...)
}

// NewLogHandler returns a handler that gives each record to inner with the attributes
// requestId and userId of the [Context] that its ctx carries, if it carries them:
//
//	slog.SetDefault(slog.New(audit.NewLogHandler(slog.NewJSONHandler(os.Stderr, nil))))
//	slog.InfoContext(r.Context(), "order shipped", "order", id)
//
// So a line of the log leads to what the request changed, [Query.InRequest], and back. The two
// stand at the top level, also below [slog.Logger.WithGroup]. An attribute of the same name that
// a logger or a record has there already is kept, and not written twice.
func NewLogHandler(inner slog.Handler) slog.Handler {
	if h, ok := inner.(*logHandler); ok {
		return h
	}
	return &logHandler{top: inner, inner: inner}
}

// logHandler is immutable, as handlers are.
type logHandler struct {
	top   slog.Handler                      // as inner was before its first group
	below []func(slog.Handler) slog.Handler // what makes inner of top
	inner slog.Handler

	hasRequest, hasUser bool // the logger has these attributes of its own
}

func (h *logHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.inner.Enabled(ctx, level)
}

func (h *logHandler) Handle(ctx context.Context, r slog.Record) error {
	s, ok := ctx.Value(stampKey{}).(*stamp)
	if !ok {
		return h.inner.Handle(ctx, r)
	}
	var request, user string
	if !h.hasRequest {
		request = s.value.RequestID
	}
	if !h.hasUser {
		user = s.value.logUser()
	}
	if len(h.below) == 0 {
		r.Attrs(func(a slog.Attr) bool {
			hasRequest, hasUser := ownAttrs(a)
			if hasRequest {
				request = ""
			}
			if hasUser {
				user = ""
			}
			return true
		})
	}
	attrs := make([]slog.Attr, 0, 2)
	if request != "" {
		attrs = append(attrs, slog.String(logRequest, request))
	}
	if user != "" {
		attrs = append(attrs, slog.String(logUser, user))
	}
	switch {
	case len(attrs) == 0:
		return h.inner.Handle(ctx, r)
	case len(h.below) == 0:
		r = r.Clone() // others may hold it, too
		r.AddAttrs(attrs...)
		return h.inner.Handle(ctx, r)
	}
	// Attributes of the record would go into the group that is open.
	inner := h.top.WithAttrs(attrs)
	for _, with := range h.below {
		inner = with(inner)
	}
	return inner.Handle(ctx, r)
}

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	if len(attrs) == 0 {
		return h
	}
	with := func(inner slog.Handler) slog.Handler { return inner.WithAttrs(attrs) }
	if len(h.below) > 0 {
		return h.nested(with)
	}
	next := *h
	next.top = with(h.top)
	next.inner = next.top
	for _, a := range attrs {
		hasRequest, hasUser := ownAttrs(a)
		next.hasRequest, next.hasUser = next.hasRequest || hasRequest, next.hasUser || hasUser
	}
	return &next
}

// ownAttrs reports whether an attribute is one of ours, or brings them along: a group without a
// name stands where it is given, attribute by attribute.
func ownAttrs(a slog.Attr) (hasRequest, hasUser bool) {
	if a.Key != "" {
		return a.Key == logRequest, a.Key == logUser
	}
	if v := a.Value.Resolve(); v.Kind() == slog.KindGroup {
		for _, inner := range v.Group() {
			request, user := ownAttrs(inner)
			hasRequest, hasUser = hasRequest || request, hasUser || user
		}
	}
	return hasRequest, hasUser
}

func (h *logHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return h.nested(func(inner slog.Handler) slog.Handler { return inner.WithGroup(name) })
}

func (h *logHandler) nested(with func(slog.Handler) slog.Handler) *logHandler {
	next := *h
	next.below = append(h.below[:len(h.below):len(h.below)], with)
	next.inner = with(h.inner)
	return &next
}
