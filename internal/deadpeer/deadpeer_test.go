package deadpeer_test

import (
	"net"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/internal/deadpeer"
)

func TestGuard(t *testing.T) {
	t.Parallel()
	config, err := pgconn.ParseConfig("postgres://user@localhost/db")
	if err != nil {
		t.Fatal(err)
	}
	deadpeer.Guard(config)
	if got := config.RuntimeParams["tcp_user_timeout"]; got != "30000" {
		t.Errorf("tcp_user_timeout is %q", got)
	}
	for _, network := range []string{"tcp", "unix"} {
		address := "127.0.0.1:0"
		if network == "unix" {
			address = t.TempDir() + "/s"
		}
		listener, err := (&net.ListenConfig{}).Listen(t.Context(), network, address)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := config.DialFunc(t.Context(), network, listener.Addr().String())
		if err != nil {
			t.Errorf("dial %s: %v", network, err)
			continue
		}
		_, _ = conn.Close(), listener.Close()
	}
}
