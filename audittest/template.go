package audittest

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/internal/pgserver"
	"github.com/hindsight-go/audit/store"
)

// newSource makes a database for a client that is configured so. It is empty, but for the
// store where a store is the same for all: on a server of our own, and made by the role
// that connects.
func newSource(t testing.TB, cfg audit.Config) *Database {
	t.Helper()
	s := shared(t)
	if s.pg.Kind() != pgserver.Private || !hasDefaultStore(cfg) {
		return s.NewDatabase(t)
	}
	template, err := s.template()
	if err != nil {
		t.Fatal(err)
	}
	return s.clone(t, template)
}

// hasDefaultStore reports whether a client that is configured so has its store in the
// source itself, under the default name, as the role that connects.
func hasDefaultStore(cfg audit.Config) bool {
	return cfg.StoreURL == "" && (cfg.Schema == "" || cfg.Schema == store.DefaultSchema) &&
		cfg.StoreRoles == (audit.StoreRoles{}) && os.Getenv("AUDIT_TEST_LEAST_RIGHTS") == ""
}

// makeTemplate makes a database that has an empty store in it, and gives its name. Most of
// what a test that captures costs a server is the making of its store.
func (s *Server) makeTemplate() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	name := namePrefix + s.run + "_0"
	if err := s.create(ctx, name, "template0"); err != nil {
		return "", fmt.Errorf("audittest: create template: %w", err)
	}
	pool, err := pgxpool.New(ctx, s.pg.DSN(name))
	if err != nil {
		return "", fmt.Errorf("audittest: connect to template: %w", err)
	}
	// A template with sessions on it cannot be cloned.
	defer pool.Close()
	history := store.New(pool, store.DefaultSchema, store.Roles{})
	if err := history.Migrate(ctx); err != nil {
		return "", fmt.Errorf("audittest: make template: %w", err)
	}
	if err := history.EnsurePartitions(ctx); err != nil {
		return "", fmt.Errorf("audittest: make template: %w", err)
	}
	return name, nil
}
