package audit_test

import (
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// A server that is stopped in fast mode waits for its replication connections. It
// must not wait for one whose store has just been ended by the same stop.
func TestAServerStopsUnderCapture(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{})
	a := audittest.Open(t, server.NewDatabase(t), audit.Config{})
	if err := a.Client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		a.Exec(t, "CREATE TABLE IF NOT EXISTS todo (id int); INSERT INTO todo VALUES (1)")
		a.Sync(t)
		a.Exec(t, "CREATE TABLE IF NOT EXISTS other (id int); SELECT pg_switch_wal()") // nothing to store
		server.Restart(t)
		a.Sync(t)
	}
}
