//go:build unix

package auditnats_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditnats"
	"github.com/hindsight-go/audit/audittest"
)

// world is an audited database and a broker.
type world struct {
	*audittest.Audited
	js jetstream.JetStream
}

func newWorld(t *testing.T, cfg audit.Config, schema string) world {
	t.Helper()
	s, err := startBroker(-1, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	conn, err := nats.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return world{audittest.New(t, cfg, schema), js}
}

// config is that of a sink of the world's, changed by those who want another.
func (w world) config(changes ...func(*auditnats.Config)) auditnats.Config {
	cfg := auditnats.Config{Client: w.Client, JetStream: w.js, Stream: "AUDIT", Logger: slog.New(slog.DiscardHandler)}
	for _, change := range changes {
		change(&cfg)
	}
	return cfg
}

// run runs a sink until stop is called.
func (w world) run(t *testing.T, changes ...func(*auditnats.Config)) (stop func()) {
	t.Helper()
	sink, err := auditnats.New(w.config(changes...))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- sink.Run(ctx) }()
	stop = func() {
		t.Helper()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the sink ended with %v", err)
		}
		ended <- nil
	}
	t.Cleanup(stop)
	return stop
}

// failure is the error that a sink ends with.
func (w world) failure(t *testing.T, changes ...func(*auditnats.Config)) error {
	t.Helper()
	sink, err := auditnats.New(w.config(changes...))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := sink.Run(ctx); err != nil {
		return err
	}
	t.Fatal("the sink goes on, or ended without an error")
	return nil
}

// messages waits until the stream has so many messages in all, and returns those it has.
func (w world) messages(t *testing.T, last uint64) (messages []*jetstream.RawStreamMsg) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; pause(t, 20*time.Millisecond) {
		stream, err := w.js.Stream(t.Context(), "AUDIT")
		if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			t.Fatal(err)
		}
		if err == nil && stream.CachedInfo().State.LastSeq >= last {
			pause(t, 100*time.Millisecond) // for one too many
			info, err := stream.Info(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if info.State.LastSeq != last {
				t.Fatalf("the stream has had %d messages, want %d", info.State.LastSeq, last)
			}
			for sequence := info.State.FirstSeq; sequence <= last; sequence++ {
				m, err := stream.GetMsg(t.Context(), sequence)
				if errors.Is(err, jetstream.ErrMsgNotFound) {
					continue // it was deleted
				}
				if err != nil {
					t.Fatal(err)
				}
				messages = append(messages, m)
			}
			return messages
		}
		if time.Now().After(deadline) {
			t.Fatalf("the stream has not had %d messages after 30 s", last)
		}
	}
}

// keys are the primary keys of the changes in messages, or their operation where they
// have none.
func keys(t *testing.T, messages []*jetstream.RawStreamMsg) string {
	t.Helper()
	var keys []string
	for _, m := range messages {
		var c audit.Change
		switch operation := m.Header.Get(auditnats.HeaderOperation); operation {
		case "LOSS":
			keys = append(keys, operation)
		default:
			if err := json.Unmarshal(m.Data, &c); err != nil {
				t.Fatal(err)
			}
			keys = append(keys, c.PrimaryKey)
		}
	}
	return strings.Join(keys, " ")
}

const todo = "CREATE TABLE todo (id int PRIMARY KEY, task text)"

