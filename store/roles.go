package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Roles are the roles of a store with least rights. Without an Owner one role owns the
// store and does everything.
type Roles struct {
	// Owner owns the schema and all in it. Nobody logs in as it.
	Owner string
	// Writer adds to the history, and executes the functions that keep it.
	Writer string
	// Reader reads it. It may be empty.
	Reader string
}

// table is a table of the store, and what a writer may do there beside reading.
type table struct {
	name string
	// insert are the columns that a writer may give values to, or empty.
	insert string
	// private tables are not for readers.
	private bool
}

// storeTables are the tables of the store.
var storeTables = []table{
	// Without created_at: when a row was stored is what the store says.
	{name: "changes", insert: copyColumns},
	{name: "checkpoints", insert: "database, slot, system_identifier, timeline, position, created_at"},
	{name: "commit_times"},
	{name: "relations"},
	{name: "clock_jumps"},
	{name: "tokens", insert: "database, token", private: true},
	{name: "coverage"},
	{name: "setup_holders", private: true},
	{name: "replica_identities", insert: "database, relation_id, identity", private: true},
	{name: "gaps"},
	{name: "barriers", insert: "database, nonce, position"},
	{name: "retention"},
	{name: "retention_limit", private: true},
	{name: "marks", insert: "database, name, position, marked_at"},
	{name: "keyframes", insert: `database, schema, "table", relation_id, position`},
	{name: "keyframe_rows", insert: "keyframe, ordinal, primary_key, image"},
	{name: "reverts", insert: "database, id, transaction_id, unit_kind, unit_id, idempotency_key, partial, user_id, reason"},
	{name: "schema_migrations", private: true},
}

// function is a function of the store.
type function struct {
	name, arguments string
	// internal ones are executed by the others only.
	internal bool
}

func (f function) signature() string { return f.name + "(" + f.arguments + ")" }

// storeFunctions are the functions of the store. Those that a writer executes run with
// the owner's rights, and each can do one thing, which is not to change what the
// checkpoint has passed.
var storeFunctions = []function{
	{name: "advance", arguments: "text, bigint, pg_lsn, pg_lsn, timestamptz, bigint"},
	{name: "require_unsealed", arguments: "text, pg_lsn", internal: true},
	{name: "restamp", arguments: "text, pg_lsn, integer, timestamptz, jsonb, text"},
	{name: "take_over", arguments: "text"},
	{name: "name_writer", arguments: "text, bigint, integer, timestamptz"},
	{name: "set_timeline", arguments: "text, integer"},
	{name: "take_setup", arguments: "text, text"},
	{name: "require_setup", arguments: "text, text", internal: true},
	{name: "set_verified", arguments: "text, text, pg_lsn"},
	{name: "record_gap", arguments: "text, pg_lsn, pg_lsn, text, timestamptz, text"},
	{name: "record_structure", arguments: "text, bigint, pg_lsn, integer, pg_lsn, text, text, text, bigint, bigint[], jsonb, text[], boolean, boolean, boolean, bigint"},
	{name: "note_time", arguments: "text, pg_lsn, timestamptz"},
	{name: "note_jump", arguments: "text, timestamptz, timestamptz, pg_lsn"},
	{name: "sweep_barriers"},
	{name: "open_coverage", arguments: "text, text, text, text, pg_lsn, timestamptz, bigint, text"},
	{name: "close_coverage", arguments: "text, text, bigint, pg_lsn, timestamptz"},
	{name: "set_membership", arguments: "text, text, bigint, text"},
	{name: "forget_identity", arguments: "text, text, bigint"},
	{name: "hold_lock", arguments: "text"},
	{name: "analyze_next", arguments: "bigint"},
	{name: "protect", arguments: "regclass", internal: true},
	{name: "complete", arguments: "text, pg_lsn, integer, timestamptz, text[]"},
	{name: "ensure_partition", arguments: "timestamptz"},
	{name: "drop_before", arguments: "timestamptz"},
	{name: "keyframe_open", internal: true},
	{name: "note_progress", arguments: "bigint, text[], bigint, bigint"},
	{name: "clear_keyframe", arguments: "bigint, boolean"},
	{name: "complete_keyframe", arguments: "bigint, bigint, bigint"},
	{name: "drop_keyframe", arguments: "bigint"},
	{name: "drop_keyframes", arguments: "text"},
	{name: "committed_revert", arguments: "text, text, pg_lsn"},
}

