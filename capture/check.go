package capture

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// minVersion is the oldest server that will do, as server_version_num.
const minVersion = 140000

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

// serverState is everything that Check looks at besides the tables.
type serverState struct {
	Facts
	publication      publication
	wide             string // how the publication sends tables that nobody named
	walLevel         string
	decodes          bool // the server decodes, whatever the name of its wal_level
	standby          bool
	replication      bool // the role may use slots
	superuser        bool
	createInDatabase bool
	slotExists       bool
	slots, usedSlots int
	senders          int
}

// Check looks at everything that capture needs and changes nothing. It returns a
// *SetupError if something is missing that the current role may not make.
func (s *Setup) Check(ctx context.Context) (Facts, error) {
	server, err := s.serverState(ctx)
	if err != nil {
		return server.Facts, err
	}
	tables, err := s.tables(ctx, s.DB)
	if err != nil {
		return server.Facts, err
	}
	ofTables, err := s.tableProblems(ctx, server, tables)
	if err != nil {
		return server.Facts, err
	}
	if problems := append(s.serverProblems(server), ofTables...); len(problems) > 0 {
		return server.Facts, &SetupError{Problems: problems}
	}
	// The name of a WAL file begins with its timeline. The control file names the one
	// before until the first checkpoint after a promotion.
	err = s.DB.QueryRow(ctx, `
		SELECT s.system_identifier::text, ('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int
		FROM pg_catalog.pg_control_system() s`).Scan(&server.SystemIdentifier, &server.Timeline)
	if err != nil {
		return server.Facts, fmt.Errorf("identify the source: %w", err)
	}
	return server.Facts, nil
}

func (s *Setup) serverState(ctx context.Context) (v serverState, err error) {
	// The roles of managed services that stand for REPLICATION are named where
	// they exist.
	err = s.DB.QueryRow(ctx, `
		SELECT current_setting('server_version_num')::int, current_database(), current_user::text,
			current_setting('wal_level'), pg_catalog.pg_is_in_recovery(),
			r.rolreplication OR EXISTS (SELECT FROM pg_catalog.pg_roles m WHERE m.rolname IN ('rds_replication', 'azure_pg_admin', 'cloudsqlsuperuser') AND pg_catalog.pg_has_role(r.oid, m.oid, 'MEMBER')),
			r.rolsuper,
			pg_catalog.has_database_privilege(current_database(), 'CREATE'),
			EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = $1),
			current_setting('max_replication_slots')::int,
			(SELECT count(*) FROM pg_catalog.pg_replication_slots),
			current_setting('max_wal_senders')::int
		FROM pg_catalog.pg_roles r
		WHERE r.rolname = current_user`, s.Slot).
		Scan(&v.Version, &v.Database, &v.Role, &v.walLevel, &v.standby, &v.replication, &v.superuser, &v.createInDatabase, &v.slotExists, &v.slots, &v.usedSlots, &v.senders)
	if err != nil {
		return v, fmt.Errorf("check source: %w", err)
	}
	if v.walLevel != "logical" && !v.standby {
		if v.decodes = v.slotExists; !v.decodes {
			if v.decodes, err = s.decodes(ctx); err != nil {
				return v, err
			}
		}
	}
	if v.publication, err = s.publicationState(ctx); err != nil {
		return v, err
	}
	v.wide, err = s.wide(ctx, v.Version)
	return v, err
}

// decodes reports whether the server decodes its WAL, by trying: servers that differ, and
// later ones, name the level otherwise. A server that does not says so at once; one that
// does may have to wait for open transactions, and is not waited for.
func (s *Setup) decodes(ctx context.Context) (bool, error) {
	trying, cancel := context.WithTimeout(ctx, 2*decodeTrial)
	defer cancel()
	err := s.tryDecoding(trying)
	switch {
	case err == nil, isCode(err, "57014"), ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
		return true, nil // or it was about to, and had to wait
	case isCode(err, "53400"):
		return true, nil // the level is looked at before slots are counted
	case isCode(err, "55000", "42501"):
		return false, nil
	}
	return false, fmt.Errorf("find out whether the source decodes its WAL: %w", err)
}

func (s *Setup) tryDecoding(ctx context.Context) error {
	return pgx.BeginFunc(ctx, s.DB, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL statement_timeout = %d", decodeTrial.Milliseconds())); err != nil {
			return err
		}
		name := strings.ToLower(fmt.Sprintf("audit_trial_%d", tx.Conn().PgConn().PID()))
		if _, err := tx.Exec(ctx, "SELECT pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput', true)", name); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "SELECT pg_catalog.pg_drop_replication_slot($1)", name)
		return err
	})
}

// decodeTrial bounds the trial.
const decodeTrial = 2 * time.Second

