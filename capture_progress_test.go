package audit_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// A database in an encoding of one byte can hold bytes that UTF-8 has no character
// for. They cost their value its text, and nobody else anything.
func TestProgress_ByteWithoutEquivalent(t *testing.T) {
	t.Parallel()
	db := databaseIn(t, "WIN1252")
	db.Exec(t, `CREATE TABLE "tété" (id text PRIMARY KEY, "é" text)`)
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	t.Cleanup(func() { a.Stop(t) })
	for _, sql := range []string{
		`INSERT INTO "tété" VALUES ('1', 'é €'), ('2', convert_from('\xc281', 'WIN1252')), (convert_from('\x81', 'WIN1252'), 'key')`,
		`SELECT pg_logical_emit_message(true, 'audit', '{"requestId": "é"}'); UPDATE "tété" SET "é" = 'x' WHERE id <= '2'`,
		`SELECT pg_logical_emit_message(true, 'audit', '{"userId": "\u0436", "requestId": "r"}'); DELETE FROM "tété" WHERE id = '1'`,
	} {
		db.Exec(t, sql)
	}
	const raw = `column "é" is not valid UTF-8 and is kept as the hexadecimal digits of its bytes`
	tell(t, a, `"table", operation, primary_key, before, after, context, defect`,
		`tété CREATE 1 {} {"é": "é €", "id": "1"}`,
		`tété CREATE 2 {} {"é": "\\xc281", "id": "2"} after: `+raw,
		`tété CREATE \x81 {} {"é": "key", "id": "\\x81"} after: `+strings.Replace(raw, "é", "id", 1),
		`tété UPDATE 1 {"é": "é €", "id": "1"} {"é": "x", "id": "1"} {"requestId": "é"}`,
		`tété UPDATE 2 {"é": "\\xc281", "id": "2"} {"é": "x", "id": "2"} {"requestId": "é"} before: `+raw,
		`tété DELETE 1 {"é": "x", "id": "1"} {} {"userId": "?", "requestId": "r"} context: 1 characters that the store's encoding lacks are question marks`)
}

// Every encoding of one byte has its characters from the server itself.
func TestProgress_EncodingsOfOneByte(t *testing.T) {
	t.Parallel()
	for encoding, text := range map[string]string{"LATIN1": "é", "LATIN9": "€", "KOI8R": "ж", "WIN1251": "ж", "ISO_8859_7": "λ", "EUC_JP": "日本"} {
		t.Run(encoding, func(t *testing.T) {
			t.Parallel()
			db := databaseIn(t, encoding)
			db.Exec(t, "CREATE TABLE todo (id text PRIMARY KEY)")
			a := audittest.Open(t, db, audit.Config{})
			mustStart(t, a)
			t.Cleanup(func() { a.Stop(t) })
			db.Exec(t, "INSERT INTO todo VALUES ($1)", text)
			tell(t, a, "primary_key, after ->> 'id', defect", text+" "+text)
		})
	}
}

// An UPDATE of a row of 560 MB under REPLICA IDENTITY FULL is more than a message can
// be. It is a gap, and the transactions before and behind it are in history.
func TestProgress_RowTooLargeToSend(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("needs gigabytes of memory")
	}
	server := audittest.NewServer(t, audittest.ServerOptions{})
	db := server.NewDatabase(t)
	db.Exec(t, "CREATE TABLE todo (id int PRIMARY KEY, body text, note text); ALTER TABLE todo ALTER body SET STORAGE EXTERNAL")
	db.Exec(t, "INSERT INTO todo VALUES (1, repeat('x', 560000000), 'n')")
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	t.Cleanup(func() { a.Stop(t) })
	db.Exec(t, "INSERT INTO todo VALUES (2, 'x', 'before')")
	db.Exec(t, "BEGIN; INSERT INTO todo VALUES (3, 'x', 'with it'); UPDATE todo SET note = 'n2', body = body || 'y' WHERE id = 1; COMMIT")
	db.Exec(t, "INSERT INTO todo VALUES (4, 'x', 'behind')")
	faulttest.Poll(t, 4*faulttest.Patience, "what is behind is in history", func() error { // each attempt takes the server long
		if audittest.Value[int](t, db, "SELECT count(*) FROM audit.changes WHERE primary_key = '4'") == 0 {
			return errors.New("it is not")
		}
		return nil
	})
	if diff := cmp.Diff([]string{"2", "4"}, keysInHistory(t, db, "todo")); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
	gap := expectGap(t, a, "cannot send the transaction at")
	around := audittest.Value[bool](t, db, `
		SELECT (SELECT position FROM audit.changes WHERE primary_key = '2') < $1::text::pg_lsn AND (SELECT position FROM audit.changes WHERE primary_key = '4') > $2::text::pg_lsn`,
		gap.From.String(), gap.To.String())
	if !around {
		t.Errorf("the gap from %s to %s is more than the one transaction", gap.From, gap.To)
	}
}

