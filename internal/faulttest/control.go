package faulttest

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
)

// entry is one change as the control or the history has it.
type entry struct {
	XID           int64
	Table, Op     string
	Before, After string
	Request       string
}

// Tally is what Check has compared.
type Tally struct {
	Changes, Transactions int
}

// Check compares the history in schema audit of the database at storeURL with
// the control: every change of every transaction that committed, once, in the
// order in which they were made; transactions in commit order; nothing else. The
// writers have to have stopped, and capture to have stored everything.
func (l *Load) Check(t testing.TB, storeURL string) Tally {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	source, err := pgx.Connect(ctx, l.db.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = source.Close(ctx) }()
	store, err := pgx.Connect(ctx, storeURL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close(ctx) }()

	want := entries(t, source, `
		SELECT xid, tbl, op, before::text, after::text, coalesce(marker, '')
		FROM control.log
		ORDER BY xid, ordinal`)
	got := entries(t, store, `
		SELECT transaction_id, "table", operation, before::text, after::text, coalesce(context ->> 'requestId', '')
		FROM audit.changes
		WHERE schema = 'public'
		ORDER BY transaction_id, position, sequence`)
	l.compare(t, want, got)

	for what, sql := range map[string]string{
		"transactions at more than one position": `
			SELECT count(*) FROM (SELECT FROM audit.changes GROUP BY transaction_id HAVING count(DISTINCT position) > 1) x`,
		"positions with more than one transaction": `
			SELECT count(*) FROM (SELECT FROM audit.changes GROUP BY position HAVING count(DISTINCT transaction_id) > 1) x`,
		"transactions whose changes are not numbered from 1 without a hole": `
			SELECT count(*) FROM (SELECT FROM audit.changes GROUP BY position HAVING min(sequence) <> 1 OR max(sequence) <> count(*) OR count(DISTINCT sequence) <> count(*)) x`,
		"beats of the pulse that are not one more than the one before in history's order": `
			SELECT count(*) FROM (SELECT (after ->> 'n')::bigint - row_number() OVER (ORDER BY position, sequence) AS off
				FROM audit.changes WHERE "table" = 'pulse') x WHERE off <> 0`,
		"changes with a defect": `SELECT count(*) FROM audit.changes WHERE defect IS NOT NULL`,
		"gaps":                  `SELECT count(*) FROM audit.gaps`,
		"changes more than the checkpoint has counted": `
			SELECT abs((SELECT count(*) FROM audit.changes) - (SELECT sum(changes) FROM audit.checkpoints))::bigint`,
	} {
		var n int64
		if err := store.QueryRow(ctx, sql).Scan(&n); err != nil {
			t.Errorf("look for %s: %v", what, err)
		}
		if n != 0 {
			t.Errorf("history has %d %s", n, what)
		}
	}
	tally := Tally{Changes: len(got)}
	for i, e := range got {
		if i == 0 || got[i-1].XID != e.XID {
			tally.Transactions++
		}
	}
	return tally
}

// compare goes through both lists, which are in the same order, and tells the
// transactions that are lost, doubled or different.
func (l *Load) compare(t testing.TB, want, got []entry) {
	t.Helper()
	const shown = 5
	var lost, surplus, different int
	for len(want) > 0 || len(got) > 0 {
		w, g := head(want), head(got)
		switch {
		case len(g) == 0 || len(w) > 0 && w[0].XID < g[0].XID:
			if lost++; lost <= shown {
				t.Errorf("transaction %d, with %d changes, is lost; its first is %+v", w[0].XID, len(w), w[0])
			}
			want = want[len(w):]
			continue
		case len(w) == 0 || g[0].XID < w[0].XID:
			if surplus++; surplus <= shown {
				t.Errorf("transaction %d, with %d changes, never committed; its first is %+v", g[0].XID, len(g), g[0])
			}
			got = got[len(g):]
			continue
		case !slices.Equal(w, g):
			if different++; different <= shown {
				t.Errorf("transaction %d has %d changes in history and made %d (-want +got):\n%.4000s", w[0].XID, len(g), len(w), cmp.Diff(w, g))
			}
		}
		want, got = want[len(w):], got[len(g):]
	}
	if lost+surplus+different > 0 {
		t.Errorf("transactions lost: %d, never committed: %d, different (doubled rows too): %d", lost, surplus, different)
	}
}

// head returns the entries of the first transaction.
func head(all []entry) []entry {
	n := 0
	for n < len(all) && all[n].XID == all[0].XID {
		n++
	}
	return all[:n]
}

func entries(t testing.TB, conn *pgx.Conn, sql string) []entry {
	t.Helper()
	rows, err := conn.Query(context.WithoutCancel(t.Context()), sql)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[entry])
	if err != nil {
		t.Fatal(fmt.Errorf("read changes: %w", err))
	}
	return all
}
