package pgserver

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// DefaultImage is the image of the container unless AUDIT_PG_IMAGE names one.
const DefaultImage = "postgres:17-alpine"

// ContainerModule is the module that starts containers. It is one of its own
// because what it needs to speak to a container engine is many times what the
// rest of this repository needs.
const ContainerModule = "github.com/hindsight-go/audit/audittest/auditcontainer"

// ContainerRequest says which container is wanted.
type ContainerRequest struct {
	// Image is the image's name.
	Image string `json:"image"`
	// Command is the command that the container runs.
	Command []string `json:"command"`
	// Logger gets what the engine says, at level debug. It is never nil.
	Logger *slog.Logger `json:"-"`
}

// RunningContainer is a server in a container.
type RunningContainer interface {
	// DSN is the connection string of the server's database postgres.
	DSN() string
	// Log is the end of the server's log, at most its last mebibyte.
	Log() string
	// Close removes the container.
	Close() error
}

// ContainerStarter starts a container and returns when its server accepts
// connections. Where there is no container engine it returns a
// [*NoContainersError].
type ContainerStarter func(ctx context.Context, request ContainerRequest) (RunningContainer, error)

// registered is the starter that a program has imported, nil if none.
var registered atomic.Pointer[ContainerStarter]

// RegisterContainers has [Start] start containers with the starter. Importing
// [ContainerModule] calls it.
func RegisterContainers(starter ContainerStarter) { registered.Store(&starter) }

// containerStarter gives what the program has imported; else, in a checkout of
// this repository, the module that lies beside.
func containerStarter() (ContainerStarter, error) {
	if starter := registered.Load(); starter != nil {
		return *starter, nil
	}
	_, file, _, _ := runtime.Caller(0) // empty if it is not known
	dir, err := moduleBeside(file)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, request ContainerRequest) (RunningContainer, error) {
		return holdContainer(ctx, holderCommand(dir), request)
	}, nil
}

// container is a server in a container, as a host.
type container struct {
	running RunningContainer
	base    url.URL

	// mu guards the fields below.
	mu      sync.Mutex
	closed  bool
	lastLog string
}

func startContainer(ctx context.Context, image string, opts Options) (host, error) {
	start, err := containerStarter()
	if err != nil {
		return nil, err
	}
	// The image's own command would do but for the settings.
	command := []string{"postgres"}
	all := settings(opts)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		command = append(command, "-c", name+"="+all[name])
	}
	running, err := start(ctx, ContainerRequest{Image: image, Command: command, Logger: opts.Logger})
	if err != nil {
		return nil, err
	}
	base, err := url.Parse(running.DSN())
	if err != nil {
		startErr := &StartError{Op: "find container's address", Err: err}
		if err := running.Close(); err != nil {
			return nil, fmt.Errorf("%w; then %w", startErr, err)
		}
		return nil, startErr
	}
	return &container{running: running, base: *base}, nil
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
	return c.running.Log()
}

func (c *container) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.lastLog = c.running.Log()
	c.closed = true
	return c.running.Close()
}
