package capture

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
)

// traceSchema is the schema of the event triggers' function and its token: one of
// its own, since whoever owns the store need not be a superuser.
func traceSchema(schema string) string { return schema + "_ddl" }

// traceSQL returns the statements that make the event triggers, which tell in the
// stream itself what a table looks like from the place on at which it was altered.
// Only a superuser can make them.
//
// The function cannot fail a host's DDL: whatever goes wrong in it is swallowed,
// and then found out by the next look at the catalog. It runs with its owner's
// rights, since whoever alters a table may not read the token; it reads catalogs, asks
// whether a partition that comes has rows, and runs nobody's code.
func (s *Setup) traceSQL(schema, prefix string) []string {
	quoted := pgx.Identifier{traceSchema(schema)}.Sanitize()
	body := strings.NewReplacer(
		"{{schema}}", quoted, "{{history}}", quoteLiteral(s.StoreSchema), "{{prefix}}", quoteLiteral(prefix+StructureSuffix), "{{structure}}", structureSQL("t.oid"),
		"{{publication}}", quoteLiteral(s.Publication), "{{untouched}}", untouched, "{{new}}", madeHere("i"), "{{altered}}", madeHere("a"), "{{plain_cast}}", quoteLiteral(plainCast(false)), "{{plain_cast_quoted}}", quoteLiteral(plainCast(true)),
	).Replace(traceFunction)
	sql := []string{
		ownedBySuperuser(traceSchema(schema)),
		"CREATE SCHEMA IF NOT EXISTS " + quoted,
		"CREATE TABLE IF NOT EXISTS " + quoted + ".ddl_token (token text NOT NULL)",
		revokeAll(quoted + ".ddl_token"),
		"INSERT INTO " + quoted + ".ddl_token SELECT pg_catalog.replace(pg_catalog.gen_random_uuid()::text || pg_catalog.gen_random_uuid()::text, '-', '') WHERE NOT EXISTS (SELECT FROM " + quoted + ".ddl_token)",
		"CREATE TABLE IF NOT EXISTS " + quoted + ".ddl_members (relation oid PRIMARY KEY, member oid NOT NULL, whole boolean NOT NULL)",
		revokeAll(quoted + ".ddl_members"),
		body,
		"REVOKE ALL ON FUNCTION " + quoted + ".trace_ddl() FROM PUBLIC",
	}
	for _, t := range s.traces() {
		sql = append(sql,
			"CREATE EVENT TRIGGER "+t.ident()+" ON "+t.event+t.when+" EXECUTE FUNCTION "+quoted+".trace_ddl()",
			// Also for sessions that replicate.
			"ALTER EVENT TRIGGER "+t.ident()+" ENABLE ALWAYS")
	}
	return sql
}

// ownedBySuperuser fails if the schema is another's: whoever owns it could put code of
// his own where a superuser's DDL runs ours.
func ownedBySuperuser(schema string) string {
	return `DO $owner$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner WHERE n.nspname = ` + quoteLiteral(schema) + ` AND NOT r.rolsuper) THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = pg_catalog.format('schema %I belongs to a role that is no superuser: drop it', ` + quoteLiteral(schema) + `);
    END IF;
END $owner$`
}

// revokeAll takes every right to a table from everyone but its owner, whatever
// default privileges gave.
func revokeAll(table string) string {
	return `DO $revoke$
DECLARE grantee oid;
BEGIN
    FOR grantee IN SELECT DISTINCT a.grantee FROM pg_catalog.pg_class c, LATERAL pg_catalog.aclexplode(c.relacl) a
        WHERE c.oid = ` + quoteLiteral(table) + `::pg_catalog.regclass AND a.grantee <> c.relowner
    LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON %s FROM %s', ` + quoteLiteral(table) + `, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(grantee)) END);
    END LOOP;
END $revoke$`
}

// trace is an event trigger.
type trace struct{ name, event, when string }

// tracedCommands are the commands that can alter what a table looks like: the others,
// such as GRANT, cost nothing.
const tracedCommands = " WHEN TAG IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE', 'ALTER TYPE', 'ALTER DOMAIN'," +
	" 'CREATE SCHEMA', 'ALTER SCHEMA', 'CREATE EXTENSION', 'ALTER EXTENSION')"

func (t trace) ident() string { return pgx.Identifier{t.name}.Sanitize() }

// traces returns the event triggers. They have no schema: the publication's name
// tells two histories of one database apart.
func (s *Setup) traces() []trace {
	return []trace{
		{s.Publication + "_ddl", "ddl_command_end", tracedCommands},
		{s.Publication + "_drop", "sql_drop", ""},
		{s.Publication + "_rewrite", "table_rewrite", " WHEN TAG IN ('ALTER TABLE')"},
	}
}

