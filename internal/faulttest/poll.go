package faulttest

import (
	"testing"
	"time"
)

// Patience bounds what a test waits for. It is long because test machines are
// slow and busy; no test passes by it.
const Patience = 2 * time.Minute

// Poll calls try until it returns nil, and fails the test with its last error
// after the given time. It returns how long it took.
func Poll(t testing.TB, within time.Duration, what string, try func() error) time.Duration {
	t.Helper()
	began := time.Now()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return time.Since(began)
		}
		select {
		case <-deadline.C:
			t.Fatalf("%s: not within %s: %v", what, within, err)
		case <-tick.C:
		}
	}
}

// Pause lets a load or a server go on for a while: the moment at which a fault
// strikes is the input of a test. Nothing may depend on what happens meanwhile.
func Pause(t testing.TB, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}
