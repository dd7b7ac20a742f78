package auditpgx_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// TestLargeContexts stamps contexts of 1 and 5 MB in every place that can hold
// much. The write goes on, and its change names what is missing.
func TestLargeContexts(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	large := func(size int) map[string]audit.Context {
		text := strings.Repeat("x", size)
		many := map[string]any{}
		for i := range size / 100 {
			many[fmt.Sprint("name ", i)] = strings.Repeat("y", 90)
		}
		return map[string]audit.Context{
			"a parameter":     {Params: map[string]any{"file": text}},
			"many parameters": {Params: many},
			"SQL":             {SQL: text},
			"extra":           {Extra: map[string]any{"blob": text}},
			"everything":      {Params: many, SQL: text, Extra: map[string]any{"blob": text}},
			"tenant":          {Tenant: text},
			"endpoint":        {Endpoint: text, Worker: text},
		}
	}
	missing := map[string][]string{
		"a parameter": {"params"}, "many parameters": {"params"}, "SQL": {"SQL"}, "extra": {"extra"}, "everything": {"params", "SQL", "extra"},
		"tenant": {"tenant"}, "endpoint": {"endpoint", "worker"},
	}
	want := map[string][]string{}
	for _, mode := range modes {
		config := auditpgx.Config{}
		db := config.Wrap(newPool(t, a.Database, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode }))
		for _, size := range []int{1 << 20, 5 << 20} {
			for name, c := range large(size) {
				if size > 1<<20 && name != "a parameter" && name != "everything" {
					continue // the smaller one has shown it
				}
				c.UserID = "ann"
				ctx := audit.WithContext(t.Context(), c)
				cell := fmt.Sprint(mode, size, name)
				_, err := db.Exec(ctx, insert, cell, 1)
				err = errors.Join(err, pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
					_, err := tx.Exec(ctx, insert, cell, 2)
					return err
				}))
				if err != nil {
					t.Errorf("%s: %v", cell, err)
				}
				want[cell] = missing[name]
			}
		}
		if stats := db.Stats(); stats.Lost != 0 {
			t.Errorf("%s: %+v", mode, stats)
		}
	}
	a.Sync(t)
	got := map[string][]string{}
	for change, err := range a.Client.Changes().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if change.Context.User() != "ann" || len(change.RawContext) > audit.MaxContextBytes {
			t.Errorf("%s: by %q, with %d bytes", change.KeyParts(), change.Context.User(), len(change.RawContext))
		}
		got[change.KeyParts()[0]] = change.Context.Truncated
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestBytesThatAreNoTextEverywhere puts NUL and invalid UTF-8 into every string
// of a context, names included.
func TestBytesThatAreNoTextEverywhere(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	const (
		bad  = "a\x00b\xffc\xed\xa0\x80d"
		good = "a\uFFFDb\uFFFDc\uFFFD\uFFFD\uFFFDd"
	)
	filled := func(text string) audit.Context {
		nested := map[string]any{text: []any{text, map[string]any{text: text}}}
		return audit.Context{
			UserID: text, Tenant: text, RequestID: text, TraceID: text, SpanID: text, Endpoint: text, Worker: text, SQL: text,
			Params: nested, Extra: map[string]any{text: nested}, Truncated: []string{text},
		}
	}
	n := 0
	for _, mode := range modes {
		for _, identity := range []bool{false, true} {
			config := auditpgx.Config{Identity: identity}
			db := config.Wrap(newPool(t, a.Database, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode }))
			for _, w := range writers() {
				n++
				if err := w.write(audit.WithContext(t.Context(), filled(bad)), db, "c", n); err != nil {
					t.Errorf("%s, %s: %v", mode, w.name, err)
				}
			}
			if stats := db.Stats(); stats.Lost != 0 || stats.Cut != 0 {
				t.Errorf("%s: %+v", mode, stats)
			}
		}
	}
	a.Sync(t)
	for change, err := range a.Client.Changes().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		n--
		delete(change.Context.Extra, "db")
		if diff := cmp.Diff(filled(good), change.Context); diff != "" || change.Defect != "" {
			t.Fatalf("%s: defect %q, %s", change.KeyParts(), change.Defect, diff)
		}
	}
	if n != 0 {
		t.Errorf("%d changes are missing", n)
	}
}

