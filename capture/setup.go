package capture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	minVersion = 140000
	// alterLockTimeout is how long an ALTER on the user's table may wait for its
	// lock, and so how long it may hold up the application's statements that
	// queue behind it.
	alterLockTimeout = 100 * time.Millisecond
)

// Setup checks the source and makes what capture needs there: the publication,
// the replica identities, the slot. All its methods may be repeated, and run by
// several instances at once.
type Setup struct {
	DB          *pgxpool.Pool
	Slot        string
	Publication string
	Patterns    Patterns
	// StoreSchema is never tracked, so that the store cannot feed back.
	StoreSchema string
	Logger      *slog.Logger
}

// Problem is something that the current role cannot set right by itself.
type Problem struct {
	// What is wrong, with names.
	What string
	// SQL is what somebody with the right to do it would run.
	SQL []string
	// Config is what to set in postgresql.conf and restart for, if anything.
	Config string
}

// SetupError is returned when the source is not ready. It lists everything that
// is missing, so that one visit to the DBA is enough.
type SetupError struct{ Problems []Problem }

func (e *SetupError) Error() string {
	var b strings.Builder
	b.WriteString("audit: the source is not ready:")
	for _, p := range e.Problems {
		b.WriteString("\n  - " + p.What)
		if p.Config != "" {
			b.WriteString("\n      set and restart: " + p.Config)
		}
		for _, sql := range p.SQL {
			b.WriteString("\n      run: " + sql + ";")
		}
	}
	return b.String()
}

// SQL returns all statements of all problems, as a script.
func (e *SetupError) SQL() string {
	var b strings.Builder
	for _, p := range e.Problems {
		for _, sql := range p.SQL {
			b.WriteString(sql + ";\n")
		}
	}
	return b.String()
}

// Facts are what Check has learned about the source.
type Facts struct {
	Version          int // as server_version_num
	Database         string
	Role             string
	SystemIdentifier string
	Timeline         int32
}

// Check looks at everything that capture needs and changes nothing. It returns a
// *SetupError if something is missing that the current role may not make.
func (s *Setup) Check(ctx context.Context) (Facts, error) {
	var f Facts
	var walLevel string
	var standby, replication, superuser, createDB, publication, ownsPublication, slotExists bool
	var slots, usedSlots, senders int
	err := s.DB.QueryRow(ctx, `
		SELECT current_setting('server_version_num')::int, current_database(), current_user::text,
			current_setting('wal_level'), pg_catalog.pg_is_in_recovery(),
			r.rolreplication OR EXISTS (SELECT FROM pg_catalog.pg_roles m WHERE m.rolname IN ('rds_replication', 'azure_pg_admin', 'cloudsqlsuperuser') AND pg_catalog.pg_has_role(r.oid, m.oid, 'MEMBER')),
			r.rolsuper,
			pg_catalog.has_database_privilege(current_database(), 'CREATE'),
			EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = $1),
			EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = $1 AND pg_catalog.pg_has_role(pubowner, 'USAGE')),
			EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = $2),
			current_setting('max_replication_slots')::int,
			(SELECT count(*) FROM pg_catalog.pg_replication_slots),
			current_setting('max_wal_senders')::int
		FROM pg_catalog.pg_roles r
		WHERE r.rolname = current_user`, s.Publication, s.Slot).
		Scan(&f.Version, &f.Database, &f.Role, &walLevel, &standby, &replication, &superuser, &createDB, &publication, &ownsPublication, &slotExists, &slots, &usedSlots, &senders)
	if err != nil {
		return f, fmt.Errorf("check source: %w", err)
	}
	var problems []Problem
	add := func(p Problem) { problems = append(problems, p) }
	role := pgx.Identifier{f.Role}.Sanitize()
	if f.Version < minVersion {
		add(Problem{What: fmt.Sprintf("the server is PostgreSQL %d; 14 is the first whose logical replication carries context", f.Version/10000)})
	}
	if standby {
		add(Problem{What: "the server is a standby, on which no publication can be made: connect to the primary"})
	}
	if walLevel != "logical" {
		add(Problem{What: "wal_level is " + walLevel + ", not logical", Config: "wal_level = logical", SQL: []string{"ALTER SYSTEM SET wal_level = 'logical'"}})
	}
	if !replication && !superuser {
		add(Problem{What: "role " + f.Role + " may not use replication slots", SQL: []string{"ALTER ROLE " + role + " REPLICATION"}})
	}
	if !slotExists && usedSlots >= slots {
		add(Problem{What: fmt.Sprintf("all %d replication slots are in use (see pg_replication_slots)", slots), Config: fmt.Sprintf("max_replication_slots = %d", slots+5)})
	}
	if senders == 0 {
		add(Problem{What: "max_wal_senders is 0", Config: "max_wal_senders = 10"})
	}
	if !publication && !createDB && !superuser {
		add(Problem{What: fmt.Sprintf("role %s may not create the publication %s", f.Role, s.Publication),
			SQL: []string{"GRANT CREATE ON DATABASE " + pgx.Identifier{f.Database}.Sanitize() + " TO " + role}})
	}
	tables, err := s.tables(ctx, s.DB)
	if err != nil {
		return f, err
	}
	problems = append(problems, s.tableProblems(tables, f, superuser, publication, ownsPublication)...)
	if len(problems) > 0 {
		return f, &SetupError{Problems: problems}
	}
	err = s.DB.QueryRow(ctx, `
		SELECT s.system_identifier::text, c.timeline_id
		FROM pg_catalog.pg_control_system() s, pg_catalog.pg_control_checkpoint() c`).Scan(&f.SystemIdentifier, &f.Timeline)
	if err != nil {
		return f, fmt.Errorf("identify the source: %w", err)
	}
	return f, nil
}

