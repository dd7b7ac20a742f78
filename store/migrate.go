package store

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/internal/deadpeer"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migrationPatience is how long a migration waits for a lock.
const migrationPatience = 10 * time.Second

// Migration is one numbered step of the store's schema.
type Migration struct {
	Version int
	Name    string
	SQL     string
}

// NewerSchemaError is returned when the store was migrated by a newer version of
// this package.
type NewerSchemaError struct{ Schema, Store string }

func (e *NewerSchemaError) Error() string {
	return fmt.Sprintf("store: schema %s is at version %s, which this version of the package does not know: upgrade the program", e.Schema, e.Store)
}

// Migrations returns the steps, in order, for a store in the given schema.
func Migrations(schema string) ([]Migration, error) {
	names, err := fs.Glob(migrationFiles, "migrations/*.sql")
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	slices.Sort(names)
	var migrations []Migration
	for _, name := range names {
		text, err := migrationFiles.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read migration %s: %w", name, err)
		}
		base := strings.TrimSuffix(strings.TrimPrefix(name, "migrations/"), ".sql")
		number, _, _ := strings.Cut(base, "_")
		version, err := strconv.Atoi(number)
		if err != nil {
			return nil, fmt.Errorf("migration %s has no number: %w", name, err)
		}
		quoted := pgx.Identifier{schema}.Sanitize()
		// {{schema}} is an identifier. Within a text of SQL stands {{schema_literal}}:
		// a name may hold quotes, and marks of format.
		sql := strings.NewReplacer("{{schema}}", quoted, "{{schema_literal}}", quoteLiteral(quoted), "$$", dollarQuote(schema),
			"{{functions}}", functionNames(), "{{barrier_age}}", strconv.Itoa(int(barrierAge.Seconds()))).Replace(string(text))
		migrations = append(migrations, Migration{Version: version, Name: base, SQL: sql})
	}
	return migrations, nil
}

// functionNames returns the names of the store's functions as a list of literals.
func functionNames() string {
	names := make([]string, len(storeFunctions))
	for i, f := range storeFunctions {
		names[i] = quoteLiteral(f.name)
	}
	return strings.Join(names, ", ")
}

// dollarQuote returns the mark around the bodies of functions that name the
// schema: one that the name does not hold.
func dollarQuote(schema string) string {
	mark := "$$"
	for n := 1; strings.Contains(schema, mark); n++ {
		mark = fmt.Sprintf("$audit%d$", n)
	}
	return mark
}

// Check says what keeps the current role from making the store, and the SQL that
// helps; or nothing, if it may or the store is there.
func (s *Store) Check(ctx context.Context) (what string, sql []string, err error) {
	if s.roles.Owner != "" {
		return s.checkRoles(ctx)
	}
	var schema, create, createHere bool
	var role, database string
	err = s.pool.QueryRow(ctx, `
		SELECT n.oid IS NOT NULL, pg_catalog.has_database_privilege(current_database(), 'CREATE'),
			coalesce(pg_catalog.has_schema_privilege(n.oid, 'CREATE, USAGE'), false), current_user::text, current_database()
		FROM (SELECT) one
		LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = $1`, s.name).Scan(&schema, &create, &createHere, &role, &database)
	if err != nil {
		return "", nil, fmt.Errorf("check store: %w", err)
	}
	user := pgx.Identifier{role}.Sanitize()
	switch {
	case !schema && !create:
		return fmt.Sprintf("role %s may not create the store's schema %s in database %s", role, s.name, database),
			[]string{"CREATE SCHEMA " + s.schema + " AUTHORIZATION " + user}, nil
	case schema && !createHere:
		return fmt.Sprintf("role %s may not create tables in the store's schema %s", role, s.name),
			[]string{"GRANT CREATE, USAGE ON SCHEMA " + s.schema + " TO " + user}, nil
	case schema:
		return s.checkOwners(ctx)
	}
	return "", nil, nil
}

