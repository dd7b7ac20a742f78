// Command nats publishes the history of a small database to a NATS JetStream, and prints
// what a consumer of it gets.
//
//	cd examples/nats && go run .
//
// It needs nothing but Go and PostgreSQL's server binaries: the database is a throwaway one,
// and the broker is part of the program.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditnats"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "nats:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) (err error) {
	database, err := audittest.StartDatabase(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, database.Close()) }()
	pool, err := pgxpool.New(ctx, database.URL())
	if err != nil {
		return err
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, "CREATE TABLE todo (id int PRIMARY KEY, task text, done bool NOT NULL DEFAULT false)"); err != nil {
		return err
	}

	broker, err := startBroker()
	if err != nil {
		return err
	}
	defer broker.stop()
	js, err := connect(broker.ClientURL())
	if err != nil {
		return err
	}
	defer js.Conn().Close()

	client, err := audit.Open(ctx, audit.Config{SourceURL: database.URL(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Start(ctx); err != nil {
		return err
	}
	sink, err := auditnats.New(auditnats.Config{Client: client, JetStream: js, Stream: "AUDIT"})
	if err != nil {
		return err
	}

	sinking, stopSink := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- sink.Run(sinking) }()
	defer func() {
		stopSink()
		err = errors.Join(err, <-ended)
	}()

	db := auditpgx.Wrap(pool)
	for _, sql := range []string{
		"INSERT INTO todo (id, task) VALUES (26, 'buy milk')",
		"UPDATE todo SET done = true WHERE id = 26",
		"DELETE FROM todo WHERE id = 26",
	} {
		if _, err := db.Exec(audit.WithContext(ctx, audit.Context{UserID: "ada", RequestID: "req-1"}), sql); err != nil {
			return err
		}
	}
	return consume(ctx, js, 3, out)
}

// consume prints some messages, as any program on the other side of the broker could.
func consume(ctx context.Context, js jetstream.JetStream, n int, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var consumer jetstream.Consumer
	var err error
	for { // until the sink has made the stream
		consumer, err = js.OrderedConsumer(ctx, "AUDIT", jetstream.OrderedConsumerConfig{FilterSubjects: []string{"audit.public.todo"}})
		if !errors.Is(err, jetstream.ErrStreamNotFound) {
			break
		}
		<-time.After(50 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return err
	}
	defer messages.Stop()
	for range n {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return err
		}
		var change audit.Change
		if err := json.Unmarshal(m.Data(), &change); err != nil {
			return err
		}
		fmt.Fprintf(out, "%s: %s of todo %s by %s in %s, after: %s\n",
			m.Subject(), change.Operation, change.PrimaryKey, change.Context.User(), change.Context.RequestID, change.After)
	}
	return nil
}

func connect(url string) (jetstream.JetStream, error) {
	conn, err := nats.Connect(url, nats.MaxReconnects(-1))
	if err != nil {
		return nil, err
	}
	return jetstream.New(conn)
}

// broker stands for the one that you have.
type broker struct {
	*server.Server
	dir string
}

func startBroker() (b broker, err error) {
	if b.dir, err = os.MkdirTemp("", "audit-nats-"); err != nil {
		return b, err
	}
	b.Server, err = server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: b.dir, NoLog: true, NoSigs: true})
	if err != nil {
		return b, errors.Join(err, os.RemoveAll(b.dir))
	}
	b.Start()
	if !b.ReadyForConnections(10 * time.Second) {
		b.stop()
		return b, errors.New("the broker does not get ready")
	}
	return b, nil
}

func (b broker) stop() {
	b.Shutdown()
	b.WaitForShutdown()
	_ = os.RemoveAll(b.dir)
}
