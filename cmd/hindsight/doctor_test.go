package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// examine runs the doctor and returns its findings by code, those that are ok left out.
func (c command) examine(t *testing.T, args ...string) map[string]finding {
	t.Helper()
	out, stderr, code := c.run(t.Context(), append([]string{"doctor", "--json"}, args...)...)
	var all []finding
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("%v\n%s%s", err, out, stderr)
	}
	found, failed := make(map[string]finding), false
	for _, f := range all {
		failed = failed || f.Level == levelFail
		if f.Level != levelOK {
			if _, ok := found[f.Code]; !ok {
				found[f.Code] = f
			}
			if len(f.SQL) == 0 && f.Setting == "" {
				t.Errorf("%s: nothing is said that ends it: %s", f.Code, f.Text)
			}
		}
	}
	if (code == exitUnhealthy) != failed || !failed && code != 0 {
		t.Errorf("exit code %d, failed %t\n%s%s", code, failed, out, stderr)
	}
	return found
}

// finds wants a finding, in text and level, and returns it.
func (c command) finds(t *testing.T, code, level, text string, args ...string) finding {
	t.Helper()
	found := c.examine(t, args...)
	f, ok := found[code]
	if !ok || f.Level != level || !strings.Contains(f.Text, text) {
		t.Fatalf("%s is not found with %q, but %v", code, text, found)
	}
	return f
}

// cured runs the SQL of a finding, and waits until the doctor does not find it again.
func (c command) cured(t *testing.T, db *audittest.Database, f finding, args ...string) {
	t.Helper()
	if len(f.SQL) == 0 {
		t.Fatalf("%s has no SQL", f.Code)
	}
	for _, sql := range f.SQL {
		db.Exec(t, sql)
	}
	c.gone(t, f.Code, args...)
}

// gone waits until the doctor does not find something any more.
func (c command) gone(t *testing.T, code string, args ...string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		f, ok := c.examine(t, args...)[code]
		if !ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is found still: %s", code, f.Text)
		}
	}
}

// patient is an audited database without event triggers, whose program looks for new
// tables only when it is told to. history is not checked at the end.
func patient(t *testing.T, cfg audit.Config, setup ...string) (*audittest.Audited, command) {
	t.Helper()
	db := audittest.NewDatabase(t)
	for _, sql := range append([]string{itemTable}, setup...) {
		db.Exec(t, sql)
	}
	cfg.RefreshInterval, cfg.NoEventTrigger, cfg.Tables = -1, true, []string{"public.*"}
	a := audittest.Open(t, db, cfg)
	if err := a.Client.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Stop(t) })
	ctx := audit.WithContext(t.Context(), audit.Context{UserID: "ann"})
	err := pgx.BeginFunc(ctx, a.Connect(t), func(tx pgx.Tx) error {
		if err := audit.Stamp(ctx, tx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "INSERT INTO item VALUES (1, 'one')")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	a.Sync(t)
	return a, command{url: a.URL()}
}

// The settings of the server, each with a change and a restart.
func TestDoctor_ServerSettings(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{
		"wal_level": "replica", "max_wal_senders": "0", "max_replication_slots": "1", "max_slot_wal_keep_size": "-1",
	}})
	db := server.NewDatabase(t)
	db.Exec(t, itemTable)
	db.Exec(t, "SELECT pg_create_physical_replication_slot('of_another')")
	c := command{url: db.URL()}
	findings := []finding{
		c.finds(t, "wal-level", levelFail, "wal_level is replica"),
		c.finds(t, "senders", levelFail, "max_wal_senders is 0"),
		c.finds(t, "slots", levelFail, "all 1 replication slots are in use"),
		c.finds(t, "wal-unbounded", levelWarn, "max_slot_wal_keep_size is -1"),
	}
	for _, f := range findings {
		for _, sql := range f.SQL {
			db.Exec(t, sql)
		}
	}
	server.Restart(t)
	found := c.examine(t)
	for _, f := range findings {
		if _, still := found[f.Code]; still {
			t.Errorf("%s is found still", f.Code)
		}
	}
	if server.Version() >= 180000 {
		for _, sql := range []string{"ALTER SYSTEM SET idle_replication_slot_timeout = '1h'", "SELECT pg_reload_conf()"} {
			db.Exec(t, sql)
		}
		for deadline := time.Now().Add(time.Minute); c.examine(t)["idle-slot"].Code == "" && time.Now().Before(deadline); {
			db.Exec(t, "SELECT 1")
		}
		c.cured(t, db, c.finds(t, "idle-slot", levelWarn, "idle_replication_slot_timeout is 1h"))
	}
	f := c.finds(t, "capture", levelWarn, "nothing was ever captured")
	a := audittest.Open(t, db, audit.Config{Tables: []string{"public.*"}})
	if err := a.Client.Start(context.WithoutCancel(t.Context())); err != nil { // the setting of the finding
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Stop(t) })
	c.gone(t, f.Code)
	if found := c.examine(t); len(found) != 0 {
		t.Errorf("in good health: %v", found)
	}
	if code := c.start(t.Context(), newLines(), newLines(), "doctor", "--strict"); code != 0 {
		t.Errorf("--strict in good health: %d", code)
	}
}