// ownNames are the relations and functions of the store.
func ownNames() []string {
	var names []string
	for _, t := range storeTables {
		names = append(names, t.name)
	}
	for _, f := range storeFunctions {
		names = append(names, f.name)
	}
	return names
}

// grants returns the statements that give a writer and a reader their rights: by list, so
// that partitions, and what others put beside them, are not among them.
func grants(schema string, roles Roles) []string {
	quoted, writer := pgx.Identifier{schema}.Sanitize(), pgx.Identifier{roles.Writer}.Sanitize()
	sql := []string{"GRANT USAGE ON SCHEMA " + quoted + " TO " + writer}
	var all, open []string
	for _, t := range storeTables {
		name := quoted + "." + t.name
		all = append(all, name)
		if !t.private {
			open = append(open, name)
		}
		if t.insert != "" {
			sql = append(sql, "GRANT INSERT ("+t.insert+") ON "+name+" TO "+writer)
		}
	}
	sql = append(sql, "GRANT SELECT ON "+strings.Join(all, ", ")+" TO "+writer)
	var execute []string
	for _, f := range storeFunctions {
		if !f.internal {
			execute = append(execute, quoted+"."+f.signature())
		}
	}
	sql = append(sql, "GRANT EXECUTE ON FUNCTION "+strings.Join(execute, ", ")+" TO "+writer)
	if roles.Reader != "" {
		reader := pgx.Identifier{roles.Reader}.Sanitize()
		sql = append(sql, "GRANT USAGE ON SCHEMA "+quoted+" TO "+reader, "GRANT SELECT ON "+strings.Join(open, ", ")+" TO "+reader)
	}
	return sql
}

// makeRoles returns the statements that make the roles and the schema, and refuse roles
// and a schema by which others would have the owner's rights.
func makeRoles(schema string, roles Roles) string {
	owner, writer := quoteLiteral(roles.Owner), quoteLiteral(roles.Writer)
	var b strings.Builder
	b.WriteString("DO " + dollarQuote(schema+roles.Owner+roles.Writer+roles.Reader) + `
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = ` + owner + `) THEN
        CREATE ROLE ` + pgx.Identifier{roles.Owner}.Sanitize() + ` NOLOGIN;
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = ` + owner + ` AND (rolcanlogin OR rolsuper)) THEN
        RAISE EXCEPTION 'the role that owns the history must not log in or be a superuser';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = ` + writer + `) THEN
        CREATE ROLE ` + pgx.Identifier{roles.Writer}.Sanitize() + ` LOGIN; -- give it a password
    END IF;
    IF pg_catalog.pg_has_role(` + writer + `::name, ` + owner + `::name, 'MEMBER') THEN
        RAISE EXCEPTION 'the role that writes the history may act as the one that owns it';
    END IF;
`)
	if roles.Reader != "" {
		reader := quoteLiteral(roles.Reader)
		b.WriteString(`    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = ` + reader + `) THEN
        CREATE ROLE ` + pgx.Identifier{roles.Reader}.Sanitize() + ` NOLOGIN;
    END IF;
    IF pg_catalog.pg_has_role(` + reader + `::name, ` + owner + `::name, 'MEMBER') THEN
        RAISE EXCEPTION 'the role that reads the history may act as the one that owns it';
    END IF;
`)
	}
	b.WriteString(`    IF EXISTS (SELECT FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner
        WHERE n.nspname = ` + quoteLiteral(schema) + ` AND r.rolname <> ` + owner + `) THEN
        RAISE EXCEPTION 'the schema of the history is there already, and somebody else owns it';
    END IF;
    IF NOT pg_catalog.pg_has_role(current_user, ` + owner + `::name, 'MEMBER') THEN
        EXECUTE 'GRANT ' || pg_catalog.quote_ident(` + owner + `) || ' TO ' || pg_catalog.quote_ident(current_user);
    END IF;
END ` + dollarQuote(schema+roles.Owner+roles.Writer+roles.Reader) + `;
`)
	return b.String()
}