func (s *Setup) traceNames() (names []string) {
	for _, t := range s.traces() {
		names = append(names, t.name)
	}
	return names
}

// madeHere is a condition on a row of a catalog: this transaction made it, perhaps in a
// savepoint, which has an id of its own.
func madeHere(row string) string {
	return `CASE WHEN age(` + row + `.xmin) < 1000000000
                    THEN pg_xact_status((pg_current_xact_id()::text::bigint - age(` + row + `.xmin))::text::xid8) = 'in progress' END`
}

// plainCast returns a regular expression for the part of an ALTER TABLE that gives a column
// another type and no other values: what USING says, as many tools have it, is what would
// be done without. Both names have to be the same text, in quotes where quoted is set:
// with the flag i, by which Price is price, "Price" would be "price", which is another column.
func plainCast(quoted bool) string {
	name, letter := `([^\s"'():;,./*-]+)`, `[\w.$]`
	if quoted {
		name, letter = `("[^"]+"|[^\s"'():;,./*-]+)`, `[\w."$]`
	}
	typ := letter + `+(?:\s+(?:varying|precision))?(?:\s*\([\d\s,]*\))?(?:\s+with(?:out)?\s+time\s+zone)?(?:\s*\[\s*\d*\s*\])*`
	pattern := `alter\s+(?:column\s+)?` + name + `\s+(?:set\s+data\s+)?type\s+(` + typ + `)(?:\s+collate\s+[\w."$]+)?` +
		`\s+using\s+(?:\1\s*::\s*\2|cast\s*\(\s*\1\s+as\s+\2\s*\)|\1)\s*(?=,|;|$)`
	if !quoted {
		return pattern
	}
	for _, word := range []string{"varying", "precision", "with", "out", "time", "zone", "alter", "column", "set", "data", "type", "collate", "using", "cast", "as"} {
		pattern = regexp.MustCompile(`\b`+word+`\b`).ReplaceAllStringFunc(pattern, inAnyCase)
	}
	return pattern
}

// inAnyCase returns a regular expression for a word in lower case.
func inAnyCase(word string) string {
	var b strings.Builder
	for _, letter := range word {
		fmt.Fprintf(&b, "[%c%c]", letter, letter-'a'+'A')
	}
	return b.String()
}

