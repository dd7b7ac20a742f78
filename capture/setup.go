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

// publicationOptions returns the options of the publication. Less than them would
// leave holes in the history.
func publicationOptions(version int) string {
	options := "publish = 'insert, update, delete, truncate', publish_via_partition_root = true"
	if version >= 180000 {
		// Without it an UPDATE of a table with a stored generated column would
		// fail in the application, because REPLICA IDENTITY FULL includes it.
		options += ", publish_generated_columns = stored"
	}
	return options
}

func (s *Setup) createPublication(version int) string {
	return "CREATE PUBLICATION " + pgx.Identifier{s.Publication}.Sanitize() + " WITH (" + publicationOptions(version) + ")"
}

func (s *Setup) repairPublication(version int) string {
	return "ALTER PUBLICATION " + pgx.Identifier{s.Publication}.Sanitize() + " SET (" + publicationOptions(version) + ")"
}

// publication is what there is of the publication.
type publication struct {
	exists, owned bool
	// complete tells that its options leave nothing out.
	complete bool
}

func (s *Setup) publicationState(ctx context.Context) (p publication, err error) {
	err = s.DB.QueryRow(ctx, `
		SELECT pg_catalog.pg_has_role(pubowner, 'USAGE'),
			pubinsert AND pubupdate AND pubdelete AND pubtruncate AND pubviaroot AND coalesce(to_jsonb(p) ->> 'pubgencols', 's') = 's'
		FROM pg_catalog.pg_publication p
		WHERE pubname = $1`, s.Publication).Scan(&p.owned, &p.complete)
	if errors.Is(err, pgx.ErrNoRows) {
		return p, nil
	}
	if err != nil {
		return p, fmt.Errorf("look at publication %s: %w", s.Publication, err)
	}
	p.exists = true
	return p, nil
}

// wide returns how the publication sends tables that nobody named: all of them, or
// those of schemas, which came with 15.
func (s *Setup) wide(ctx context.Context, version int) (wide string, err error) {
	schemas := "''"
	if version >= 150000 {
		schemas = `coalesce((
			SELECT pg_catalog.string_agg('TABLES IN SCHEMA ' || pg_catalog.quote_ident(n.nspname), ', ' ORDER BY n.nspname)
			FROM pg_catalog.pg_publication_namespace s
			JOIN pg_catalog.pg_namespace n ON n.oid = s.pnnspid
			WHERE s.pnpubid = p.oid), '')`
	}
	err = s.DB.QueryRow(ctx, `
		SELECT CASE WHEN p.puballtables THEN 'ALL TABLES' ELSE `+schemas+` END
		FROM pg_catalog.pg_publication p
		WHERE p.pubname = $1`, s.Publication).Scan(&wide)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look at publication %s: %w", s.Publication, err)
	}
	return wide, nil
}

// EnsurePublication makes the publication if it is not there, and puts its
// options right if somebody changed them, which it reports: history may have a
// hole then. The publication has to be there before the slot: decoding looks it
// up in the catalog as of the change, and stops for good where it does not find
// it.
func (s *Setup) EnsurePublication(ctx context.Context, version int) (repaired bool, err error) {
	p, err := s.publicationState(ctx)
	if err != nil || p.complete {
		return false, err
	}
	if p.exists {
		if _, err := s.DB.Exec(ctx, s.repairPublication(version)); err != nil {
			return false, fmt.Errorf("set options of publication %s: %w", s.Publication, err)
		}
		return true, nil
	}
	_, err = s.DB.Exec(ctx, s.createPublication(version))
	if err != nil && !isCode(err, "42710") { // another instance was faster
		return false, fmt.Errorf("create publication %s: %w", s.Publication, err)
	}
	return false, nil
}

// Tracked is a table that is published with a full replica identity.
type Tracked struct {
	OID          uint32
	Schema, Name string
	// From is set if this call published the table, or a part of it: a position
	// before which something may have been missed, and after which nothing is.
	From LSN
	// Membership stays the same as long as nobody takes the table out of the
	// publication, be it for a moment.
	Membership string
}

// Pending is a table that could not be made tracked yet.
type Pending struct {
	OID          uint32
	Schema, Name string
	Reason       error
	// Never tells that it cannot be tracked as it is, and is not published.
	Never bool
	// Published tells that its changes come through the stream nevertheless.
	Published bool
}

// UntrackableError is the reason for a table that cannot be tracked as it is.
type UntrackableError struct{ Table, Reason string }

