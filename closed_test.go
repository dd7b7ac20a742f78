package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// closable is audittest.New without the check at the end, which a closed client cannot do.
func closable(t *testing.T) *audittest.Audited {
	t.Helper()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	return a
}

// Everything that asks a server says that the client is closed, and says it at once.
func TestClose_EverythingSaysSo(t *testing.T) {
	t.Parallel()
	a := closable(t)
	a.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	a.Sync(t)
	c := a.Client
	changes, err := c.Changes().List(t.Context())
	if err != nil || len(changes) == 0 {
		t.Fatal(err)
	}
	mark, err := c.Mark(t.Context(), "m")
	if err != nil {
		t.Fatal(err)
	}
	plan, err := c.RevertChange(changes[0].Position).Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	token, err := c.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn := a.Connect(t)
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	a.Stop(t)
	c.Close()
	ctx := context.Background()
	q, then := c.Changes().ForTable("todo"), c.AtPosition(mark)
	type todo struct{ ID int }
	var row todo
	for name, ask := range map[string]func() error{
		"All":          func() error { return first(q.All(ctx)) },
		"List":         func() error { _, err := q.List(ctx); return err },
		"First":        func() error { _, err := q.First(ctx); return err },
		"Page":         func() error { _, err := q.Page(ctx, 1); return err },
		"Count":        func() error { _, err := q.Count(ctx); return err },
		"CountBy":      func() error { _, err := q.CountBy(ctx, audit.PerUser); return err },
		"Trend":        func() error { _, err := q.Trend(ctx, audit.EveryDay); return err },
		"Transactions": func() error { return first(q.Transactions(ctx)) },
		"Requests":     func() error { return first(q.Requests(ctx)) },
		"Export":       func() error { _, err := q.Export(ctx, &bytes.Buffer{}, audit.CSV); return err },
		"Watch":        func() error { return first(q.Watch(ctx)) },
		"Load":         func() error { return then.Load(ctx, &row, 1) },
		"Row":          func() error { _, err := then.Row(ctx, "todo", 1); return err },
		"Table":        func() error { _, err := then.Table("todo").Count(ctx); return err },
		"View":         func() error { return then.View(ctx, func(pgx.Tx) error { return nil }) },
		"Resolve":      func() error { _, err := then.Resolve(ctx); return err },
		"History":      func() error { _, err := c.History("todo", 1).List(ctx); return err },
		"Blame":        func() error { _, err := c.Blame(ctx, "todo", 1); return err },
		"Difference":   func() error { return first(c.DiffBetween(then, c.Now()).All(ctx)) },
		"Baseline":     func() error { return c.Baseline(ctx, nil) },
		"Mark":         func() error { _, err := c.Mark(ctx, "n"); return err },
		"Marks":        func() error { _, err := c.Marks(ctx); return err },
		"Token":        func() error { _, err := c.Token(ctx); return err },
		"WaitFor":      func() error { return c.WaitFor(ctx, token) },
		"Sync":         func() error { return c.Sync(ctx) },
		"Refresh":      func() error { return c.Refresh(ctx) },
		"Status":       func() error { _, err := c.Status(ctx); return err },
		"Start":        func() error { return c.Start(ctx) },
		"Run":          func() error { return c.Run(ctx) },
		"SetupSQL":     func() error { _, err := c.SetupSQL(ctx, "app"); return err },
		"UninstallSQL": func() error { _, _, err := c.UninstallSQL(ctx); return err },
		"Uninstall":    func() error { return c.Uninstall(ctx) },
		"revert":       func() error { _, err := c.RevertChange(changes[0].Position).Plan(ctx); return err },
		"revert at once": func() error {
			_, err := c.RevertTables(then, "todo").Apply(ctx)
			return err
		},
		"Plan.Apply":   func() error { _, err := plan.Apply(ctx); return err },
		"Plan.DryRun":  func() error { _, err := plan.DryRun(ctx); return err },
		"Plan.ApplyTx": func() error { _, err := plan.ApplyTx(ctx, tx); return err },
	} {
		answered := make(chan error, 1)
		go func() { answered <- ask() }()
		select {
		case err := <-answered:
			if !errors.Is(err, audit.ErrClosed) {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("%s does not return", name)
		}
	}
	if err := c.Stop(ctx); err != nil {
		t.Errorf("Stop: %v", err)
	}
	c.Close() // once more
}

// first is the first error of a sequence.
func first[T any](all func(func(T, error) bool)) error {
	for _, err := range all {
		return err
	}
	return errors.New("the sequence is empty")
}

// What waits when the client is closed waits no longer, whoever captures.
func TestClose_EndsWhatWaits(t *testing.T) {
	t.Parallel()
	a := closable(t)
	a.Sync(t)
	other, err := audit.Open(t.Context(), audit.Config{SourceURL: a.URL()})
	if err != nil {
		t.Fatal(err)
	}
	// Nothing can be stored any more.
	conn := a.Connect(t)
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "LOCK TABLE audit.changes, audit.checkpoints IN EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	a.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	ctx := context.Background()
	waiting := map[string]chan error{}
	start := func(name string, ask func() error) {
		done := make(chan error, 1)
		waiting[name] = done
		go func() { done <- ask() }()
	}
	token, err := other.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*audit.Client{"elsewhere": other, "here": a.Client} {
		start("Sync "+name, func() error { return c.Sync(ctx) })
		start("Mark "+name, func() error { _, err := c.Mark(ctx, "m"); return err })
		start("WaitFor "+name, func() error { return c.WaitFor(ctx, token) })
		start("Watch "+name, func() error { return first(c.Changes().Watch(ctx)) })
		start("Now "+name, func() error { _, err := c.Now().Row(ctx, "todo", 1); return err })
	}
	faulttest.Pause(t, 500*time.Millisecond) // most of them wait by then
	other.Close()
	a.Client.Close()
	for name, done := range waiting {
		select {
		case err := <-done:
			if !errors.Is(err, audit.ErrClosed) {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(30 * time.Second):
			t.Errorf("%s does not return", name)
		}
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Error(err)
	}
}

// A question that waits for somebody's lock, for as long as that is held, keeps Close
// no longer than a few seconds.
func TestClose_WhatWaitsForALock(t *testing.T) {
	t.Parallel()
	a := closable(t)
	a.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	a.Sync(t)
	c, err := audit.Open(t.Context(), audit.Config{SourceURL: a.URL()})
	if err != nil {
		t.Fatal(err)
	}
	held, err := a.Connect(t).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := held.Exec(t.Context(), "LOCK TABLE audit.changes, todo IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	waiting := map[string]chan error{}
	for name, ask := range map[string]func() error{
		"List": func() error { _, err := c.Changes().List(ctx); return err },
		"Export": func() error {
			_, err := c.Changes().Export(ctx, &bytes.Buffer{}, audit.JSONL)
			return err
		},
		"View": func() error {
			return c.Now().View(ctx, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "SELECT FROM todo")
				return err
			})
		},
		"Row":    func() error { _, err := c.Now().Row(ctx, "todo", 1); return err },
		"Revert": func() error { _, err := c.RevertRequest("r").Apply(ctx); return err },
	} {
		waiting[name] = make(chan error, 1)
		go func() { waiting[name] <- ask() }()
	}
	faulttest.Poll(t, faulttest.Patience, "they wait for the lock", func() error {
		if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database WHERE NOT l.granted AND d.datname = current_database()"); n < 4 {
			return fmt.Errorf("%d do", n)
		}
		return nil
	})
	closed := make(chan struct{})
	go func() { c.Close(); close(closed) }()
	late := time.After(faulttest.Patience)
	for name, done := range waiting {
		select {
		case err := <-done:
			if !errors.Is(err, audit.ErrClosed) {
				t.Errorf("%s: %v", name, err)
			}
		case <-late:
			t.Errorf("%s does not return", name)
		}
	}
	select {
	case <-closed:
	case <-late:
		t.Error("Close does not return")
	}
	if err := held.Rollback(ctx); err != nil {
		t.Error(err)
	}
}

// So does a question that is still connecting, to a server that does not answer.
func TestClose_WhatConnects(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // It answers nobody.
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	c, err := audit.Open(t.Context(), audit.Config{SourceURL: "postgres://audit@" + silent.Addr().String() + "/shop?sslmode=disable"})
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan error, 2)
	go func() { _, err := c.Changes().List(context.Background()); asked <- err }()
	go func() { _, err := c.Now().Row(context.Background(), "todo", 1); asked <- err }()
	for range 2 {
		conn, err := silent.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
	}
	c.Close()
	for range 2 {
		select {
		case err := <-asked:
			if !errors.Is(err, audit.ErrClosed) {
				t.Error(err)
			}
		case <-time.After(faulttest.Patience):
			t.Fatal("a question does not return")
		}
	}
}
