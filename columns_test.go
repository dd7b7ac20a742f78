package audit_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/faulttest"
)

const accountSQL = `CREATE TABLE account (
	id int PRIMARY KEY, name text, user_password text NOT NULL DEFAULT 'unset', email text, iban text, balance int, max_tokens int DEFAULT 5)`

var accountRules = []audit.ColumnRule{
	{Columns: "public.account.email", Policy: audit.DigestColumn},
	{Columns: "*.*.iban", Policy: audit.MaskColumn},
	{Columns: "public.account.balance", Policy: audit.ExcludeColumn},
}

var digestKey = []byte("a key of sixteen")

// newAccounts captures accounts, and returns the moments behind each of the statements.
func newAccounts(t *testing.T, cfg audit.Config, statements ...string) (a *audittest.Audited, moments []time.Time) {
	t.Helper()
	cfg.Columns, cfg.DigestKey = append(cfg.Columns, accountRules...), digestKey
	db := audittest.NewDatabase(t)
	db.Exec(t, accountSQL)
	a = audittest.Open(t, db, cfg)
	if err := a.Client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Stop(t) })
	for _, sql := range statements {
		db.Exec(t, sql)
		a.Sync(t)
		moments = append(moments, audittest.Value[time.Time](t, db, "SELECT max(committed_at) FROM audit.changes"))
	}
	return a, moments
}

func TestLikelySecret(t *testing.T) {
	t.Parallel()
	for column, want := range map[string]bool{"password": true, "api_token": true, "apiKey": true, "task": false, "password_changed_at": false} {
		if audit.LikelySecret(column) != want {
			t.Errorf("%s: %t, want %t", column, !want, want)
		}
	}
}

func TestColumns_WithheldInImages(t *testing.T) {
	t.Parallel()
	a, _ := newAccounts(
		t, audit.Config{},
		"INSERT INTO account VALUES (1, 'ann', 'hunter2', 'ann@example.com', 'DE89370400440532013000', 100)",
		"UPDATE account SET user_password = 'hunter3', email = 'other@example.com', balance = NULL",
		"UPDATE account SET email = 'ann@example.com', iban = NULL",
		"DELETE FROM account",
	)
	changes, err := a.Client.Changes().OldestFirst().List(t.Context())
	if err != nil || len(changes) != 4 {
		t.Fatalf("%d changes: %v", len(changes), err)
	}
	const ann = `"email": "digest:`
	for i, c := range changes {
		for _, im := range []audit.Image{c.Before, c.After} {
			text := im.String()
			if text != "{}" && !(strings.Contains(text, `"user_password": "excluded"`) && strings.Contains(text, `"balance": "excluded"`) && strings.Contains(text, ann)) {
				t.Errorf("change %d: %s", i, text)
			}
		}
		want := map[string]audit.ColumnPolicy{"user_password": audit.ExcludeColumn, "balance": audit.ExcludeColumn, "email": audit.DigestColumn, "iban": audit.MaskColumn}
		if diff := cmp.Diff(want, c.Withheld); diff != "" {
			t.Errorf("change %d: withheld %s", i, diff)
		}
	}
	if iban := audittest.Value[string](t, a.Database, "SELECT after ->> 'iban' FROM audit.changes ORDER BY position LIMIT 1"); iban != "***3000" {
		t.Errorf("iban %q", iban)
	}
	columns := func(c audit.Change) (names []string) {
		for _, d := range c.Diff() {
			names = append(names, d.Column)
		}
		return names
	}
	if got := columns(changes[1]); !slices.Equal(got, []string{"email"}) {
		t.Errorf("what changed is %v, want only the digest", got)
	}
	if got := columns(changes[2]); !slices.Equal(got, []string{"email", "iban"}) {
		t.Errorf("what changed is %v", got)
	}
	// The same value has the same digest.
	var first, again map[string]any
	if json.Unmarshal(changes[0].After, &first) != nil || json.Unmarshal(changes[2].After, &again) != nil || first["email"] != again["email"] {
		t.Errorf("digests %v and %v", first["email"], again["email"])
	}
	type account struct {
		ID           int
		UserPassword string
		Balance      int
		Email        string
		Name         string
	}
	got := account{UserPassword: "untouched", Balance: 7, Email: "untouched"}
	if err := changes[0].DecodeAfter(&got); err != nil || got != (account{1, "untouched", 7, "untouched", "ann"}) {
		t.Errorf("%+v %v", got, err)
	}
	text, err := json.Marshal(changes[0])
	var back audit.Change
	if err == nil {
		err = json.Unmarshal(text, &back)
	}
	if diff := cmp.Diff(changes[0].Withheld, back.Withheld); err != nil || diff != "" {
		t.Errorf("through JSON: %v %s", err, diff)
	}
}

