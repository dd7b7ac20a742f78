package audit_test

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
	"github.com/hindsight-go/audit/store"
)

// Nobody but the owner may change what was recorded, whatever he was given in
// advance.
func TestHistoryIsAppendOnly(t *testing.T) {
	ownStore(t, "the rights of a store with roles are tested by TestLeastRights_AttacksOnWhatIsStored")
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	role := newRole(t, db, "")
	db.Exec(t, fmt.Sprintf("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO %s, PUBLIC; ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO %[1]s; ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO %[1]s", role))
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	t.Cleanup(func() { db.Exec(t, fmt.Sprintf("ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM %s", role)) })
	db.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	a.Sync(t)
	// A partition that comes later, too.
	db.Exec(t, "SELECT audit.ensure_partition(now() + interval '400 days')")
	conn := faulttest.Connect(t, asRole(t, db, role))
	tables := audittest.Value[[]string](t, db, `
		SELECT array_agg(c.oid::regclass::text ORDER BY 1) FROM pg_class c WHERE c.relnamespace = 'audit'::regnamespace AND c.relkind IN ('r', 'p')`)
	if len(tables) < 10 {
		t.Errorf("the store has only the tables %v", tables)
	}
	for _, table := range tables {
		for _, right := range []string{"INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"} {
			var has bool
			if err := conn.QueryRow(t.Context(), "SELECT has_table_privilege($1, $2)", table, right).Scan(&has); err != nil {
				t.Fatal(err)
			}
			if has {
				t.Errorf("role with default privileges has %s on %s", right, table)
			}
		}
	}
	for _, sql := range []string{
		"UPDATE audit.changes SET after = '{}'", "DELETE FROM audit.changes", "TRUNCATE audit.changes",
		"SELECT audit.drop_before(now() + interval '10 years')", "SELECT audit.ensure_partition(now() + interval '10 years')",
		"SELECT audit.advance('" + db.Name() + "', 1, '0/0', '0/0', now(), 0)",
		"DROP TABLE audit.changes", "ALTER TABLE audit.changes ADD COLUMN x int", "INSERT INTO audit.gaps SELECT 'x', '0/0', '0/1', now(), now(), 'x'",
	} {
		var denied *pgconn.PgError
		if _, err := conn.Exec(t.Context(), sql); !errors.As(err, &denied) || denied.Code != "42501" {
			t.Errorf("%s: %v, want that it is not permitted", sql, err)
		}
	}
	// Functions are the owner's, and not for everybody.
	if functions := audittest.Value[[]string](t, db, `
		SELECT coalesce(array_agg(p.oid::regprocedure::text), '{}') FROM pg_proc p
		WHERE p.pronamespace = 'audit'::regnamespace AND (has_function_privilege('pg_monitor', p.oid, 'EXECUTE') OR has_function_privilege($1::name, p.oid, 'EXECUTE'))`, role); len(functions) > 0 {
		t.Errorf("everybody may execute %v", functions)
	}
	a.Check(t)
}

