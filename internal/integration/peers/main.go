// Command peers runs the test suites of the libraries that this one wraps, first
// bare and then through the wrappers, and reports the tests whose outcome differs:
// go run ./peers, in internal/integration.
//
// The suites are those of pgx, its pgxpool and stdlib, lib/pq, and sqlx. Their modules
// are copied to a temporary directory, where a hook is put into the few methods that
// the wrappers stand before, so that every call of every test goes through auditpgx
// or auditsql. Each suite runs three times, each time in a database of its own: bare,
// with an audit context in every call, and with every call treated as a write besides.
//
// A test may differ only if reasons.txt says why.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hindsight-go/audit/internal/pgserver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

// modes are how a suite is run.
var modes = []string{"bare", "context", "write"}

// atOnce is how many suites run at the same time. Each waits for the server for the
// most part.
const atOnce = 2

// manyDiffer is of how many tests a difference is not looked at one by one.
const manyDiffer = 50

func run(ctx context.Context, out io.Writer, args []string) error {
	flags := flag.NewFlagSet("peers", flag.ContinueOnError)
	only := flags.String("suite", "", "run these suites only, with commas between: "+strings.Join(suiteNames(), ", "))
	pattern := flags.String("run", "", "run the tests that match only, and show what they print")
	short := flags.Bool("short", false, "leave out tests that take a minute")
	keep := flags.Bool("keep", false, "keep the directory of the copies")
	if err := flags.Parse(args); err != nil {
		return err
	}
	chosen, err := chooseSuites(*only)
	if err != nil {
		return err
	}
	begun := time.Now()
	root, err := repository(ctx)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "audit-peers-")
	if err != nil {
		return err
	}
	if *keep {
		fmt.Fprintln(out, dir)
	} else {
		defer func() { _ = os.RemoveAll(dir) }()
	}
	server, err := pgserver.Start(ctx, pgserver.Options{Settings: serverSettings})
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }()
	if err := makeRoles(ctx, server); err != nil {
		return err
	}
	if err := copyModules(ctx, root, dir); err != nil {
		return err
	}
	b := bench{dir: dir, server: server, pattern: *pattern, short: *short, out: out}
	err = b.runAll(ctx, chosen)
	fmt.Fprintf(out, "peers: %d suites, %d ways each, %.0f s\n", len(chosen), len(modes), time.Since(begun).Seconds())
	return err
}

// bench is where suites run.
type bench struct {
	dir     string
	server  *pgserver.Server
	pattern string
	short   bool

	out io.Writer

	mu   sync.Mutex
	made int // databases, guarded by mu
}

func (b *bench) runAll(ctx context.Context, chosen []suite) error {
	// The linker is the part that does not run beside itself well.
	for _, s := range chosen {
		if err := s.build(ctx, b.dir); err != nil {
			return err
		}
	}
	slots := make(chan struct{}, atOnce)
	outcomes := make(map[string]outcome)
	var mu sync.Mutex // guards outcomes and problems
	var problems []error
	var wg sync.WaitGroup
	for _, s := range chosen {
		for _, mode := range modes {
			wg.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				o, err := b.runOnce(ctx, s, mode, b.pattern)
				if o.early {
					// Some peers panic when a server under load is slow: once may be chance.
					fmt.Fprintf(b.out, "%s, %s, once more: %v\n", s.name, mode, err)
					o, err = b.runOnce(ctx, s, mode, b.pattern)
				}
				mu.Lock()
				defer mu.Unlock()
				outcomes[s.name+" "+mode] = o
				if err != nil {
					problems = append(problems, fmt.Errorf("%s, %s: %w", s.name, mode, err))
				}
			})
		}
	}
	wg.Wait()
	reasons, err := readReasons()
	if err != nil {
		return err
	}
	for _, s := range chosen {
		problems = append(problems, b.report(ctx, s, outcomes, reasons)...)
	}
	return errors.Join(problems...)
}

// report prints how the outcomes of a suite compare, and returns an error for each
// test that differs without a reason. A test that differs is run once more by itself
// before that is believed: those of others may depend on time. If many differ, that is no
// chance.
func (b *bench) report(ctx context.Context, s suite, outcomes map[string]outcome, reasons []reason) []error {
	var problems []error
	bare := outcomes[s.name+" bare"]
	for _, mode := range modes {
		o := outcomes[s.name+" "+mode]
		pass, fail, skip := o.count()
		fmt.Fprintf(b.out, "%-8s %-8s %4d pass %3d fail %3d skip %5.0f s   %s\n", s.name, mode, pass, fail, skip, o.took.Seconds(), o.stamps)
		if mode == "bare" {
			for _, name := range o.failed() {
				fmt.Fprintf(b.out, "    fails bare: %s\n", name)
			}
			continue
		}
		if bare.early {
			continue // there is nothing to compare with
		}
		differ := bare.differs(o)
		for _, name := range differ {
			was, is := bare.results[name], o.results[name]
			if why := reasonFor(reasons, s.name, mode, name); why != "" {
				fmt.Fprintf(b.out, "    differs: %s: %s, %s: %s\n", name, was, is, why)
				continue
			}
			if len(differ) > manyDiffer {
				problems = append(problems, fmt.Errorf("%s, %s: %s: %s bare, %s through the wrapper", s.name, mode, name, was, is))
				continue
			}
			if again, ok := b.again(ctx, s, mode, name); ok {
				fmt.Fprintf(b.out, "    differed, but not by itself: %s\n", name)
				continue
			} else if b.pattern != "" || again != "" {
				fmt.Fprintf(b.out, "%s\n", again)
			}
			problems = append(problems, fmt.Errorf("%s, %s: %s: %s bare, %s through the wrapper", s.name, mode, name, was, is))
		}
	}
	return problems
}

// again runs a test by itself, bare and wrapped, and reports whether it is the same
// in both. Else it returns what it printed.
func (b *bench) again(ctx context.Context, s suite, mode, name string) (string, bool) {
	top, _, _ := strings.Cut(name, "/")
	bare, err := b.runOnce(ctx, s, "bare", "^"+top+"$")
	if err != nil {
		return "", false
	}
	wrapped, err := b.runOnce(ctx, s, mode, "^"+top+"$")
	if err != nil {
		return "", false
	}
	if bare.results[name] != "" && len(bare.differs(wrapped)) == 0 {
		return "", true
	}
	return wrapped.printed[name], false
}

// chooseSuites returns the suites of the names, or all without any.
func chooseSuites(names string) ([]suite, error) {
	if names == "" {
		return suites, nil
	}
	var chosen []suite
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(suites, func(s suite) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no suite %q: there are %s", name, strings.Join(suiteNames(), ", "))
		}
		chosen = append(chosen, suites[i])
	}
	return chosen, nil
}

func suiteNames() []string {
	var names []string
	for _, s := range suites {
		names = append(names, s.name)
	}
	slices.Sort(names)
	return names
}

// copyOf is where the copy of a module is.
func copyOf(dir, module string) string {
	return filepath.Join(dir, filepath.Base(strings.TrimSuffix(module, "/v5")))
}
