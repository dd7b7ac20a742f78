//go:build unix

package auditnats_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditnats"
)

// programEnv holds the configuration of a program, and so makes this binary one.
const programEnv = "AUDIT_NATS_PROGRAM"

// programConfig configures a program for tests to kill: a broker, or a sink.
type programConfig struct {
	Port      int
	StoreDir  string // of a broker; empty: a sink
	SourceURL string
	Stream    string
}

func TestMain(m *testing.M) {
	if text := os.Getenv(programEnv); text != "" {
		if err := program(text); err != nil {
			fmt.Fprintln(os.Stderr, "program:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// program runs until its standard input ends, as it does when the test is gone.
func program(text string) error {
	var cfg programConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	if cfg.StoreDir != "" {
		s, err := startBroker(cfg.Port, cfg.StoreDir)
		if err != nil {
			return err
		}
		<-ctx.Done()
		s.Shutdown()
		return nil
	}
	client, err := audit.Open(ctx, audit.Config{SourceURL: cfg.SourceURL})
	if err != nil {
		return err
	}
	defer client.Close()
	conn, err := connect(cfg.Port)
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	sink, err := auditnats.New(auditnats.Config{
		Client: client, JetStream: js, Stream: cfg.Stream, AckWait: 2 * time.Second, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	return sink.Run(ctx)
}

func startBroker(port int, dir string) (*server.Server, error) {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true, MaxPayload: 1 << 20})
	if err != nil {
		return nil, err
	}
	s.Start()
	if !s.ReadyForConnections(30 * time.Second) {
		return nil, fmt.Errorf("the broker does not get ready")
	}
	return s, nil
}

func connect(port int) (*nats.Conn, error) {
	return nats.Connect(fmt.Sprintf("nats://127.0.0.1:%d", port),
		nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.RetryOnFailedConnect(true))
}

// process is a program that runs.
type process struct {
	cmd   *exec.Cmd
	stdin io.Closer
	ended chan struct{} // closed when it has
	err   error         // how; set before ended is closed
	log   string
}

// start starts a program that writes its log to a file.
func start(t *testing.T, cfg programConfig, log string) *process {
	t.Helper()
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	p := &process{cmd: exec.Command(os.Args[0]), ended: make(chan struct{}), log: log} //nolint:gosec,noctx // It is this program, and ended by the test.
	p.cmd.Env = append(os.Environ(), programEnv+"="+string(text))
	p.cmd.Stdout, p.cmd.Stderr = file, file
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(p.kill)
	return p
}

// kill ends it as a crash does.
func (p *process) kill() {
	_ = p.cmd.Process.Signal(syscall.SIGKILL)
	<-p.ended
}
