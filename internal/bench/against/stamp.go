package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	module  = "github.com/hindsight-go/audit"
	earlier = module + "/earlier"
)

// hook tells bench of the earlier version.
const hook = `package main

import (
	"context"
	"database/sql/driver"

	"github.com/jackc/pgx/v5/pgxpool"

	"` + module + `/auditpgx"
	earlier "` + earlier + `"
	earlierpgx "` + earlier + `/auditpgx"
	earliersql "` + earlier + `/auditsql"
)

func init() {
	earlierVersion = &version{
		ofPool:      func(pool *pgxpool.Pool) auditpgx.Querier { return earlierpgx.Wrap(pool) },
		ofConnector: func(c driver.Connector) driver.Connector { return earliersql.Wrap(c) },
		with: func(ctx context.Context) context.Context {
			return earlier.WithContext(ctx, earlier.Context{
				UserID: 187234, RequestID: "5f1c8a52-6c3b-4d53-9a53-9d3f5a1c2b3e", Endpoint: "POST /todo/{id}",
				TraceID: "4bf92f3577b34da6a3ce929d0e0e4736", SpanID: "00f067aa0ba902b7",
			})
		},
	}
}
`

// stamp builds the benchmark of this tree with the packages of the earlier commit in a
// directory of their own, which is there for the compiler only, and runs it.
func stamp(ctx context.Context, out io.Writer, before, after *side, scale string) error {
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	err := filepath.WalkDir(before.tree, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || strings.HasSuffix(path, "_test.go") {
			return err
		}
		inside, err := filepath.Rel(before.tree, path)
		if err != nil || strings.HasPrefix(inside, "go.") {
			return err // go.mod would make it a module
		}
		if strings.HasSuffix(path, ".go") {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text = bytes.ReplaceAll(text, []byte(`"`+module), []byte(`"`+earlier))
			if err := os.WriteFile(path, text, 0o600); err != nil {
				return err
			}
		}
		overlay.Replace[filepath.Join(after.tree, "earlier", inside)] = path
		return nil
	})
	if err != nil {
		return err
	}
	with := filepath.Join(after.dir, "earlier.go")
	if err := os.WriteFile(with, []byte(hook), 0o600); err != nil {
		return err
	}
	overlay.Replace[filepath.Join(after.tree, "internal", "bench", "earlier.go")] = with
	list, err := json.Marshal(overlay)
	if err != nil {
		return err
	}
	file, built := filepath.Join(after.dir, "overlay.json"), filepath.Join(after.dir, "stamp")
	if err := os.WriteFile(file, list, 0o600); err != nil {
		return err
	}
	if _, err := output(ctx, after.tree, "go", "build", "-overlay", file, "-o", built, "./internal/bench"); err != nil {
		return err
	}
	text, err := output(ctx, after.tree, built, "-scale", scale, "stamp")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "stamp, with the wrappers before and after in turns of some 10 ms\n%s", text)
	return err
}
