// Package container starts PostgreSQL in a container, through testcontainers-go.
package container

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/testcontainers/testcontainers-go"
	tcpostgres "github.com/testcontainers/testcontainers-go/modules/postgres"

	"github.com/hindsight-go/audit/internal/pgserver"
)

// engineTimeout bounds the question whether there is a container engine. One
// that needs longer to say yes will not run a test in time.
const engineTimeout = 10 * time.Second

// logLimit is how much of a server's log is given at most.
const logLimit = 1 << 20

// container is a running one.
type container struct {
	running *tcpostgres.PostgresContainer
	dsn     string
}

// Start starts a container: it is a pgserver.ContainerStarter.
func Start(ctx context.Context, request pgserver.ContainerRequest) (pgserver.RunningContainer, error) {
	if err := engineReachable(ctx); err != nil {
		return nil, &pgserver.NoContainersError{Problem: err.Error(), Err: err}
	}
	running, err := tcpostgres.Run(ctx, request.Image,
		testcontainers.WithLogger(debugLog{request.Logger}),
		// The module's own command turns fsync off, so it is replaced whole.
		testcontainers.WithCmd(request.Command...),
		tcpostgres.BasicWaitStrategies(),
	)
	c := &container{running: running}
	op := "start container " + request.Image
	if err == nil {
		op = "find container's address"
		c.dsn, err = running.ConnectionString(ctx, "sslmode=disable")
	}
	if err == nil {
		return c, nil
	}
	startErr := &pgserver.StartError{Op: op, Err: err}
	if running == nil {
		return nil, startErr
	}
	startErr.Log = c.Log()
	if err := c.Close(); err != nil {
		return nil, fmt.Errorf("%w; then %w", startErr, err)
	}
	return nil, startErr
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

// DSN implements pgserver.RunningContainer.
func (c *container) DSN() string { return c.dsn }

// Log implements pgserver.RunningContainer.
func (c *container) Log() string {
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

// Close implements pgserver.RunningContainer.
func (c *container) Close() error {
	if err := testcontainers.TerminateContainer(c.running); err != nil {
		return fmt.Errorf("auditcontainer: remove container: %w", err)
	}
	return nil
}

// debugLog passes on what testcontainers has to say, which by default it
// prints.
type debugLog struct{ logger *slog.Logger }

// Printf implements testcontainers' logger.
func (l debugLog) Printf(format string, args ...any) {
	l.logger.Debug("auditcontainer: testcontainers", "message", fmt.Sprintf(format, args...))
}

// discard is for the question whether there is an engine: the answer says all.
type discard struct{}

// Printf implements testcontainers' logger.
func (discard) Printf(string, ...any) {}
