package audit_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// attack is a way to alter, hide or remove what is stored, for somebody who has the
// password of the role that writes the history.
type attack struct {
	name string
	// sql is run in one transaction. {p} stands for the stored change's position, {t} for
	// its commit time, {part} for its partition, {owner} for the owner of the store.
	sql string
	// control is what shows that the attack is one: as a superuser, sql succeeds and what
	// is stored differs. It is sql where it is empty, and none where it is "-", since
	// the function refuses that to everybody.
	control string
	// code is how it fails, 42501 where it is empty.
	code string
}

var rightsAttacks = []attack{
	// The row itself.
	{name: "update", sql: `UPDATE audit.changes SET after = '{"task": "forged"}'`},
	{name: "update of the context", sql: `UPDATE audit.changes SET context = '{"userId": "somebody else"}'`},
	{name: "update of the partition", sql: `UPDATE {part} SET after = '{}'`},
	{name: "update from", sql: `UPDATE audit.changes c SET after = '{}' FROM audit.checkpoints p WHERE p.database = c.database`},
	{name: "update in a CTE", sql: `WITH w AS (UPDATE audit.changes SET after = '{}' RETURNING 1) SELECT count(*) FROM w`},
	{name: "delete", sql: `DELETE FROM audit.changes`},
	{name: "delete from the partition", sql: `DELETE FROM {part}`},
	{name: "truncate", sql: `TRUNCATE audit.changes`},
	{name: "truncate the partition", sql: `TRUNCATE {part}`},
	{name: "on conflict do update", sql: `INSERT INTO audit.changes (position, sequence, committed_at, transaction_id, database, schema, "table", operation, before, after, queued_at)
		SELECT position, sequence, committed_at, transaction_id, database, schema, "table", operation, before, '{}', queued_at FROM audit.changes
		ON CONFLICT (position, sequence, database, committed_at) DO UPDATE SET after = '{}'`},
	{name: "copy into the partition", sql: `INSERT INTO {part} (position, sequence, committed_at, transaction_id, database, schema, "table", operation, before, after, queued_at)
		SELECT position, sequence + 1000, committed_at, transaction_id, database, schema, "table", operation, before, '{}', queued_at FROM audit.changes`},
	{name: "insert with a time of its own", sql: `INSERT INTO audit.changes (position, sequence, committed_at, transaction_id, database, schema, "table", operation, before, after, queued_at, created_at)
		SELECT position, sequence + 1000, committed_at, transaction_id, database, schema, "table", operation, before, '{}', queued_at, created_at FROM audit.changes`},
	{name: "select for update", sql: `SELECT FROM audit.changes FOR UPDATE`, control: "-"},
	{name: "lock", sql: `LOCK TABLE audit.changes IN ACCESS EXCLUSIVE MODE`, control: "-"},
	// The tables.
	{name: "drop", sql: `DROP TABLE audit.changes CASCADE`},
	{name: "drop the partition", sql: `DROP TABLE {part}`},
	{name: "drop the schema", sql: `DROP SCHEMA audit CASCADE`},
	{name: "drop a column", sql: `ALTER TABLE audit.changes DROP COLUMN context CASCADE`},
	{name: "change a type", sql: `ALTER TABLE audit.changes ALTER COLUMN after TYPE jsonb USING '{}'`},
	{name: "rename", sql: `ALTER TABLE audit.changes RENAME TO gone`},
	{name: "set schema", sql: `ALTER TABLE audit.changes SET SCHEMA public`},
	{name: "owner", sql: `ALTER TABLE audit.changes OWNER TO {writer}`, control: `ALTER TABLE audit.changes OWNER TO {writer}; UPDATE audit.changes SET after = '{}'`},
	{name: "detach", sql: `ALTER TABLE audit.changes DETACH PARTITION {part}`},
	{name: "attach", sql: `CREATE TABLE {mine}.later (LIKE audit.changes INCLUDING ALL); ALTER TABLE audit.changes ATTACH PARTITION {mine}.later FOR VALUES FROM ('2090-01-01') TO ('2091-01-01')`, control: "-"},
	{name: "inherit", sql: `CREATE TABLE {mine}.heir () INHERITS (audit.gaps)`, control: "-"},
	{name: "partition of", sql: `CREATE TABLE {mine}.part PARTITION OF audit.changes FOR VALUES FROM ('2090-01-01') TO ('2091-01-01')`, control: "-"},
	{name: "disable triggers", sql: `ALTER TABLE audit.keyframe_rows DISABLE TRIGGER ALL`, control: "-"},
	{name: "drop the trigger", sql: `DROP TRIGGER keyframe_open ON audit.keyframe_rows`, control: "-"},
	{name: "drop the key", sql: `ALTER TABLE audit.changes DROP CONSTRAINT changes_pkey`, control: "-"},
	{name: "create a trigger", sql: `CREATE FUNCTION {mine}.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE TRIGGER mine BEFORE INSERT ON audit.changes FOR EACH ROW EXECUTE FUNCTION {mine}.f()`, control: "-"},
	{name: "create a rule", sql: `CREATE RULE mine AS ON INSERT TO audit.gaps DO INSTEAD NOTHING`, control: "-"},
	{name: "create a policy", sql: `ALTER TABLE audit.changes ENABLE ROW LEVEL SECURITY`, control: "-"},
	{name: "create an index", sql: `CREATE INDEX ON {part} (({mine}.g(after)))`, control: "-"},
	{name: "foreign key", sql: `CREATE TABLE {mine}.child (id bigint REFERENCES audit.keyframes ON DELETE CASCADE)`, control: "-"},
	{name: "replica identity", sql: `ALTER TABLE audit.gaps REPLICA IDENTITY NOTHING`, control: "-"},
	{name: "statistics", sql: `CREATE STATISTICS {mine}.s ON position, sequence FROM audit.changes`, control: "-"},
	// Its functions, and roles.
	{name: "replace a function", sql: `CREATE OR REPLACE FUNCTION audit.sweep_barriers() RETURNS void LANGUAGE sql SECURITY DEFINER AS 'DELETE FROM audit.changes'`, control: "-"},
	{name: "alter a function", sql: `ALTER FUNCTION audit.sweep_barriers() SET search_path = {mine}`, control: "-"},
	{name: "create a function", sql: `CREATE FUNCTION audit.f() RETURNS int LANGUAGE sql AS 'SELECT 1'`, control: "-"},
	{name: "create an operator", sql: `CREATE OPERATOR audit.<= (LEFTARG = pg_lsn, RIGHTARG = pg_lsn, FUNCTION = pg_lsn_ge)`, control: "-"},
	{name: "create a table", sql: `CREATE TABLE audit.pg_class (oid oid)`, control: "-"},
	{name: "set role", sql: `SET ROLE {owner}; UPDATE audit.changes SET after = '{}'`},
	{name: "set session authorization", sql: `SET SESSION AUTHORIZATION {owner}`, control: `SET LOCAL SESSION AUTHORIZATION {owner}; UPDATE audit.changes SET after = '{}'`},
	{name: "grant", sql: `GRANT UPDATE ON audit.changes TO {writer}; UPDATE audit.changes SET after = '{}'`, code: "42501"},
	{name: "grant the owner", sql: `GRANT {owner} TO {writer}`, control: "-"},
	{name: "alter the owner", sql: `ALTER ROLE {owner} LOGIN PASSWORD 'x'`, control: "-"},
	{name: "become a superuser", sql: `ALTER ROLE {writer} SUPERUSER`, control: "-"},
	{name: "reassign", sql: `REASSIGN OWNED BY {owner} TO {writer}`, control: "-"},
	{name: "drop owned", sql: `DROP OWNED BY {owner} CASCADE`},
	{name: "default privileges", sql: `ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT ALL ON TABLES TO {writer}`, control: "-"},
	{name: "replication role", sql: `SET LOCAL session_replication_role = replica; INSERT INTO audit.keyframe_rows (keyframe, ordinal, image) SELECT id, 999, '{}' FROM audit.keyframes`},
	{name: "system catalogs", sql: `DELETE FROM pg_catalog.pg_class WHERE relname = 'changes'`, control: "-"},
	{name: "server's files", sql: `COPY audit.changes TO PROGRAM 'true'`, control: "-"},
	// What the functions do, done to history.
	{name: "restamp", sql: `SELECT audit.restamp(current_database(), '{p}', 1000, '{t}', '{"userId": "x"}', NULL)`, control: "-", code: "AU002"},
	{name: "complete", sql: `SELECT audit.complete(current_database(), '{p}', 1, '{t}', '{task}')`, control: "-", code: "AU002"},
	{name: "structure", sql: `SELECT audit.record_structure(current_database(), 1, '{p}', 0, NULL, 'public', 'todo', 'r', NULL, '{}', '[]', '{}', false, false, false, 0)`, control: "-", code: "AU002"},
	{name: "time", sql: `SELECT audit.note_time(current_database(), '{p}', now())`, control: "-", code: "AU002"},
	{name: "clock", sql: `SELECT audit.note_jump(current_database(), now(), '2000-01-01', '{p}')`, control: "-", code: "AU002"},
	{name: "another database's", sql: `SELECT audit.restamp('unknown', '{p}', 1000, '{t}', NULL, NULL)`, control: "-", code: "AU002"},
	{name: "checkpoint backwards", sql: `SELECT audit.advance(current_database(), (SELECT epoch FROM audit.checkpoints), (SELECT position FROM audit.checkpoints), '0/1', now(), 0)`, control: "-", code: "AU001"},
	{name: "young history", sql: `SELECT audit.drop_before(now() + interval '10 years')`, control: "DELETE FROM audit.retention_limit; SELECT audit.drop_before(now() + interval '10 years')"},
	{name: "history of the last month", sql: `SELECT audit.drop_before(now() - interval '30 days')`, control: "-"},
	{name: "the limit", sql: `UPDATE audit.retention_limit SET keep = '0'`, control: "UPDATE audit.retention_limit SET keep = '-20 years'; SELECT audit.drop_before(now() + interval '10 years')"},
	{name: "the limit removed", sql: `DELETE FROM audit.retention_limit`, control: "-"},
	{name: "rows of a complete baseline", sql: `INSERT INTO audit.keyframe_rows (keyframe, ordinal, image) SELECT id, 999, '{}' FROM audit.keyframes WHERE complete`, control: "-", code: "AU002"},
	{name: "rows of a complete baseline changed", sql: `UPDATE audit.keyframe_rows SET image = '{}'`},
	{name: "rows of a baseline removed", sql: `DELETE FROM audit.keyframe_rows`},
	{name: "a baseline removed", sql: `DELETE FROM audit.keyframes`},
	{name: "a complete baseline made", sql: `INSERT INTO audit.keyframes (database, schema, "table", relation_id, position, complete) VALUES (current_database(), 'public', 'todo', 1, '0/1', true)`},
	{name: "coverage", sql: `UPDATE audit.coverage SET from_position = '0/1'`},
	{name: "coverage removed", sql: `DELETE FROM audit.coverage`},
	{name: "structures", sql: `UPDATE audit.relations SET columns = '[]'`},
	{name: "structures added", sql: `INSERT INTO audit.relations (database, relation_id, position, schema, "table", columns, primary_key) VALUES (current_database(), 1, '0/1', 'public', 'todo', '[]', '{}')`},
	{name: "times", sql: `UPDATE audit.commit_times SET committed_at = now()`},
	{name: "gaps", sql: `INSERT INTO audit.gaps (database, from_position, to_position, reason) VALUES (current_database(), '0/1', '0/2', 'x')`},
	{name: "marks", sql: `UPDATE audit.marks SET position = '0/1'`},
	{name: "mark taken", sql: `INSERT INTO audit.marks (database, name, position, marked_at) VALUES (current_database(), 'm', '0/1', now()) ON CONFLICT (database, name) DO UPDATE SET position = '0/1'`},
	{name: "register", sql: `UPDATE audit.reverts SET user_id = 'somebody else'`},
	{name: "retention's record", sql: `DELETE FROM audit.retention`, control: "-"},
	{name: "checkpoint", sql: `UPDATE audit.checkpoints SET position = '0/1'`},
	{name: "migrations", sql: `INSERT INTO audit.schema_migrations (version, name) VALUES (99, 'x')`, control: "-"},
	// Names that come first: the functions must not find them.
	{name: "temporary catalog", sql: `CREATE TEMPORARY TABLE pg_class (oid oid, relname name); CREATE TEMPORARY TABLE pg_inherits (inhrelid oid, inhparent oid);
		INSERT INTO pg_class SELECT oid, 'changes_2000_01' FROM pg_catalog.pg_class WHERE relname = 'changes';
		INSERT INTO pg_inherits SELECT oid, oid FROM pg_catalog.pg_class WHERE relname = 'changes';
		SELECT audit.drop_before(now() - interval '60 days')`, control: "-", code: "00000"},
	{name: "search path", sql: `CREATE FUNCTION {mine}.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT '2090-01-01'::timestamptz $$;
		CREATE FUNCTION {mine}.le(pg_lsn, pg_lsn) RETURNS boolean LANGUAGE sql AS $$ SELECT true $$;
		CREATE OPERATOR {mine}.<= (LEFTARG = pg_lsn, RIGHTARG = pg_lsn, FUNCTION = {mine}.le);
		SET LOCAL search_path = {mine}, pg_catalog; SELECT audit.restamp(pg_catalog.current_database()::pg_catalog.text, '{p}', 1000, '{t}', NULL, NULL)`, control: "-", code: "AU002"},
	{name: "baselines behind the horizon", sql: `SELECT audit.drop_keyframes(current_database()); SELECT audit.drop_keyframe(id) FROM audit.keyframes; SELECT audit.clear_keyframe(id, false) FROM audit.keyframes`, control: "-", code: "00000"},
	{name: "revert committed elsewhere", sql: `SELECT audit.committed_revert(database, id, '0/1') FROM audit.reverts`, control: "-", code: "00000"},
}

