// Package incoming reads from the headers of a request which request it is, and of which
// trace. It is what the packages for HTTP, gRPC and Connect have in common.
package incoming

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"net"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/hindsight-go/audit"
)

const (
	// maxRequestID is how long a request id of others may be.
	maxRequestID = 128
	// maxUserAgent is to how many bytes a user agent is cut.
	maxUserAgent = 256
)

// Request is a request that has come in.
type Request struct {
	Header   func(name string) string
	IDHeader string        // the name of the header with the request id
	NewID    func() string // makes a request id; nil makes a random UUID of version 7
	Trusted  bool          // the sender's request id and trace are believed
}

// Context says which request it is, and of which trace. What a stranger has sent goes
// into Extra, where it can be searched for, and undoes nothing. A request id that ctx has
// already stays.
func (r Request) Context(ctx context.Context) audit.Context {
	var said audit.Context
	extra := map[string]any{}
	outer, _ := audit.FromContext(ctx)
	id := r.Header(r.IDHeader)
	switch {
	case outer.RequestID != "":
		said.RequestID = outer.RequestID
	case r.Trusted && isRequestID(id):
		said.RequestID = id
	default:
		said.RequestID = r.newID()
		if isRequestID(id) {
			extra["clientRequestId"] = id
		}
	}
	r.trace(ctx, outer, &said, extra)
	if len(extra) > 0 {
		said.Extra = extra
	}
	return said
}

func (r Request) newID() string {
	if r.NewID != nil {
		return r.NewID()
	}
	return newUUID()
}

// trace says of which trace the request is.
func (r Request) trace(ctx context.Context, outer audit.Context, said *audit.Context, extra map[string]any) {
	if local := audit.FromSpan(ctx); local.TraceID != "" {
		said.TraceID, said.SpanID = local.TraceID, local.SpanID
		return
	}
	span := trace.SpanContextFromContext(ctx)
	traceID, spanID := parseTraceparent(r.Header("Traceparent"))
	if span.IsValid() {
		// Extracted from the request, and no span of ours begun.
		traceID, spanID = span.TraceID().String(), span.SpanID().String()
	}
	switch {
	case traceID == "":
	case r.Trusted:
		said.TraceID, said.SpanID = traceID, spanID
	case outer.TraceID == "":
		extra["clientTraceId"], extra["clientSpanId"] = traceID, spanID
	}
}

// AddRemoteAddress adds the address that a request came from, without the port.
func AddRemoteAddress(said *audit.Context, address string) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	add(said, "remoteAddress", host)
}

// AddUserAgent adds the user agent of a request, cut to 256 bytes.
func AddUserAgent(said *audit.Context, agent string) {
	add(said, "userAgent", agent[:min(len(agent), maxUserAgent)])
}

func add(said *audit.Context, name, value string) {
	if value == "" {
		return
	}
	if said.Extra == nil {
		said.Extra = map[string]any{}
	}
	said.Extra[name] = value
}

func isRequestID(id string) bool {
	if id == "" || len(id) > maxRequestID {
		return false
	}
	for _, b := range []byte(id) {
		switch {
		case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b >= '0' && b <= '9', strings.IndexByte("-_.:/+=@", b) >= 0:
		default:
			return false
		}
	}
	return true
}

// parseTraceparent reads the header of W3C Trace Context.
func parseTraceparent(header string) (traceID, spanID string) {
	header = strings.TrimSpace(header)
	if len(header) < 55 || len(header) > 55 && (header[:2] == "00" || header[55] != '-') {
		return "", ""
	}
	if header[2] != '-' || header[35] != '-' || header[52] != '-' {
		return "", ""
	}
	version, flags := header[:2], header[53:55]
	traceID, spanID = header[3:35], header[36:52]
	if version == "ff" || !isHex(version) || !isHex(flags) || !isHex(traceID) || !isHex(spanID) ||
		strings.Trim(traceID, "0") == "" || strings.Trim(spanID, "0") == "" {
		return "", ""
	}
	return traceID, spanID
}

func isHex(text string) bool { return strings.Trim(text, "0123456789abcdef") == "" }

// newUUID makes a UUID of version 7: milliseconds, then chance.
func newUUID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	var now [8]byte
	binary.BigEndian.PutUint64(now[:], uint64(time.Now().UnixMilli()))
	copy(id[:6], now[2:])
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	text := hex.EncodeToString(id[:])
	return text[:8] + "-" + text[8:12] + "-" + text[12:16] + "-" + text[16:20] + "-" + text[20:]
}
