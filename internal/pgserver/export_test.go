package pgserver

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"testing"
)

// Find runs the search for binaries over the places given.
func Find(ctx context.Context, binDir, path string, patterns []string) (dir string, major int, tried []Attempt, err error) {
	who, err := serverAccount()
	if err != nil {
		return "", 0, nil, err
	}
	found, tried, err := search{binDir: binDir, path: path, patterns: patterns, account: who}.find(ctx)
	if found == nil {
		return "", 0, tried, err
	}
	return found.dir, found.major, tried, err
}

// Installed says whether Start would make a private cluster.
func Installed(ctx context.Context) bool {
	if os.Getenv(EnvImage) != "" && os.Getenv(EnvBinDir) == "" {
		return false
	}
	found, _, err := findInstalled(ctx)
	return err == nil && found != nil
}

// SetUsualDirs replaces the usual directories for the length of a test, which
// must not run in parallel with others.
func SetUsualDirs(t *testing.T, dirs []string) {
	t.Helper()
	old := usualDirs
	usualDirs = dirs
	t.Cleanup(func() { usualDirs = old })
}

// GivenDSN is the connection string of a database on a given server.
func GivenDSN(base, database string) string { return given{base: base}.dsn(database) }

// Configuration gives settings in the syntax of postgresql.conf.
var Configuration = configuration

// StartHeld has the program of cmd start a container.
func StartHeld(ctx context.Context, cmd *exec.Cmd, image string) (RunningContainer, error) {
	h, err := holdContainer(ctx, cmd, ContainerRequest{Image: image, Logger: slog.Default()})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// ModuleBeside looks for the module that starts containers beside a source file.
var ModuleBeside = moduleBeside
