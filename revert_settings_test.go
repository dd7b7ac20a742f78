package audit_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
)

// hostileSession sets all that decides how a value is printed or read to something
// else than what it is by default.
const hostileSession = `
	SET datestyle = 'SQL, DMY'; SET intervalstyle = 'sql_standard'; SET timezone = 'Asia/Kathmandu'; SET extra_float_digits = '-15';
	SET bytea_output = 'escape'; SET xmloption = 'document'; SET search_path = kinds, public; SET standard_conforming_strings = off;
	SET backslash_quote = off`

// applyIn applies a revert in a transaction on a session of the test's, and makes
// sure that the session has its settings afterwards.
func applyIn(t *testing.T, conn *pgx.Conn, r audit.Reversal) *audit.Result {
	t.Helper()
	var result *audit.Result
	err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) (err error) {
		result, err = r.ApplyTx(t.Context(), tx)
		return err
	})
	if err != nil {
		t.Fatal(errors.Join(err, errors.Unwrap(err)))
	}
	return result
}

// settingsOf is every setting of a transaction, and what it is.
func settingsOf(t *testing.T, tx pgx.Tx) map[string]string {
	t.Helper()
	rows, err := tx.Query(t.Context(), "SELECT name, setting FROM pg_catalog.pg_settings")
	if err != nil {
		t.Fatal(err)
	}
	settings := make(map[string]string)
	var name, value string
	if _, err := pgx.ForEachRow(rows, []any{&name, &value}, func() error { settings[name] = value; return nil }); err != nil {
		t.Fatal(err)
	}
	return settings
}

// Whatever comes of ApplyTx, the caller's settings are the caller's afterwards.
func TestApplyTxGivesTheSettingsBack(t *testing.T) {
	t.Parallel()
	const mine = `SET LOCAL datestyle = 'SQL, DMY'; SET LOCAL intervalstyle = 'iso_8601'; SET timezone = 'Asia/Tokyo'; SET LOCAL extra_float_digits = -3; SET bytea_output = 'escape';
		SET LOCAL search_path = app, public, "$user"; SET xmloption = 'document'; SET LOCAL quote_all_identifiers = on; SET LOCAL array_nulls = off; SET LOCAL lock_timeout = '1min'; SET LOCAL row_security = off`
	for name, h := range map[string]struct {
		settings string
		revert   func(*undo) audit.Reversal
		fails    bool
	}{
		"Applied":        {mine, func(u *undo) audit.Reversal { return u.Client.RevertRequest("first") }, false},
		"InConflict":     {mine, func(u *undo) audit.Reversal { return u.Client.RevertRequest("second") }, true},
		"Stale":          {mine, func(u *undo) audit.Reversal { return u.Client.RevertRequest("first").IfHash("none") }, true},
		"NothingThere":   {mine, func(u *undo) audit.Reversal { return u.Client.RevertRequest("none") }, true},
		"NoTriggers":     {mine, func(u *undo) audit.Reversal { return u.Client.RevertRequest("first").WithoutTriggers() }, false},
		"TriggersOff":    {mine + "; SET LOCAL session_replication_role = replica", func(u *undo) audit.Reversal { return u.Client.RevertRequest("first") }, false},
		"TriggersOffToo": {mine + "; SET LOCAL session_replication_role = replica", func(u *undo) audit.Reversal { return u.Client.RevertRequest("first").WithoutTriggers() }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, shop)
			u.request(t, "first", "UPDATE customer SET city = 'Bonn' WHERE id = 1", "DELETE FROM orders WHERE id = 12")
			u.request(t, "second", "UPDATE customer SET name = 'X' WHERE id = 2")
			u.request(t, "third", "UPDATE customer SET name = 'Y' WHERE id = 2")
			err := pgx.BeginFunc(t.Context(), u.Connect(t), func(tx pgx.Tx) error {
				if _, err := tx.Conn().PgConn().Exec(t.Context(), h.settings).ReadAll(); err != nil {
					t.Fatal(err)
				}
				before := settingsOf(t, tx)
				if _, err := h.revert(u).ApplyTx(t.Context(), tx); (err != nil) != h.fails {
					t.Errorf("the revert gives %v", err)
				}
				if diff := cmp.Diff(before, settingsOf(t, tx)); diff != "" {
					t.Errorf("settings (-before +after):\n%s", diff)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Settings of the caller's that decide how a text is printed or read have no
// influence on what is compared and restored.
func TestApplyTxInAHostileSession(t *testing.T) {
	t.Parallel()
	for name, setting := range map[string]string{
		"ArrayNulls": "array_nulls = off", "ClientEncoding": "client_encoding = 'LATIN1'", "XMLOption": "xmloption = 'document'",
		"QuotedIdentifiers": "quote_all_identifiers = on", "SearchPath": `search_path = odd, public`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, `CREATE SCHEMA odd; CREATE TABLE odd.kind (id int); CREATE TABLE a (id text PRIMARY KEY, v text[], x xml, r regclass, o regtype, n text);
				INSERT INTO a VALUES ('ä', '{a,NULL,"NULL"}', 'text only <b/>', 'odd.kind', 'int4', 'é€😀'), ('b', '{NULL}', '<a/>', 'pg_class', 'text', 'ß'), ('é', NULL, NULL, NULL, NULL, NULL)`)
			before := u.state(t)
			u.request(t, "first", "UPDATE a SET v = '{NULL,x}', x = 'é', r = 'a', o = 'a', n = 'ü' WHERE id = 'ä'", "DELETE FROM a WHERE id = 'b'", "UPDATE a SET n = '' WHERE id = 'é'")
			conn := u.Connect(t)
			if _, err := conn.Exec(t.Context(), "SET "+setting); err != nil {
				t.Fatal(err)
			}
			applyIn(t, conn, u.Client.RevertRequest("first"))
			u.want(t, "after the revert", before)
		})
	}
}
