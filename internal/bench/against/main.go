// Command against runs benchmarks of an earlier commit and of this tree in turns, and
// prints what each says and the ratio of the two:
//
//	go run ./internal/bench/against [-rounds 5] [-scale 0.1] COMMIT drain memory
//
// Noise of the machine that lasts longer than a turn hits both. Besides those of
// internal/bench there is asof, which are the benchmarks of the tests.
//
// Of stamp a turn takes some 10 ms: the wrappers of both are built into one program.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "against:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, args []string) error {
	flags := flag.NewFlagSet("against", flag.ContinueOnError)
	rounds := flags.Int("rounds", 5, "how often each side runs")
	scale := flags.String("scale", "1", "part of the full size to run")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() < 2 || *rounds < 1 {
		return errors.New("say which commit and which benchmarks: against [-rounds N] [-scale S] COMMIT BENCHMARK")
	}
	dir, err := os.MkdirTemp("", "audit-against-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	root, err := output(ctx, ".", "git", "rev-parse", "--show-toplevel")
	if err != nil {
		return err
	}
	after := &side{name: "after", tree: strings.TrimSpace(root), dir: dir}
	before := &side{name: "before", tree: filepath.Join(dir, "before"), dir: dir}
	if err := checkOut(ctx, after.tree, flags.Arg(0), before.tree); err != nil {
		return err
	}
	for _, benchmark := range flags.Args()[1:] {
		if benchmark == "stamp" {
			err = stamp(ctx, out, before, after, *scale)
		} else {
			err = compare(ctx, out, before, after, benchmark, *scale, *rounds)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", benchmark, err)
		}
	}
	return nil
}

// checkOut puts a commit's files into a new directory.
func checkOut(ctx context.Context, root, commit, to string) error {
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	archive := to + ".tar"
	if _, err := output(ctx, root, "git", "archive", "--format=tar", "-o", archive, commit); err != nil {
		return err
	}
	_, err := output(ctx, to, "tar", "-xf", archive)
	return err
}

// compare lets both sides run a benchmark in turns and prints what they said.
func compare(ctx context.Context, out io.Writer, before, after *side, benchmark, scale string, rounds int) error {
	var said [2][]report
	for round := range rounds {
		// Whoever is second in one round is first in the next.
		for i := range 2 {
			which := (round + i) % 2
			text, err := []*side{before, after}[which].run(ctx, benchmark, scale)
			if err != nil {
				return err
			}
			said[which] = append(said[which], parse(text))
		}
	}
	_, err := fmt.Fprintf(out, "%s, %d rounds in turns: medians before and after, and the ratio after/before of neighbouring turns: median, least, most\n%s",
		benchmark, rounds, table(said[0], said[1]))
	return err
}

// side is the tree of a commit.
type side struct {
	name, tree string
	dir        string // where to build
}

// run runs a benchmark and returns what it printed.
func (s *side) run(ctx context.Context, benchmark, scale string) (string, error) {
	built := filepath.Join(s.dir, s.name+"-bench")
	build := []string{"build", "-o", built, "./internal/bench"}
	args := []string{"-scale", scale, benchmark}
	if benchmark == "asof" {
		built += "-asof"
		build = []string{"test", "-c", "-o", built, "."}
		args = []string{"-test.run", "^$", "-test.bench", "AsOf", "-test.benchtime", "1x", "-test.timeout", "60m"}
	}
	if _, err := os.Stat(built); err != nil {
		if _, err := output(ctx, s.tree, "go", build...); err != nil {
			return "", err
		}
	}
	return output(ctx, s.tree, built, args...)
}

func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	var said, complaint strings.Builder
	command := exec.CommandContext(ctx, name, args...)
	command.Dir, command.Stdout, command.Stderr = dir, &said, &complaint
	// So that it ends its server.
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, complaint.String())
	}
	return said.String(), nil
}

// report is what a benchmark printed: its lines, and the figures in each.
type report []line

type line struct {
	around  []string // the text around the figures, one more than there are
	figures []figure
}

type figure struct {
	value    float64
	decimals int
	isTime   bool // in milliseconds, whatever the unit was
}

