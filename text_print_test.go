package audit_test

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
)

// unseen moves the cursor up, turns the direction of text, begins a line and a
// control sequence in one byte of Latin-1, and deletes.
const unseen = "x\r\n\x1b[1A\x1b[2K\u202eyz\u0085\u009b31m\u2028\x7f\ufeff"

// mustBeSeen fails for text with anything but lines of characters that can be seen.
func mustBeSeen(t *testing.T, what, text string) {
	t.Helper()
	for _, r := range text {
		if r != '\n' && !strconv.IsPrint(r) {
			t.Fatalf("%s has the character %U:\n%q", what, r, text)
		}
	}
}

func TestString_UnseenTextOfStrangers(t *testing.T) {
	t.Parallel()
	table := pgx.Identifier{"t" + unseen}.Sanitize()
	column := pgx.Identifier{"c" + unseen}.Sanitize()
	u := newUndo(t, fmt.Sprintf("CREATE TABLE %s (id text PRIMARY KEY, %s text, j jsonb)", table, column))
	who := audit.Context{UserID: "u" + unseen, RequestID: "r" + unseen, Endpoint: "e" + unseen, Worker: "w" + unseen}
	write := func(who audit.Context, sql string, args ...any) {
		t.Helper()
		ctx := audit.WithContext(t.Context(), who)
		err := pgx.BeginFunc(ctx, u.conn, func(tx pgx.Tx) error {
			if err := audit.Stamp(ctx, tx); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, sql, args...)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	write(who, fmt.Sprintf("INSERT INTO %s VALUES ($1, $2, to_jsonb($2::text))", table), "k"+unseen, "v"+unseen)
	write(who, fmt.Sprintf("UPDATE %s SET %s = 'w' || %[2]s, id = 'l' || id", table, column))
	other := audit.Context{UserID: "other" + unseen, RequestID: "later", Worker: "w" + unseen}
	write(other, fmt.Sprintf("UPDATE %s SET %s = 'later' || %[2]s", table, column))
	u.Sync(t)

	changes, err := u.Client.Changes().List(t.Context())
	if err != nil || len(changes) != 3 {
		t.Fatalf("%d changes, %v", len(changes), err)
	}
	for _, c := range changes {
		mustBeSeen(t, "Change.String", c.String())
		if strings.Contains(c.String(), "\n") {
			t.Errorf("Change.String has several lines: %q", c.String())
		}
		mustBeSeen(t, "the block", fmt.Sprintf("%+v", c))
		for _, d := range c.Diff() {
			mustBeSeen(t, "ColumnChange.String", d.String())
		}
	}
	plan, err := u.Client.RevertRequest(who.RequestID).Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.Conflicts) == 0 {
		t.Fatal("the plan has no conflicts")
	}
	text := plan.String()
	mustBeSeen(t, "Plan.String", text)
	for i, line := range strings.Split(strings.TrimSpace(text), "\n") {
		if i > 0 && !strings.HasPrefix(line, "  ") && !strings.HasPrefix(line, "conflicts: ") {
			t.Errorf("a stranger wrote line %d: %q", i, line)
		}
	}
	if _, err = u.Client.RevertRequest(who.RequestID).Apply(t.Context()); err == nil {
		t.Fatal("conflicts do not stop Apply")
	}
	mustBeSeen(t, "ConflictError", err.Error())
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("ConflictError has several lines: %q", err)
	}
}

func TestString_OrdinaryTextStays(t *testing.T) {
	t.Parallel()
	c := change(1, 1)
	c.Stamped, c.Context = true, audit.Context{UserID: "Zoë 山田 🙂", Endpoint: "POST /todo/{id}"}
	if text := c.String(); !strings.Contains(text, " by Zoë 山田 🙂 at POST /todo/{id}") {
		t.Error(text)
	}
}

func TestExport_FormulaCells(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	formulas := []string{"=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\u00a0=1", "＝1", "\u200b=1", "\n=1"}
	plain := []string{"a=1", "1-1", "'=1", "", "ann@example.com"}
	var changes []audit.Change
	for n, key := range append(formulas, plain...) {
		c := change(n, 1)
		c.HasKey, c.PrimaryKey = true, key
		changes = append(changes, c)
	}
	h.store(t, changes...)
	for _, format := range []audit.ExportFormat{audit.CSV, audit.SpreadsheetCSV} {
		var table bytes.Buffer
		if _, err := h.client.Changes().OldestFirst().Export(t.Context(), &table, format); err != nil {
			t.Fatal(err)
		}
		records, err := csv.NewReader(&table).ReadAll()
		if err != nil || len(records) != len(changes)+1 {
			t.Fatalf("%d records, %v", len(records), err)
		}
		for n, c := range changes {
			want := strings.ReplaceAll(c.PrimaryKey, "\r\n", "\n")
			if format == audit.SpreadsheetCSV && n < len(formulas) {
				want = "'" + want
			}
			if got := records[n+1][7]; got != want {
				t.Errorf("format %d: %q, want %q", format, got, want)
			}
		}
	}
}