// checkOwners says who else could have put code into the schema, where it would run
// with the rights of this role: whoever owns it or something in it, or may create in
// it, and is neither this role, nor one that it is a member of, nor the owner that was
// named, nor a superuser, nor the owner of the database.
func (s *Store) checkOwners(ctx context.Context) (what string, sql []string, err error) {
	rows, err := s.pool.Query(ctx, `
		WITH RECURSIVE mine (id) AS (
			SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = current_user
			UNION
			SELECT m.roleid FROM pg_catalog.pg_auth_members m JOIN mine ON m.member = mine.id
		), trusted (id) AS (
			SELECT id FROM mine
			UNION SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolsuper OR r.rolname = 'pg_database_owner'
			UNION SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = $3
			UNION SELECT d.datdba FROM pg_catalog.pg_database d WHERE d.datname = current_database()
		), schema AS (
			SELECT n.oid, n.nspowner, n.nspacl, n.nspname = 'public' AS shared FROM pg_catalog.pg_namespace n WHERE n.nspname = $1
		), things (owner, kind, name) AS (
			SELECT s.nspowner, 'schema', NULL FROM schema s
			UNION ALL
			SELECT c.relowner, 'relation', c.relname FROM pg_catalog.pg_class c, schema s
			WHERE c.relnamespace = s.oid AND c.relkind <> 'i' AND (NOT s.shared OR c.relname = ANY ($2))
			UNION ALL
			SELECT p.proowner, 'function', p.proname FROM pg_catalog.pg_proc p, schema s
			WHERE p.pronamespace = s.oid AND (NOT s.shared OR p.proname = ANY ($2))
			UNION ALL
			SELECT t.typowner, 'type', t.typname FROM pg_catalog.pg_type t, schema s
			WHERE t.typnamespace = s.oid AND t.typrelid = 0 AND t.typelem = 0 AND (NOT s.shared OR t.typname = ANY ($2))
			UNION ALL
			SELECT a.grantee, 'right', NULL FROM schema s, LATERAL pg_catalog.aclexplode(s.nspacl) a
			WHERE a.privilege_type = 'CREATE' AND NOT s.shared
		)
		SELECT t.kind, coalesce(t.name, ''), coalesce(r.rolname, 'PUBLIC')
		FROM things t
		LEFT JOIN pg_catalog.pg_roles r ON r.oid = t.owner
		WHERE t.owner NOT IN (SELECT id FROM trusted)
		ORDER BY t.kind = 'right', t.kind <> 'schema', t.kind, t.name
		LIMIT 5`, s.name, ownNames(), s.roles.Owner)
	if err != nil {
		return "", nil, fmt.Errorf("check who owns the store: %w", err)
	}
	defer rows.Close()
	var found []string
	for rows.Next() {
		var kind, name, role string
		if err := rows.Scan(&kind, &name, &role); err != nil {
			return "", nil, fmt.Errorf("check who owns the store: %w", err)
		}
		switch kind {
		case "schema":
			found = append(found, "it is owned by "+role)
		case "right":
			found = append(found, role+" may create in it")
			grantee := role
			if grantee != "PUBLIC" {
				grantee = pgx.Identifier{role}.Sanitize()
			}
			sql = append(sql, "REVOKE CREATE ON SCHEMA "+s.schema+" FROM "+grantee)
		default:
			found = append(found, fmt.Sprintf("%s %q in it is owned by %s", kind, name, role))
		}
	}
	if err := rows.Err(); err != nil || len(found) == 0 {
		return "", nil, err
	}
	return fmt.Sprintf("schema %s could hold code of others, which would run with the rights of this role: %s: look at what is in it, and drop it or give it to a role of yours, or choose another name (Config.Schema)", s.name, strings.Join(found, "; ")), sql, nil
}

// Setup says what the script of SetupSQL makes.
type Setup struct {
	Schema string
	// Roles are the roles of a store with least rights. Without an Owner the Writer owns
	// the store.
	Roles Roles
	// Retention is how long history is kept at least where there is an Owner, 0 for ever.
	Retention time.Duration
	// Database is the source's, Identities the replica identities that its tables had, by
	// OID, which are noted.
	Database   string
	Identities map[uint32]string
}

// SetupSQL returns one script that makes the store from nothing, for a DBA to run where
// the program's role may not.
func SetupSQL(s Setup) (string, error) {
	migrations, err := Migrations(s.Schema)
	if err != nil {
		return "", err
	}
	least := s.Roles.Owner != ""
	owner := s.Roles.Owner
	if !least {
		owner = s.Roles.Writer
	}
	quoted, role := pgx.Identifier{s.Schema}.Sanitize(), pgx.Identifier{owner}.Sanitize()
	var b strings.Builder
	if least {
		b.WriteString(makeRoles(s.Schema, s.Roles))
	}
	fmt.Fprintf(&b, "CREATE SCHEMA IF NOT EXISTS %s AUTHORIZATION %s;\n", quoted, role)
	if least {
		fmt.Fprintf(&b, "REVOKE ALL ON SCHEMA %s FROM PUBLIC;\n", quoted)
	} else {
		fmt.Fprintf(&b, "GRANT CREATE, USAGE ON SCHEMA %s TO %s;\n", quoted, role)
	}
	fmt.Fprintf(&b, "SET ROLE %s;\n%s;\n", role, versionsTable(quoted))
	for _, m := range migrations {
		fmt.Fprintf(&b, "\n-- %s\n%s\nINSERT INTO %s.schema_migrations (version, name) VALUES (%d, %s);\n", m.Name, m.SQL, quoted, m.Version, quoteLiteral(m.Name))
	}
	for _, relation := range slices.Sorted(maps.Keys(s.Identities)) {
		fmt.Fprintf(&b, "INSERT INTO %s.replica_identities VALUES (%s, %d, %s) ON CONFLICT DO NOTHING;\n", quoted, quoteLiteral(s.Database), relation, quoteLiteral(s.Identities[relation]))
	}
	if least {
		b.WriteString("\n-- Who may do what. History younger than this is dropped by nobody but its owner.\n")
		for _, sql := range append([]string{limitRetention(s.Schema, s.Retention)}, grants(s.Schema, s.Roles)...) {
			b.WriteString(sql + ";\n")
		}
	}
	b.WriteString("RESET ROLE;\n")
	if least {
		fmt.Fprintf(&b, "-- A DBA who is no superuser gives up the owner's rights again: REVOKE %s FROM CURRENT_USER;\n", inComment.Replace(role))
	}
	return b.String(), nil
}

