package faulttest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
)

// programEnv holds the configuration of a Program, and so makes a test binary
// play one.
const programEnv = "AUDIT_FAULTTEST_PROGRAM"

// ProgramConfig configures a Program.
type ProgramConfig struct {
	// Name is recorded as the environment of what the program captures.
	Name                string
	SourceURL, StoreURL string
	Schema              string
	Tables              []string
}

// Program is a process that opens a client and starts it, for tests to kill.
type Program struct {
	Name string
	Log  *Log

	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended

	mu      sync.Mutex // lets one question at a time be asked
	stdin   *os.File
	answers chan Answer
}

// Answer is what a program says about itself.
type Answer struct {
	State audit.State `json:"state"`
	Err   string      `json:"err"`
}

// Mark of the answers among the log lines of the program.
const answerMark = "answer "

// IsProgram reports whether this process was started by StartProgram. TestMain calls
// RunProgram then.
func IsProgram() bool { return os.Getenv(programEnv) != "" }

// RunProgram captures until its standard input ends, as it does when the test
// process is gone, and returns the exit code.
func RunProgram() int {
	// The log is for the test that started the program, which reads our output.
	logger := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if err := program(context.Background(), logger); err != nil {
		logger.Error("program: has ended", "error", err)
		return 1
	}
	return 0
}

func program(ctx context.Context, logger *slog.Logger) error {
	var cfg ProgramConfig
	if err := json.Unmarshal([]byte(os.Getenv(programEnv)), &cfg); err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	client, err := audit.Open(ctx, audit.Config{
		SourceURL: cfg.SourceURL, StoreURL: cfg.StoreURL, Schema: cfg.Schema, Tables: cfg.Tables,
		Environment: cfg.Name, Logger: logger,
	})
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Start(ctx); err != nil {
		return err
	}
	logger.Info("program: has started")
	questions := bufio.NewScanner(os.Stdin)
	for questions.Scan() {
		status, err := client.Status(ctx)
		answer := Answer{State: status.State}
		if status.Err != nil {
			answer.Err = status.Err.Error()
		} else if err != nil {
			answer.Err = err.Error()
		}
		text, err := json.Marshal(answer)
		if err != nil {
			return err
		}
		if _, err := os.Stdout.WriteString(answerMark + string(text) + "\n"); err != nil {
			return err
		}
	}
	stop, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return client.Stop(stop)
}

// StartProgram starts a Program and does not wait for it. It is killed when the
// test ends.
func StartProgram(t testing.TB, cfg ProgramConfig) *Program {
	t.Helper()
	env, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p := &Program{Name: cfg.Name, Log: NewLog(t), done: make(chan struct{}), answers: make(chan Answer, 16)}
	p.cmd = exec.Command(os.Args[0]) //nolint:gosec,noctx // It is ourselves, and killed by the cleanup.
	p.cmd.Env = append(os.Environ(), programEnv+"="+string(env))
	stdin, questions, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdin, p.cmd.Stdin = questions, stdin
	lines, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout, p.cmd.Stderr = stdout, stdout
	err = p.cmd.Start()
	_ = stdin.Close()
	_ = stdout.Close()
	if err != nil {
		t.Fatalf("start program: %v", err)
	}
	go p.read(lines)
	t.Cleanup(func() { p.Kill() })
	return p
}

// read takes the output apart until the process has ended.
func (p *Program) read(lines *os.File) {
	defer close(p.done)
	scanner := bufio.NewScanner(lines)
	scanner.Buffer(nil, 16<<20)
	for scanner.Scan() {
		text, isAnswer := strings.CutPrefix(scanner.Text(), answerMark)
		var a Answer
		if isAnswer && json.Unmarshal([]byte(text), &a) == nil {
			p.answers <- a
			continue
		}
		_, _ = p.Log.Write([]byte(scanner.Text() + "\n"))
	}
	_ = lines.Close()
	_ = p.cmd.Wait() // How it ended is in the log.
	_ = p.stdin.Close()
}

// Alive reports whether the process has not ended.
func (p *Program) Alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Kill ends the process with SIGKILL and waits for that.
func (p *Program) Kill() {
	_ = p.cmd.Process.Kill() // It may have ended.
	<-p.done
}

// PeakMemory returns the most memory that the process has had at once, in bytes.
func (p *Program) PeakMemory(t testing.TB) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	var kib int
	if _, err := fmt.Sscanf(after, "%d kB", &kib); err != nil {
		t.Fatalf("peak memory of program %s: %v", p.Name, err)
	}
	return kib << 10
}

// Signal sends the process a signal.
func (p *Program) Signal(t testing.TB, signal os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		t.Fatalf("signal program %s: %v", p.Name, err)
	}
}

// WaitStarted returns when Start has returned.
func (p *Program) WaitStarted(t testing.TB) {
	t.Helper()
	Poll(t, Patience, "start program "+p.Name, func() error {
		if p.Log.Count("program: has started") > 0 {
			return nil
		}
		if !p.Alive() {
			t.Fatalf("program %s has ended:\n%s", p.Name, p.Log.Text())
		}
		return fmt.Errorf("its log is:\n%s", p.Log.Text())
	})
}

// Ask returns what the program says about itself.
func (p *Program) Ask(within time.Duration) (Answer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.stdin.WriteString("status\n"); err != nil {
		return Answer{}, fmt.Errorf("ask program %s: %w", p.Name, err)
	}
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case a := <-p.answers:
		return a, nil
	case <-p.done:
		return Answer{}, fmt.Errorf("program %s has ended", p.Name)
	case <-timer.C:
		return Answer{}, fmt.Errorf("program %s does not answer", p.Name)
	}
}
