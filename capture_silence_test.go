package audit_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// A server that says nothing in the midst of setting up keeps Start from going on, and
// Start says so: whoever starts without a deadline would wait for ever, and nobody would
// know.
func TestStart_ServerFallsSilent(t *testing.T) {
	t.Parallel()
	db, store := audittest.NewDatabase(t), audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	for name, test := range map[string]struct {
		source bool
		at     string // what the server was about to say
	}{
		"source at once":   {source: true},
		"store at once":    {},
		"source meanwhile": {source: true, at: "server_encoding"},
		"store meanwhile":  {at: "schema_migrations"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := store
			if test.source {
				server = db
			}
			proxy := faulttest.NewProxy(t, server.URL())
			cfg := audit.Config{SourceURL: db.URL(), StoreURL: proxy.URL(), Schema: "silent"}
			if test.source {
				cfg.SourceURL, cfg.StoreURL = proxy.URL(), store.URL()
			}
			if test.at == "" {
				proxy.Vanish()
			} else {
				answers := 0
				proxy.Rewrite(func(answer []byte) {
					// The server describes the columns of its answers; behind that it goes.
					if bytes.Contains(answer, []byte("T\x00")) {
						if answers++; answers == 4 {
							proxy.Vanish()
						}
					}
				})
			}
			client, err := audit.Open(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(client.Close)
			t.Cleanup(proxy.Cut) // so that closing does not wait for who has gone
			ctx, cancel := context.WithTimeout(t.Context(), blind)
			defer cancel()
			if err := client.Start(ctx); err == nil || ctx.Err() != nil {
				t.Errorf("start: %v, after a minute: %v", err, ctx.Err())
			}
		})
	}
}

// A store that has vanished is noticed by a capture that is about to connect, too: what
// it asks is asked anew, and there is a word for it.
func TestDeadPeer_StoreGoneWhileConnecting(t *testing.T) {
	t.Parallel()
	db, store := audittest.NewDatabase(t), audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	source, proxy := faulttest.NewProxy(t, db.URL()), faulttest.NewProxy(t, store.URL())
	logged := faulttest.NewLog(t)
	openAt(t, audit.Config{SourceURL: source.URL(), StoreURL: proxy.URL(), Logger: logged.Logger()})
	t.Cleanup(proxy.Cut)
	db.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	waitRow(t, store, 1)
	proxy.Vanish()
	source.Cut()
	logged.WaitFor(t, blind, "was interrupted", 2)
	proxy.Appear()
	db.Exec(t, "INSERT INTO todo VALUES (2, 'x')")
	waitRow(t, store, 2)
}

// So is a source that has vanished, by who waits for the slot: it takes over.
func TestDeadPeer_SourceGoneWhileWaiting(t *testing.T) {
	t.Parallel()
	db, store := audittest.NewDatabase(t), audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	proxy := faulttest.NewProxy(t, db.URL())
	holder, err := audit.Open(t.Context(), audit.Config{SourceURL: db.URL(), StoreURL: store.URL()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(holder.Close)
	if err := holder.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	waiting, err := audit.Open(t.Context(), audit.Config{SourceURL: proxy.URL(), StoreURL: store.URL()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(waiting.Close)
	t.Cleanup(proxy.Cut)
	if err := waiting.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	proxy.Vanish()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := waiting.Status(ctx); err == nil {
		t.Fatal("status of a source that is gone")
	}
	faulttest.Poll(t, blind, "the one that waits says that it does not", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if status, _ := waiting.Status(ctx); status.State == audit.State("waiting") {
			return errors.New("it does")
		}
		return nil
	})
	proxy.Appear()
	holder.Close()
	db.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	waitRow(t, store, 1)
}