// TestStrangePrefixesHurtNoWrite stamps under prefixes that take care to write.
func TestStrangePrefixesHurtNoWrite(t *testing.T) {
	t.Parallel()
	for _, prefix := range []string{`it's`, `back\slash`, `$1 $2`, `"; DROP TABLE todo; --`, "Präfix 漢字", "a b", strings.Repeat("x", 63)} {
		t.Run(prefix[:min(20, len(prefix))], func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{ContextPrefix: prefix}, todoSQL)
			var want []string
			for i, mode := range modes {
				config := auditpgx.Config{Prefix: prefix}
				db := config.Wrap(newPool(t, a.Database, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode }))
				_, err := db.Exec(by(t.Context(), "ann"), insert, "c", 2*i)
				_, simple := db.Exec(by(t.Context(), "bob"), fmt.Sprintf("INSERT INTO todo VALUES ('c', %d)", 2*i+1))
				if err := errors.Join(err, simple); err != nil {
					t.Error(err)
				}
				want = append(want, fmt.Sprint(2*i, " ann"), fmt.Sprint(2*i+1, " bob"))
			}
			if diff := cmp.Diff(want, whoWrote(t, a)); diff != "" {
				t.Error(diff)
			}
		})
	}
	// What no prefix can be.
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL)
	for i, prefix := range []string{"nul\x00", "\xff\xfe"} {
		for j, mode := range modes {
			q := auditpgx.Config{Prefix: prefix}.Wrap(newPool(t, db, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode }))
			for k, w := range writers() {
				if err := w.write(by(t.Context(), "ann"), q, fmt.Sprint(i, j, k), 1); err != nil {
					t.Errorf("%q, %s, %s: %v", prefix, mode, w.name, err)
				}
			}
		}
	}
}

// TestAnotherPrefixIsAnothersContext captures under one prefix what is stamped
// under others.
func TestAnotherPrefixIsAnothersContext(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{ContextPrefix: "shop"}, todoSQL)
	pool := newPool(t, a.Database, nil)
	for i, prefix := range []string{"shop", "office", "", "_bemi"} {
		if _, err := (auditpgx.Config{Prefix: prefix}).Wrap(pool).Exec(by(t.Context(), "ann"), insert, "c", i); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"0 ann", "1", "2 ann", "3 ann"}, whoWrote(t, a)); diff != "" {
		t.Error(diff)
	}
}

// buffer is a buffer for a logger.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) lines() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Split(strings.TrimSpace(b.text.String()), "\n")
}

// TestLossIsCountedLoggedAndVisible loses contexts in the ways there are.
func TestLossIsCountedLoggedAndVisible(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL, "CREATE PROCEDURE put(i int) LANGUAGE sql AS $$ INSERT INTO todo VALUES ('c', i) $$")
	const secret = "hunter2"
	ctx := audit.WithContext(t.Context(), audit.Context{UserID: "ann", Params: map[string]any{"password": secret}})
	for _, way := range []struct {
		name string
		lose func(db *auditpgx.DB, id int) error
		want auditpgx.Stats
	}{
		{"procedure alone", func(db *auditpgx.DB, id int) error {
			_, err := db.Exec(ctx, fmt.Sprintf("CALL put(%d)", id))
			return err
		}, auditpgx.Stats{Lost: 3}},
		{"no member is JSON", func(db *auditpgx.DB, id int) error {
			_, err := db.Exec(audit.WithContext(t.Context(), audit.Context{UserID: make(chan int)}), insert, "c", id)
			return err
		}, auditpgx.Stats{Stamped: 3, Cut: 3}},
	} {
		t.Run(way.name, func(t *testing.T) {
			var log buffer
			db := auditpgx.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}.Wrap(newPool(t, a.Database, nil))
			for range 3 {
				if err := way.lose(db, int(proofs.Add(1))); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(way.want, db.Stats()); diff != "" {
				t.Error(diff)
			}
			if lines := log.lines(); len(lines) != 1 || !strings.Contains(lines[0], "level=WARN") || strings.Contains(lines[0], secret) {
				t.Errorf("logged %q", lines)
			}
		})
	}
	a.Sync(t)
	var without, cut int
	for change, err := range a.Client.Changes().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case !change.Stamped:
			without++
		case slices.Equal(change.Context.Truncated, []string{"userId"}):
			cut++
		}
	}
	found, err := a.Client.Changes().WithoutContext().Count(t.Context())
	if err != nil || without != 3 || cut != 3 || found != 3 {
		t.Errorf("%d changes without a context, %d found, %d with a cut one: %v", without, found, cut, err)
	}
}
