package auditriver

import (
	"context"
	"encoding/json"
	"log/slog"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/internal/stamp"
)

// MetadataKey is the name under which the metadata of a job have the context.
const MetadataKey = "audit"

// MiddlewareConfig is the configuration of a [Middleware].
type MiddlewareConfig struct {
	// Logger is told, at most once a minute each, of what could not be carried.
	// Default: slog.Default().
	Logger *slog.Logger
}

// Middleware carries the context from insert to work. It goes into the Middleware or
// the Plugins of river.Config.
type Middleware struct {
	river.MiddlewareDefaults
	s *stamp.Stamper
}

var (
	_ rivertype.JobInsertMiddleware = (*Middleware)(nil)
	_ rivertype.WorkerMiddleware    = (*Middleware)(nil)
)

// NewMiddleware returns a middleware. A nil config is the zero one.
func NewMiddleware(config *MiddlewareConfig) *Middleware {
	if config == nil {
		config = &MiddlewareConfig{}
	}
	return &Middleware{s: stamp.New("", false, config.Logger)}
}

// InsertMany is of rivertype.JobInsertMiddleware.
func (m *Middleware) InsertMany(ctx context.Context, jobs []*rivertype.JobInsertParams, doInner func(context.Context) ([]*rivertype.JobInsertResult, error)) ([]*rivertype.JobInsertResult, error) {
	if content := m.s.Content(ctx); content != nil {
		for _, job := range jobs {
			metadata, err := with(job.Metadata, content)
			if err != nil {
				m.s.Lose(ctx, err) // River says what is wrong with them
				continue
			}
			job.Metadata = metadata
		}
	}
	return doInner(ctx)
}

// with returns metadata with a context.
func with(metadata, content []byte) ([]byte, error) {
	members := map[string]json.RawMessage{}
	if len(metadata) > 0 {
		if err := json.Unmarshal(metadata, &members); err != nil {
			return nil, err
		}
	}
	if members == nil { // the metadata are null
		members = map[string]json.RawMessage{}
	}
	members[MetadataKey] = content
	return json.Marshal(members)
}

// Work is of rivertype.WorkerMiddleware.
func (m *Middleware) Work(ctx context.Context, job *rivertype.JobRow, doInner func(context.Context) error) error {
	ctx = audit.WithContext(ctx, m.carried(ctx, job))
	ctx = audit.WithContext(ctx, audit.FromSpan(ctx))
	ctx = audit.WithContext(ctx, audit.Context{
		Worker: job.Kind,
		Extra:  map[string]any{"job": job.ID, "attempt": job.Attempt},
	})
	return doInner(ctx)
}

// carried returns the context that a job was inserted with. If there is something else
// in its place the job goes on without.
func (m *Middleware) carried(ctx context.Context, job *rivertype.JobRow) audit.Context {
	var metadata map[string]json.RawMessage // a struct would take "Audit", too
	var said audit.Context
	if len(job.Metadata) == 0 {
		return said
	}
	err := json.Unmarshal(job.Metadata, &metadata)
	if content, ok := metadata[MetadataKey]; err == nil && ok {
		err = json.Unmarshal(content, &said)
	}
	if err != nil {
		m.s.Lose(ctx, err)
	}
	return said
}