func TestSink_MessagesAreTheChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t, audit.Config{}, todo+`; CREATE TABLE "odd.name > *" (id int PRIMARY KEY)`)
	w.Exec(t, "INSERT INTO todo VALUES (1, 'before the sink')")
	w.Sync(t)
	stop := w.run(t)
	w.messages(t, 1)
	w.Exec(t, `INSERT INTO todo VALUES (2, 'ü'); UPDATE todo SET task = 'done' WHERE id = 1; DELETE FROM todo WHERE id = 2; INSERT INTO "odd.name > *" VALUES (3); TRUNCATE todo`)
	got := w.messages(t, 6)
	stop()
	var want []audit.Change
	for c, err := range w.Client.Changes().OldestFirst().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, c)
	}
	for i, m := range got {
		c := want[i]
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if string(m.Data) != string(text) {
			t.Errorf("message %d is %s, want %s", i+1, m.Data, text)
		}
		subject := map[string]string{"todo": "audit.public.todo", "odd.name > *": "audit.public.odd%2Ename%20%3E%20%2A"}[c.Table]
		if m.Subject != subject {
			t.Errorf("message %d has the subject %q, want %q", i+1, m.Subject, subject)
		}
		id := fmt.Sprintf("%s:%s:%d", w.Name(), c.Position.LSN, c.Position.Sequence)
		for name, want := range map[string]string{
			"Nats-Msg-Id": id, "Audit-Operation": string(c.Operation), "Audit-Position": c.Position.String(), "Audit-Database": w.Name(),
		} {
			if got := m.Header.Get(name); got != want {
				t.Errorf("message %d has %s: %q, want %q", i+1, name, got, want)
			}
		}
	}
	// What is stored while no sink runs comes with the next.
	w.Exec(t, "INSERT INTO todo VALUES (4, 'while there was none')")
	w.Sync(t)
	w.run(t)
	if got := keys(t, w.messages(t, 7)); !strings.HasSuffix(got, " 4") {
		t.Errorf("the keys are %s", got)
	}
}

func TestSink_FilterAndSince(t *testing.T) {
	t.Parallel()
	w := newWorld(t, audit.Config{}, todo+"; CREATE TABLE other (id int PRIMARY KEY)")
	w.Exec(t, "INSERT INTO todo VALUES (1)")
	w.Sync(t)
	first, err := w.Client.Changes().First(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.Exec(t, "INSERT INTO todo VALUES (2); INSERT INTO other VALUES (3)")
	w.Exec(t, "INSERT INTO todo VALUES (4)")
	w.run(t, func(c *auditnats.Config) {
		c.Since = first.CommittedAt.Add(time.Microsecond)
		c.Filter = func(q audit.Query) audit.Query { return q.ForTable("todo") }
		c.Subject = func(c audit.Change) string { return "audit." + strings.ToLower(string(c.Operation)) }
	})
	messages := w.messages(t, 2)
	if got := keys(t, messages); got != "2 4" || messages[0].Subject != "audit.create" {
		t.Errorf("the keys are %s, the subject is %s", got, messages[0].Subject)
	}
}

// gap makes one behind what is stored.
func (w world) gap(t *testing.T) {
	t.Helper()
	w.Sync(t)
	w.Stop(t)
	w.Exec(t, "SELECT audit.record_gap(database, position, pg_current_wal_insert_lsn(), slot, now(), 'a test') FROM audit.checkpoints")
	if err := w.Client.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
}

func TestSink_GapIsAnErrorOrAMessage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, audit.Config{}, todo)
	stop := w.run(t)
	w.Exec(t, "INSERT INTO todo VALUES (1)")
	w.messages(t, 1)
	stop()
	w.Exec(t, "INSERT INTO todo VALUES (2)")
	w.gap(t)
	w.Exec(t, "INSERT INTO todo VALUES (3)")
	w.Sync(t)
	var loss *auditnats.LossError
	if err := w.failure(t); !errors.As(err, &loss) || !strings.Contains(err.Error(), "PublishLoss") || !strings.Contains(loss.Loss.Reason, "a test") {
		t.Fatalf("the error is %v", err)
	}
	if got := keys(t, w.messages(t, 2)); got != "1 2" {
		t.Errorf("in front of the gap there are %s", got)
	}
	tell := func(c *auditnats.Config) { c.OnLoss = auditnats.PublishLoss }
	stop = w.run(t, tell)
	messages := w.messages(t, 4)
	if got := keys(t, messages); got != "1 2 LOSS 3" {
		t.Errorf("the messages are %s", got)
	}
	var told auditnats.Loss
	if err := json.Unmarshal(messages[2].Data, &told); err != nil || !cmp.Equal(told, loss.Loss) || messages[2].Subject != "audit.loss" {
		t.Errorf("told of %+v on %s (%v), want %+v", told, messages[2].Subject, err, loss.Loss)
	}
	stop()
	// One at the end is told once, whatever comes then.
	w.gap(t)
	w.Exec(t, "INSERT INTO todo VALUES (4)")
	w.Sync(t)
	stop = w.run(t, tell)
	w.messages(t, 6)
	stop()
	w.Exec(t, "INSERT INTO todo VALUES (5)")
	w.Sync(t)
	w.run(t)
	if got := keys(t, w.messages(t, 7)); got != "1 2 LOSS 3 LOSS 4 5" {
		t.Errorf("the messages are %s", got)
	}
}