// The past has the columns that history tells, and says which it withholds.
func TestColumns_WithheldInThePast(t *testing.T) {
	t.Parallel()
	a, at := newAccounts(
		t, audit.Config{},
		"INSERT INTO account VALUES (1, 'ann', 'hunter2', 'ann@example.com', 'DE89370400440532013000', 100), (2, 'bob', 'secret2', NULL, NULL, 5)",
		"UPDATE account SET name = 'anna', user_password = 'hunter3' WHERE id = 1",
		"DELETE FROM account WHERE id = 2",
	)
	want := []map[string]any{{"id": int32(1), "name": "ann", "max_tokens": int32(5)}, {"id": int32(2), "name": "bob", "max_tokens": int32(5)}}
	var rows []map[string]any
	if err := a.Client.AsOf(at[0]).Table("account").OrderBy("id").List(t.Context(), &rows); err != nil || !cmp.Equal(want, rows) {
		t.Errorf("%v %s", err, cmp.Diff(want, rows))
	}
	var columns *audit.ColumnsError
	var row struct{ UserPassword string }
	err := a.Client.AsOf(at[0]).Columns("user_password").Table("account").Load(t.Context(), &row, 1)
	if !errors.As(err, &columns) || !slices.Contains(columns.Withheld, "user_password") {
		t.Errorf("a withheld column is %v", err)
	}
	var one struct{ Name string }
	if err := a.Client.AsOf(at[0]).Columns("name").Table("account").Load(t.Context(), &one, 1); err != nil || one.Name != "ann" {
		t.Errorf("%+v %v", one, err)
	}
	if versions, err := a.Client.History("account", 1).List(t.Context()); err != nil || len(versions) < 2 {
		t.Errorf("%d versions, %v", len(versions), err)
	}
	if _, err := a.Client.Blame(t.Context(), "account", 1); err != nil {
		t.Error(err)
	}
	for range a.Client.DiffBetween(a.Client.AsOf(at[0]), a.Client.Now()).All(t.Context()) {
	}
}

// What audittest checks of a history goes by what it tells.
func TestColumns_CheckedByAudittest(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{Columns: accountRules, DigestKey: digestKey}, accountSQL, "CREATE TABLE keyless (api_key text, n int, balance int)")
	a.Exec(t, "INSERT INTO account VALUES (1, 'ann', 'hunter2', 'a', 'b', 100), (2, 'bob', 'x', NULL, NULL, 5); INSERT INTO keyless VALUES ('k', 1, 2), (NULL, 1, 2)")
	a.Exec(t, "UPDATE account SET balance = 7, name = 'c' WHERE id = 1; DELETE FROM account WHERE id = 2; UPDATE keyless SET n = 2 WHERE api_key = 'k'")
}

// A revert leaves withheld columns alone, and puts nothing in them that stands for a value.
func TestColumns_RevertLeavesThemAlone(t *testing.T) {
	t.Parallel()
	a, at := newAccounts(
		t, audit.Config{},
		"INSERT INTO account VALUES (1, 'ann', 'hunter2', 'ann@example.com', 'DE89370400440532013000', 100), (2, 'bob', 'secret2', 'b@example.com', NULL, 5), (3, 'cem', 's', 'c', NULL, 1)",
		"UPDATE account SET name = 'anna', user_password = 'hunter3', email = 'new@example.com', iban = NULL, balance = 3 WHERE id = 1; DELETE FROM account WHERE id = 2; INSERT INTO account VALUES (4, 'dan', 'd', 'd', 'd', 4)",
	)
	changes, err := a.Client.Changes().Since(at[1]).List(t.Context())
	if err != nil || len(changes) != 3 {
		t.Fatalf("%d changes %v", len(changes), err)
	}
	result, err := a.Client.RevertTransaction(changes[0].TransactionID).Apply(t.Context())
	if err != nil || result.Updated != 1 || result.Inserted != 1 || result.Deleted != 1 {
		t.Fatalf("%+v %v", result, err)
	}
	got := audittest.Value[string](t, a.Database, "SELECT string_agg(account::text, ' ' ORDER BY id) FROM account")
	if want := "(1,ann,hunter3,new@example.com,,3,5) (2,bob,unset,,,,5) (3,cem,s,c,,1,5)"; got != want {
		t.Errorf("the rows are\n%s, want\n%s", got, want)
	}
}