const traceFunction = `CREATE OR REPLACE FUNCTION {{schema}}.trace_ddl()
RETURNS event_trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
SET standard_conforming_strings = on
AS $trace$
DECLARE
    touched oid[];
    types   oid[];
    word    text;
    content json;
    gone    record;
    leaf    record;
    came    boolean := false;
    stack   text;
    said    text COLLATE "C"; -- in Turkish, I is no i
BEGIN
    SELECT token INTO STRICT word FROM {{schema}}.ddl_token LIMIT 1;
    IF tg_event = 'table_rewrite' THEN
        -- Columns got another type (4), and perhaps other values. Whether they did, and which
        -- they are, is told by the text of the statement only, and by that of a call of a
        -- function not even so.
        GET DIAGNOSTICS stack = PG_CONTEXT;
        IF stack NOT LIKE '%' || chr(10) || '%' THEN
            said := current_query();
            -- The script of an extension is not in it.
            IF said !~* '\malter\M' OR said !~* '\mtable\M' OR said ~* '\mextension\M' THEN
                said := NULL;
            END IF;
            said := regexp_replace(regexp_replace(said, {{plain_cast_quoted}}, '', 'g'), {{plain_cast}}, '', 'gi');
        END IF;
        IF pg_event_trigger_table_rewrite_reason() & 4 <> 0 AND (said IS NULL OR said ~* '\musing\M') THEN
            PERFORM pg_logical_emit_message(true, {{prefix}}, json_build_object('token', word, 'rewritten', json_agg(a.attnum), 'table', json_build_object('oid', a.attrelid::bigint))::text)
            FROM pg_attribute a
            WHERE a.attrelid = pg_event_trigger_table_rewrite_oid() AND a.attnum > 0 AND NOT a.attisdropped AND {{altered}}
              AND (said IS NULL OR said ~* 'u&"' OR strpos(lower(said), lower(replace(a.attname, '"', '""'))) > 0)
            GROUP BY a.attrelid;
        END IF;
        RETURN;
    END IF;
    IF tg_event = 'sql_drop' THEN
        FOR gone IN SELECT * FROM pg_event_trigger_dropped_objects() WHERE object_type = 'table' AND NOT is_temporary AND schema_name <> {{history}} LOOP
            PERFORM pg_logical_emit_message(true, {{prefix}}, json_build_object('token', word, 'table', json_build_object(
                'oid', gone.objid::bigint, 'schema', gone.schema_name, 'table', gone.object_name, 'dropped', true))::text);
        END LOOP;
        -- What went with a type, or with another table.
        SELECT array_agg(DISTINCT CASE WHEN d.classid = 'pg_class'::regclass THEN d.objid ELSE to_regclass(format('%I.%I', d.address_names[1], d.address_names[2]))::oid END)
        INTO touched
        FROM pg_event_trigger_dropped_objects() d
        WHERE d.object_type IN ('table column', 'table constraint') AND NOT d.is_temporary AND d.schema_name <> {{history}};
        DELETE FROM {{schema}}.ddl_members m
        USING pg_event_trigger_dropped_objects() d
        WHERE d.object_type = 'table' AND d.objid = m.relation;
    ELSE
        SELECT array_agg(DISTINCT d.objid) FILTER (WHERE d.classid = 'pg_class'::regclass),
            array_agg(DISTINCT d.objid) FILTER (WHERE d.classid = 'pg_type'::regclass)
        INTO touched, types
        FROM pg_event_trigger_ddl_commands() d
        WHERE d.schema_name IS DISTINCT FROM 'pg_temp' AND d.schema_name IS DISTINCT FROM {{history}};
        -- A composite type is altered as a relation.
        SELECT types || array_agg(c.reltype) INTO types FROM pg_class c WHERE c.oid = ANY (touched) AND c.relkind = 'c' HAVING count(*) > 0 OR types IS NOT NULL;
        IF types IS NOT NULL THEN
            SELECT touched || array_agg(DISTINCT a.attrelid)
            INTO touched
            FROM (
                WITH RECURSIVE uses (oid) AS (
                    SELECT unnest(types)
                    UNION
                    SELECT user_of.oid
                    FROM uses u
                    CROSS JOIN LATERAL (
                        SELECT t.oid FROM pg_type t WHERE t.typelem = u.oid OR t.typbasetype = u.oid
                        UNION ALL SELECT r.rngtypid FROM pg_range r WHERE r.rngsubtype = u.oid
                        UNION ALL SELECT c.reltype FROM pg_attribute ca JOIN pg_class c ON c.oid = ca.attrelid AND c.relkind = 'c' WHERE ca.atttypid = u.oid) user_of (oid))
                SELECT oid FROM uses) u
            JOIN pg_attribute a ON a.atttypid = u.oid AND a.attnum > 0 AND NOT a.attisdropped;
        END IF;
        SELECT touched || array_agg(c.oid)
        INTO touched
        FROM pg_event_trigger_ddl_commands() d
        JOIN pg_class c ON c.relnamespace = d.objid
        WHERE d.classid = 'pg_namespace'::regclass;
    END IF;
    -- What is published has a replica identity before the next statement, which may be an
    -- UPDATE; and a new partition is published from the first row on, as the others are.
    BEGIN
        FOR leaf IN
            WITH RECURSIVE down (oid) AS (
                SELECT unnest(touched)
                UNION SELECT i.inhrelid FROM down JOIN pg_inherits i ON i.inhparent = down.oid),
            state AS (
                SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS ident, format('%I', p.pubname) AS publication, r.oid AS member,
                    EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated = 'v' AND NOT a.attisdropped) AS virtual,
                    EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary) AS key,
                    c.relreplident AS identity,
                    r.oid IS NULL AND c.relispartition AND NOT EXISTS (SELECT FROM {{schema}}.ddl_members m WHERE m.relation = c.oid) AND EXISTS (
                        SELECT
                        FROM pg_partition_tree(pg_partition_root(c.oid)) part
                        JOIN pg_publication_rel other ON other.prpubid = p.oid AND other.prrelid = part.relid) AS joins,
                    {{untouched}} OR EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid AND {{new}}) AS whole
                FROM down
                JOIN pg_class c ON c.oid = down.oid AND c.relkind = 'r' AND c.relpersistence = 'p'
                JOIN pg_namespace n ON n.oid = c.relnamespace
                JOIN pg_publication p ON p.pubname = {{publication}}
                LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid)
            SELECT *, CASE WHEN NOT virtual THEN identity <> 'f' ELSE identity NOT IN ('d', 'i') END AS unsettled FROM state WHERE member IS NOT NULL OR joins
        LOOP
            IF leaf.virtual AND NOT leaf.key THEN
                IF leaf.member IS NOT NULL THEN
                    EXECUTE format('ALTER PUBLICATION %s DROP TABLE ONLY %s', leaf.publication, leaf.ident);
                END IF;
                CONTINUE;
            END IF;
            IF leaf.joins THEN
                EXECUTE format('ALTER PUBLICATION %s ADD TABLE ONLY %s', leaf.publication, leaf.ident);
                INSERT INTO {{schema}}.ddl_members
                SELECT leaf.oid, r.oid, leaf.whole FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = {{publication}} AND r.prrelid = leaf.oid;
            END IF;
            IF leaf.unsettled THEN -- which has this function called again
                EXECUTE format('ALTER TABLE ONLY %s REPLICA IDENTITY %s', leaf.ident, CASE WHEN leaf.virtual THEN 'DEFAULT' ELSE 'FULL' END);
            END IF;
        END LOOP;
    EXCEPTION WHEN OTHERS THEN
        NULL; -- a lock that is not to be had, say: the next refresh sees to it
    END;
    -- Whether what this transaction attached has rows, which came with it then.
    BEGIN
        FOR leaf IN
            SELECT c.relkind, format('%I.%I', n.nspname, c.relname) AS ident
            FROM pg_inherits i
            CROSS JOIN LATERAL pg_partition_tree(i.inhrelid) part
            JOIN pg_class c ON c.oid = part.relid AND part.isleaf
            JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE tg_tag NOT LIKE 'CREATE TABLE%' AND (i.inhparent = ANY (touched) OR i.inhrelid = ANY (touched)) AND {{new}}
        LOOP
            came := leaf.relkind <> 'r'; -- what a foreign table has is not asked for
            IF NOT came THEN
                EXECUTE format('SELECT EXISTS (SELECT FROM ONLY %s)', leaf.ident) INTO came;
            END IF;
            EXIT WHEN came;
        END LOOP;
    EXCEPTION WHEN OTHERS THEN
        came := true;
    END;
    -- A table is altered together with what is a part of it, and what it is a part of.
    FOR content IN
        WITH RECURSIVE up (oid) AS (
            SELECT unnest(touched)
            UNION SELECT i.inhparent FROM up JOIN pg_inherits i ON i.inhrelid = up.oid),
        down (oid) AS (
            SELECT unnest(touched)
            UNION SELECT i.inhrelid FROM down JOIN pg_inherits i ON i.inhparent = down.oid)
        SELECT described.structure
        FROM (SELECT oid FROM up UNION SELECT oid FROM down) t
        JOIN pg_class c ON c.oid = t.oid AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND c.relnamespace >= 16384 OR c.oid = t.oid AND c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace
        CROSS JOIN LATERAL ({{structure}}) described (structure)
        ORDER BY t.oid
    LOOP
        PERFORM pg_logical_emit_message(true, {{prefix}}, json_build_object('token', word, 'attached', came, 'table', content)::text);
    END LOOP;
    -- What is written last in a block that can fail, which is a savepoint, may be
    -- decoded behind the row that follows it.
    PERFORM pg_logical_emit_message(true, '', '');
EXCEPTION WHEN OTHERS THEN
    NULL; -- the next look at the catalog finds out
END $trace$`

