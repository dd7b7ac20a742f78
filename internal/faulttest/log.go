package faulttest

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

// Log keeps what is logged. It is an io.Writer, too.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
	more chan struct{}
}

// NewLog returns an empty Log. A test that fails shows it.
func NewLog(t testing.TB) *Log {
	t.Helper()
	l := &Log{more: make(chan struct{}, 1)}
	t.Cleanup(func() {
		if t.Failed() {
			text := l.Text()
			t.Logf("the log ends:\n%s", text[max(0, len(text)-8<<10):])
		}
	})
	return l
}

// Logger returns a logger of all levels that writes into the Log.
func (l *Log) Logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// Write appends.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
	return l.text.Write(p)
}

// Text returns everything so far.
func (l *Log) Text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Count returns how often a text occurs.
func (l *Log) Count(text string) int { return strings.Count(l.Text(), text) }

// Wait returns when text has occurred at least n times.
func (l *Log) Wait(t testing.TB, text string, n int) {
	t.Helper()
	l.WaitFor(t, Patience, text, n)
}

// WaitFor is Wait with a time limit.
func (l *Log) WaitFor(t testing.TB, within time.Duration, text string, n int) {
	t.Helper()
	Poll(t, within, fmt.Sprintf("log line %q", text), func() error {
		if got := l.Count(text); got < n {
			return fmt.Errorf("it was logged %d times, want %d", got, n)
		}
		return nil
	})
}
