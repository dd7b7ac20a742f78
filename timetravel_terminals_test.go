package audit_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// terminals are all methods that give an answer about a past table.
func terminals(p audit.Point, table string) map[string]func(ctx context.Context) error {
	drain := func(ctx context.Context, t audit.PastTable) error {
		for _, err := range t.All(ctx) {
			if err != nil {
				return err
			}
		}
		return nil
	}
	count := func(ctx context.Context, t audit.PastTable) error {
		_, err := t.Count(ctx)
		return err
	}
	list := func(ctx context.Context, t audit.PastTable) error {
		var rows []map[string]any
		return t.List(ctx, &rows)
	}
	plain := p.Table(table)
	conditions := map[string]audit.PastTable{
		"plain": plain, "Where": plain.Where("id > $1", 0), "OrderBy": plain.OrderBy("id"), "Limit": plain.Limit(5),
		"all of them": plain.Where("id < $1", 100).OrderBy("id DESC").Limit(2),
	}
	methods := map[string]func(ctx context.Context) error{
		"Row": func(ctx context.Context) error {
			_, err := p.Row(ctx, table, 1)
			return err
		},
		"Table.Load": func(ctx context.Context) error {
			row := map[string]any{}
			return plain.Load(ctx, &row, 1)
		},
		"View": func(ctx context.Context) error {
			return p.View(ctx, func(tx pgx.Tx) error {
				_, err := scan(ctx, tx, "SELECT count(*) FROM "+table)
				return err
			})
		},
		"Into": func(ctx context.Context) error {
			_, err := p.Into("fork_" + table).Tables(table).Run(ctx)
			return err
		},
	}
	for name, t := range conditions {
		methods[name+".All"] = func(ctx context.Context) error { return drain(ctx, t) }
		methods[name+".List"] = func(ctx context.Context) error { return list(ctx, t) }
		methods[name+".Count"] = func(ctx context.Context) error { return count(ctx, t) }
	}
	return methods
}

// Whatever became of a table since, each method answers or says with a type of ours
// why it cannot.
func TestPastTable_EveryMethodOnTablesThatAreNotAsTheyWere(t *testing.T) {
	t.Parallel()
	names := []string{"dropped", "remade", "renamed", "swapped_a", "swapped_b", "truncated", "keyless", "away", "untouched", "no_such"}
	var setup []string
	for _, name := range names[:len(names)-1] {
		key := " PRIMARY KEY"
		if name == "keyless" {
			key = ""
		}
		setup = append(setup, fmt.Sprintf("CREATE TABLE %s (id int%s, n int); INSERT INTO %s VALUES (1, 1), (2, 2)", name, key, name))
	}
	a := audittest.New(t, audit.Config{}, setup...)
	then := here(t, a)
	for _, name := range names[:len(names)-2] {
		a.Exec(t, "UPDATE "+name+" SET n = n + 10 WHERE id = 1")
	}
	a.Sync(t)
	a.Exec(t, `DROP TABLE dropped; DROP TABLE remade; CREATE TABLE remade (id int PRIMARY KEY, n int);
		ALTER TABLE renamed RENAME TO other;
		ALTER TABLE swapped_a RENAME TO swapped; ALTER TABLE swapped_b RENAME TO swapped_a; ALTER TABLE swapped RENAME TO swapped_b;
		TRUNCATE truncated; DROP TABLE keyless; ALTER PUBLICATION audit DROP TABLE away; ALTER TABLE away SET UNLOGGED`)
	if err := a.Client.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	later := here(t, a)
	for moment, p := range map[string]audit.Point{"before": then, "after": later, "now": a.Client.Now()} {
		for _, name := range append(names, "other") {
			for method, ask := range terminals(p, name) {
				if err := ask(t.Context()); err != nil && !isTyped(err) {
					t.Errorf("%s of %s, %s: %v", method, name, moment, err)
				}
			}
			a.Exec(t, `DROP SCHEMA IF EXISTS `+pgx.Identifier{"fork_" + name}.Sanitize()+` CASCADE`)
		}
	}
	for method, ask := range terminals(then, "dropped") {
		var history *audit.HistoryError
		if err := ask(t.Context()); method != "Row" && method != "Table.Load" && (!errors.As(err, &history) || !errors.Is(err, audit.ErrIncomplete)) {
			t.Errorf("%s of a dropped table: %v", method, err)
		}
	}
}

// isTyped reports whether an error is one that a caller can branch on, and, in
// SQL of the caller's, one that the server has about it.
func isTyped(err error) bool {
	var history *audit.HistoryError
	var view *audit.ViewError
	var filter *audit.FilterError
	var columns *audit.ColumnsError
	var missing *pgconn.PgError
	return errors.As(err, &history) || errors.As(err, &view) || errors.As(err, &filter) || errors.As(err, &columns) ||
		errors.Is(err, audit.ErrNoRow) || errors.As(err, &missing) && missing.Code == "42P01"
}