// TraceScript is the part of a DBA's script that makes the event triggers.
func (s *Setup) TraceScript(schema, prefix, role string) string {
	quoted, grantee := pgx.Identifier{traceSchema(schema)}.Sanitize(), pgx.Identifier{role}.Sanitize()
	var b strings.Builder
	b.WriteString("\n-- Optional, in the source database, for a superuser: with event triggers the history knows at which place a table was\n-- altered. They cannot fail a statement. Leave the part out where it is not wanted.\n")
	for _, sql := range append(s.untraceSQL(), s.traceSQL(schema, prefix)...) {
		b.WriteString(sql + ";\n")
	}
	fmt.Fprintf(&b, "GRANT USAGE ON SCHEMA %s TO %s;\nGRANT SELECT ON %s.ddl_token, %[3]s.ddl_members TO %[2]s;\n", quoted, grantee, quoted)
	return b.String()
}

// EnsureTrace makes the event triggers where the role may. It reports whether
// they are there and on.
func (s *Setup) EnsureTrace(ctx context.Context, schema, prefix string) (bool, error) {
	on, err := s.traced(ctx, schema, prefix)
	if on || err != nil {
		return on, err
	}
	var may bool
	err = s.DB.QueryRow(ctx, `
		SELECT pg_catalog.current_setting('is_superuser') = 'on'
			AND NOT EXISTS (SELECT FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner WHERE n.nspname = $1 AND NOT r.rolsuper)`, traceSchema(schema)).Scan(&may)
	if err != nil {
		return false, fmt.Errorf("make event triggers: %w", err)
	}
	if !may {
		return false, nil
	}
	err = pgx.BeginFunc(ctx, s.DB, func(tx pgx.Tx) error {
		sql := append([]string{"SET LOCAL lock_timeout = '2s'"}, s.untraceSQL()...)
		for _, statement := range append(sql, s.traceSQL(schema, prefix)...) {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return err
			}
		}
		return nil
	})
	if isCode(err, "42501", "55P03") {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("make event triggers: %w", err)
	}
	return true, nil
}