// The policy is that of the moment of the change: one that is lifted or laid down later
// does not tell of what was stored before, and a renamed column keeps it.
func TestColumns_PolicyByPosition(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, "CREATE TABLE note (id int PRIMARY KEY, body text, title text)")
	var last *audittest.Audited
	defer func() { last.Stop(t) }()
	capture := func(cfg audit.Config, sql ...string) (client *audit.Client) {
		a := audittest.Open(t, db, cfg)
		if last != nil {
			last.Stop(t)
		}
		if err := a.Client.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		last = a
		for _, s := range sql {
			db.Exec(t, s)
		}
		a.Sync(t)
		return a.Client
	}
	rule := audit.Config{Columns: []audit.ColumnRule{{Columns: "public.note.body", Policy: audit.ExcludeColumn}}}
	capture(audit.Config{}, "INSERT INTO note VALUES (1, 'open one', 'a')")
	capture(rule, "UPDATE note SET body = 'hidden two'")
	capture(rule, "ALTER TABLE note RENAME body TO content", "UPDATE note SET content = 'hidden three'")
	capture(rule, "UPDATE note SET content = 'hidden four', title = 'b'")
	client := capture(audit.Config{}, "UPDATE note SET content = 'open five'")

	changes, err := client.Changes().OldestFirst().List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var withheld []string
	for _, c := range changes {
		withheld = append(withheld, fmt.Sprint(c.Withheld))
	}
	want := []string{"map[]", "map[body:exclude]", "map[content:exclude]", "map[content:exclude]", "map[]"}
	if diff := cmp.Diff(want, withheld); diff != "" {
		t.Error(diff)
	}
	for _, hidden := range []string{"two", "three", "four"} {
		// What is lifted shows the value of the row before it, which is stored from there on.
		if n := audittest.Value[int](t, db, "SELECT count(*)::int FROM audit.changes WHERE after::text LIKE '%hidden "+hidden+"%'"); n != 0 {
			t.Errorf("%q is stored %d times", hidden, n)
		}
	}
	// The moment of "two" withholds; now does not.
	var rows []map[string]any
	if err := client.AtPosition(changes[1].Position).Table("note").List(t.Context(), &rows); err != nil || len(rows) != 1 || rows[0]["body"] != nil || rows[0]["title"] != "a" {
		t.Errorf("%v %v", rows, err)
	}
	rows = nil
	if err := client.Now().Table("note").List(t.Context(), &rows); err != nil || len(rows) != 1 || rows[0]["content"] != "open five" {
		t.Errorf("%v %v", rows, err)
	}
}

// Start says what it withholds, and refuses keys that it would have to.
func TestColumns_Start(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, `CREATE TABLE session (session_token text PRIMARY KEY, "user" int, api_secret text)`)
	var refused *audit.SecretKeyError
	start := func(cfg audit.Config) error {
		a := audittest.Open(t, db, cfg)
		err := a.Client.Start(t.Context())
		a.Stop(t)
		return err
	}
	if err := start(audit.Config{}); !errors.As(err, &refused) || !slices.Equal(refused.Columns, []string{"public.session.session_token"}) {
		t.Errorf("Start says %v", err)
	}
	if err := start(audit.Config{Tables: []string{"*.*", "!public.session"}}); err != nil {
		t.Error(err)
	}
	log := faulttest.NewLog(t)
	if err := start(audit.Config{Columns: []audit.ColumnRule{{Columns: "*.session.session_token", Policy: audit.KeepColumn}}, Logger: log.Logger()}); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.Text(), "public.session.api_secret") || strings.Contains(log.Text(), "session.session_token") {
		t.Errorf("the log says\n%s", log.Text())
	}
}

func TestColumns_WrongRules(t *testing.T) {
	t.Parallel()
	for rule, want := range map[audit.ColumnRule]string{
		{Columns: "email", Policy: audit.ExcludeColumn}:             "three parts; quote",
		{Columns: "public.users.email", Policy: "hash"}:             "keep, exclude, digest, mask",
		{Columns: "public.users.email", Policy: audit.DigestColumn}: "at least 16",
	} {
		_, err := audit.Open(t.Context(), audit.Config{SourceURL: "postgres://localhost/x", Columns: []audit.ColumnRule{rule}})
		var problem *audit.ConfigError
		if !errors.As(err, &problem) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", rule, err)
		}
	}
	if _, err := capture.ParseColumnPattern(`"odd.schema"."a b".*_key`); err != nil {
		t.Error(err)
	}
}
