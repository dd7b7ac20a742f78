package audit_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// expectNoneOf checks that a text, an error's or a log's, holds none of the
// secrets.
func expectNoneOf(t *testing.T, what, text string, secrets ...string) {
	t.Helper()
	for _, secret := range secrets {
		if at := strings.Index(text, secret); at >= 0 {
			t.Errorf("%s holds %q: ...%s", what, secret, text[max(0, at-200):min(len(text), at+100)])
		}
	}
}

// everyText returns the texts of an error and of everything that it wraps, as
// somebody who logs the cause alone would see them.
func everyText(err error) string {
	var b strings.Builder
	var walk func(error)
	walk = func(err error) {
		if err == nil {
			return
		}
		fmt.Fprintf(&b, "%v\n%+v\n", err, err)
		switch e := err.(type) { //nolint:errorlint // It goes through the tree itself.
		case interface{ Unwrap() error }:
			walk(e.Unwrap())
		case interface{ Unwrap() []error }:
			for _, inner := range e.Unwrap() {
				walk(inner)
			}
		}
	}
	walk(err)
	return b.String()
}

// What is wrong with a connection string is told without the string, whose
// password may be the very thing that is wrong with it.
func TestWrongConnectionStringIsToldWithoutIt(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"postgres://app:hush@@host:5432/db", "postgres://app:hush#hush@host/db", "postgres://app:hush/hush@host/db",
		"postgres://app:hush?hush@host/db", "postgres://app:hush%hush@host/db", "postgres://app:hush hush@host/db",
		"postgres://app:hush@host:port/db", "postgres://app:hush@host:99999999/db", "postgres://app:[hush@host/db",
		"postgres://app:hush@host/db?sslmode=odd", "postgres://app:hush@host/db?connect_timeout=odd",
		"postgres://app:1@host/db?password=hush&port=x", "postgres://host/db?password=hush&sslmode=odd",
		"host=h user=app password=hush port=none", "host=h password=hush sslmode=perhaps", "host=h password='hush",
		"password=hush hush", "host=h password=hush target_session_attrs=odd", "host=h password = hush port=x",
		"http://app:hush@host/db", "app:hush@host/db", "\x00postgres://app:hush@host/db",
	} {
		for _, cfg := range []audit.Config{{SourceURL: url}, {SourceURL: "postgres://localhost/db", StoreURL: url}} {
			client, err := audit.Open(t.Context(), cfg)
			if err == nil {
				// It can be read, in some way or other. Then it cannot be used.
				client.Close()
				continue
			}
			var problem *audit.ConfigError
			if !errors.As(err, &problem) || !strings.HasSuffix(problem.Field, "URL") {
				t.Errorf("%q: the error is %v, want a *ConfigError of the URL", url, err)
			}
			expectNoneOf(t, fmt.Sprintf("the error for %q", url), everyText(err), "hush")
		}
	}
	var problem *audit.ConfigError
	if _, err := audit.Open(t.Context(), audit.Config{}); !errors.As(err, &problem) || problem.Field != "SourceURL" {
		t.Errorf("no connection string: the error is %v", err)
	}
}

// Everything that is wrong with a configuration is told at once.
func TestAllProblemsOfAConfigurationAreToldAtOnce(t *testing.T) {
	t.Parallel()
	_, err := audit.Open(t.Context(), audit.Config{
		Schema: strings.Repeat("s", 64), Slot: "Slot", Publication: "p\x00", Tables: []string{"a.b.c", ""},
		MaxContextBytes: -1, Retention: time.Minute, OnGap: 7,
	})
	for _, field := range []string{"SourceURL", "Schema", "Slot", "Publication", "Tables", "MaxContextBytes", "Retention", "OnGap"} {
		if err == nil || !strings.Contains(err.Error(), "audit: Config."+field+": ") {
			t.Errorf("the error does not name %s: %v", field, err)
		}
	}
}

