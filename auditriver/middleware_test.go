package auditriver_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/riverqueue/river/rivertype"
	"go.opentelemetry.io/otel/trace"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/auditriver"
	"github.com/hindsight-go/audit/audittest"
)

// note is a job that writes its text, and fails as often as it is told.
type note struct {
	Text  string `json:"text"`
	Fails int    `json:"fails"`
	Panic bool   `json:"panic"`
	Then  string `json:"then"` // the text of a job to insert
}

func (note) Kind() string { return "note" }

type noteWorker struct {
	river.WorkerDefaults[note]
	db *auditpgx.DB
}

func (w *noteWorker) NextRetry(*river.Job[note]) time.Time { return time.Now() }

func (w *noteWorker) Work(ctx context.Context, job *river.Job[note]) error {
	if _, err := w.db.Exec(ctx, "INSERT INTO note (text, attempt) VALUES ($1, $2)", job.Args.Text, job.Attempt); err != nil {
		return err
	}
	if job.Attempt <= job.Args.Fails {
		if job.Args.Panic {
			panic("a worker panics")
		}
		return errors.New("a worker fails")
	}
	if job.Args.Then != "" {
		_, err := river.ClientFromContext[pgx.Tx](ctx).Insert(ctx, note{Text: job.Args.Then}, nil)
		return err
	}
	return nil
}

// queue is River with the middleware over a database with a history.
type queue struct {
	a      *audittest.Audited
	db     *auditpgx.DB
	client *river.Client[pgx.Tx]
	ended  <-chan *river.Event
}

func newQueue(t *testing.T, middlewares ...rivertype.Middleware) *queue {
	t.Helper()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE note (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text, attempt int)")
	pool, err := pgxpool.New(t.Context(), a.URL())
	must(t, err)
	t.Cleanup(pool.Close)
	quiet := slog.New(slog.DiscardHandler)
	migrator, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Logger: quiet})
	must(t, err)
	_, err = migrator.Migrate(t.Context(), rivermigrate.DirectionUp, nil)
	must(t, err)
	must(t, a.Client.Refresh(t.Context()))
	q := &queue{a: a, db: auditpgx.Wrap(pool)}
	workers := river.NewWorkers()
	river.AddWorker(workers, &noteWorker{db: q.db})
	q.client, err = river.NewClient(riverpgxv5.New(pool), &river.Config{
		FetchCooldown: time.Millisecond, FetchPollInterval: 50 * time.Millisecond, Logger: quiet,
		Middleware: append(middlewares, auditriver.NewMiddleware(&auditriver.MiddlewareConfig{Logger: quiet})),
		Queues:     map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 8}},
		Workers:    workers,
	})
	must(t, err)
	ended, cancel := q.client.Subscribe(river.EventKindJobCompleted)
	q.ended = ended
	t.Cleanup(cancel)
	return q
}