// limitRetention returns the statement by which history is kept for so long, whatever a
// writer asks for; 0 is for ever.
func limitRetention(schema string, keep time.Duration) string {
	value := "NULL"
	if keep > 0 {
		value = fmt.Sprintf("interval '%d seconds'", int64(keep/time.Second))
	}
	return "INSERT INTO " + pgx.Identifier{schema}.Sanitize() + ".retention_limit (keep) VALUES (" + value + ")"
}

// checkRoles says what keeps the current role from writing a store with least rights, and
// the SQL that helps.
func (s *Store) checkRoles(ctx context.Context) (what string, sql []string, err error) {
	var role string
	var schema, known, owns bool
	err = s.pool.QueryRow(ctx, `
		SELECT current_user::text, pg_catalog.to_regnamespace($1) IS NOT NULL,
			EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $2),
			EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $2 AND pg_catalog.pg_has_role(oid, 'MEMBER'))`, s.schema, s.roles.Owner).Scan(&role, &schema, &known, &owns)
	if err != nil {
		return "", nil, fmt.Errorf("check roles of the store: %w", err)
	}
	switch {
	case !schema || !known:
		return fmt.Sprintf("the store's schema %s, owned by role %s, is not there: a DBA runs the script that SetupSQL returns (Config.StoreRoles)", s.name, s.roles.Owner), nil, nil
	case owns:
		return fmt.Sprintf("role %s may act as role %s, which owns the history: connect to the store as a role that may not (Config.StoreURL), or leave Config.StoreRoles empty", role, s.roles.Owner), nil, nil
	}
	roles := Roles{Owner: s.roles.Owner, Writer: role}
	var usage bool
	if err := s.pool.QueryRow(ctx, "SELECT pg_catalog.has_schema_privilege($1, 'USAGE')", s.name).Scan(&usage); err != nil {
		return "", nil, fmt.Errorf("check roles of the store: %w", err)
	}
	if !usage {
		return fmt.Sprintf("role %s may not write the history in schema %s", role, s.name), grants(s.name, roles), nil
	}
	var missing int
	var bound bool
	err = s.pool.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM pg_catalog.unnest($1::text[]) f (signature)
				WHERE pg_catalog.to_regprocedure(signature) IS NULL OR NOT pg_catalog.has_function_privilege(pg_catalog.to_regprocedure(signature), 'EXECUTE'))
			+ (SELECT count(*) FROM pg_catalog.unnest($2::text[]) t (name)
				WHERE pg_catalog.to_regclass(name) IS NULL OR NOT pg_catalog.has_table_privilege(pg_catalog.to_regclass(name), 'SELECT'))
			+ (SELECT count(*) FROM pg_catalog.unnest($3::text[]) t (name)
				WHERE pg_catalog.to_regclass(name) IS NOT NULL AND NOT pg_catalog.has_any_column_privilege(pg_catalog.to_regclass(name), 'INSERT')),
			coalesce(pg_catalog.row_security_active(pg_catalog.to_regclass($4)), false)`, s.signatures(), s.tables(false), s.tables(true), s.schema+".changes").Scan(&missing, &bound)
	if err != nil {
		return "", nil, fmt.Errorf("check roles of the store: %w", err)
	}
	if missing > 0 {
		return fmt.Sprintf("role %s lacks %d rights in the store's schema %s, or the store is of another version of the program: the script that SetupSQL returns makes it", role, missing, s.name), grants(s.name, roles), nil
	}
	if bound {
		return fmt.Sprintf("a policy on the history applies to role %s, which COPY refuses", role),
			[]string{"ALTER ROLE " + pgx.Identifier{role}.Sanitize() + " BYPASSRLS"}, nil
	}
	return s.checkOwners(ctx)
}

// signatures returns the functions that a writer executes.
func (s *Store) signatures() []string {
	var all []string
	for _, f := range storeFunctions {
		if !f.internal {
			all = append(all, s.schema+"."+f.signature())
		}
	}
	return all
}

// tables returns the tables, or those that a writer adds rows to.
func (s *Store) tables(written bool) []string {
	var all []string
	for _, t := range storeTables {
		if !written || t.insert != "" {
			all = append(all, s.schema+"."+t.name)
		}
	}
	return all
}