func (s *Setup) tableProblems(tables []Table, f Facts, superuser, publication, ownsPublication bool) []Problem {
	var problems []Problem
	foreignPublication := publication && !ownsPublication
	for _, t := range tables {
		switch {
		case t.Named && !t.Persistent:
			problems = append(problems, Problem{What: "table " + t.Ident() + " is unlogged: its changes are not in the WAL", SQL: []string{"ALTER TABLE " + t.Ident() + " SET LOGGED"}})
		case !t.Persistent || t.tracked() || superuser:
		case !t.owned():
			// With it, nothing about the table is left to do.
			sql := t.statements(s.Publication)
			if !publication {
				sql = append([]string{s.createPublication(f.Version)}, sql...)
				publication = true // by whoever runs this
			}
			problems = append(problems, Problem{What: fmt.Sprintf("table %s is not owned by role %s", t.Ident(), f.Role), SQL: sql})
		case foreignPublication:
			problems = append(problems, Problem{
				What: fmt.Sprintf("publication %s is not owned by role %s", s.Publication, f.Role),
				SQL:  t.statements(s.Publication),
			})
		}
	}
	for _, p := range s.Patterns {
		if p.Exclude || !p.Literal() {
			continue
		}
		if slices.ContainsFunc(tables, func(t Table) bool { return p.matches(t.Schema, t.Name) }) {
			continue
		}
		what := fmt.Sprintf("table %s, which a pattern names, does not exist", pgx.Identifier{p.Schema.Text, p.Table.Text}.Sanitize())
		for _, t := range tables {
			if strings.EqualFold(t.Schema, p.Schema.Text) && strings.EqualFold(t.Name, p.Table.Text) {
				what += "; did you mean " + t.Ident() + "?"
			}
		}
		problems = append(problems, Problem{What: what})
	}
	return problems
}

func (s *Setup) createPublication(version int) string {
	options := "publish = 'insert, update, delete, truncate', publish_via_partition_root = true"
	if version >= 180000 {
		// Without it an UPDATE of a table with a stored generated column would
		// fail in the application, because REPLICA IDENTITY FULL includes it.
		options += ", publish_generated_columns = stored"
	}
	return "CREATE PUBLICATION " + pgx.Identifier{s.Publication}.Sanitize() + " WITH (" + options + ")"
}

// EnsurePublication makes the publication if it is not there. It has to be there
// before the slot: decoding looks it up in the catalog as of the change, and
// stops for good where it does not find it.
func (s *Setup) EnsurePublication(ctx context.Context, version int) error {
	var exists bool
	err := s.DB.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = $1)", s.Publication).Scan(&exists)
	if err == nil && !exists {
		_, err = s.DB.Exec(ctx, s.createPublication(version))
		if isCode(err, "42710") { // another instance was faster
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("create publication %s: %w", s.Publication, err)
	}
	return nil
}

// Tracked is a table that is published with a full replica identity.
type Tracked struct {
	OID          uint32
	Schema, Name string
	// From is set if this call published the table, or a part of it: a position
	// before which something may have been missed, and after which nothing is.
	From LSN
}

// Pending is a table that could not be made tracked yet.
type Pending struct {
	Schema, Name string
	Reason       error
}

// Join makes every table that matches tracked: a full replica identity and a
// place in the publication, in this order and in one transaction. An ALTER that
// does not get its lock within a tenth of a second gives way to the application
// and is reported as pending, to be tried again. remember is called with the
// replica identities, by OID, that are about to be changed.
func (s *Setup) Join(ctx context.Context, remember func(ctx context.Context, identities map[uint32]string) error) (tracked []Tracked, pending []Pending, err error) {
	tables, err := s.tables(ctx, s.DB)
	if err != nil {
		return nil, nil, err
	}
	for _, t := range tables {
		if !t.Persistent {
			continue
		}
		if t.tracked() {
			tracked = append(tracked, Tracked{OID: t.OID, Schema: t.Schema, Name: t.Name})
			continue
		}
		if err := remember(ctx, t.identities()); err != nil {
			return tracked, pending, err
		}
		from, err := s.join(ctx, t)
		switch {
		case ctx.Err() != nil:
			return tracked, pending, ctx.Err()
		case err != nil:
			pending = append(pending, Pending{Schema: t.Schema, Name: t.Name, Reason: err})
		default:
			if t.published() {
				from = 0 // only its replica identity had to be seen to
			}
			tracked = append(tracked, Tracked{OID: t.OID, Schema: t.Schema, Name: t.Name, From: from})
		}
	}
	return tracked, pending, nil
}

