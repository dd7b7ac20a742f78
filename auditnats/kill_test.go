//go:build unix

package auditnats_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditnats"
	"github.com/hindsight-go/audit/audittest"
)

const (
	secondsEnv = "AUDIT_TEST_NATS_SECONDS"
	seedEnv    = "AUDIT_TEST_NATS_SEED"
)

func envNumber(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// Whenever sinks and the broker are killed, the stream has every change of the history, once,
// in order. Its window for duplicates is too short to help.
func TestSink_KilledSinksAndBrokers(t *testing.T) {
	t.Parallel()
	seed := envNumber(t, seedEnv, rand.Uint64())                        //nolint:gosec // It is to be repeatable.
	length := time.Duration(envNumber(t, secondsEnv, 10)) * time.Second //nolint:gosec // It is small.
	random := rand.New(rand.NewPCG(seed, 0))                            //nolint:gosec // It is to be repeatable.
	a := audittest.New(t, audit.Config{Tables: []string{"public.*"}}, killSchema)
	w := &killWorld{dir: t.TempDir(), port: freePort(t), url: a.URL()}
	w.startBroker(t)
	js := connected(t, w.port)
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "AUDIT", Subjects: []string{"audit.>"}, Storage: jetstream.FileStorage, Duplicates: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	w.startSink(t, 0)
	w.startSink(t, 1)

	writing, endWriting := context.WithCancel(t.Context())
	written := make(chan error, 1)
	go func() { written <- write(writing, a.URL(), seed) }()
	strikes := map[string]int{}
	for until := time.Now().Add(length); time.Now().Before(until); {
		pause(t, time.Duration(20+random.IntN(700))*time.Millisecond)
		n := random.IntN(len(w.sinks))
		switch kind := random.IntN(10); {
		case kind < 3:
			strikes["sink"]++
			w.sinks[n].kill()
			w.startSink(t, n)
		case kind < 5:
			strikes["both sinks"]++
			w.sinks[0].kill()
			w.sinks[1].kill()
			w.startSink(t, 0)
			w.startSink(t, 1)
		case kind < 7:
			strikes["broker"]++
			w.broker.kill()
			pause(t, time.Duration(random.IntN(300))*time.Millisecond)
			w.startBroker(t)
		case kind < 8:
			strikes["sink and broker"]++
			w.sinks[n].kill()
			w.broker.kill()
			w.startSink(t, n)
			w.startBroker(t)
		default:
			strikes["frozen sink"]++
			_ = w.sinks[n].cmd.Process.Signal(syscall.SIGSTOP)
			pause(t, time.Duration(random.IntN(1500))*time.Millisecond)
			_ = w.sinks[n].cmd.Process.Signal(syscall.SIGCONT)
		}
	}
	endWriting()
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	a.Sync(t)
	want := historyIDs(t, a.Client)
	if len(want) < 100 {
		t.Errorf("history has only %d changes: nothing was tested", len(want))
	}
	got := w.untilPublished(t, js, len(want))
	sameIDs(t, want, got)
	t.Logf("%s=%d: %v; %d changes in history, %d messages in the stream", seedEnv, seed, strikes, len(want), len(got))
	if t.Failed() {
		for n := range w.sinks {
			log, _ := os.ReadFile(w.sinks[n].log)
			t.Logf("sink %d:\n%s", n, log[max(0, len(log)-4000):])
		}
	}
}

const killSchema = `
	CREATE TABLE todo (id int PRIMARY KEY, task text);
	CREATE TABLE "odd.name > *" (id int PRIMARY KEY, task text);
	CREATE TABLE keyless (n int, task text)`

// killWorld are the programs that are killed.
type killWorld struct {
	dir, url string
	port     int
	broker   *process
	sinks    [2]*process
}

func (w *killWorld) startBroker(t *testing.T) {
	t.Helper()
	w.broker = start(t, programConfig{Port: w.port, StoreDir: filepath.Join(w.dir, "broker")}, filepath.Join(w.dir, "broker.log"))
}

func (w *killWorld) startSink(t *testing.T, n int) {
	t.Helper()
	w.sinks[n] = start(t, programConfig{Port: w.port, SourceURL: w.url, Stream: "AUDIT"}, filepath.Join(w.dir, fmt.Sprintf("sink%d.log", n)))
}

// untilPublished waits until the stream has so many messages, and returns their ids.
func (w *killWorld) untilPublished(t *testing.T, js jetstream.JetStream, n int) []string {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		for i, p := range w.sinks {
			select {
			case <-p.ended:
				log, _ := os.ReadFile(p.log)
				t.Fatalf("sink %d has ended: %v\n%s", i, p.err, log[max(0, len(log)-2000):])
			default:
			}
		}
		ids, err := streamIDs(t.Context(), js, "AUDIT")
		if err == nil && len(ids) >= n {
			// What comes too often may come late.
			pause(t, 2*standby)
			if ids, err = streamIDs(t.Context(), js, "AUDIT"); err != nil {
				t.Fatal(err)
			}
			return ids
		}
		if time.Now().After(deadline) {
			t.Errorf("the stream has %d messages after a minute (%v), and history %d changes", len(ids), err, n)
			return ids
		}
		pause(t, 100*time.Millisecond)
	}
}