// serverProblems lists what keeps the role from capturing, whatever the tables.
func (s *Setup) serverProblems(v serverState) []Problem {
	var problems []Problem
	add := func(p Problem) { problems = append(problems, p) }
	role := pgx.Identifier{v.Role}.Sanitize()
	if v.Version < minVersion {
		add(Problem{What: fmt.Sprintf("the server is PostgreSQL %d; 14 is the first whose logical replication carries context", v.Version/10000)})
	}
	if v.standby {
		add(Problem{What: "the server is a standby, on which no publication can be made: connect to the primary"})
	}
	if v.walLevel != "logical" && !v.decodes {
		add(Problem{What: "wal_level is " + v.walLevel + ", not logical", Config: "wal_level = logical", SQL: []string{"ALTER SYSTEM SET wal_level = 'logical'"}})
	}
	if !v.replication && !v.superuser {
		add(Problem{What: "role " + v.Role + " may not use replication slots", SQL: []string{"ALTER ROLE " + role + " REPLICATION"}})
	}
	if !v.slotExists && v.usedSlots >= v.slots {
		add(Problem{What: fmt.Sprintf("all %d replication slots are in use (see pg_replication_slots)", v.slots), Config: fmt.Sprintf("max_replication_slots = %d", v.slots+5)})
	}
	if v.senders == 0 {
		add(Problem{What: "max_wal_senders is 0", Config: "max_wal_senders = 10"})
	}
	if wide := v.wide; wide != "" {
		ident := pgx.Identifier{s.Publication}.Sanitize()
		sql := []string{"ALTER PUBLICATION " + ident + " DROP " + wide}
		if wide == "ALL TABLES" {
			sql = []string{"DROP PUBLICATION " + ident, s.createPublication(v.Version)}
		}
		add(Problem{What: fmt.Sprintf("publication %s is FOR %s, so that it sends tables that are not tracked, and makes their UPDATEs fail where they have no replica identity: change it, or choose another name (Config.Publication)", s.Publication, wide), SQL: sql})
	}
	switch {
	case v.superuser:
	case !v.publication.exists && !v.createInDatabase:
		add(Problem{
			What: fmt.Sprintf("role %s may not create the publication %s", v.Role, s.Publication),
			SQL:  []string{"GRANT CREATE ON DATABASE " + pgx.Identifier{v.Database}.Sanitize() + " TO " + role},
		})
	case v.publication.exists && !v.publication.complete && !v.publication.owned:
		add(Problem{
			What: fmt.Sprintf("publication %s leaves changes out, and is not owned by role %s", s.Publication, v.Role),
			SQL:  []string{s.repairPublication(v.Version)},
		})
	}
	return problems
}

// tableProblems lists the tables that the role cannot make tracked.
func (s *Setup) tableProblems(ctx context.Context, server serverState, tables []Table) ([]Problem, error) {
	var problems []Problem
	published := server.publication.exists
	for _, t := range tables {
		switch {
		case t.Named && !t.Persistent:
			problems = append(problems, Problem{What: "table " + t.Ident() + " is unlogged: its changes are not in the WAL", SQL: []string{"ALTER TABLE " + t.Ident() + " SET LOGGED"}})
		case t.Named && t.incomplete() != "":
			problems = append(problems, Problem{What: "table " + t.Ident() + ": " + t.incomplete()})
		case !t.Persistent || t.tracked() || server.superuser:
		case !t.owned():
			// With it, nothing about the table is left to do.
			sql := t.statements(s.Publication)
			if !published {
				sql = append([]string{s.createPublication(server.Version)}, sql...)
				published = true // by whoever runs this
			}
			problems = append(problems, Problem{What: fmt.Sprintf("table %s is not owned by role %s", t.Ident(), server.Role), SQL: sql})
		case server.publication.exists && !server.publication.owned:
			problems = append(problems, Problem{
				What: fmt.Sprintf("publication %s is not owned by role %s", s.Publication, server.Role),
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
		what, err := s.missingTable(ctx, p)
		if err != nil {
			return nil, err
		}
		problems = append(problems, Problem{What: what})
	}
	return problems, nil
}

// missingTable says what there is instead of a table that a pattern names.
func (s *Setup) missingTable(ctx context.Context, p Pattern) (string, error) {
	what := fmt.Sprintf("table %s, which a pattern names, does not exist", pgx.Identifier{p.Schema.Text, p.Table.Text}.Sanitize())
	var schema, name, kind string
	err := s.DB.QueryRow(ctx, `
		SELECT n.nspname, c.relname, c.relkind::text
		FROM pg_catalog.pg_class c
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE lower(c.relname) = lower($2) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
		ORDER BY n.nspname = $1 AND c.relname = $2 DESC, lower(n.nspname) = lower($1) DESC, n.nspname
		LIMIT 1`, p.Schema.Text, p.Table.Text).Scan(&schema, &name, &kind)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return what, nil
	case err != nil:
		return "", fmt.Errorf("look for table %s: %w", p, err)
	}
	ident := pgx.Identifier{schema, name}.Sanitize()
	switch exact := schema == p.Schema.Text && name == p.Table.Text; {
	case exact && kind == "f":
		return ident + ", which a pattern names, is a foreign table: its changes are not in this server's WAL", nil
	case exact && kind != "r" && kind != "p":
		return ident + ", which a pattern names, is a view: name the tables it is made of", nil
	case exact:
		return ident + ", which a pattern names, is not tracked: it is temporary, or in the store's own schema", nil
	}
	return what + "; did you mean " + ident + "?", nil
}
