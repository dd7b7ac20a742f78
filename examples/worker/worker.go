package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
)

// worker writes bills and has them paid.
type worker struct {
	name   string
	db     *auditpgx.DB
	charge func(customer string) error
}

// work does the jobs that are ready, until there are none.
func (w *worker) work(ctx context.Context) error {
	// The worker's own scope: taking a job is its own doing, nobody asked for that.
	ctx = audit.WithContext(ctx, audit.Context{Worker: w.name})
	for {
		j, err := claim(ctx, w.db)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("claim job: %w", err)
		}
		if err := w.do(w.scope(ctx, j), j); err != nil {
			return fmt.Errorf("job %d: %w", j.ID, err)
		}
	}
}

// scope is that of one attempt at a job, within the worker's: on whose behalf,
// which job, which attempt. The next job begins from the worker's again.
func (w *worker) scope(ctx context.Context, j job) context.Context {
	ctx = audit.WithContext(ctx, j.Asked)
	return audit.WithContext(ctx, audit.Context{
		Worker: w.name, // whichever worker may have asked
		Extra:  map[string]any{"job": j.ID, "attempt": j.Attempts},
	})
}

// do attempts a job. An attempt that fails leaves nothing but the state of the
// job, and why.
func (w *worker) do(ctx context.Context, j job) error {
	failure := pgx.BeginFunc(ctx, w.db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "INSERT INTO invoice (customer, cents) VALUES ($1, $2)", j.Customer, j.Cents)
		if err != nil {
			return err
		}
		if err := done(ctx, tx, j); err != nil {
			return err
		}
		return w.charge(j.Customer)
	})
	if failure != nil {
		return giveBack(ctx, w.db, j, failure)
	}
	return nil
}

// provider takes the money. It was away when globex was charged first, and
// initech has none.
type provider struct{ globexWasThere bool }

func (p *provider) charge(customer string) error {
	switch {
	case customer == "globex" && !p.globexWasThere:
		p.globexWasThere = true
		return errors.New("the provider is away")
	case customer == "initech":
		return errors.New("no money")
	}
	return nil
}