// A server that is not there, a database that is not there, a password that is
// wrong: Start says so, and says no secret.
func TestStartWithoutAWayToTheServer(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{})
	db := server.NewDatabase(t)
	db.Exec(t, "CREATE ROLE locked LOGIN SUPERUSER PASSWORD 'right'")
	hba := filepath.Join(server.DataDir(), "pg_hba.conf")
	rules, err := os.ReadFile(hba)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hba, append([]byte("local all locked scram-sha-256\n"), rules...), 0o600); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "SELECT pg_reload_conf()")
	locked, err := url.Parse(db.URL())
	if err != nil {
		t.Fatal(err)
	}
	locked.User = url.UserPassword("locked", "hush")

	for name, test := range map[string]struct {
		url  string
		code string // SQLSTATE; empty if no server answers
	}{
		"nobody listens":   {"postgres://app:hush@127.0.0.1:1/db?connect_timeout=5", ""},
		"no such host":     {"postgres://app:hush@no-such-host.invalid/db?connect_timeout=5", ""},
		"no such socket":   {"host=/nonexistent user=app password=hush dbname=db", ""},
		"no such database": {server.URL("no_such_database"), "3D000"},
		"wrong password":   {locked.String(), "28P01"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := faulttest.NewLog(t)
			client, err := audit.Open(t.Context(), audit.Config{SourceURL: test.url, Logger: log.Logger()})
			if err != nil {
				t.Fatalf("open: %v", err)
			}
			t.Cleanup(client.Close)
			ctx, cancel := context.WithTimeout(t.Context(), faulttest.Patience)
			defer cancel()
			err = client.Start(ctx)
			var answer *pgconn.PgError
			var connect *pgconn.ConnectError
			switch {
			case test.code == "" && !errors.As(err, &connect):
				t.Errorf("Start returned %v, want a *pgconn.ConnectError", err)
			case test.code != "" && (!errors.As(err, &answer) || answer.Code != test.code):
				t.Errorf("Start returned %v, want SQLSTATE %s", err, test.code)
			}
			if ctx.Err() != nil {
				t.Error("Start waited until its context ended")
			}
			_, statusErr := client.Status(t.Context())
			syncErr := client.Sync(t.Context())
			if statusErr == nil || syncErr == nil {
				t.Errorf("Status returned %v, Sync %v", statusErr, syncErr)
			}
			expectNoneOf(t, "an error", everyText(errors.Join(err, statusErr, syncErr)), "hush")
			expectNoneOf(t, "the log", log.Text(), "hush")
		})
	}
}

// setupProblems returns what a *SetupError lists, one a line.
func setupProblems(t *testing.T, err error) string {
	t.Helper()
	var missing *capture.SetupError
	if !errors.As(err, &missing) {
		t.Fatalf("Start returned %v, want a *SetupError", err)
	}
	var lines []string
	for _, p := range missing.Problems {
		lines = append(lines, p.What)
	}
	return strings.Join(lines, "\n")
}

// asRole returns the connection string of another role, which may connect
// without a password.
func asRole(t *testing.T, db *audittest.Database, role string) string {
	t.Helper()
	u, err := url.Parse(db.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(role)
	return u.String()
}

// A server that knows nothing of logical replication, a role that may do
// nothing, no slot left: one error lists it all.
func TestEverythingThatIsMissingIsListedAtOnce(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{
		"wal_level": "replica", "max_replication_slots": "1",
	}})
	db := server.NewDatabase(t)
	db.Exec(t, gapTable)
	db.Exec(t, "CREATE ROLE app LOGIN")
	db.Exec(t, "SELECT pg_create_physical_replication_slot('somebody')")
	before := faulttest.Catalog(t, db.URL())
	client, err := audit.Open(t.Context(), audit.Config{SourceURL: asRole(t, db, "app"), Tables: []string{"public.*", "public.absent"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	err = client.Start(t.Context())
	problems := setupProblems(t, err)
	for _, want := range []string{
		"wal_level is replica", "may not use replication slots", "all 1 replication slots are in use",
		"may not create the publication", `"todo" is not owned by role app`, `"absent"`,
	} {
		if !strings.Contains(problems, want) {
			t.Errorf("the problems do not say %q:\n%s", want, problems)
		}
	}
	for _, want := range []string{"wal_level = logical", "max_replication_slots = ", "ALTER ROLE"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say what to do, %q:\n%v", want, err)
		}
	}
	if diff := cmp.Diff(before, faulttest.Catalog(t, db.URL())); diff != "" {
		t.Errorf("Start made something (-before +after):\n%s", diff)
	}
}

func TestNameOfASlotThatBelongsToSomethingElse(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{})
	for name, make := range map[string]func(t *testing.T, db *audittest.Database){
		"another plugin's": func(t *testing.T, db *audittest.Database) {
			t.Helper()
			db.Exec(t, "SELECT pg_create_logical_replication_slot($1, 'test_decoding')", slotOf(db))
		},
		"physical": func(t *testing.T, db *audittest.Database) {
			t.Helper()
			db.Exec(t, "SELECT pg_create_physical_replication_slot($1)", slotOf(db))
		},
		"another database's": func(t *testing.T, db *audittest.Database) {
			t.Helper()
			server.NewDatabase(t).Exec(t, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", slotOf(db))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := server.NewDatabase(t)
			db.Exec(t, gapTable)
			make(t, db)
			a := audittest.Open(t, db, audit.Config{})
			var foreign *capture.ForeignSlotError
			if err := a.Client.Start(t.Context()); !errors.As(err, &foreign) {
				t.Fatalf("Start returned %v, want a *ForeignSlotError", err)
			}
			if n := audittest.Value[int](t, db, "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1", slotOf(db)); n != 1 {
				t.Error("the slot is gone")
			}
			b := audittest.Open(t, db, audit.Config{Slot: "mine_" + db.Name()})
			mustStart(t, b)
			db.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
			b.Check(t)
		})
	}
}

