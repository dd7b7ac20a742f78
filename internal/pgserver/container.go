package pgserver

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/testcontainers/testcontainers-go"
	tcpostgres "github.com/testcontainers/testcontainers-go/modules/postgres"
)

// DefaultImage is the image of the container unless AUDIT_PG_IMAGE names one.
const DefaultImage = "postgres:17-alpine"

// engineTimeout bounds the question whether there is a container engine. One
// that needs longer to say yes will not run a test in time.
const engineTimeout = 10 * time.Second

// container is a server in a container. Testcontainers' reaper removes it when
// this process dies without doing so.
type container struct {
	running *tcpostgres.PostgresContainer
	base    url.URL

	// mu guards the fields below.
	mu      sync.Mutex
	closed  bool
	lastLog string
}

// engineReachable says why no container can be started.
func engineReachable(ctx context.Context) (err error) {
	// Testcontainers panics where it finds no engine at all.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("no container engine: %v", p)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	provider, err := testcontainers.ProviderDefault.GetProvider(testcontainers.WithLogger(discard{}))
	if err != nil {
		return fmt.Errorf("no container engine: %w", err)
	}
	if err := provider.Health(ctx); err != nil {
		return fmt.Errorf("no container engine: %w", err)
	}
	return nil
}

func startContainer(ctx context.Context, image string, opts Options) (host, error) {
	var args []string
	all := settings(opts)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		args = append(args, "-c", name+"="+all[name])
	}
	running, err := tcpostgres.Run(ctx, image,
		testcontainers.WithLogger(debugLog{opts.Logger}),
		// The module's own command turns fsync off, so it is replaced whole.
		testcontainers.WithCmd(append([]string{"postgres"}, args...)...),
		tcpostgres.BasicWaitStrategies(),
	)
	c := &container{running: running}
	if err != nil {
		startErr := &StartError{Op: "start container " + image, Err: err}
		if running == nil {
			return nil, startErr
		}
		startErr.Log = c.log()
		if err := c.close(); err != nil {
			return nil, fmt.Errorf("%w; then %w", startErr, err)
		}
		return nil, startErr
	}
	dsn, err := running.ConnectionString(ctx, "sslmode=disable")
	if err == nil {
		var base *url.URL
		if base, err = url.Parse(dsn); err == nil {
			c.base = *base
			return c, nil
		}
	}
	startErr := &StartError{Op: "find container's address", Err: err}
	if err := c.close(); err != nil {
		return nil, fmt.Errorf("%w; then %w", startErr, err)
	}
	return nil, startErr
}

func (c *container) dsn(database string) string {
	u := c.base
	u.Path = "/" + database
	return u.String()
}

func (c *container) maintenanceDSN() string { return c.dsn("postgres") }

func (c *container) log() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.lastLog
	}
	return c.readLog()
}

func (c *container) readLog() string {
	ctx, cancel := context.WithTimeout(context.Background(), engineTimeout)
	defer cancel()
	out, err := c.running.Logs(ctx)
	if err != nil {
		return ""
	}
	defer out.Close()
	content, err := io.ReadAll(out)
	if err != nil {
		return ""
	}
	return string(content[max(0, len(content)-logLimit):])
}

func (c *container) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.lastLog = c.readLog()
	c.closed = true
	if err := testcontainers.TerminateContainer(c.running); err != nil {
		return fmt.Errorf("pgserver: close container: %w", err)
	}
	return nil
}

// debugLog passes on what testcontainers has to say, which by default it
// prints.
type debugLog struct{ logger *slog.Logger }

// Printf implements testcontainers' logger.
func (l debugLog) Printf(format string, args ...any) {
	l.logger.Debug("pgserver: container", "message", fmt.Sprintf(format, args...))
}

// discard is for the question whether there is an engine: the answer says all.
type discard struct{}

// Printf implements testcontainers' logger.
func (discard) Printf(string, ...any) {}