// What a plain role lacks.
func TestDoctor_RoleOwnerAndPublication(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, itemTable)
	role := "r_" + db.Name()
	db.Exec(t, "CREATE ROLE "+role+" LOGIN")
	t.Cleanup(func() { db.Exec(t, fmt.Sprintf("DROP OWNED BY %s; DROP ROLE %[1]s", role)) })
	address, err := url.Parse(db.URL())
	if err != nil {
		t.Fatal(err)
	}
	address.User = url.User(role)
	c := command{url: address.String()}
	for _, each := range []struct{ code, text string }{
		{"role", "may not use replication slots"},
		{"owner", `table "public"."item" is not owned by role`},
		{"store-rights", "may not create the store's schema"},
	} {
		c.cured(t, db, c.finds(t, each.code, levelFail, each.text))
	}
	all := audittest.NewDatabase(t)
	all.Exec(t, itemTable)
	all.Exec(t, "CREATE PUBLICATION audit FOR ALL TABLES")
	c = command{url: all.URL()}
	c.cured(t, all, c.finds(t, "publication", levelFail, "FOR ALL TABLES"))
}

func TestDoctor_Tables(t *testing.T) {
	t.Parallel()
	a, c := patient(t, audit.Config{}, "CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id)", "CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10)")
	t.Run("made by a migration", func(t *testing.T) {
		a.Exec(t, `CREATE TABLE "In voices" (id int PRIMARY KEY)`)
		c.cured(t, a.Database, c.finds(t, "untracked", levelFail, "In voices is not tracked"))
	})
	t.Run("excluded", func(t *testing.T) {
		a.Exec(t, "CREATE TABLE sessions (id int PRIMARY KEY)")
		if _, found := c.examine(t, "--tables", "public.*,!public.sessions")["untracked"]; found {
			t.Error("a table that no pattern matches is found")
		}
		c.cured(t, a.Database, c.finds(t, "untracked", levelFail, "sessions"))
	})
	t.Run("left", func(t *testing.T) {
		a.Exec(t, "ALTER PUBLICATION audit DROP TABLE item")
		a.Exec(t, "SELECT pg_logical_emit_message(false, 'audit_refresh', '')")
		for deadline := time.Now().Add(time.Minute); !strings.Contains(c.examine(t)["untracked"].Text, "since") && time.Now().Before(deadline); {
			a.Sync(t)
		}
		if f, found := c.examine(t)["untracked"]; found { // the refresh may have put it back
			c.cured(t, a.Database, f)
		}
	})
	t.Run("identity", func(t *testing.T) {
		a.Exec(t, "ALTER TABLE item REPLICA IDENTITY DEFAULT")
		c.cured(t, a.Database, c.finds(t, "identity", levelWarn, "does not log its whole old rows"))
		a.Exec(t, "ALTER TABLE parted_1 REPLICA IDENTITY NOTHING")
		c.cured(t, a.Database, c.finds(t, "identity", levelFail, `"parted_1" is published without a replica identity`))
	})
	t.Run("no table", func(t *testing.T) {
		c.finds(t, "tables", levelWarn, "no table matches", "--tables", "nowhere.*")
	})
}

func TestDoctor_Transactions(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{"max_prepared_transactions": "5"}})
	db := server.NewDatabase(t)
	db.Exec(t, itemTable)
	c := command{url: db.URL()}
	ages := []string{"--older-than", "0s"}
	idle := db.Connect(t)
	for _, sql := range []string{"BEGIN", "INSERT INTO item VALUES (1, 'geheim')"} {
		if _, err := idle.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	if _, found := c.examine(t)["idle-transaction"]; found {
		t.Error("a young transaction is found")
	}
	c.cured(t, db, c.finds(t, "idle-transaction", levelWarn, "is idle in a transaction", ages...), ages...)
	db.Exec(t, "BEGIN; INSERT INTO item VALUES (2, 'two'); PREPARE TRANSACTION 'it''s prepared'")
	c.cured(t, db, c.finds(t, "prepared-transaction", levelWarn, "it's prepared", ages...), ages...)

	running := db.Connect(t)
	done := make(chan error, 1)
	go func() {
		_, err := running.Exec(context.WithoutCancel(t.Context()), "INSERT INTO item SELECT 3, 'three' FROM pg_sleep(60)")
		done <- err
	}()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if _, found := c.examine(t, ages...)["long-transaction"]; found {
			break
		}
		db.Exec(t, "SELECT txid_current()")
	}
	if f, found := c.examine(t, ages...)["long-transaction"]; found {
		c.cured(t, db, f, ages...)
		if err := <-done; err == nil {
			t.Error("the transaction was not ended")
		}
	} else {
		// A statement that waits before it writes has no transaction id yet.
		t.Log("the transaction had written nothing")
	}
}

