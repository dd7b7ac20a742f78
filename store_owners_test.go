package audit_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// Whoever may create in the database makes the store's schema first, with code of his.
func TestStart_SchemaHoldsCodeOfOthers(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{})
	for name, squat := range map[string]string{
		"schema":       "CREATE SCHEMA audit AUTHORIZATION %s; GRANT ALL ON SCHEMA audit TO PUBLIC",
		"function":     "CREATE SCHEMA audit; GRANT CREATE, USAGE ON SCHEMA audit TO %[1]s; SET ROLE %[1]s; CREATE FUNCTION audit.ensure_partition(timestamptz) RETURNS void LANGUAGE sql AS 'SELECT'; RESET ROLE; REVOKE CREATE ON SCHEMA audit FROM %[1]s",
		"table":        "CREATE SCHEMA audit; CREATE TABLE audit.schema_migrations (version int, name text); ALTER TABLE audit.schema_migrations OWNER TO %s",
		"domain":       "CREATE SCHEMA audit; CREATE DOMAIN audit.d AS text; ALTER DOMAIN audit.d OWNER TO %s",
		"right":        "CREATE SCHEMA audit; GRANT CREATE ON SCHEMA audit TO %s",
		"everybody":    "CREATE SCHEMA audit; GRANT CREATE ON SCHEMA audit TO PUBLIC",
		"whole script": "CREATE SCHEMA audit; GRANT CREATE ON SCHEMA audit TO %[1]s; SET ROLE %[1]s; CREATE TABLE audit.checkpoints (); RESET ROLE",
	} {
		for _, plain := range []bool{false, true} {
			t.Run(name+map[bool]string{false: " superuser", true: " plain role"}[plain], func(t *testing.T) {
				db := server.NewDatabase(t)
				db.Exec(t, gapTable)
				mallory := "mallory_" + db.Name()
				db.Exec(t, "CREATE ROLE "+mallory)
				t.Cleanup(func() { db.Exec(t, "DROP OWNED BY "+mallory+" CASCADE; DROP ROLE "+mallory) })
				config := audit.Config{SourceURL: db.URL()}
				db.Exec(t, strings.ReplaceAll(strings.ReplaceAll(squat, "%[1]s", mallory), "%s", mallory))
				if plain {
					role := newRole(t, db, "REPLICATION")
					db.Exec(t, "GRANT CREATE ON DATABASE "+db.Name()+" TO "+role+"; ALTER TABLE todo OWNER TO "+role+"; GRANT USAGE, CREATE ON SCHEMA audit TO "+role)
					config.SourceURL = asRole(t, db, role)
				}
				client := openClient(t, config)
				err := client.Start(t.Context())
				var setup *audit.SetupError
				if !errors.As(err, &setup) || !strings.Contains(err.Error(), "code of others") {
					t.Fatalf("Start returned %v, want a *SetupError", err)
				}
				if n := audittest.Value[int](t, db, "SELECT count(*) FROM pg_class WHERE relnamespace = 'audit'::regnamespace AND relname = 'changes'"); n != 0 {
					t.Error("Start made something nevertheless")
				}
			})
		}
	}
}

// Default privileges give others no right in the store's schema.
func TestStart_DefaultPrivilegesDoNotReachTheSchema(t *testing.T) {
	t.Parallel()
	db := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	db.Exec(t, gapTable+"; ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO PUBLIC")
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	if audittest.Value[bool](t, db, "SELECT EXISTS (SELECT FROM pg_namespace n, aclexplode(n.nspacl) a WHERE n.nspname = 'audit' AND a.grantee <> n.nspowner AND a.privilege_type = 'CREATE')") {
		t.Error("others may create in the schema")
	}
	a.Stop(t)
	mustStart(t, a)
	expectCapturing(t, a, 1)
}
