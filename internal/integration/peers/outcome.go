package main

import (
	"bufio"
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// outcome is what became of the tests of a suite.
type outcome struct {
	results map[string]string // pass, fail or skip by name
	printed map[string]string // by name, "" is what no test printed
	early   bool              // the tests ended before the last of them
	stamps  string
	took    time.Duration
}

// event is one of go tool test2json.
type event struct{ Action, Test, Output string }

func readOutcome(printed []byte) (outcome, error) {
	o := outcome{results: map[string]string{}, printed: map[string]string{}}
	lines := bufio.NewScanner(bytes.NewReader(printed))
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return o, fmt.Errorf("read the output of the tests: %w", err)
		}
		switch e.Action {
		case "output":
			o.printed[e.Test] += e.Output
			if strings.HasPrefix(e.Output, "peers: ") {
				o.stamps = strings.TrimSpace(strings.TrimPrefix(e.Output, "peers: "))
			}
		case "pass", "fail", "skip":
			if e.Test != "" {
				o.results[e.Test] = e.Action
			}
		}
	}
	return o, lines.Err()
}

// end returns what was printed last outside tests: a panic, for instance.
func (o outcome) end() string {
	text := o.printed[""]
	return text[max(0, len(text)-2000):]
}

func (o outcome) count() (pass, fail, skip int) {
	for _, result := range o.results {
		switch result {
		case "pass":
			pass++
		case "fail":
			fail++
		case "skip":
			skip++
		}
	}
	return pass, fail, skip
}

func (o outcome) failed() []string {
	var names []string
	for name, result := range o.results {
		if result == "fail" && !o.hasFailedBelow(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (o outcome) hasFailedBelow(name string) bool {
	for other, result := range o.results {
		if result == "fail" && strings.HasPrefix(other, name+"/") {
			return true
		}
	}
	return false
}

// differs returns the tests whose results are others, without those that differ only
// because a test below them does.
func (o outcome) differs(wrapped outcome) []string {
	all := maps.Clone(o.results)
	maps.Copy(all, wrapped.results)
	var names []string
	for name := range all {
		if wrapped.early && wrapped.results[name] == "" {
			continue // not reached, which is an error of its own
		}
		if o.results[name] != wrapped.results[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		return slices.ContainsFunc(names, func(other string) bool { return strings.HasPrefix(other, name+"/") })
	})
}

//go:embed reasons.txt
var reasonsText string

// reason is why a test may differ.
type reason struct {
	suite, mode string // "*" is any
	test        *regexp.Regexp
	why         string
}

// readReasons reads reasons.txt: in each line suite, mode, a pattern of the whole name
// of tests, and after a colon the reason.
func readReasons() ([]reason, error) {
	var reasons []reason
	for i, line := range strings.Split(reasonsText, "\n") {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		head, why, ok := strings.Cut(line, ": ")
		fields := strings.Fields(head)
		if !ok || len(fields) != 3 || strings.TrimSpace(why) == "" {
			return nil, fmt.Errorf("reasons.txt, line %d: want suite, mode, test, colon and a reason", i+1)
		}
		test, err := regexp.Compile("^(?:" + fields[2] + ")$")
		if err != nil {
			return nil, fmt.Errorf("reasons.txt, line %d: %w", i+1, err)
		}
		reasons = append(reasons, reason{fields[0], fields[1], test, why})
	}
	return reasons, nil
}

func reasonFor(reasons []reason, suite, mode, test string) string {
	for _, r := range reasons {
		if (r.suite == "*" || r.suite == suite) && (r.mode == "*" || r.mode == mode) && r.test.MatchString(test) {
			return r.why
		}
	}
	return ""
}