// standby is longer than an instance that waits looks whether another one publishes.
const standby = 2 * time.Second

// write writes transactions of all sizes until ctx ends.
func write(ctx context.Context, url string, seed uint64) error {
	pool, err := pgxpool.New(context.WithoutCancel(ctx), url)
	if err != nil {
		return err
	}
	defer pool.Close()
	random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // It is to be repeatable.
	id := 0
	for ctx.Err() == nil {
		err := pgx.BeginFunc(context.WithoutCancel(ctx), pool, func(tx pgx.Tx) error {
			size := 1 + random.IntN(10)
			if random.IntN(20) == 0 {
				size = 300
			}
			for range size {
				id++
				var sql string
				switch random.IntN(4) {
				case 0:
					sql = fmt.Sprintf("UPDATE todo SET task = task || '!' WHERE id = %d", 1+random.IntN(id))
				case 1:
					sql = fmt.Sprintf(`INSERT INTO "odd.name > *" VALUES (%d, 'x')`, id)
				case 2:
					sql = fmt.Sprintf("INSERT INTO keyless VALUES (%d, 'x')", id)
				default:
					sql = fmt.Sprintf("INSERT INTO todo VALUES (%d, 'write it')", id)
				}
				if _, err := tx.Exec(context.WithoutCancel(ctx), sql); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(random.IntN(20)) * time.Millisecond):
		}
	}
	return nil
}

// historyIDs are the ids of all changes, in history's order.
func historyIDs(t *testing.T, client *audit.Client) (ids []string) {
	t.Helper()
	for change, err := range client.Changes().OldestFirst().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, auditnats.MessageID(change))
	}
	return ids
}

// streamIDs are the ids of all messages, in the stream's order.
func streamIDs(ctx context.Context, js jetstream.JetStream, name string) (ids []string, err error) {
	stream, err := js.Stream(ctx, name)
	if err != nil {
		return nil, err
	}
	state := stream.CachedInfo().State
	for sequence := state.FirstSeq; sequence <= state.LastSeq; sequence++ {
		m, err := stream.GetMsg(ctx, sequence)
		if err != nil {
			return nil, err
		}
		ids = append(ids, m.Header.Get(jetstream.MsgIDHeader))
	}
	return ids, nil
}

// sameIDs compares them, and says where they differ first.
func sameIDs(t *testing.T, want, got []string) {
	t.Helper()
	seen := make(map[string]bool)
	for _, id := range got {
		seen[id] = true
	}
	if len(want) != len(got) || len(seen) != len(want) {
		t.Errorf("%d changes in history, %d messages in the stream, %d of them different", len(want), len(got), len(seen))
	}
	for i := range min(len(want), len(got)) {
		if want[i] != got[i] {
			t.Errorf("message %d is %s, want %s", i+1, got[i], want[i])
			return
		}
	}
}

func connected(t *testing.T, port int) jetstream.JetStream {
	t.Helper()
	conn, err := connect(port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); !conn.IsConnected(); pause(t, 20*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no broker")
		}
	}
	return js
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// pause lets time pass, for strikes that come at any moment.
func pause(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}
