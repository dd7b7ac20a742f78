package audit

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/internal/history"
)

const (
	// StampPrefix is the prefix of the logical messages that carry a context.
	StampPrefix = "audit"

	// MaxContextBytes is the size that a stamped context is kept under, in bytes
	// of JSON. What is larger loses its Params, then its SQL, then its Extra, as
	// far as needed, and says so in Truncated; the write goes on.
	MaxContextBytes = 64 << 10
)

// Context is what the application says about its writes: who makes them, where
// and on behalf of which request. It travels in a context.Context (see
// [WithContext]), is stamped into the transaction (see [Stamp]) and stands
// beside every change of it in history.
//
// It is a JSON object there, under the names given at each field. Empty members
// are left out.
type Context struct {
	// UserID is who: a string, an integer, a UUID or anything else with a
	// MarshalText or String method ("userId"). Read from history it is a string,
	// an int64, or a json.Number for a number that is no int64. See
	// [Context.User].
	UserID any
	// Tenant is on whose behalf, where one program serves many ("tenant").
	Tenant string
	// RequestID is the request ("requestId"): what [Query.InRequest] finds.
	RequestID string
	// TraceID and SpanID are those of distributed tracing ("traceId", "spanId").
	TraceID string
	SpanID  string
	// Endpoint is where in the program: method and route, as "POST /todo"
	// ("endpoint").
	Endpoint string
	// Worker is the name of a background worker or job ("worker").
	Worker string
	// SQL is the statement that made the change ("SQL").
	SQL string
	// Params are the parameters of the request ("params").
	Params map[string]any
	// Extra holds further members of the top level. A member that is named like a
	// field counts only if the field is empty. Read from history, it holds what
	// other programs stamped under names of their own, numbers as json.Number.
	Extra map[string]any

	// Truncated names the members that were left out or cut because of
	// [MaxContextBytes] ("truncated").
	Truncated []string
}

// User returns the text of UserID, which is what [Query.ByUser] compares, or ""
// if there is none.
func (c Context) User() string {
	text, err := idText(c.UserID)
	if err != nil {
		return ""
	}
	return text
}

// IsZero reports whether nothing is set.
func (c Context) IsZero() bool {
	return (c.UserID == nil || c.UserID == "") && c.Tenant == "" && c.RequestID == "" &&
		c.TraceID == "" && c.SpanID == "" && c.Endpoint == "" && c.Worker == "" && c.SQL == "" &&
		len(c.Params) == 0 && len(c.Extra) == 0 && len(c.Truncated) == 0
}

// Merge returns c with the fields of other that are set laid over it. Params
// and Extra are merged key by key. Neither c nor other is changed.
func (c Context) Merge(other Context) Context {
	overlay := func(dst *string, value string) {
		if value != "" {
			*dst = value
		}
	}
	if other.UserID != nil && other.UserID != "" {
		c.UserID = other.UserID
	}
	overlay(&c.Tenant, other.Tenant)
	overlay(&c.RequestID, other.RequestID)
	overlay(&c.TraceID, other.TraceID)
	overlay(&c.SpanID, other.SpanID)
	overlay(&c.Endpoint, other.Endpoint)
	overlay(&c.Worker, other.Worker)
	overlay(&c.SQL, other.SQL)
	c.Params = mergeMaps(c.Params, other.Params)
	c.Extra = mergeMaps(c.Extra, other.Extra)
	c.Truncated = slices.Compact(slices.Sorted(slices.Values(slices.Concat(c.Truncated, other.Truncated))))
	return c
}

func mergeMaps(a, b map[string]any) map[string]any {
	if len(a)+len(b) == 0 {
		return nil
	}
	merged := make(map[string]any, len(a)+len(b))
	maps.Copy(merged, a)
	maps.Copy(merged, b)
	return merged
}

// stampKey is the key of *stamp in a context.Context.
type stampKey struct{}

// stamp is a context with its JSON, which is made once however many
// transactions it is stamped into.
type stamp struct {
	value   Context
	once    sync.Once // makes content and err
	content []byte
	err     error
}

func (s *stamp) marshal() ([]byte, error) {
	s.once.Do(func() { s.content, s.err = s.value.stampJSON() })
	return s.content, s.err
}

// WithContext returns a ctx that carries c, merged over the Context that ctx
// may carry already: fields that are set in c win, Params and Extra are merged
// key by key. The maps are copied; their values must not be changed afterwards.
func WithContext(ctx context.Context, c Context) context.Context {
	base, _ := FromContext(ctx)
	merged := base.Merge(c)
	if merged.IsZero() {
		return ctx
	}
	return context.WithValue(ctx, stampKey{}, &stamp{value: merged})
}

// FromContext returns the Context that ctx carries and whether it carries one.
// The caller may change the maps of the result, but not their values.
func FromContext(ctx context.Context) (Context, bool) {
	s, ok := ctx.Value(stampKey{}).(*stamp)
	if !ok {
		return Context{}, false
	}
	return Context{}.Merge(s.value), true
}

// StampContent returns the content of the logical message that [Stamp] emits
// for ctx: a JSON object in ASCII, so that it passes through every server
// encoding. It is nil if ctx carries no Context. The bytes must not be changed.
//
// It is for those who send the stamp by themselves, as part of a batch: the same
// content need be stamped only once in a transaction.
func StampContent(ctx context.Context) ([]byte, error) {
	s, ok := ctx.Value(stampKey{}).(*stamp)
	if !ok {
		return nil, nil
	}
	return s.marshal()
}

// Execer is what [Stamp] needs of a transaction: pgx.Tx, *pgx.Conn and the like
// have it.
type Execer interface {
	Exec(ctx context.Context, sql string, arguments ...any) (pgconn.CommandTag, error)
}

// stampSQL names the types, since there is a variant for bytea as well.
const stampSQL = `SELECT pg_catalog.pg_logical_emit_message(true, $1::pg_catalog.text, $2::pg_catalog.text)`

// Stamp puts the Context that ctx carries into the WAL of the transaction tx,
// from where capture stitches it to the transaction's changes: to those that
// follow, and also to those before it if it is the transaction's first. It does
// nothing if ctx carries none.
//
// Stamp belongs at the beginning of the transaction and costs one round trip.
// On a pool or on a connection outside a transaction it is of no use: the stamp
// would be a transaction of its own.
//
// The error is a [*ContextError] if a value cannot be written as JSON, in which
// case nothing was sent and the transaction is as it was, and else that of
// tx.Exec, which as always leaves a PostgreSQL transaction aborted.
func Stamp(ctx context.Context, tx Execer) error {
	content, err := StampContent(ctx)
	if err != nil || content == nil {
		return err
	}
	_, err = tx.Exec(ctx, stampSQL, StampPrefix, string(content))
	return history.OpError("stamp context", err)
}
