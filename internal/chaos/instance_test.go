//go:build unix

package chaos_test

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// instance is a program that is started again whenever it has ended, as a supervisor of
// services does, and its connections.
type instance struct {
	name          string
	source, store *faulttest.Proxy
	env           string

	mu       sync.Mutex
	process  *os.Process // guarded by mu: nil while none runs
	stdin    *os.File    // guarded by mu
	frozen   bool        // guarded by mu
	asked    bool        // guarded by mu: an answer is outstanding
	last     answer      // guarded by mu: of the process
	answered bool        // guarded by mu: last is there
	said     []saying    // guarded by mu
	starts   int         // guarded by mu
}

// saying is something that an instance has said to its operator.
type saying struct {
	at   time.Time
	way  way
	text string
}

// way is where an operator looks.
type way int

const (
	byStatus way = iota
	byLog
	byMetrics
	ways
)

// supervise runs programs until ctx ends, and kills the last.
func (i *instance) supervise(ctx context.Context) {
	for ctx.Err() == nil {
		if err := i.runOnce(ctx); err != nil {
			i.note(byLog, "supervisor: "+err.Error())
		}
		wait(ctx, 500*time.Millisecond)
	}
}

func (i *instance) runOnce(ctx context.Context) error {
	cmd := exec.Command(os.Args[0]) //nolint:gosec,noctx // It is ourselves, and killed below.
	cmd.Env = append(os.Environ(), programEnv+"="+i.env)
	in, questions, err := os.Pipe()
	if err != nil {
		return err
	}
	defer questions.Close()
	lines, out, err := os.Pipe()
	if err != nil {
		return err
	}
	defer lines.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, out
	err = cmd.Start()
	_, _ = in.Close(), out.Close()
	if err != nil {
		return err
	}
	i.mu.Lock()
	i.process, i.stdin, i.asked, i.answered, i.last, i.frozen = cmd.Process, questions, false, false, answer{}, false
	i.starts++
	i.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	scanner := bufio.NewScanner(lines)
	scanner.Buffer(nil, 16<<20)
	for scanner.Scan() {
		i.line(scanner.Text())
	}
	_ = cmd.Wait() // How it ended is in the log.
	i.mu.Lock()
	i.process = nil
	i.mu.Unlock()
	return nil
}

// line takes in a line of the program's output.
func (i *instance) line(text string) {
	if body, is := strings.CutPrefix(text, answerMark); is {
		var a answer
		if json.Unmarshal([]byte(body), &a) != nil {
			return
		}
		i.mu.Lock()
		more := a.Errors - i.last.Errors
		gaps := i.answered && a.Gaps > i.last.Gaps
		i.last, i.answered, i.asked = a, true, false
		i.mu.Unlock()
		if what := a.says(); what != "" || gaps {
			i.note(byStatus, what)
		}
		if more > 0 {
			i.note(byMetrics, "")
		}
		return
	}
	var record struct {
		Level, Msg, Error, Reason string
	}
	if json.Unmarshal([]byte(text), &record) != nil {
		i.note(byLog, text) // a panic, say
		return
	}
	text = strings.Join([]string{record.Msg, record.Error, record.Reason}, ": ")
	switch {
	case record.Msg == hasEnded: // which whoever looks after programs sees
		i.note(byStatus, text)
		i.note(byMetrics, text)
		i.note(byLog, text)
	case record.Level == "WARN" || record.Level == "ERROR":
		i.note(byLog, text)
	}
}

func (i *instance) note(by way, text string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.said = append(i.said, saying{at: time.Now(), way: by, text: text})
}

// ask asks for a status, unless an answer is outstanding.
func (i *instance) ask() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.process == nil || i.asked || i.frozen {
		return
	}
	if _, err := i.stdin.WriteString("status\n"); err == nil {
		i.asked = true
	}
}

func (i *instance) signal(s syscall.Signal) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.process == nil {
		return
	}
	_ = i.process.Signal(s) // It may have ended.
	switch s {
	case syscall.SIGSTOP:
		i.frozen = true
	case syscall.SIGCONT:
		i.frozen = false
	}
}

// streams reports whether the instance was the one that captures when it was asked last.
func (i *instance) streams() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.process != nil && i.answered && i.last.State == capture.Streaming
}

// sayings returns what was said since.
func (i *instance) sayings(since time.Time) (all []saying) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, s := range i.said {
		if s.at.After(since) {
			all = append(all, s)
		}
	}
	return all
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// newInstance makes the instance with its connections, which go through proxies.
func newInstance(t testing.TB, name string, sourceURL, storeURL, passwordFile string) *instance {
	t.Helper()
	i := &instance{name: name, source: faulttest.NewProxy(t, sourceURL), store: faulttest.NewProxy(t, storeURL)}
	config, err := json.Marshal(programConfig{SourceURL: asProgram(t, i.source.URL()), StoreURL: asProgram(t, i.store.URL()), PasswordFile: passwordFile})
	if err != nil {
		t.Fatal(err)
	}
	i.env = string(config)
	return i
}
