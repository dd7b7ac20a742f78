package capture

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// Somebody wakes the reader while it ends: a session that hangs up with something
// unread loses what it has confirmed last.
func TestStream_WakeWhileFinishing(t *testing.T) {
	t.Parallel()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	s := &stream{conn: conn}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.finish()
	}()
	if _, err := io.ReadFull(server, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	s.wake()
	_ = server.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection did not wait for the server: %v", err)
	}
	_ = server.Close()
	<-done
}