// age makes today's history as if it had been made so many days earlier.
func (w world) age(t *testing.T, days int) {
	t.Helper()
	w.Sync(t)
	w.Exec(t, fmt.Sprintf("SELECT audit.ensure_partition(now() - n * interval '1 day') FROM generate_series(1, %d, 20) n", days+20))
	w.Exec(t, fmt.Sprintf("UPDATE audit.changes SET committed_at = committed_at - interval '%d days' WHERE committed_at > now() - interval '1 day'", days))
	w.Exec(t, fmt.Sprintf("UPDATE audit.commit_times SET committed_at = committed_at - interval '%d days' WHERE committed_at > now() - interval '1 day'", days))
}

func TestSink_HistoryThatRetentionDropped(t *testing.T) {
	t.Parallel()
	w := newWorld(t, audit.Config{}, todo)
	w.Exec(t, "INSERT INTO todo VALUES (1)")
	w.age(t, 170)
	stop := w.run(t)
	w.messages(t, 1)
	stop()
	drop := func(days int) {
		w.Exec(t, fmt.Sprintf("SELECT audit.drop_before(now() - interval '%d days')", days))
	}
	// What was published may go.
	w.Exec(t, "INSERT INTO todo VALUES (2)")
	w.age(t, 100)
	stop = w.run(t)
	w.messages(t, 2)
	stop()
	drop(130)
	w.Exec(t, "INSERT INTO todo VALUES (3)")
	w.Sync(t)
	stop = w.run(t)
	w.messages(t, 3)
	stop()
	// What was not may not.
	w.Exec(t, "INSERT INTO todo VALUES (4)")
	w.Sync(t)
	w.Exec(t, "UPDATE todo SET task = 'x' WHERE id = 3")
	w.Sync(t)
	w.Exec(t, "DELETE FROM audit.retention") // as if it began here
	stream, err := w.js.Stream(t.Context(), "AUDIT")
	if err != nil {
		t.Fatal(err)
	}
	old, err := stream.GetMsg(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	// The stream ends 100 days ago again, and the rest of history is 70 days old.
	if err := stream.DeleteMsg(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	kept, err := json.Marshal(map[string]any{
		"sequence": 3, "cursor": old.Header.Get(auditnats.HeaderCursor), "database": w.Name(),
		"position": old.Header.Get(auditnats.HeaderPosition), "committedAt": old.Header.Get(auditnats.HeaderCommittedAt),
	})
	if err != nil {
		t.Fatal(err)
	}
	bucket, err := w.js.KeyValue(t.Context(), "audit_sinks")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bucket.Put(t.Context(), "AUDIT", kept); err != nil {
		t.Fatal(err)
	}
	w.age(t, 70)
	drop(35)
	w.Exec(t, "INSERT INTO todo VALUES (5)")
	w.Sync(t)
	var loss *auditnats.LossError
	if err := w.failure(t); !errors.As(err, &loss) || !strings.Contains(loss.Loss.Reason, "retention") {
		t.Fatalf("the error is %v", err)
	}
	w.run(t, func(c *auditnats.Config) { c.OnLoss = auditnats.PublishLoss })
	if got := keys(t, w.messages(t, 5)); got != "1 2 LOSS 5" {
		t.Errorf("the messages are %s", got)
	}
}

func TestSink_ChangeThatIsTooLarge(t *testing.T) {
	t.Parallel()
	w := newWorld(t, audit.Config{}, todo)
	w.Exec(t, "INSERT INTO todo VALUES (1, 'small'), (2, repeat('x', 1100000)), (3, 'small')")
	w.Sync(t)
	var oversize *auditnats.OversizeError
	if err := w.failure(t); !errors.As(err, &oversize) || oversize.Position.Sequence != 2 || !strings.Contains(err.Error(), "OmitImages") {
		t.Fatalf("the error is %v", err)
	}
	w.run(t, func(c *auditnats.Config) { c.OnOversize = auditnats.OmitImages })
	messages := w.messages(t, 3)
	if got := keys(t, messages); got != "1 2 3" {
		t.Errorf("the keys are %s", got)
	}
	var c audit.Change
	if err := json.Unmarshal(messages[1].Data, &c); err != nil || !c.After.IsEmpty() || messages[1].Header.Get(auditnats.HeaderOmitted) != "images" || messages[0].Header.Get(auditnats.HeaderOmitted) != "" {
		t.Errorf("%v: the large change is %d bytes, header %v", err, len(messages[1].Data), messages[1].Header)
	}
}

// A stream that is full keeps the sink waiting, and nothing is lost.
func TestSink_StreamThatIsFull(t *testing.T) {
	t.Parallel()
	w := newWorld(t, audit.Config{}, todo)
	stream, err := w.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "AUDIT", Subjects: []string{"audit.>"}, MaxMsgs: 5, Discard: jetstream.DiscardNew})
	if err != nil {
		t.Fatal(err)
	}
	w.Exec(t, "INSERT INTO todo SELECT n FROM generate_series(1, 12) n")
	w.Sync(t)
	w.run(t)
	if got := keys(t, w.messages(t, 5)); got != "1 2 3 4 5" {
		t.Errorf("the keys are %s", got)
	}
	for n, want := range map[uint64]string{10: "6 7 8 9 10"} {
		if err := stream.Purge(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := keys(t, w.messages(t, n)); got != want {
			t.Errorf("the keys are %s, want %s", got, want)
		}
	}
	if err := stream.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := keys(t, w.messages(t, 12)); got != "11 12" {
		t.Errorf("the keys are %s", got)
	}
}

// The last message may be gone, and the bucket may be behind by what was published since.
func TestSink_LastMessageIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, audit.Config{}, todo)
	w.Exec(t, "INSERT INTO todo SELECT n FROM generate_series(1, 3) n")
	stop := w.run(t)
	w.messages(t, 3)
	stop()
	bucket, err := w.js.KeyValue(t.Context(), "audit_sinks")
	if err != nil {
		t.Fatal(err)
	}
	behind, err := bucket.Get(t.Context(), "AUDIT")
	if err != nil {
		t.Fatal(err)
	}
	stream, err := w.js.Stream(t.Context(), "AUDIT")
	if err != nil {
		t.Fatal(err)
	}
	purge := func() {
		t.Helper()
		if err := stream.Purge(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	purge()
	w.Exec(t, "INSERT INTO todo VALUES (4), (5)")
	w.Sync(t)
	stop = w.run(t)
	if got := keys(t, w.messages(t, 5)); got != "4 5" {
		t.Errorf("the keys are %s", got)
	}
	stop()
	purge()
	if _, err := bucket.Put(t.Context(), "AUDIT", behind.Value()); err != nil {
		t.Fatal(err)
	}
	w.Exec(t, "INSERT INTO todo VALUES (6)")
	w.Sync(t)
	stop = w.run(t)
	if got := keys(t, w.messages(t, 6)); got != "6" {
		t.Errorf("behind a bucket that was behind, the keys are %s", got)
	}
	stop()
	w.gap(t)
	w.Exec(t, "INSERT INTO todo VALUES (7)")
	w.Sync(t)
	tell := func(c *auditnats.Config) { c.OnLoss = auditnats.PublishLoss }
	stop = w.run(t, tell)
	if got := keys(t, w.messages(t, 8)); got != "6 LOSS 7" {
		t.Errorf("the messages are %s", got)
	}
	stop()
	purge()
	if _, err := bucket.Put(t.Context(), "AUDIT", behind.Value()); err != nil {
		t.Fatal(err)
	}
	w.Exec(t, "INSERT INTO todo VALUES (8)")
	w.Sync(t)
	stop = w.run(t, tell)
	if got := keys(t, w.messages(t, 9)); got != "8" {
		t.Errorf("behind a bucket that was behind a loss, the keys are %s", got)
	}
	stop()
	purge()
	if err := bucket.Delete(t.Context(), "AUDIT"); err != nil {
		t.Fatal(err)
	}
	if err := w.failure(t); !isStreamError(err, "make the stream anew") {
		t.Errorf("without last message and bucket: %v", err)
	}
}

func isStreamError(err error, text string) bool {
	var e *auditnats.StreamError
	return errors.As(err, &e) && strings.Contains(err.Error(), text)
}

func TestSink_StreamThatIsNotItsOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, audit.Config{}, todo)
	w.Exec(t, "INSERT INTO todo VALUES (1)")
	w.Sync(t)
	stop := w.run(t)
	w.messages(t, 1)
	stop()
	var subject *auditnats.SubjectError
	for name, s := range map[string]string{"of another stream": "other.todo", "with a wildcard": "audit.*", "with a space": "audit.a b", "that is empty": ""} {
		w.Exec(t, "UPDATE todo SET task = 'x'")
		w.Sync(t)
		if err := w.failure(t, func(c *auditnats.Config) { c.Subject = func(audit.Change) string { return s } }); !errors.As(err, &subject) {
			t.Errorf("a subject %s: %v", name, err)
		}
	}
	other := audittest.New(t, audit.Config{}, todo)
	if err := w.failure(t, func(c *auditnats.Config) { c.Client = other.Client }); !isStreamError(err, "a stream of its own") {
		t.Errorf("the stream of another source: %v", err)
	}
	if _, err := w.js.Publish(t.Context(), "audit.strange", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if err := w.failure(t); !isStreamError(err, "no sink's") {
		t.Errorf("a message of a stranger: %v", err)
	}
	if err := w.js.DeleteStream(t.Context(), "AUDIT"); err != nil {
		t.Fatal(err)
	}
	if err := w.failure(t); !isStreamError(err, `Delete key "AUDIT" of bucket "audit_sinks"`) {
		t.Errorf("a stream made anew: %v", err)
	}
	bucket, err := w.js.KeyValue(t.Context(), "audit_sinks")
	if err != nil {
		t.Fatal(err)
	}
	if err := bucket.Delete(t.Context(), "AUDIT"); err != nil { // as the error says
		t.Fatal(err)
	}
	w.run(t)
	w.messages(t, 5)
}

func TestSink_ClosedConnectionAndClient(t *testing.T) {
	t.Parallel()
	w := newWorld(t, audit.Config{}, todo)
	conn, err := nats.Connect(w.js.Conn().ConnectedUrl())
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if err := w.failure(t, func(c *auditnats.Config) { c.JetStream = js }); !errors.Is(err, auditnats.ErrConnectionClosed) {
		t.Errorf("with a closed connection: %v", err)
	}
	client := audittest.Open(t, w.Database, audit.Config{}).Client
	client.Close()
	if err := w.failure(t, func(c *auditnats.Config) { c.Client = client }); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("with a closed client: %v", err)
	}
}