func TestDoctor_Capture(t *testing.T) {
	t.Parallel()
	a, c := patient(t, audit.Config{})
	start := func() {
		t.Helper()
		if err := a.Client.Start(context.WithoutCancel(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	a.Stop(t)
	c.finds(t, "capture", levelFail, "nobody captures")
	start() // the setting of the finding
	c.gone(t, "capture")

	a.Stop(t)
	a.Exec(t, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()")
	c.finds(t, "slot", levelFail, "is gone")
	start()
	c.gone(t, "slot")
	a.Sync(t)
	c.finds(t, "gap", levelWarn, "history has a gap")

	// Somebody holds a lock that the writer of history needs.
	holder := a.Connect(t)
	for _, sql := range []string{"BEGIN", "LOCK TABLE audit.checkpoints IN SHARE MODE"} {
		if _, err := holder.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	a.Exec(t, "INSERT INTO item SELECT n, repeat('x', 1000) FROM generate_series(10, 1000) n")
	lag := []string{"--max-lag", "100000"}
	for deadline := time.Now().Add(time.Minute); len(c.examine(t, lag...)["lag"].SQL) == 0 && time.Now().Before(deadline); {
		a.Exec(t, "SELECT 1")
	}
	c.cured(t, a.Database, c.finds(t, "lag", levelFail, "behind the source", lag...), lag...)
}

func TestDoctor_NearTheBound(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{"max_slot_wal_keep_size": "32MB", "min_wal_size": "32MB", "max_wal_size": "64MB"}})
	db := server.NewDatabase(t)
	db.Exec(t, itemTable)
	a := audittest.Open(t, db, audit.Config{Tables: []string{"public.*"}})
	if err := a.Client.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	a.Sync(t)
	a.Stop(t)
	c := command{url: db.URL()}
	for range 10 {
		if _, near := c.examine(t)["wal-near-bound"]; near {
			break
		}
		db.Exec(t, "CREATE TABLE IF NOT EXISTS filler (t text); INSERT INTO filler SELECT repeat(md5(n::text), 30) FROM generate_series(1, 5000) n")
	}
	c.cured(t, db, c.finds(t, "wal-near-bound", levelFail, "about to drop WAL"))

	// And beyond the bound.
	for _, sql := range []string{"ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'", "SELECT pg_reload_conf()", "SELECT pg_switch_wal()", "CHECKPOINT"} {
		db.Exec(t, sql)
	}
	for deadline := time.Now().Add(time.Minute); !strings.Contains(c.examine(t)["slot"].Text, "is lost") && time.Now().Before(deadline); {
		db.Exec(t, "INSERT INTO filler VALUES ('more'); SELECT pg_switch_wal()")
		db.Exec(t, "CHECKPOINT")
	}
	c.finds(t, "slot", levelFail, "is lost")
	if err := a.Client.Start(context.WithoutCancel(t.Context())); err != nil { // the setting of the finding
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Stop(t) })
	c.gone(t, "slot")
}

func TestDoctor_Store(t *testing.T) {
	t.Parallel()
	a, c := patient(t, audit.Config{})
	t.Run("partitions", func(t *testing.T) {
		a.Exec(t, `DO $$ BEGIN EXECUTE 'DROP TABLE audit.changes_' || to_char(now() AT TIME ZONE 'UTC' + interval '1 month', 'YYYY_MM'); END $$`)
		c.cured(t, a.Database, c.finds(t, "partitions", levelFail, "history has no partition for"))
	})
	t.Run("retention", func(t *testing.T) {
		a.Exec(t, "SELECT audit.ensure_partition('2020-01-15')")
		if _, found := c.examine(t)["retention"]; found {
			t.Error("history that is to be kept is found")
		}
		c.finds(t, "retention", levelWarn, "history of January 2020", "--retention", "90d")
		a.Exec(t, "INSERT INTO audit.retention_limit (keep) VALUES ('90 days')")
		c.finds(t, "retention", levelWarn, "is to be kept for 90 days")
		// The setting: a program with Config.Retention, which drops the month.
		a.Stop(t)
		b := audittest.Open(t, a.Database, audit.Config{Tables: []string{"public.*"}, Retention: 90 * 24 * time.Hour})
		if err := b.Client.Start(context.WithoutCancel(t.Context())); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Stop(t) })
		c.gone(t, "retention")
	})
	t.Run("older version", func(t *testing.T) {
		db := audittest.NewDatabase(t)
		db.Exec(t, itemTable)
		runScript(t, db, oldStore(t, db, audittest.Value[string](t, db, "SELECT current_user::text")))
		old := command{url: db.URL()}
		old.cured(t, db, old.finds(t, "version", levelFail, "the store is at version 1"))
	})
	t.Run("newer version", func(t *testing.T) {
		a.Exec(t, "INSERT INTO audit.schema_migrations (version, name) VALUES (999, 'of the future')")
		c.finds(t, "version", levelFail, "the store is at version 999")
		a.Exec(t, "DELETE FROM audit.schema_migrations WHERE version = 999")
		c.gone(t, "version")
	})
}

