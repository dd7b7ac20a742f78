package pgserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
)

// usualDirs are where packages put the server's binaries. Debian and Red Hat
// keep them off PATH on purpose, since several versions may be installed.
var usualDirs = []string{
	"/usr/lib/postgresql/*/bin",         // Debian, Ubuntu
	"/usr/pgsql-*/bin",                  // Red Hat, from the PostgreSQL project
	"/usr/bin",                          // Red Hat, Arch
	"/usr/libexec/postgresql*",          // Alpine
	"/usr/lib/postgresql*/bin",          // SUSE
	"/usr/lib64/postgresql-*/bin",       // Gentoo
	"/usr/local/pgsql/bin",              // built from source
	"/opt/homebrew/opt/postgresql*/bin", // Homebrew on Apple silicon
	"/opt/homebrew/bin",
	"/usr/local/opt/postgresql*/bin", // Homebrew on Intel
	"/usr/local/bin",
	"/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
	"/Applications/Postgres.app/Contents/Versions/*/bin",
}

// installation is a directory with the binaries of a server.
type installation struct {
	dir   string
	major int
}

// search is where to look for an installation. It is a value of its own so
// that the order can be tested with directories made for the purpose.
type search struct {
	binDir   string   // AUDIT_PG_BIN
	path     string   // PATH
	patterns []string // usualDirs
	account  account  // who is going to run what is found
}

// findInstalled looks for an installation on this machine. It returns nil and
// what was tried if there is none, and an error if there cannot be one.
func findInstalled(ctx context.Context) (*installation, []Attempt, error) {
	if !clustersSupported {
		if os.Getenv(EnvBinDir) != "" {
			err := errors.New("private clusters are not supported on " + runtime.GOOS)
			return nil, []Attempt{{EnvBinDir, err.Error()}}, err
		}
		return nil, []Attempt{{"private cluster", "not supported on " + runtime.GOOS}}, nil
	}
	who, err := serverAccount()
	if err != nil {
		return nil, []Attempt{{"private cluster", err.Error()}}, nil //nolint:nilerr // the attempt says it
	}
	s := search{binDir: os.Getenv(EnvBinDir), path: os.Getenv("PATH"), patterns: usualDirs, account: who}
	return s.find(ctx)
}

func (s search) find(ctx context.Context) (*installation, []Attempt, error) {
	if s.binDir != "" {
		found, err := s.inspect(ctx, s.binDir)
		if err != nil {
			return nil, []Attempt{{EnvBinDir + "=" + s.binDir, err.Error()}}, err
		}
		return found, nil, nil
	}
	tried := []Attempt{{EnvBinDir, "not set"}}

	for _, dir := range filepath.SplitList(s.path) {
		if _, err := os.Stat(filepath.Join(dir, "postgres")); dir == "" || err != nil {
			continue
		}
		found, err := s.inspect(ctx, dir)
		if err == nil {
			return found, tried, nil
		}
		tried = append(tried, Attempt{"PATH, " + dir, err.Error()})
	}
	if len(tried) == 1 {
		tried = append(tried, Attempt{"PATH", "no postgres in any of its directories"})
	}

	best, triedDirs := s.newest(ctx)
	return best, append(tried, triedDirs...), nil
}

// newest gives the newest usable major version of the usual directories; of
// equals, the first.
func (s search) newest(ctx context.Context) (*installation, []Attempt) {
	var (
		best  *installation
		tried []Attempt
	)
	for _, pattern := range s.patterns {
		dirs, err := filepath.Glob(filepath.Join(pattern, "postgres"))
		if err != nil || len(dirs) == 0 {
			tried = append(tried, Attempt{pattern, "no postgres"})
			continue
		}
		for _, file := range dirs {
			dir := filepath.Dir(file)
			found, err := s.inspect(ctx, dir)
			if err != nil {
				tried = append(tried, Attempt{dir, err.Error()})
				continue
			}
			if best == nil || found.major > best.major {
				best = found
			}
		}
	}
	return best, tried
}

// postgresVersion finds the major version in, for instance,
// "postgres (PostgreSQL) 15.8 (Debian 15.8-0+deb12u1)" or "... 18beta1".
var postgresVersion = regexp.MustCompile(`\) (\d+)`)

// inspect says whether the server in dir can be used.
func (s search) inspect(ctx context.Context, dir string) (*installation, error) {
	dir, err := withInitdb(dir)
	if err != nil {
		return nil, err
	}
	if err := s.account.mayExecute(filepath.Join(dir, "postgres")); err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("postgres --version: %w", err)
	}
	match := postgresVersion.FindSubmatch(out)
	if match == nil {
		return nil, fmt.Errorf("postgres --version says %q, which is not PostgreSQL's way", strings.TrimSpace(string(out)))
	}
	major, err := strconv.Atoi(string(match[1]))
	if err != nil {
		return nil, fmt.Errorf("parse version: %w", err)
	}
	if major < MinMajor {
		return nil, fmt.Errorf("is PostgreSQL %d, and %d or newer is needed", major, MinMajor)
	}
	return &installation{dir: dir, major: major}, nil
}

// withInitdb gives the directory that holds both postgres and initdb: dir, or
// the one that dir's postgres is a link into.
func withInitdb(dir string) (string, error) {
	dirs := []string{dir}
	if real, err := filepath.EvalSymlinks(filepath.Join(dir, "postgres")); err == nil {
		dirs = append(dirs, filepath.Dir(real))
	}
	var missing error
	for _, d := range dirs {
		if missing = bothIn(d); missing == nil {
			return filepath.Abs(d)
		}
	}
	return "", missing
}

func bothIn(dir string) error {
	for _, name := range []string{"postgres", "initdb"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("no %s in it", name)
		}
	}
	return nil
}
