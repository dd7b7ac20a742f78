package integration_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"go.uber.org/fx"
	"go.uber.org/fx/fxtest"
	"golang.org/x/sync/errgroup"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
)

// What docs/lifecycle.md shows.

// newHistory is a constructor for Fx: capture starts and ends with the program.
func newHistory(lc fx.Lifecycle, cfg audit.Config) (*audit.Client, error) {
	client, err := audit.Open(context.Background(), cfg) // checks the configuration, connects to nothing
	if err != nil {
		return nil, err
	}
	lc.Append(fx.Hook{
		OnStart: client.Start, // its ctx bounds the start-up alone
		OnStop: func(ctx context.Context) error {
			defer client.Close()
			return client.Stop(ctx)
		},
	})
	return client, nil
}

func TestLifecycle_Fx(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, "CREATE TABLE todo (id int PRIMARY KEY)")
	var client *audit.Client
	app := fxtest.New(t, fx.Supply(audit.Config{SourceURL: db.URL()}), fx.Provide(newHistory), fx.Populate(&client))
	app.RequireStart()
	db.Exec(t, "INSERT INTO todo VALUES (26)")
	if err := client.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := client.Changes().Count(t.Context()); n != 1 || err != nil {
		t.Errorf("%d changes, %v", n, err)
	}
	app.RequireStop()
	if _, err := client.Changes().Count(t.Context()); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

// serveAndCapture is a program's main part: it serves and captures until ctx ends or one of
// both fails, and then ends the other.
func serveAndCapture(ctx context.Context, client *audit.Client, server *http.Server) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return client.Run(ctx) }) // stops in order when ctx ends
	group.Go(func() error {
		if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return server.Shutdown(ctx)
	})
	return group.Wait()
}

func TestLifecycle_Errgroup(t *testing.T) {
	t.Parallel()
	a := audittest.Open(t, audittest.NewDatabase(t), audit.Config{})
	a.Exec(t, "CREATE TABLE todo (id int PRIMARY KEY)")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- serveAndCapture(ctx, a.Client, &http.Server{Addr: "127.0.0.1:0", ReadHeaderTimeout: time.Second})
	}()
	for deadline := time.Now().Add(time.Minute); ; {
		// Status asks the server, so this does not spin.
		if status, err := a.Client.Status(ctx); err == nil && status.State == capture.Streaming {
			break
		} else if time.Now().After(deadline) {
			t.Fatal("capture does not stream: ", status.State, err)
		}
	}
	a.Exec(t, "INSERT INTO todo VALUES (26)")
	cancel()
	if err := <-done; err != nil {
		t.Errorf("the program ended with %v", err)
	}
	// An end in order has stored what was committed before, or leaves it to the next program.
	if err := a.Client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.Sync(t)
	if n, err := a.Client.Changes().Count(t.Context()); n != 1 || err != nil {
		t.Errorf("%d changes, %v", n, err)
	}
}