func TestDoctor_SecretsAndContext(t *testing.T) {
	t.Parallel()
	a, c := patient(t, audit.Config{Columns: []audit.ColumnRule{{Columns: "public.account.*", Policy: audit.KeepColumn}}},
		"CREATE TABLE account (id int PRIMARY KEY, password text, api_token text, name text)")
	a.Exec(t, "INSERT INTO account VALUES (1, 'geheim', 'geheimer', 'Ann')")
	a.Sync(t)
	f := c.finds(t, "secrets", levelWarn, "api_token, password of public.account")
	if strings.Contains(fmt.Sprint(f), "geheim") {
		t.Errorf("a value is in the finding: %v", f)
	}
	c.finds(t, "context", levelWarn, "50 % of 2 changes")

	// The settings: no rule that keeps the columns, and a stamp.
	a.Stop(t)
	b := audittest.Open(t, a.Database, audit.Config{Tables: []string{"public.*"}})
	if err := b.Client.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Stop(t) })
	ctx := audit.WithContext(t.Context(), audit.Context{UserID: "ann"})
	err := pgx.BeginFunc(ctx, b.Connect(t), func(tx pgx.Tx) error {
		if err := audit.Stamp(ctx, tx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "INSERT INTO account SELECT n, 'secret', 'token', 'Bob' FROM generate_series(2, 20) n")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Sync(t)
	c.gone(t, "secrets")
	c.gone(t, "context")
}

func TestDoctor_Pooler(t *testing.T) {
	t.Parallel()
	a, _ := patient(t, audit.Config{})
	config := faulttest.FindPgBouncer(t).Start(t, a.Database, "ignore_startup_parameters = extra_float_digits")
	c := command{url: fmt.Sprintf("host=%s port=%d user=%s dbname=%s sslmode=disable", config.Host, config.Port, config.User, config.Database)}
	c.finds(t, "pooler", levelFail, "--database-url leads to a pooler")
	if _, found := (command{url: a.URL()}).examine(t)["pooler"]; found { // the setting of the finding
		t.Error("a pooler is found where there is none")
	}
	// Through the pooler, everything else can be asked.
	if out := c.must(t, "log", "item", "1"); !strings.Contains(out, "CREATE") {
		t.Error(out)
	}
	if out := c.must(t, "verify"); !strings.HasPrefix(out, "ok") {
		t.Error(out)
	}
}

func TestDoctor_ServersThatAreAway(t *testing.T) {
	t.Parallel()
	a, c := patient(t, audit.Config{})
	away := "host=/nowhere user=u password=geheim dbname=d"
	for code, args := range map[string][]string{"source": {"--database-url", away}, "store": {"--store-url", away}} {
		f := c.finds(t, code, levelFail, "does not answer", args...)
		if strings.Contains(fmt.Sprint(f), "geheim") {
			t.Errorf("a password is in the finding: %v", f)
		}
	}
	_ = a
}

// With -o sql, the output is a script and nothing else.
func TestDoctor_SQLIsAScript(t *testing.T) {
	t.Parallel()
	a, c := patient(t, audit.Config{})
	a.Exec(t, "CREATE TABLE invoices (id int PRIMARY KEY); ALTER TABLE item REPLICA IDENTITY DEFAULT")
	out, stderr, code := c.run(t.Context(), "doctor", "-o", "sql")
	if code != exitUnhealthy || strings.Contains(out, "ok ") {
		t.Errorf("code %d\n%s%s", code, out, stderr)
	}
	for statement := range strings.SplitSeq(out, ";\n") {
		if !strings.Contains(statement, "ALTER SYSTEM") && !strings.Contains(statement, "pg_reload_conf") {
			a.Exec(t, statement)
		}
	}
	c.gone(t, "untracked")
	c.gone(t, "identity")
}