// storedDigest tells of everything that is history in the store: it differs where a row
// of it was altered, added to or removed.
func storedDigest(ctx context.Context, q interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
},
) (digest string, err error) {
	var parts []string
	for _, table := range []string{"changes", "relations", "commit_times", "coverage", "gaps", "marks", "keyframes", "keyframe_rows", "reverts", "clock_jumps", "retention"} {
		parts = append(parts, fmt.Sprintf("(SELECT '%s ' || count(*) || ' ' || coalesce(md5(string_agg(x::text, '|' ORDER BY x::text)), '') FROM audit.%[1]s x)", table))
	}
	err = q.QueryRow(ctx, "SELECT concat_ws(E'\\n', "+strings.Join(parts, ", ")+", (SELECT position::text FROM audit.checkpoints))").Scan(&digest)
	return digest, err
}

// Whoever has the password of the role that writes the history cannot alter what is stored.
func TestLeastRights_AttacksOnWhatIsStored(t *testing.T) {
	t.Parallel()
	l := setUpLeastRights(t, audit.Config{Retention: months})
	l.start(t)
	ctx := t.Context()
	app := faulttest.Connect(t, asRole(t, l.Database, l.program))
	err := pgx.BeginFunc(ctx, app, func(tx pgx.Tx) error {
		if err := audit.Stamp(audit.WithContext(ctx, audit.Context{UserID: "ann", RequestID: "r-1"}), tx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "INSERT INTO todo VALUES (100, 'secured'); UPDATE todo SET task = 'by ann' WHERE id < 5")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.client.Mark(ctx, "m"); err != nil {
		t.Fatal(err)
	}
	if err := l.client.Baseline(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := l.client.RevertRequest("r-1").Apply(ctx); err != nil {
		t.Fatal(err)
	}
	l.sync(t)
	if err := l.client.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	// The thief may do with the database what everybody may, and has a schema of his own.
	l.Exec(t, "CREATE SCHEMA thief AUTHORIZATION "+l.writer)
	vars := strings.NewReplacer(
		"{p}", audittest.Value[string](t, l.Database, "SELECT min(position)::text FROM audit.changes"),
		"{t}", audittest.Value[string](t, l.Database, "SELECT committed_at::text FROM audit.changes ORDER BY position LIMIT 1"),
		"{part}", audittest.Value[string](t, l.Database, "SELECT min(tableoid::regclass::text) FROM audit.changes"),
		"{owner}", l.owner, "{writer}", l.writer, "{mine}", "thief",
	)
	thief, admin := faulttest.Connect(t, asRole(t, l.Database, l.writer)), faulttest.Connect(t, l.URL())
	want, err := storedDigest(ctx, admin)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range rightsAttacks {
		t.Run(a.name, func(t *testing.T) { //nolint:paralleltest // one store, attacked again and again
			code := "00000"
			_, err := thief.Exec(t.Context(), "BEGIN; "+vars.Replace(a.sql)+"; COMMIT", pgx.QueryExecModeSimpleProtocol)
			var refused *pgconn.PgError
			if errors.As(err, &refused) {
				code = refused.Code
			} else if err != nil {
				t.Fatal(err)
			}
			_, _ = thief.Exec(t.Context(), "ROLLBACK; DISCARD TEMPORARY", pgx.QueryExecModeSimpleProtocol)
			_, _ = thief.Exec(t.Context(), "RESET ALL; RESET SESSION AUTHORIZATION", pgx.QueryExecModeSimpleProtocol)
			wantCode := a.code
			if wantCode == "" {
				wantCode = "42501"
			}
			if code != wantCode {
				t.Errorf("as the writer: %v, want SQLSTATE %s", err, wantCode)
			}
			if got, err := storedDigest(t.Context(), admin); err != nil || got != want {
				t.Errorf("the store differs, %v:\n%s\nwas\n%s", err, got, want)
			}
			if a.control == "-" {
				return
			}
			control := a.control
			if control == "" {
				control = a.sql
			}
			if got := asSuperuser(t, admin, vars.Replace(control)); got == want {
				t.Error("as a superuser it alters nothing either: it is no attack")
			}
		})
	}
}

// asSuperuser returns what is stored after statements, which it takes back.
func asSuperuser(t *testing.T, admin *pgx.Conn, sql string) (digest string) {
	t.Helper()
	if _, err := admin.Exec(t.Context(), "BEGIN; "+sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Errorf("as a superuser: %v", err)
	}
	digest, err := storedDigest(t.Context(), admin)
	if err != nil {
		digest = err.Error() // it is gone
	}
	if _, err := admin.Exec(t.Context(), "ROLLBACK", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Error(err)
	}
	return digest
}
