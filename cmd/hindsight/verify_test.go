package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// verifyTables have values of which texts and images differ.
const verifyTables = `
	CREATE TYPE mood AS ENUM ('calm', 'cross');
	CREATE DOMAIN share AS numeric CHECK (value >= 0);
	CREATE TABLE item (id int PRIMARY KEY, note text);
	CREATE TABLE "odd table" ("the key" text, n bigint, at timestamptz, raw bytea, doc json, docb jsonb, tags text[], feels mood, part share,
		span interval, f float8, twice bigint GENERATED ALWAYS AS (n * 2) STORED, password text, PRIMARY KEY ("the key", n));
	CREATE TABLE loose (note text);
	CREATE TABLE parted (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
	CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')`

const verifyRows = `
	INSERT INTO item SELECT n, 'note ' || n FROM generate_series(1, 1200) n;
	UPDATE item SET note = 'changed' WHERE id % 3 = 0;
	UPDATE item SET id = id + 10000 WHERE id % 100 = 0;
	DELETE FROM item WHERE id % 7 = 0;
	INSERT INTO item VALUES (7, 'again');
	INSERT INTO "odd table" VALUES
		('it''s "one"', 1, '2024-01-02 03:04:05.123456+07', '\x00ff', '{"a": 1, "a": 2}', '{"b": [1.50, null]}', '{a,NULL,"b c"}', 'cross', 12345678901234567890.10, '1 mon 2 days', 'NaN', DEFAULT, 'geheim'),
		('\', 2, 'infinity', NULL, '"plain"', '{}', NULL, NULL, NULL, NULL, 1e300, DEFAULT, NULL);
	ALTER TABLE "odd table" ADD COLUMN later int DEFAULT 7, ALTER COLUMN f TYPE numeric USING 1;
	INSERT INTO "odd table" ("the key", n, doc) VALUES ('three', 3, ' { "c" : 1 } ');
	INSERT INTO loose VALUES ('x');
	INSERT INTO parted VALUES (1, '2024-05-05'); UPDATE parted SET id = 2`

func TestVerify_WhatIsAsHistorySays(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, verifyTables)
	a := audittest.Open(t, db, audit.Config{Tables: []string{"public.*"}})
	if err := a.Client.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Stop(t) })
	for sql := range strings.SplitSeq(verifyRows, ";\n") {
		a.Exec(t, sql)
	}
	c := command{url: a.URL()}
	want := `ok    item         1212 rows as history says, 183 of them deleted
warn  loose        not compared: it has no primary key
ok    'odd table'  3 rows as history says
ok    parted       2 rows as history says, 1 of them deleted
`
	if diff := cmp.Diff(want, c.must(t, "verify")); diff != "" {
		t.Errorf("verify (-want +got):\n%s", diff)
	}
	if out := c.must(t, "verify", "item", "--sample", "100"); !strings.HasPrefix(out, "ok    item  100 rows as history says") {
		t.Error(out)
	}
	if out := c.must(t, "verify", "item", "odd table", "-o", "csv"); !strings.HasPrefix(out, "table,compared") || strings.Count(out, "\n") != 3 {
		t.Error(out)
	}
	if _, err, code := c.run(t.Context(), "verify", "nothing"); code != exitCannotTell {
		t.Errorf("a table that is not tracked: %d %s", code, err)
	}
	a.Stop(t)
	a.Exec(t, "UPDATE item SET note = 'nobody sees this'")
	if _, err, code := c.run(t.Context(), "verify"); code != exitCannotTell {
		t.Errorf("while nobody captures: %d %s", code, err)
	}
	if err := a.Client.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// Whoever owns the store can forge it; then it is not what the tables hold.
func TestVerify_FindsWhatDiffers(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, itemTable)
	a := audittest.Open(t, db, audit.Config{Tables: []string{"public.*"}})
	if err := a.Client.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Stop(t) })
	a.Exec(t, "INSERT INTO item SELECT n, 'geheim' FROM generate_series(1, 5) n")
	a.Exec(t, "DELETE FROM item WHERE id = 5")
	a.Sync(t)
	c := command{url: a.URL()}
	if out := c.must(t, "verify"); out != "ok    item  5 rows as history says, 1 of them deleted\n" {
		t.Error(out)
	}
	conn := db.Connect(t)
	for _, sql := range []string{
		"SET session_replication_role = replica",
		`UPDATE audit.changes SET after = jsonb_set(after, '{note}', '"forged"') WHERE primary_key = '1'`,
		`DELETE FROM audit.changes WHERE primary_key = '5' AND operation = 'DELETE'`,
		`UPDATE audit.changes SET operation = 'DELETE', before = after, after = '{}' WHERE primary_key = '2'`,
	} {
		if _, err := conn.Exec(t.Context(), sql, pgx.QueryExecModeExec); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{}, {"--sample", "20"}} {
		out, stderr, code := c.run(t.Context(), append([]string{"verify", "-o", "json"}, args...)...)
		if code != exitUnhealthy || strings.Contains(out+stderr, "geheim") || strings.Contains(out+stderr, "forged") {
			t.Errorf("code %d\n%s%s", code, out, stderr)
		}
		var found []verified
		if err := json.Unmarshal([]byte(out), &found); err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, d := range found[0].Different {
			got[d.Key[0]] = d.What
		}
		want := map[string]string{"1": "has another note", "2": "is there, though it was deleted", "5": "is not there"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%v (-want +got):\n%s", args, diff)
		}
	}
	out, stderr, code := c.run(t.Context(), "verify")
	if code != exitUnhealthy || !strings.HasPrefix(out, "FAIL  item  3 of 5 rows differ: ") || !strings.Contains(stderr, "history and 1 table differ") {
		t.Errorf("code %d\n%s%s", code, out, stderr)
	}
}

// Somebody writes all the time, and nothing differs.
func TestVerify_WhileTheApplicationWrites(t *testing.T) {
	t.Parallel()
	a, c := newItems(t)
	a.Exec(t, "INSERT INTO item SELECT n, '' FROM generate_series(2, 50) n")
	conn := a.Connect(t)
	ctx, cancel := context.WithCancel(t.Context())
	written := make(chan int, 1)
	go func() {
		n := 0
		for ctx.Err() == nil {
			n++
			_, err := conn.Exec(context.WithoutCancel(ctx), "WITH gone AS (DELETE FROM item WHERE id = $1 RETURNING id) INSERT INTO item SELECT CASE WHEN $1 % 2 = 0 THEN id + 100 * (1 - 2 * (id / 100)) ELSE id + 1000 END, $2 FROM gone ON CONFLICT DO NOTHING", n%160, "x")
			if err == nil {
				_, err = conn.Exec(context.WithoutCancel(ctx), "UPDATE item SET note = $1 WHERE id = 1", "note")
			}
			if err != nil {
				break
			}
		}
		written <- n
	}()
	for range 5 {
		out, stderr, code := c.run(t.Context(), "verify", "item")
		if code != 0 {
			t.Errorf("code %d\n%s%s", code, out, stderr)
		}
	}
	cancel()
	if n := <-written; n < 10 {
		t.Errorf("only %d writes", n)
	}
}