// inComment keeps a name from ending the comment of SQL that it stands in.
var inComment = strings.NewReplacer("\n", `\n`, "\r", `\r`)

// UninstallSQL returns the statements that remove the store from a schema. What
// else is in the schema stays, and with it the schema: its drop then fails with
// SQLSTATE 2BP01.
func UninstallSQL(schema string) []string {
	quoted := pgx.Identifier{schema}.Sanitize()
	var tables []string
	for _, t := range storeTables {
		tables = append(tables, quoted+"."+t.name)
	}
	sql := []string{"DROP TABLE IF EXISTS " + strings.Join(tables, ", ") + " CASCADE"}
	for _, f := range storeFunctions {
		sql = append(sql, "DROP FUNCTION IF EXISTS "+quoted+"."+f.signature())
	}
	if schema != "public" {
		sql = append(sql, "DROP SCHEMA IF EXISTS "+quoted)
	}
	return sql
}

func versionsTable(schema string) string {
	return "CREATE TABLE IF NOT EXISTS " + schema + `.schema_migrations (
    version    integer     PRIMARY KEY,
    name       text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)`
}

// Migrate brings the store's schema to this package's version. Each migration
// runs in one transaction, under the lock of LockSetup and a lock timeout. It returns
// a *NewerSchemaError if the store is ahead, a *SetupLockedError if somebody holds
// the lock, and otherwise changes nothing that is up to date: a role without the right
// to create may run it then.
func (s *Store) Migrate(ctx context.Context) error {
	migrations, err := Migrations(s.name)
	if err != nil {
		return err
	}
	have, err := s.version(ctx)
	if err != nil {
		return err
	}
	newest := migrations[len(migrations)-1].Version
	switch {
	case have > newest:
		return &NewerSchemaError{Schema: s.name, Store: strconv.Itoa(have)}
	case have == newest:
		return nil
	}
	for _, m := range migrations {
		if m.Version <= have {
			continue
		}
		err := s.apply(ctx, m)
		for again := 0; again < 5 && isCode(err, "42P06", "42P07", "23505"); again++ {
			err = s.apply(ctx, m) // another instance has just made the schema
		}
		if isCode(err, "55P03") {
			err = s.setupLocked(ctx, migrationPatience, err)
		}
		if err != nil {
			return fmt.Errorf("migrate schema %s to %s: %w", s.name, m.Name, err)
		}
	}
	return nil
}

// version returns the newest migration applied, 0 for an empty database.
func (s *Store) version(ctx context.Context) (int, error) {
	var version int
	err := s.pool.QueryRow(ctx, `SELECT coalesce(max(version), 0) FROM `+s.schema+`.schema_migrations`).Scan(&version)
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && (pgErr.Code == "42P01" || pgErr.Code == "3F000") {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read version of schema %s: %w", s.name, err)
	}
	return version, nil
}

func (s *Store) apply(ctx context.Context, m Migration) error {
	ctx = deadpeer.Patient(ctx) // a migration takes as long as it takes
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL lock_timeout = %d", migrationPatience.Milliseconds())); err != nil {
			return err
		}
		var exists bool
		if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)", s.name).Scan(&exists); err != nil {
			return err
		}
		if !exists {
			// Not IF NOT EXISTS: that asks for the right to create even when
			// there is nothing to create.
			if _, err := tx.Exec(ctx, "CREATE SCHEMA "+s.schema); err != nil {
				return err
			}
			if err := s.revokeCreate(ctx, tx); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, versionsTable(s.schema)); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "LOCK TABLE "+s.schema+".schema_migrations IN SHARE ROW EXCLUSIVE MODE"); err != nil {
			return err
		}
		// Behind the lock: another instance may have been faster.
		tag, err := tx.Exec(ctx, "INSERT INTO "+s.schema+".schema_migrations (version, name) VALUES ($1, $2) ON CONFLICT DO NOTHING", m.Version, m.Name)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		_, err = tx.Exec(ctx, m.SQL)
		return err
	})
}

// revokeCreate takes from others what default privileges gave them of a new schema.
func (s *Store) revokeCreate(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `
		SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END
		FROM pg_catalog.pg_namespace n, LATERAL pg_catalog.aclexplode(n.nspacl) a
		WHERE n.nspname = $1 AND a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner`, s.name)
	if err != nil {
		return err
	}
	grantees, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, grantee := range grantees {
		if _, err := tx.Exec(ctx, "REVOKE CREATE ON SCHEMA "+s.schema+" FROM "+grantee); err != nil {
			return err
		}
	}
	return nil
}