// start works the jobs; it is called when all are inserted where their order counts.
func (q *queue) start(t *testing.T) {
	t.Helper()
	must(t, q.client.Start(context.WithoutCancel(t.Context())))
	t.Cleanup(func() {
		if err := q.client.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// wait waits until n jobs have been completed.
func (q *queue) wait(t *testing.T, n int) {
	t.Helper()
	timeout := time.After(time.Minute)
	for range n {
		select {
		case <-q.ended:
		case <-timeout:
			t.Fatal("jobs are not completed")
		}
	}
}

// notes is the history of the notes: each with what its context says. Jobs end in any
// order, so they are sorted.
func (q *queue) notes(t *testing.T) []string {
	t.Helper()
	q.a.Sync(t)
	var lines []string
	for change, err := range q.a.Client.Changes().All(t.Context()) {
		must(t, err)
		if change.Table != "note" {
			t.Errorf("a change of %s", change.Table)
			continue
		}
		text, _ := change.Row().Text("text")
		c := change.Context
		lines = append(lines, strings.Join(strings.Fields(fmt.Sprint(text, " ", c.User(), " ", c.RequestID, " ", c.Endpoint, " ", c.Worker, " ", c.Extra["attempt"])), " "))
	}
	slices.Sort(lines)
	return lines
}

func request(ctx context.Context, user string) context.Context {
	return audit.WithContext(ctx, audit.Context{UserID: user, RequestID: "r-" + user, Endpoint: "POST /note"})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestContext_FromInsertToWork(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	ctx := t.Context()
	_, err := q.client.Insert(request(ctx, "ann"), note{Text: "insert"}, nil)
	must(t, err)
	_, err = q.client.Insert(ctx, note{Text: "nobody"}, nil)
	must(t, err)
	must(t, pgx.BeginFunc(ctx, q.db, func(tx pgx.Tx) error {
		_, err := q.client.InsertTx(request(ctx, "bob"), tx, note{Text: "tx"}, nil)
		return err
	}))
	_, err = q.client.InsertMany(request(ctx, "cat"), []river.InsertManyParams{{Args: note{Text: "many 1"}}, {Args: note{Text: "many 2"}}})
	must(t, err)
	_, err = q.client.InsertManyFast(request(ctx, "dan"), []river.InsertManyParams{{Args: note{Text: "fast 1"}}, {Args: note{Text: "fast 2"}}})
	must(t, err)
	_, err = q.client.Insert(request(ctx, "eve"), note{Text: "retried", Fails: 2}, nil)
	must(t, err)
	_, err = q.client.Insert(request(ctx, "fay"), note{Text: "panics", Fails: 1, Panic: true}, nil)
	must(t, err)
	_, err = q.client.Insert(request(ctx, "gus"), note{Text: "first", Then: "second"}, nil)
	must(t, err)
	q.start(t)
	q.wait(t, 11)
	want := []string{
		"fast 1 dan r-dan POST /note note 1", "fast 2 dan r-dan POST /note note 1",
		"first gus r-gus POST /note note 1",
		"insert ann r-ann POST /note note 1",
		"many 1 cat r-cat POST /note note 1", "many 2 cat r-cat POST /note note 1",
		"nobody note 1",
		"panics fay r-fay POST /note note 1", "panics fay r-fay POST /note note 2",
		"retried eve r-eve POST /note note 1", "retried eve r-eve POST /note note 2", "retried eve r-eve POST /note note 3",
		"second gus r-gus POST /note note 1",
		"tx bob r-bob POST /note note 1",
	}
	if diff := cmp.Diff(want, q.notes(t)); diff != "" {
		t.Error(diff)
	}
}

// None of the tables that River's migrations make is tracked.
func TestRiversTables_AreNotTracked(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	q.start(t)
	_, err := q.client.Insert(request(t.Context(), "ann"), note{Text: "insert"}, nil)
	must(t, err)
	q.wait(t, 1)
	q.notes(t)
	made := audittest.Value[int](t, q.a.Database, "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relname LIKE 'river%'")
	tracked := audittest.Value[int](t, q.a.Database, "SELECT count(*) FROM pg_publication_tables WHERE tablename LIKE 'river%'")
	if made < 4 || tracked != 0 {
		t.Errorf("%d of %d tables are tracked", tracked, made)
	}
}

// What the application has in its metadata stays, and what is no context does no harm.
func TestMetadata(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	ctx := request(t.Context(), "ann")
	kept, err := q.client.Insert(ctx, note{Text: "kept"}, &river.InsertOpts{Metadata: []byte(`{"mine": 12345678901234567890, "audit": "mine"}`)})
	must(t, err)
	var metadata struct {
		Mine  json.Number
		Audit audit.Context
	}
	must(t, json.Unmarshal(kept.Job.Metadata, &metadata))
	if metadata.Mine != "12345678901234567890" || metadata.Audit.User() != "ann" {
		t.Errorf("%s", kept.Job.Metadata)
	}
	if _, err := q.client.Insert(ctx, note{Text: "no JSON"}, &river.InsertOpts{Metadata: []byte(`{"mine`)}); err == nil {
		t.Error("metadata that are no JSON were taken")
	}
	bad := audit.WithContext(ctx, audit.Context{Extra: map[string]any{"channel": make(chan int)}})
	_, err = q.client.Insert(bad, note{Text: "bad member"}, nil)
	must(t, err)
	for text, metadata := range map[string]string{
		"a text": `{"audit": "ann"}`, "a list": `{"audit": [1]}`, "null": `{"audit": null}`, "no object": `[]`,
		"another key": `{"Audit": {"userId": "mallory"}}`,
	} {
		made, err := q.client.Insert(t.Context(), note{Text: text}, nil)
		must(t, err)
		q.a.Exec(t, "UPDATE river_job SET metadata = $1 WHERE id = $2", metadata, made.Job.ID)
	}
	q.start(t)
	q.wait(t, 7)
	want := []string{
		"a list note 1", "a text note 1", "another key note 1", "bad member ann r-ann POST /note note 1", "kept ann r-ann POST /note note 1",
		"no object note 1", "null note 1",
	}
	if diff := cmp.Diff(want, q.notes(t)); diff != "" {
		t.Error(diff)
	}
}

// spans is a middleware that begins a span for a job, as that of OpenTelemetry does.
type spans struct {
	river.MiddlewareDefaults
	span trace.SpanContext
}

func (s *spans) Work(ctx context.Context, _ *rivertype.JobRow, doInner func(context.Context) error) error {
	return doInner(trace.ContextWithSpanContext(ctx, s.span))
}

func TestTrace_OfTheJob(t *testing.T) {
	t.Parallel()
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}})
	q := newQueue(t, &spans{span: span})
	ctx := audit.WithContext(request(t.Context(), "ann"), audit.Context{TraceID: "of the request"})
	_, err := q.client.Insert(ctx, note{Text: "traced"}, nil)
	must(t, err)
	q.start(t)
	q.wait(t, 1)
	q.a.Sync(t)
	change, err := q.a.Client.Changes().First(t.Context())
	must(t, err)
	if c := change.Context; c.TraceID != span.TraceID().String() || c.SpanID != span.SpanID().String() || c.User() != "ann" {
		t.Errorf("%+v", c)
	}
}

// Many users have many jobs worked side by side, some of which fail: each says its own
// user, whoever's job was worked before.
func TestStorm_NoContextIsMixedUp(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	q.start(t)
	const jobs = 200
	want := []string{}
	for i := range jobs {
		user := fmt.Sprintf("user%03d", i%40)
		ctx, by := t.Context(), user+" note 1"
		if i%5 > 0 {
			ctx, by = request(ctx, user), fmt.Sprintf("%s %s r-%s POST /note note 1", user, user, user)
		}
		_, err := q.client.Insert(ctx, note{Text: user, Fails: i % 7 / 6, Panic: i%2 == 0}, nil)
		must(t, err)
		want = append(want, by)
		if i%7 == 6 {
			want = append(want, strings.TrimSuffix(by, "1")+"2")
		}
	}
	q.wait(t, jobs)
	slices.Sort(want)
	if diff := cmp.Diff(want, q.notes(t)); diff != "" {
		t.Error(diff)
	}
}
