package auditriver_test

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/riverqueue/river/rivertype"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/auditriver"
	"github.com/hindsight-go/audit/audittest"
)

// Bill is a job: somebody is to be billed.
type Bill struct {
	Customer string `json:"customer"`
}

// Kind is of river.JobArgs.
func (Bill) Kind() string { return "bill" }

type billWorker struct {
	river.WorkerDefaults[Bill]
	db *auditpgx.DB
}

func (w *billWorker) Work(ctx context.Context, job *river.Job[Bill]) error {
	_, err := w.db.Exec(ctx, "INSERT INTO invoice (customer) VALUES ($1)", job.Args.Customer)
	return err
}

func Example() {
	if err := bill(context.Background()); err != nil {
		fmt.Println(err)
	}
	// Output:
	// ann at POST /order, request r1: invoice[1] by bill, attempt 1
}

func bill(ctx context.Context) error {
	database, err := audittest.StartDatabase(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = database.Close() }()
	pool, err := pgxpool.New(ctx, database.URL())
	if err != nil {
		return err
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, "CREATE TABLE invoice (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer text)"); err != nil {
		return err
	}
	migrator, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return err
	}
	history, err := audit.Open(ctx, audit.Config{SourceURL: database.URL(), Tables: []string{"public.*"}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer history.Close()
	if err := history.Start(ctx); err != nil {
		return err
	}

	workers := river.NewWorkers()
	river.AddWorker(workers, &billWorker{db: auditpgx.Wrap(pool)})
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{
		Logger:     slog.New(slog.DiscardHandler),
		Middleware: []rivertype.Middleware{auditriver.NewMiddleware(nil)},
		Queues:     map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 10}},
		Workers:    workers,
	})
	if err != nil {
		return err
	}
	done, cancel := client.Subscribe(river.EventKindJobCompleted)
	defer cancel()
	if err := client.Start(ctx); err != nil {
		return err
	}

	// In a service, audithttp does this for every request.
	request := audit.WithContext(ctx, audit.Context{UserID: "ann", RequestID: "r1", Endpoint: "POST /order"})
	if _, err := client.Insert(request, Bill{Customer: "acme"}, nil); err != nil {
		return err
	}
	<-done
	if err := client.Stop(ctx); err != nil {
		return err
	}

	if err := history.Sync(ctx); err != nil {
		return err
	}
	for change, err := range history.Changes().InRequest("r1").All(ctx) {
		if err != nil {
			return err
		}
		c := change.Context
		fmt.Printf("%s at %s, request %s: %s[%s] by %s, attempt %v\n",
			c.User(), c.Endpoint, c.RequestID, change.Table, change.PrimaryKey, c.Worker, c.Extra["attempt"])
	}
	return history.Stop(ctx)
}