// Retention drops whole months, and only those that are over.
func TestRetentionDropsPartitions(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	db.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	a.Sync(t)
	a.Stop(t)
	partitions := func() []string {
		return audittest.Value[[]string](t, db, "SELECT array_agg(c.relname::text ORDER BY 1) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'audit.changes'::regclass")
	}
	now := partitions()
	if len(now) < 2 {
		t.Errorf("the months to come have no partitions: %v", now)
	}
	// Changes of long ago, as if they had been captured then.
	db.Exec(t, "SELECT audit.ensure_partition(now() - n * interval '1 month') FROM generate_series(1, 14) n")
	db.Exec(t, `
		INSERT INTO audit.changes (position, sequence, committed_at, transaction_id, database, schema, "table", primary_key, operation, before, after, queued_at)
		SELECT '0/1'::pg_lsn + n, 1, now() - n * interval '1 month', n, current_database(), 'public', 'former', n::text, 'CREATE', '{}', '{}', now() FROM generate_series(1, 14) n`)

	keeper := audittest.Open(t, db, audit.Config{Retention: 90 * 24 * time.Hour})
	mustStart(t, keeper)
	faulttest.Poll(t, faulttest.Patience, "retention", func() error {
		if audittest.Value[bool](t, db, "SELECT EXISTS (SELECT FROM audit.retention)") {
			return nil
		}
		return errors.New("nothing was dropped")
	})
	horizon := audittest.Value[time.Time](t, db, "SELECT max(until_time) FROM audit.retention")
	if keep := time.Now().Add(-90 * 24 * time.Hour); horizon.After(keep) || horizon.Before(keep.AddDate(0, -1, -1)) {
		t.Errorf("history was dropped up to %s, it is kept from %s", horizon, keep)
	}
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM audit.changes WHERE committed_at < $1", horizon); n != 0 {
		t.Errorf("%d changes from before the horizon are there", n)
	}
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM audit.changes WHERE committed_at >= $1", horizon); n < 3 {
		t.Errorf("only %d changes are left", n)
	}
	dropped := audittest.Value[[]string](t, db, "SELECT array_agg(partition ORDER BY 1) FROM audit.retention")
	left := partitions()
	for _, name := range dropped {
		if slices.Contains(left, name) {
			t.Errorf("partition %s is noted as dropped and there", name)
		}
	}
	if len(dropped)+len(left) != 14+len(now) {
		t.Errorf("%d partitions were dropped and %d are left, of %d", len(dropped), len(left), 14+len(now))
	}
	keeper.Check(t)
}

// A partition of a month is made when something of that month comes, whatever
// the session thinks of time, and twice is once.
func TestPartitionOfAnyMonth(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{})
	for _, month := range []string{"2000-01-31 23:59:59.999999+00", "2024-12-31 23:00:00-02", "2024-02-29 12:00:00+00", "9999-12-31 00:00:00+00", "10000-01-01 00:00:00+00"} {
		a.Exec(t, "SET timezone = 'Asia/Kolkata'; SET datestyle = 'SQL, DMY'")
		for range 2 {
			a.Exec(t, "SELECT audit.ensure_partition('"+month+"')")
		}
		a.Exec(t, "RESET timezone; RESET datestyle")
		a.Exec(t, `
			INSERT INTO audit.changes (position, sequence, committed_at, transaction_id, database, schema, "table", operation, before, after, queued_at)
			VALUES ('0/1', 1, $1::text::timestamptz, 1, 'another', 'public', 'x', 'CREATE', '{}', '{}', now())`, month)
	}
	if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.changes WHERE database = 'another'"); n != 5 {
		t.Errorf("%d changes went into partitions, want 5", n)
	}
	// Concurrently, too.
	var wg sync.WaitGroup
	for range 6 {
		conn := a.Connect(t)
		wg.Go(func() {
			if _, err := conn.Exec(t.Context(), "SELECT audit.ensure_partition('2010-05-05'::timestamptz + n * interval '1 month') FROM generate_series(1, 6) n"); err != nil {
				t.Errorf("make partitions: %v", err)
			}
		})
	}
	wg.Wait()
}