func TestTableThatDoesNotExist(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, `CREATE TABLE users (id int PRIMARY KEY); CREATE SCHEMA billing`)
	for pattern, want := range map[string]string{
		"public.Users":     `did you mean "public"."users"?`,
		"users.":           "",
		"billing.invoices": `"billing"."invoices"`,
		"nowhere.users":    `"nowhere"."users"`,
	} {
		client, err := audit.Open(t.Context(), audit.Config{SourceURL: db.URL(), Tables: []string{pattern}})
		if want == "" {
			var bad *capture.PatternError
			if !errors.As(err, &bad) {
				t.Errorf("%s: Open returned %v, want a *PatternError", pattern, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.Close)
		if problems := setupProblems(t, client.Start(t.Context())); !strings.Contains(problems, want) {
			t.Errorf("%s: the problems do not say %q:\n%s", pattern, want, problems)
		}
	}
	// A pattern that nothing matches yet is not a mistake.
	a := audittest.Open(t, db, audit.Config{Tables: []string{"billing.*"}})
	mustStart(t, a)
	db.Exec(t, "CREATE TABLE billing.invoices (id int PRIMARY KEY)")
	if err := a.Client.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "INSERT INTO billing.invoices VALUES (7)")
	a.Sync(t)
	if diff := cmp.Diff([]string{"7"}, keysInHistory(t, db, "invoices")); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
}

// A database may have any name; the slot's is derived from it and may not.
func TestDatabaseWithAnOddName(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{})
	admin := server.NewDatabase(t)
	for i, name := range []string{`Odd "Name"`, "with.dot and space", "ünïcödé ☃", strings.Repeat("l", 63), `it's`, "UPPER", "a/b?c#d%e"} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			admin.Exec(t, `CREATE DATABASE "`+strings.ReplaceAll(name, `"`, `""`)+`" TEMPLATE template0`)
			config, err := pgconn.ParseConfig(admin.URL())
			if err != nil {
				t.Fatal(err)
			}
			quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(name)
			dsn := fmt.Sprintf("host='%s' port=%d user=%s dbname='%s'", config.Host, config.Port, config.User, quoted)
			conn := faulttest.Connect(t, dsn)
			if _, err := conn.Exec(t.Context(), gapTable); err != nil {
				t.Fatal(err)
			}
			client, err := audit.Open(t.Context(), audit.Config{SourceURL: dsn})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(client.Close)
			if err := client.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Exec(t.Context(), "INSERT INTO todo VALUES (1, 'x')"); err != nil {
				t.Fatal(err)
			}
			if err := client.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			var database string
			if err := conn.QueryRow(t.Context(), "SELECT database FROM audit.changes").Scan(&database); err != nil || database != name {
				t.Errorf("the change is from database %q, error %v", database, err)
			}
			if err := client.Uninstall(t.Context()); err == nil {
				t.Error("Uninstall took no notice of capture running")
			}
			if err := client.Stop(t.Context()); err != nil {
				t.Error(err)
			}
			if err := client.Uninstall(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// No server so old can be had here, so one is made to say that it is.
func TestServerThatIsTooOld(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	proxy := faulttest.NewProxy(t, db.URL())
	real := audittest.Value[int32](t, db, "SELECT current_setting('server_version_num')::int")
	proxy.Rewrite(func(answer []byte) {
		was := binary.BigEndian.AppendUint32([]byte{0, 0, 0, 4}, uint32(real)) //nolint:gosec // It is a version.
		is := binary.BigEndian.AppendUint32([]byte{0, 0, 0, 4}, 130014)
		for at := bytes.Index(answer, was); at >= 0; at = bytes.Index(answer, was) {
			copy(answer[at:], is)
		}
	})
	client, err := audit.Open(t.Context(), audit.Config{SourceURL: proxy.URL()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	if problems := setupProblems(t, client.Start(t.Context())); !strings.Contains(problems, "PostgreSQL 13; 14 is the first") {
		t.Errorf("the problems are:\n%s", problems)
	}
}

// awaitState waits until capture is in a state, and returns the status.
func awaitState(t *testing.T, a *audittest.Audited, state audit.State) audit.Status {
	t.Helper()
	var s audit.Status
	faulttest.Poll(t, faulttest.Patience, fmt.Sprintf("capture is %s", state), func() error {
		var err error
		if s, err = a.Client.Status(t.Context()); s.State != state {
			return fmt.Errorf("it is %s: %w", s.State, errors.Join(err, s.Err))
		}
		return nil
	})
	return s
}

// refuse makes the store refuse the changes that a condition on NEW names, with
// an error of the given SQLSTATE, whose text quotes the row as errors do.
func refuse(t *testing.T, db *audittest.Database, code, condition string) (relent func()) {
	t.Helper()
	db.Exec(t, fmt.Sprintf(`
		CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF %s THEN
				RAISE EXCEPTION 'refused' USING ERRCODE = '%s', DETAIL = 'Failing row contains ' || NEW.after::text, HINT = 'none';
			END IF;
			RETURN NEW;
		END $$;
		CREATE TRIGGER refuse BEFORE INSERT ON audit.changes FOR EACH ROW EXECUTE FUNCTION public.refuse()`, condition, code))
	return func() { // to drop the trigger would take locks that capture waits for, and it for them
		db.Exec(t, "CREATE OR REPLACE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'")
	}
}
