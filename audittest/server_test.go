package audittest_test

import (
	"testing"

	"github.com/hindsight-go/audit/audittest"
)

func TestServerOfTheTestsOwn(t *testing.T) {
	t.Parallel()
	var url string
	t.Run("inner", func(t *testing.T) {
		s := audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{"work_mem": "5MB"}})
		if s.PID() == 0 {
			t.Skip("the server is not a private cluster")
		}
		db := s.NewDatabase(t)
		url = db.URL()
		if db.Server() != s {
			t.Error("the database is on another server")
		}
		if got := audittest.Value[string](t, db, "SELECT current_setting('work_mem')"); got != "5MB" {
			t.Errorf("work_mem is %s", got)
		}
		db.Exec(t, "CREATE TABLE kept (n int)")

		for name, bounce := range map[string]func(){
			"restart":        func() { s.Restart(t) },
			"immediate stop": func() { s.StopImmediate(t); s.StartAgain(t) },
			"kill":           func() { s.Kill(t); s.StartAgain(t) },
		} {
			db.Exec(t, "INSERT INTO kept VALUES (1)")
			before := audittest.Value[int](t, db, "SELECT count(*) FROM kept")
			pid := s.PID()
			bounce()
			if s.PID() == pid || s.PID() == 0 {
				t.Errorf("%s: process %d after %d", name, s.PID(), pid)
			}
			if after := audittest.Value[int](t, db, "SELECT count(*) FROM kept"); after != before || db.URL() != url {
				t.Errorf("%s: %d rows, want %d, at %s", name, after, before, db.URL())
			}
		}
		if s.Version() < 140000 || s.Log() == "" || s.DataDir() == "" || s.BinDir() == "" || s.URL("postgres") == "" {
			t.Error("the server does not tell about itself")
		}
		// The test may end while its server is down.
		s.StopImmediate(t)
	})
}

func TestServersDoNotShare(t *testing.T) {
	t.Parallel()
	a := audittest.NewServer(t, audittest.ServerOptions{Durable: true})
	b := audittest.NewServer(t, audittest.ServerOptions{})
	if a.URL("postgres") == b.URL("postgres") {
		t.Error("two servers have one address")
	}
	if got := audittest.Value[string](t, a.NewDatabase(t), "SELECT current_setting('fsync')"); got != "on" {
		t.Errorf("fsync of a durable server is %s", got)
	}
}
