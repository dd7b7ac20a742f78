package main

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

//go:embed through
var through embed.FS

// modules are what is copied.
var modules = []module{
	{
		path: "github.com/jackc/pgx/v5",
		renames: map[string][]string{
			"conn.go":         {`func (c *Conn) Exec(`, `func (c *Conn) Query(`, `func (c *Conn) QueryRow(`, `func (c *Conn) SendBatch(`, `func (c *Conn) Prepare(`},
			"copy_from.go":    {`func (c *Conn) CopyFrom(`},
			"tx.go":           {`func (c *Conn) Begin(`, `func (c *Conn) BeginTx(`, `func (tx *dbTx) QueryRow(`},
			"pgxpool/pool.go": {`func (p *Pool) Exec(`, `func (p *Pool) Query(`, `func (p *Pool) QueryRow(`, `func (p *Pool) SendBatch(`, `func (p *Pool) CopyFrom(`, `func (p *Pool) Begin(`, `func (p *Pool) BeginTx(`},
			"stdlib/sql.go":   {`func (c connector) Connect(`, `func (dc *driverConnector) Connect(`},
		},
		replaces: map[string]replacement{
			// The documented way to the connection, with and without the wrapper.
			"stdlib/sql_test.go": {`driverConn.(*stdlib.Conn).Conn()`, `driverConn.(interface{ Conn() *pgx.Conn }).Conn()`},
		},
		files: map[string]string{
			"pgx_hook": "hook.go", "pgxpool_hook": "pgxpool/hook.go", "stdlib_hook": "stdlib/hook.go",
			"mode": "peers/mode.go", "pgx_peers": "peers/pgx.go", "sql_peers": "peers/sql.go", "stdlib_peers": "peers/stdlib.go",
		},
	},
	{
		path:    "github.com/lib/pq",
		renames: map[string][]string{"connector.go": {`func (c *Connector) Connect(`}, "conn.go": {`func (d Driver) Open(`}},
		files:   map[string]string{"pq_hook": "hook.go", "mode": "peers/mode.go", "sql_peers": "peers/sql.go", "pq_peers": "peers/pq.go"},
	},
	{
		path: "github.com/jmoiron/sqlx",
		replaces: map[string]replacement{
			// It opens "postgres" when its tests are initialized, which the copy of lib/pq has
			// to be ready for.
			"sqlx_test.go": {`_ "github.com/lib/pq"`, `_ "github.com/lib/pq/peers"`},
		},
		uses: []string{"github.com/lib/pq"},
	},
}

// module is the module of a peer, and what is done to its copy.
type module struct {
	path     string
	renames  map[string][]string    // methods by file: each gets the name of one that goes first
	replaces map[string]replacement // in tests
	files    map[string]string      // templates and where they go
	uses     []string               // modules whose copies it uses
}

type replacement struct{ from, to string }

// repository returns the directory of this library.
func repository(ctx context.Context) (string, error) {
	return goCommand(ctx, ".", "list", "-m", "-f", "{{.Dir}}", "github.com/hindsight-go/audit")
}

func copyModules(ctx context.Context, root, dir string) error {
	for _, m := range modules {
		if err := m.copy(ctx, root, dir); err != nil {
			return fmt.Errorf("copy %s: %w", m.path, err)
		}
	}
	for _, s := range suites {
		if err := s.writeLastTest(dir); err != nil {
			return err
		}
	}
	return nil
}

func (m module) copy(ctx context.Context, root, dir string) error {
	if _, err := goCommand(ctx, ".", "mod", "download", m.path); err != nil {
		return err
	}
	cached, err := goCommand(ctx, ".", "list", "-m", "-f", "{{.Dir}}", m.path)
	if err != nil {
		return err
	}
	to := copyOf(dir, m.path)
	if err := copyTree(cached, to); err != nil {
		return err
	}
	for file, methods := range m.renames {
		for _, method := range methods {
			at := strings.LastIndex(method, ") ") + 2
			if err := replace(filepath.Join(to, file), replacement{method, method[:at] + "bare" + method[at:]}); err != nil {
				return err
			}
		}
	}
	for file, r := range m.replaces {
		if err := replace(filepath.Join(to, file), r); err != nil {
			return err
		}
	}
	for name, file := range m.files {
		text, err := through.ReadFile("through/" + name + ".go.txt")
		if err != nil {
			return err
		}
		if err := write(filepath.Join(to, file), string(text)); err != nil {
			return err
		}
	}
	return m.writeGoMod(root, dir, to)
}

// replace puts a text into the place of another, which has to be there.
func replace(file string, r replacement) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if !strings.Contains(string(text), r.from) {
		return fmt.Errorf("no %q in %s: the peer has changed", r.from, filepath.Base(file))
	}
	return os.WriteFile(file, []byte(strings.ReplaceAll(string(text), r.from, r.to)), 0o600)
}

func write(file, text string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(text), 0o600)
}

func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, name)
		if entry.IsDir() {
			return os.MkdirAll(target, 0o750)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, text, 0o600)
	})
}

// requireBlock finds what a go.mod requires.
var requireBlock = regexp.MustCompile(`(?s)require \(.*?\n\)`)

// writeGoMod lets the copy depend on this library, on the versions that its tests
// use, and on the copies of the other peers.
func (m module) writeGoMod(root, dir, to string) error {
	text, err := os.ReadFile(filepath.Join(to, "go.mod"))
	if err != nil {
		return err
	}
	ours, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		return err
	}
	version := regexp.MustCompile(`(?m)^go .*$`)
	content := version.ReplaceAllString(string(text), string(version.Find(ours)))
	content += "\nrequire github.com/hindsight-go/audit v0.0.0\n\nreplace github.com/hindsight-go/audit => " + root + "\n"
	for _, used := range m.uses {
		content += "\nreplace " + used + " => " + copyOf(dir, used) + "\n"
	}
	for _, block := range requireBlock.FindAllString(string(ours), -1) {
		content += "\n" + block + "\n"
	}
	// A module cannot require itself.
	content = regexp.MustCompile(`(?m)^\s*`+regexp.QuoteMeta(m.path)+` v.*$`).ReplaceAllString(content, "")
	if err := write(filepath.Join(to, "go.mod"), content); err != nil {
		return err
	}
	var sums string
	for _, file := range []string{filepath.Join(to, "go.sum"), filepath.Join(root, "go.sum"), filepath.Join(root, "internal/integration/go.sum")} {
		text, err := os.ReadFile(file)
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		sums += string(text)
	}
	return write(filepath.Join(to, "go.sum"), sums)
}

// goCommand runs go and returns what it prints.
func goCommand(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	// Without cgo nobody has to build the C of SQLite, which no test here uses.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}