func TestMigrations(t *testing.T) {
	t.Parallel()
	pool := func(t *testing.T, db *audittest.Database) *pgxpool.Pool {
		t.Helper()
		pool, err := pgxpool.New(t.Context(), db.URL())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		return pool
	}
	t.Run("concurrently and again", func(t *testing.T) {
		t.Parallel()
		db := audittest.NewDatabase(t)
		var wg sync.WaitGroup
		for range 8 {
			history := store.New(pool(t, db), "audit", store.Roles{})
			wg.Go(func() {
				if err := history.Migrate(t.Context()); err != nil {
					t.Errorf("migrate: %v", err)
				}
			})
		}
		wg.Wait()
		before := dump(t, db)
		if err := store.New(pool(t, db), "audit", store.Roles{}).Migrate(t.Context()); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(before, dump(t, db)); diff != "" {
			t.Errorf("the second time something changed:\n%s", diff)
		}
	})
	t.Run("by script is the same", func(t *testing.T) {
		t.Parallel()
		migrated, scripted := audittest.NewDatabase(t), audittest.NewDatabase(t)
		if err := store.New(pool(t, migrated), `odd "schema"`, store.Roles{}).Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		script, err := store.SetupSQL(store.Setup{Schema: `odd "schema"`, Roles: store.Roles{Writer: "postgres"}, Database: "odd"})
		if err != nil {
			t.Fatal(err)
		}
		scripted.Exec(t, script)
		if diff := cmp.Diff(dump(t, migrated), dump(t, scripted)); diff != "" {
			t.Errorf("migrated and scripted differ:\n%s", diff)
		}
	})
	t.Run("a dump can be restored", func(t *testing.T) {
		t.Parallel()
		a := audittest.New(t, audit.Config{}, gapTable)
		a.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
		a.Sync(t)
		restored := audittest.NewDatabase(t)
		pgDump, psql := serverProgram(a.Database, "pg_dump"), serverProgram(a.Database, "psql")
		if pgDump == "" || psql == "" {
			t.Skip("there is no pg_dump and psql beside the server's binaries or on PATH")
		}
		script, err := exec.CommandContext(t.Context(), pgDump, "--schema=audit", "--dbname="+a.URL()).CombinedOutput() //nolint:gosec // It is pg_dump.
		if err != nil {
			if strings.Contains(string(script), "server version mismatch") {
				t.Skip("there is no pg_dump for this server")
			}
			t.Fatalf("dump: %v: %s", err, script)
		}
		restore := exec.CommandContext(t.Context(), psql, "-q", "-v", "ON_ERROR_STOP=1", restored.URL()) //nolint:gosec // It is psql.
		restore.Stdin = bytes.NewReader(script)
		if out, err := restore.CombinedOutput(); err != nil {
			t.Fatalf("restore: %v: %s", err, out)
		}
		if n := audittest.Value[int](t, restored, "SELECT count(*) FROM audit.changes"); n != 1 {
			t.Errorf("the restored history has %d changes, want 1", n)
		}
		if err := store.New(pool(t, restored), "audit", store.Roles{}).Migrate(t.Context()); err != nil {
			t.Errorf("migrate what was restored: %v", err)
		}
	})
	t.Run("by a newer program", func(t *testing.T) {
		t.Parallel()
		db := audittest.NewDatabase(t)
		history := store.New(pool(t, db), "audit", store.Roles{})
		if err := history.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		db.Exec(t, "INSERT INTO audit.schema_migrations (version, name) VALUES (9999, 'from the future')")
		var newer *store.NewerSchemaError
		if err := history.Migrate(t.Context()); !errors.As(err, &newer) {
			t.Errorf("Migrate returned %v, want a *NewerSchemaError", err)
		}
		before := faulttest.Catalog(t, db.URL())
		db.Exec(t, gapTable)
		client := openClient(t, audit.Config{SourceURL: db.URL()})
		if err := client.Start(t.Context()); !errors.As(err, &newer) {
			t.Errorf("Start returned %v, want a *NewerSchemaError", err)
		}
		db.Exec(t, "DROP TABLE todo")
		if diff := cmp.Diff(before, faulttest.Catalog(t, db.URL())); diff != "" {
			t.Errorf("Start made something (-before +after):\n%s", diff)
		}
	})
	t.Run("rolled back if it fails", func(t *testing.T) {
		t.Parallel()
		db := audittest.NewDatabase(t)
		// Something in the way of the migration.
		db.Exec(t, "CREATE SCHEMA audit; CREATE VIEW audit.gaps AS SELECT 1")
		before := dump(t, db)
		if err := store.New(pool(t, db), "audit", store.Roles{}).Migrate(t.Context()); err == nil {
			t.Fatal("Migrate succeeded")
		}
		if diff := cmp.Diff(before, dump(t, db)); diff != "" {
			t.Errorf("half of a migration is there:\n%s", diff)
		}
		db.Exec(t, "DROP VIEW audit.gaps")
		if err := store.New(pool(t, db), "audit", store.Roles{}).Migrate(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
