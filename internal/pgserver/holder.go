package pgserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// The tests and examples of this repository run from a fresh clone on a machine
// that has Go and a container engine and nothing else. They cannot import
// [ContainerModule], or everything it requires would be required by whoever
// imports the SDK. So they run it: a program of that module, made by `go run`,
// starts the container, and removes it when its standard input ends, which the
// kernel sees to whatever this process dies of.
//
// The two speak JSON, one request and one reply at a time. The first request
// starts the container; the following ones ask for its log.

// holderRequest is what the program is asked: to start a container, or for the
// log of the one it has started.
type holderRequest struct {
	Start *ContainerRequest `json:"start,omitempty"`
}

// holderReply is the program's answer.
type holderReply struct {
	DSN string `json:"dsn,omitempty"`
	Log string `json:"log,omitempty"`
	// Op and Error say why there is no container, and NoContainers that there
	// cannot be one.
	Op           string `json:"op,omitempty"`
	Error        string `json:"error,omitempty"`
	NoContainers bool   `json:"noContainers,omitempty"`
}

// HoldContainer is the program: it starts the container that in asks for,
// answers on out, and removes the container when in ends.
func HoldContainer(ctx context.Context, in io.Reader, out io.Writer, start ContainerStarter) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	requests := make(chan holderRequest)
	go func() {
		// The end of the input ends a start under way, too: fetching an image
		// takes minutes, for somebody who is gone.
		defer cancel()
		defer close(requests)
		decoder := json.NewDecoder(in)
		for {
			var next holderRequest
			if decoder.Decode(&next) != nil {
				return
			}
			select {
			case requests <- next:
			case <-ctx.Done():
				return
			}
		}
	}()

	reply := json.NewEncoder(out)
	var running RunningContainer
	for next := range requests {
		if running != nil {
			if err := reply.Encode(holderReply{Log: running.Log()}); err != nil {
				return errors.Join(err, running.Close())
			}
			continue
		}
		if next.Start == nil {
			return errors.New("pgserver: hold container: there is none yet")
		}
		next.Start.Logger = slog.New(slog.DiscardHandler)
		var err error
		running, err = start(ctx, *next.Start)
		if err != nil {
			return reply.Encode(failure(err))
		}
		if err := reply.Encode(holderReply{DSN: running.DSN()}); err != nil {
			return errors.Join(err, running.Close())
		}
	}
	if running == nil {
		return nil
	}
	return running.Close()
}

func failure(err error) holderReply {
	if e := (*NoContainersError)(nil); errors.As(err, &e) {
		return holderReply{Error: e.Problem, NoContainers: true}
	}
	if e := (*StartError)(nil); errors.As(err, &e) && e.Err != nil {
		return holderReply{Op: e.Op, Error: e.Err.Error(), Log: e.Log}
	}
	return holderReply{Op: "start container", Error: err.Error()}
}

func (r holderReply) err() error {
	switch {
	case r.NoContainers:
		return &NoContainersError{Problem: r.Error}
	case r.Error != "":
		return &StartError{Op: r.Op, Log: r.Log, Err: errors.New(r.Error)}
	}
	return nil
}

// moduleBeside gives the directory of [ContainerModule] if this program was
// built from a checkout of the repository, in which it lies beside the package
// of file, a source file of this one. In a module that go has downloaded it does
// not.
func moduleBeside(file string) (string, error) {
	notImported := &NoContainersError{Problem: fmt.Sprintf("the program does not import %s", ContainerModule)}
	if !filepath.IsAbs(file) { // built with -trimpath
		return "", notImported
	}
	dir := filepath.Join(filepath.Dir(file), "..", "..", "audittest", "auditcontainer")
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		return "", notImported
	}
	if _, err := exec.LookPath("go"); err != nil {
		return "", &NoContainersError{Problem: "audittest/auditcontainer is run by the go command, which is not on PATH", Err: err}
	}
	return dir, nil
}

func holderCommand(dir string) *exec.Cmd {
	cmd := exec.Command("go", "run", "-C", dir, "./internal/hold") //nolint:noctx // The container outlives the context of its start.
	// A workspace around the repository does not know the module.
	cmd.Env = append(os.Environ(), "GOWORK=off")
	return cmd
}

// holder is a container that a program of our own holds.
type holder struct {
	cmd     *exec.Cmd
	address string

	// mu guards the conversation.
	mu     sync.Mutex
	in     io.WriteCloser
	ask    *json.Encoder
	answer *json.Decoder
	stderr *tail
}

// holders keeps every holder in use reachable, for the same reason as guardians.
var holders sync.Map

// holdContainer has the program start a container. If ctx ends first, it does
// not wait for the program to notice.
func holdContainer(ctx context.Context, cmd *exec.Cmd, request ContainerRequest) (*holder, error) {
	h := &holder{cmd: cmd, stderr: &tail{}}
	cmd.Stderr = h.stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, &NoContainersError{Problem: err.Error(), Err: err}
	}
	h.in, h.ask, h.answer = in, json.NewEncoder(in), json.NewDecoder(out)

	type started struct {
		reply holderReply
		err   error
	}
	result := make(chan started, 1)
	go func() {
		reply, err := h.exchange(holderRequest{Start: &request})
		result <- started{reply, err}
	}()
	select {
	case <-ctx.Done():
		in.Close()
		go func() { <-result; _ = cmd.Wait() }()
		return nil, &StartError{Op: "start container", Err: ctx.Err()}
	case got := <-result:
		err := got.err
		if err == nil {
			err = got.reply.err()
		}
		if err == nil {
			h.address = got.reply.DSN
			holders.Store(h, nil)
			return h, nil
		}
		in.Close()
		waited := cmd.Wait()
		if got.err != nil { // It did not get as far as an answer.
			problem := fmt.Sprintf("%s: %v: %s", strings.Join(cmd.Args, " "), errors.Join(waited, got.err), h.stderr)
			return nil, &NoContainersError{Problem: problem, Err: errors.Join(waited, got.err)}
		}
		return nil, err
	}
}

func (h *holder) exchange(request holderRequest) (reply holderReply, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.ask.Encode(request); err != nil {
		return holderReply{}, err
	}
	err = h.answer.Decode(&reply)
	return reply, err
}

// DSN implements RunningContainer.
func (h *holder) DSN() string { return h.address }

// Log implements RunningContainer.
func (h *holder) Log() string {
	reply, err := h.exchange(holderRequest{})
	if err != nil {
		return ""
	}
	return reply.Log
}

// Close implements RunningContainer.
func (h *holder) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	holders.Delete(h)
	h.in.Close()
	if err := h.cmd.Wait(); err != nil {
		return fmt.Errorf("pgserver: close container: %w: %s", err, h.stderr)
	}
	return nil
}

// tail keeps the end of what is written to it: of what the go command says, it
// is the end that tells what went wrong.
type tail struct {
	mu   sync.Mutex
	text []byte
}

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	t.text = t.text[max(0, len(t.text)-tailLimit):]
	return len(p), nil
}

const tailLimit = 2 << 10

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.text))
}