func (e *UntrackableError) Error() string { return "capture: table " + e.Table + ": " + e.Reason }

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
	froms := make(map[uint32]LSN)
	for _, t := range tables {
		if !t.Persistent || t.tracked() {
			continue
		}
		if err := remember(ctx, t.identities()); err != nil {
			return nil, pending, err
		}
		from, err := s.join(ctx, t)
		switch {
		case ctx.Err() != nil:
			return nil, pending, ctx.Err()
		case err != nil:
			pending = append(pending, Pending{OID: t.OID, Schema: t.Schema, Name: t.Name, Reason: err, Published: t.published()})
		case t.untrackable() != "":
			pending = append(pending, Pending{OID: t.OID, Schema: t.Schema, Name: t.Name, Never: true, Reason: &UntrackableError{Table: t.Ident(), Reason: t.untrackable()}})
		case t.published():
			froms[t.OID] = 0 // only its replica identity had to be seen to
		default:
			froms[t.OID] = from
		}
	}
	if len(froms) > 0 {
		if tables, err = s.tables(ctx, s.DB); err != nil {
			return nil, pending, err
		}
	}
	for _, t := range tables {
		if t.Persistent && t.tracked() {
			tracked = append(tracked, Tracked{OID: t.OID, Schema: t.Schema, Name: t.Name, From: froms[t.OID], Membership: t.membership()})
		}
	}
	return tracked, pending, nil
}

// Waiting returns the tables that Join would make tracked, pending for a reason.
func (s *Setup) Waiting(ctx context.Context, reason error) (pending []Pending, err error) {
	tables, err := s.tables(ctx, s.DB)
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		if t.Persistent && !t.tracked() && t.untrackable() == "" {
			pending = append(pending, Pending{OID: t.OID, Schema: t.Schema, Name: t.Name, Reason: reason, Published: t.published()})
		}
	}
	return pending, nil
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

// Unmatched returns the tables that are published but do not match, or not any
// more.
func (s *Setup) Unmatched(ctx context.Context) ([]Tracked, error) {
	tables, err := s.tables(ctx, s.DB)
	if err != nil {
		return nil, err
	}
	rows, err := s.DB.Query(ctx, `
		SELECT DISTINCT c.oid, n.nspname, c.relname
		FROM pg_catalog.pg_publication_rel r
		JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
		JOIN pg_catalog.pg_class leaf ON leaf.oid = r.prrelid
		JOIN pg_catalog.pg_class c ON c.oid = CASE WHEN leaf.relispartition THEN pg_catalog.pg_partition_root(leaf.oid) ELSE leaf.oid END
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE p.pubname = $1
		ORDER BY 2, 3`, s.Publication)
	if err != nil {
		return nil, fmt.Errorf("list published tables: %w", err)
	}
	var unmatched []Tracked
	var t Tracked
	_, err = pgx.ForEachRow(rows, []any{&t.OID, &t.Schema, &t.Name}, func() error {
		if !slices.ContainsFunc(tables, func(m Table) bool { return m.OID == t.OID }) {
			unmatched = append(unmatched, t)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list published tables: %w", err)
	}
	return unmatched, nil
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
// DBA to run: rights for role, the publication, the tables and the slot; and the
// replica identities that it changes, by OID.
func (s *Setup) Script(ctx context.Context, role string) (script string, identities map[uint32]string, err error) {
	var version int
	var database string
	if err := s.DB.QueryRow(ctx, "SELECT current_setting('server_version_num')::int, current_database()").Scan(&version, &database); err != nil {
		return "", nil, fmt.Errorf("look at the source: %w", err)
	}
	tables, err := s.tables(ctx, s.DB)
	if err != nil {
		return "", nil, err
	}
	identities = make(map[uint32]string)
	var b strings.Builder
	fmt.Fprintf(&b, "-- The source: run with psql, in database %q, as a role that owns the tables and may\n-- make slots. wal_level must be logical. Not in one transaction: the slot could not\n-- be made in it, and the locks on the tables would be held throughout.\n", database)
	b.WriteString("SET lock_timeout = '5s';\n")
	fmt.Fprintf(&b, "ALTER ROLE %s REPLICATION;\n", pgx.Identifier{role}.Sanitize())
	fmt.Fprintf(&b, "\n-- The publication comes before the slot.\n%s;\n", s.createPublication(version))
	for _, t := range tables {
		if !t.Persistent {
			continue
		}
		maps.Copy(identities, t.identities())
		for _, sql := range t.statements(s.Publication) {
			b.WriteString(sql + ";\n")
		}
	}
	fmt.Fprintf(&b, "\n-- The slot keeps WAL until the program has read it: make it when the program is about to run.\n-- Without a bound it fills the disk while nobody captures, for instance of a third of the disk:\n-- ALTER SYSTEM SET max_slot_wal_keep_size = '64GB'; SELECT pg_reload_conf();\nSELECT pg_create_logical_replication_slot(%s, 'pgoutput');\n", quoteLiteral(s.Slot))
	return b.String(), identities, nil
}

func isCode(err error, codes ...string) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && slices.Contains(codes, pgErr.Code)
}
