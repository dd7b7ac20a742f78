package audittest

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/store"
)

// leastRights lets a client write its history as a role that owns nothing, if
// AUDIT_TEST_LEAST_RIGHTS is set: the tests of this repository run with it as well. A
// store elsewhere, and one that is there already, are left as they are.
func leastRights(t testing.TB, db *Database, cfg audit.Config) audit.Config {
	t.Helper()
	if os.Getenv("AUDIT_TEST_LEAST_RIGHTS") == "" || cfg.StoreURL != "" || cfg.Schema == "public" || cfg.StoreRoles != (audit.StoreRoles{}) {
		return cfg
	}
	schema := cfg.Schema
	if schema == "" {
		schema = store.DefaultSchema
	}
	// Roles belong to the whole server, and are left there: names of databases come once.
	roles := store.Roles{Owner: "audit_owner_" + db.Name(), Writer: "audit_writer_" + db.Name()}
	ctx := context.WithoutCancel(t.Context())
	conn, err := pgx.Connect(ctx, db.URL())
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	defer closeSession(conn)
	var owner string
	err = conn.QueryRow(ctx, "SELECT coalesce((SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = $1), '')", schema).Scan(&owner)
	if err != nil {
		t.Fatalf("look at the schema: %v", err)
	}
	if owner == "" {
		script, err := store.SetupSQL(store.Setup{Schema: schema, Roles: roles, Retention: cfg.Retention})
		if err == nil {
			_, err = conn.Exec(ctx, script, pgx.QueryExecModeSimpleProtocol)
		}
		if err != nil {
			t.Fatalf("make the store: %v", err)
		}
		owner = roles.Owner
	}
	if owner != roles.Owner {
		return cfg
	}
	// Without a retention tests drop history themselves, as superusers.
	sql := "DELETE FROM " + pgx.Identifier{schema}.Sanitize() + ".retention_limit"
	if cfg.Retention > 0 {
		sql = fmt.Sprintf("INSERT INTO %[1]s.retention_limit (keep) VALUES (interval '%[2]d seconds') ON CONFLICT (singleton) DO UPDATE SET keep = excluded.keep",
			pgx.Identifier{schema}.Sanitize(), int64(cfg.Retention.Seconds()))
	}
	if _, err := conn.Exec(ctx, sql); err != nil {
		t.Fatalf("limit retention: %v", err)
	}
	cfg.StoreRoles = audit.StoreRoles{Owner: roles.Owner}
	cfg.StoreURL = withUser(db.URL(), roles.Writer)
	if cfg.StoreBeforeConnect == nil {
		cfg.StoreBeforeConnect = cfg.BeforeConnect
	}
	return cfg
}

// withUser returns a connection string for another role.
func withUser(dsn, role string) string {
	u, err := url.Parse(dsn)
	if err != nil {
		return dsn
	}
	u.User = url.User(role)
	return strings.TrimSpace(u.String())
}