// join makes one table tracked and returns the position from which it is. The
// lock it holds when it reads the position keeps out every writer, so no
// transaction straddles it.
func (s *Setup) join(ctx context.Context, t Table) (from LSN, err error) {
	err = pgx.BeginFunc(ctx, s.DB, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL lock_timeout = '%dms'", alterLockTimeout.Milliseconds())); err != nil {
			return err
		}
		for _, l := range t.Leaves {
			if l.Identity == "f" {
				if _, err := tx.Exec(ctx, "LOCK TABLE ONLY "+l.Ident()+" IN SHARE ROW EXCLUSIVE MODE"); err != nil {
					return err
				}
			}
		}
		for _, sql := range t.statements(s.Publication) {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return tx.QueryRow(ctx, "SELECT pg_catalog.pg_current_wal_insert_lsn()::text").Scan(&from)
	})
	if err != nil {
		return 0, fmt.Errorf("track table %s: %w", t.Ident(), err)
	}
	return from, nil
}

// Leave takes a table out of the publication and puts back those of the given
// replica identities that are its own, which it returns.
func (s *Setup) Leave(ctx context.Context, oid uint32, identities map[uint32]string) (restored map[uint32]string, err error) {
	rows, err := s.DB.Query(ctx, `
		SELECT c.oid, n.nspname, c.relname,
			EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = c.oid AND p.pubname = $1)
		FROM pg_catalog.pg_class c
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.oid = $2 OR c.relispartition AND pg_catalog.pg_partition_root(c.oid)::oid = $2`, s.Publication, oid)
	if err != nil {
		return nil, fmt.Errorf("list published tables: %w", err)
	}
	var sql []string
	restored = make(map[uint32]string)
	var part uint32
	var schema, name string
	var published bool
	_, err = pgx.ForEachRow(rows, []any{&part, &schema, &name, &published}, func() error {
		ident := pgx.Identifier{schema, name}.Sanitize()
		if published {
			sql = append(sql, "ALTER PUBLICATION "+pgx.Identifier{s.Publication}.Sanitize()+" DROP TABLE ONLY "+ident)
		}
		if identity, ok := identities[part]; ok {
			sql = append(sql, restoreIdentity(ident, identity))
			restored[part] = identity
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list published tables: %w", err)
	}
	err = pgx.BeginFunc(ctx, s.DB, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL lock_timeout = '%dms'", alterLockTimeout.Milliseconds())); err != nil {
			return err
		}
		for _, statement := range sql {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("stop tracking: %w", err)
	}
	return restored, nil
}

func restoreIdentity(ident, identity string) string {
	return "ALTER TABLE ONLY " + ident + " REPLICA IDENTITY " + identityClause(identity)
}

// RestoreSQL returns the statements that put replica identities back, for those
// tables that are still there.
func (s *Setup) RestoreSQL(ctx context.Context, identities map[uint32]string) ([]string, error) {
	rows, err := s.DB.Query(ctx, `
		SELECT c.oid, n.nspname, c.relname
		FROM pg_catalog.pg_class c
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.oid = ANY ($1)
		ORDER BY 2, 3`, slices.Collect(maps.Keys(identities)))
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	var sql []string
	var oid uint32
	var schema, name string
	_, err = pgx.ForEachRow(rows, []any{&oid, &schema, &name}, func() error {
		sql = append(sql, restoreIdentity(pgx.Identifier{schema, name}.Sanitize(), identities[oid]))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	return sql, nil
}

// Script returns the SQL that does beforehand what Check would ask for, for a
// DBA to run: rights for role, the publication, the tables and the slot.
func (s *Setup) Script(ctx context.Context, role string) (string, error) {
	var version int
	var database string
	if err := s.DB.QueryRow(ctx, "SELECT current_setting('server_version_num')::int, current_database()").Scan(&version, &database); err != nil {
		return "", fmt.Errorf("look at the source: %w", err)
	}
	tables, err := s.tables(ctx, s.DB)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "-- Run as a role that owns the tables, in database %s. wal_level must be logical.\n", database)
	fmt.Fprintf(&b, "ALTER ROLE %s REPLICATION;\n", pgx.Identifier{role}.Sanitize())
	fmt.Fprintf(&b, "\n-- The publication comes before the slot.\n%s;\n", s.createPublication(version))
	for _, t := range tables {
		if !t.Persistent {
			continue
		}
		for _, sql := range t.statements(s.Publication) {
			b.WriteString(sql + ";\n")
		}
	}
	fmt.Fprintf(&b, "\n-- The slot keeps WAL until the program has read it: make it when the program is about to run.\nSELECT pg_create_logical_replication_slot(%s, 'pgoutput');\n", quoteLiteral(s.Slot))
	return b.String(), nil
}

func isCode(err error, codes ...string) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && slices.Contains(codes, pgErr.Code)
}