var figures = regexp.MustCompile(`(?:\d+(?:\.\d+)?(?:h|m|s|ms|us|µs|ns)\b)+|\d+(?:\.\d+)?|[+]Inf|NaN`)

func parse(text string) report {
	var r report
	for said := range strings.Lines(text) {
		said = strings.TrimRight(said, "\n")
		var l line
		at := 0
		for _, found := range figures.FindAllStringIndex(said, -1) {
			l.around = append(l.around, said[at:found[0]])
			l.figures = append(l.figures, read(said[found[0]:found[1]]))
			at = found[1]
		}
		l.around = append(l.around, said[at:])
		r = append(r, l)
	}
	return r
}

func read(text string) figure {
	if took, err := time.ParseDuration(text); err == nil && text != "0" {
		return figure{float64(took.Microseconds()) / 1000, 2, true}
	}
	value, _ := strconv.ParseFloat(text, 64) // it looks like one
	_, decimals, _ := strings.Cut(text, ".")
	return figure{value, len(decimals), false}
}

func (f figure) String() string {
	text := strconv.FormatFloat(f.value, 'f', f.decimals, 64)
	if f.isTime {
		text += "ms"
	}
	return text
}

// table shows line by line what both sides said. A figure that was the same in all
// runs is no measurement but part of a name.
func table(before, after []report) string {
	var text strings.Builder
	for n := range before[0] {
		shape := before[0][n]
		var medians [2][]figure
		var ratios [][]float64 // of each figure, in order
		varies := false
		for i := range shape.figures {
			b, ok := column(before, n, i, shape)
			a, alsoOK := column(after, n, i, shape)
			if !ok || !alsoOK {
				ratios = nil
				break
			}
			medians[0] = append(medians[0], median(b))
			medians[1] = append(medians[1], median(a))
			if isSame(append(slices.Clone(b), a...)) {
				ratios = append(ratios, nil)
				continue
			}
			varies = true
			var of []float64
			for round := range b {
				if b[round].value != 0 {
					of = append(of, a[round].value/b[round].value)
				}
			}
			slices.Sort(of)
			ratios = append(ratios, of)
		}
		if len(ratios) < len(shape.figures) || !varies {
			fmt.Fprintf(&text, "        %s\n", shape.with(shape.figures))
			continue
		}
		fmt.Fprintf(&text, "before  %s\nafter   %s\n", shape.with(medians[0]), shape.with(medians[1]))
		for _, row := range []struct {
			name string
			of   func([]float64) float64
		}{
			{"ratio   ", func(sorted []float64) float64 { return sorted[len(sorted)/2] }},
			{"least   ", func(sorted []float64) float64 { return sorted[0] }},
			{"most    ", func(sorted []float64) float64 { return sorted[len(sorted)-1] }},
		} {
			text.WriteString(row.name)
			for _, of := range ratios {
				if len(of) > 0 {
					fmt.Fprintf(&text, " %.2f", row.of(of))
				}
			}
			text.WriteString("\n")
		}
	}
	return text.String()
}

// column returns a figure of all reports, and whether all have it.
func column(reports []report, n, i int, shape line) ([]figure, bool) {
	var all []figure
	for _, r := range reports {
		if n >= len(r) || len(r[n].figures) != len(shape.figures) {
			return nil, false
		}
		all = append(all, r[n].figures[i])
	}
	return all, true
}

// with returns the line with other figures, as wide as it was where they fit.
func (l line) with(figures []figure) string {
	var text strings.Builder
	for i, f := range figures {
		now, was := f.String(), l.figures[i].String()
		around := l.around[i]
		if more := len(now) - len(was); more > 0 && strings.HasSuffix(around, strings.Repeat(" ", more+1)) {
			around = around[:len(around)-more]
		}
		text.WriteString(around + strings.Repeat(" ", max(0, len(was)-len(now))) + now)
	}
	return text.String() + l.around[len(figures)]
}

func isSame(all []figure) bool {
	return !slices.ContainsFunc(all, func(f figure) bool { return f.value != all[0].value })
}

func median(all []figure) figure {
	sorted := slices.SortedFunc(slices.Values(all), func(a, b figure) int { return cmp.Compare(a.value, b.value) })
	return sorted[len(sorted)/2]
}