// What the store refuses at any level of care costs the one transaction.
func TestProgress_StoreRefusesForGood(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	t.Cleanup(func() { a.Stop(t) })
	db.Exec(t, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no' USING ERRCODE = '22023'; END $$;
		CREATE TRIGGER refuse BEFORE INSERT ON audit.changes FOR EACH ROW WHEN (NEW.primary_key = '2') EXECUTE FUNCTION refuse()`)
	for id := 1; id <= 3; id++ {
		db.Exec(t, "INSERT INTO todo VALUES ($1, 'x')", id)
	}
	waitStored(t, db, 3)
	if diff := cmp.Diff([]string{"1", "3"}, keysInHistory(t, db, "todo")); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
	expectGap(t, a, "the store refused the transaction")
}

// Who wants to look first gets to.
func TestProgress_StopAtGap(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{OnGap: audit.StopAtGap})
	mustStart(t, a)
	db.Exec(t, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no' USING ERRCODE = '22023'; END $$;
		CREATE TRIGGER refuse BEFORE INSERT ON audit.changes FOR EACH ROW EXECUTE FUNCTION refuse()`)
	db.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	var gap *audit.GapError
	if err := a.Client.Sync(t.Context()); !errors.As(err, &gap) {
		t.Errorf("Sync returned %v, want a *GapError", err)
	}
	if s := statusOf(t, a); len(s.Gaps) > 0 {
		t.Errorf("a gap was passed: %v", s.Gaps)
	}
}

// What cannot work is refused at once.
func TestStart_EncodingsThatCannotWork(t *testing.T) {
	t.Parallel()
	var config *audit.ConfigError
	for _, name := range []string{"prod\x00", "prod\xff"} {
		if _, err := audit.Open(t.Context(), audit.Config{SourceURL: "postgres://localhost/x", Environment: name}); !errors.As(err, &config) || config.Field != "Environment" {
			t.Errorf("Environment %q: %v", name, err)
		}
	}
	start := func(source, store, environment string) error {
		t.Helper()
		from, to := databaseIn(t, source), databaseIn(t, store)
		from.Exec(t, gapTable)
		client, err := audit.Open(t.Context(), audit.Config{SourceURL: from.URL(), StoreURL: to.URL(), Environment: environment})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.Close)
		if err := client.Start(t.Context()); err != nil {
			return err
		}
		err = client.Stop(t.Context())
		waitInactive(t, from)
		from.Exec(t, "SELECT pg_drop_replication_slot($1)", slotOf(from))
		return err
	}
	for _, c := range []struct{ source, store, environment, want string }{
		{"UTF8", "LATIN1", "", "encoding, LATIN1, lacks"},
		{"SQL_ASCII", "LATIN1", "", "encoding, LATIN1, lacks"},
		{"LATIN1", "WIN1251", "", "encoding, WIN1251, lacks"},
		{"LATIN1", "LATIN1", "ж", "Config.Environment has a character"},
		{"LATIN1", "LATIN1", "é", ""},
		{"WIN1251", "UTF8", "ж", ""},
		{"UTF8", "SQL_ASCII", "ж", ""},
	} {
		err := start(c.source, c.store, c.environment)
		var setup *audit.SetupError
		if c.want == "" && err != nil || c.want != "" && (!errors.As(err, &setup) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("source %s, store %s, environment %q: %v", c.source, c.store, c.environment, err)
		}
	}
}
