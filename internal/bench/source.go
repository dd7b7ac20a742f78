package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// trigger is the generic row trigger that audit extensions are made of.
const trigger = `
	CREATE TABLE item_log (id bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT now(), who text NOT NULL DEFAULT current_user,
		op text NOT NULL, relation oid NOT NULL, before jsonb, after jsonb);
	CREATE INDEX ON item_log (relation, at);
	CREATE FUNCTION item_log() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		INSERT INTO item_log (op, relation, before, after) VALUES (TG_OP, TG_RELID, to_jsonb(OLD), to_jsonb(NEW));
		RETURN NULL; END $$`

// source measures what capture costs the application's own sessions: processor
// time of the backend per single-row UPDATE, with capture off, with capture on,
// and with a row trigger instead. The modes take turns, so that drift of the
// machine hits all of them.
func source(ctx context.Context, b *bench) error {
	if err := b.exec(ctx, table, "INSERT INTO item "+rows(1, 10_000), trigger); err != nil {
		return err
	}
	client, err := b.open(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	modes := []struct {
		name    string
		on, off func() error
	}{
		{"off", func() error { return nil }, func() error { return nil }},
		{"capture", func() error { return client.Start(ctx) }, func() error {
			if err := client.Stop(ctx); err != nil {
				return err
			}
			return client.Uninstall(ctx)
		}},
		{
			"row trigger",
			func() error {
				return b.exec(ctx, "CREATE TRIGGER log AFTER INSERT OR UPDATE OR DELETE ON item FOR EACH ROW EXECUTE FUNCTION item_log()")
			},
			func() error { return b.exec(ctx, "DROP TRIGGER log ON item", "TRUNCATE item_log") },
		},
	}
	const rounds = 6
	n := b.n(10_000)
	used, wall := make([]time.Duration, len(modes)), make([]time.Duration, len(modes))
	for round := range rounds + 1 { // the first one warms up
		for i, m := range modes {
			if err := m.on(); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			cpu, took, err := b.updates(ctx, n)
			if err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			if round > 0 {
				used[i] += cpu
				wall[i] += took
			}
			if err := m.off(); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			if err := b.exec(ctx, "VACUUM item"); err != nil {
				return err
			}
		}
	}
	b.printf("%-12s %18s %8s %14s %8s\n", "mode", "backend CPU/update", "ratio", "updates/s", "ratio")
	for i, m := range modes {
		b.printf("%-12s %15.1f us %8.2f %14.0f %8.2f\n", m.name, used[i].Seconds()*1e6/float64(n*rounds), used[i].Seconds()/used[0].Seconds(),
			float64(n*rounds)/wall[i].Seconds(), wall[0].Seconds()/wall[i].Seconds())
	}
	return nil
}

// updates runs n single-row transactions over a prepared statement on a fresh
// session and returns its processor time.
func (b *bench) updates(ctx context.Context, n int) (cpu, took time.Duration, err error) {
	conn, err := pgx.Connect(ctx, b.url)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, "SET synchronous_commit = off"); err != nil {
		return 0, 0, err
	}
	pid := int(conn.PgConn().PID())
	before, err := processCPU(pid)
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	for i := range n {
		if _, err := conn.Exec(ctx, "UPDATE item SET stock = stock + 1, updated = now() WHERE id = $1", i%10_000+1); err != nil {
			return 0, 0, err
		}
	}
	took = time.Since(began)
	after, err := processCPU(pid)
	return after - before, took, err
}