// traced reports whether the event triggers are there, on, and of this version of
// the package.
func (s *Setup) traced(ctx context.Context, schema, prefix string) (bool, error) {
	var n int
	_, body, _ := strings.Cut(strings.Join(s.traceSQL(schema, prefix), "\n"), "$trace$")
	body, _, _ = strings.Cut(body, "$trace$")
	err := s.DB.QueryRow(ctx, `
		SELECT count(*)
		FROM pg_catalog.pg_event_trigger e
		JOIN pg_catalog.pg_proc p ON p.oid = e.evtfoid
		JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
		WHERE e.evtname = ANY ($1) AND e.evtenabled = 'A' AND n.nspname = $2 AND p.prosrc = $3`,
		s.traceNames(), traceSchema(schema), body).Scan(&n)
	if err != nil {
		return false, fmt.Errorf("look for event triggers: %w", err)
	}
	return n == len(s.traces()), nil
}

// readable reports whether a table of the event triggers is there, for the role to read.
func (s *Setup) readable(ctx context.Context, schema, table string) (may bool, err error) {
	err = s.DB.QueryRow(ctx, `
		SELECT coalesce((
			SELECT pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT')
			FROM pg_catalog.pg_class c
			JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			WHERE n.nspname = $1 AND c.relname = $2), false)`, traceSchema(schema), table).Scan(&may)
	return may, err
}

// TraceToken returns the word by which messages of the event triggers are known;
// empty if there are none, or the role may not know it.
func (s *Setup) TraceToken(ctx context.Context, schema string) (string, error) {
	var token string
	may, err := s.readable(ctx, schema, "ddl_token")
	if err == nil && may {
		err = s.DB.QueryRow(ctx, "SELECT coalesce((SELECT token FROM "+pgx.Identifier{traceSchema(schema), "ddl_token"}.Sanitize()+" LIMIT 1), '')").Scan(&token)
	}
	if err != nil {
		return "", fmt.Errorf("read token of event triggers: %w", err)
	}
	return token, nil
}

// TracedMembers returns the entries of the publication that the event triggers made for
// partitions, in the transactions that made or attached those: such a partition has lost
// nothing.
func (s *Setup) TracedMembers(ctx context.Context, schema string) (map[string]bool, error) {
	members := make(map[string]bool)
	may, err := s.readable(ctx, schema, "ddl_members")
	if err == nil && may {
		rows, _ := s.DB.Query(ctx, "SELECT member::text FROM "+pgx.Identifier{traceSchema(schema), "ddl_members"}.Sanitize()+" WHERE whole")
		var member string
		_, err = pgx.ForEachRow(rows, []any{&member}, func() error {
			members[member] = true
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("read what event triggers published: %w", err)
	}
	return members, nil
}

// untraceSQL returns the statements that remove the event triggers.
func (s *Setup) untraceSQL() []string {
	var sql []string
	for _, t := range s.traces() {
		sql = append(sql, "DROP EVENT TRIGGER IF EXISTS "+t.ident())
	}
	return sql
}

// UntraceSQL returns the statements that remove the event triggers and what belongs
// to them; none if there is nothing of the kind.
func (s *Setup) UntraceSQL(ctx context.Context, schema string) ([]string, error) {
	quoted := pgx.Identifier{traceSchema(schema)}.Sanitize()
	var there bool
	err := s.DB.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM pg_catalog.pg_event_trigger WHERE evtname = ANY ($1)) OR EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $2)`,
		s.traceNames(), traceSchema(schema)).Scan(&there)
	if err != nil {
		return nil, fmt.Errorf("look for event triggers: %w", err)
	}
	if !there {
		return nil, nil
	}
	return append(s.untraceSQL(), "DROP FUNCTION IF EXISTS "+quoted+".trace_ddl()", "DROP TABLE IF EXISTS "+quoted+".ddl_token", "DROP TABLE IF EXISTS "+quoted+".ddl_members", "DROP SCHEMA IF EXISTS "+quoted), nil
}
