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

	"github.com/hindsight-go/audit/internal/deadpeer"
)

const (
	// alterLockTimeout is how long an ALTER on the user's table may wait for its
	// lock, and so how long it may hold up the application's statements that
	// queue behind it.
	alterLockTimeout = 100 * time.Millisecond
	// alterSilence is how long the server keeps those locks for a program that is frozen,
	// or gone without a word, and so how long the application's statements wait for it.
	alterSilence = 3 * time.Second
	// joinRounds is how often Join looks again whether all has joined.
	joinRounds = 3
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
	// complete reports whether its options leave nothing out.
	complete bool
}

func (s *Setup) publicationState(ctx context.Context) (p publication, err error) {
	err = s.DB.QueryRow(ctx, `
		SELECT coalesce(pg_catalog.pg_has_role(pubowner, 'USAGE'), false),
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
	// Held reports whether this call kept all writers out of all of the table when it read
	// From. Else a transaction may be in progress of which the stream has a part only.
	Held bool
	// Membership lists the entries that the table, or each part of it, has in the
	// publication. Taken out and put in again, be it for a moment, it has another.
	Membership string
	// Whole are those of them that this call has made for parts that nothing was ever
	// written to, or that came through the stream before as well: they begin no new stay.
	Whole []string
}

// Pending is a table that could not be made tracked yet.
type Pending struct {
	OID          uint32
	Schema, Name string
	Reason       error
	// Never reports whether it cannot be tracked as it is, and is not published.
	Never bool
	// Published reports whether its changes come through the stream nevertheless.
	Published bool
}

// UntrackableError is the reason for a table that cannot be tracked as it is.
type UntrackableError struct{ Table, Reason string }

func (e *UntrackableError) Error() string { return "capture: table " + e.Table + ": " + e.Reason }

// Join makes every table that matches tracked: a full replica identity and a
// place in the publication, in this order and in one transaction. An ALTER that
// does not get its lock within a tenth of a second gives way to the application
// and is reported as pending, to be tried again. remember is called with the
// replica identities, by OID, that are about to be changed, tell, which may be nil, with
// the tables, by OID, that have just been published.
func (s *Setup) Join(ctx context.Context, remember func(ctx context.Context, identities map[uint32]string) error, tell TellFunc) (tracked []Tracked, pending []Pending, err error) {
	tables, err := s.tables(ctx, s.DB)
	if err != nil {
		return nil, nil, err
	}
	done := make(map[uint32]joined)
	for range joinRounds {
		joining := false
		for _, t := range tables {
			if !t.Persistent || len(t.statements(s.Publication)) == 0 || slices.ContainsFunc(pending, t.is) {
				continue
			}
			if err := remember(ctx, t.identities()); err != nil {
				return nil, pending, err
			}
			j, err := s.join(ctx, t, tell)
			switch {
			case ctx.Err() != nil:
				return nil, pending, ctx.Err()
			case err != nil:
				pending = append(pending, t.pending(err))
			default:
				done[t.OID], joining = done[t.OID].and(j), true
			}
		}
		if !joining {
			break
		}
		// Again: a part of a table may have come while the others joined.
		if tables, err = s.tables(ctx, s.DB); err != nil {
			return nil, pending, err
		}
	}
	for _, t := range tables {
		switch reason := t.incomplete(); {
		case !t.Persistent, slices.ContainsFunc(pending, t.is):
		case reason != "":
			p := t.pending(&UntrackableError{Table: t.Ident(), Reason: reason})
			p.Never, p.Published = true, false
			pending = append(pending, p)
		case t.tracked():
			j := done[t.OID]
			tracked = append(tracked, Tracked{OID: t.OID, Schema: t.Schema, Name: t.Name, From: j.from, Held: j.from != 0 && j.held, Membership: t.membership(), Whole: t.entries(j.whole)})
		default:
			pending = append(pending, t.pending(fmt.Errorf("track table %s: %w", t.Ident(), errMadeAnew)))
		}
	}
	return tracked, pending, nil
}

// TellFunc writes the structures of tables into the WAL, in the transaction that publishes
// them. By the time at which their first rows are read they may be gone.
type TellFunc func(ctx context.Context, tx pgx.Tx, oids []uint32) error

// Waiting returns the tables that Join would make tracked, pending for a reason.
func (s *Setup) Waiting(ctx context.Context, reason error) (pending []Pending, err error) {
	tables, err := s.tables(ctx, s.DB)
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		if t.Persistent && !t.tracked() && t.untrackable() == "" {
			pending = append(pending, t.pending(reason))
		}
	}
	return pending, nil
}

// joined is what join has done.
type joined struct {
	// from is a position that no transaction straddles which wrote to a part that was
	// published; 0 if there was no such part.
	from LSN
	held bool // every part was locked
	// whole are the OIDs of those parts that have lost nothing by coming now.
	whole []uint32
}

// and returns what came of j and then of another join of the same table.
func (j joined) and(then joined) joined {
	if j.from == 0 && len(j.whole) == 0 {
		return then
	}
	return joined{from: max(j.from, then.from), held: j.held && then.held, whole: append(j.whole, then.whole...)}
}

// join makes one table tracked. The locks it holds when it reads the position keep out
// every writer.
func (s *Setup) join(ctx context.Context, t Table, tell TellFunc) (j joined, err error) {
	var added []uint32
	j.held = true
	for _, l := range t.Leaves {
		if l.Persistent && !l.Published && !t.byRoot() && t.untrackable() == "" {
			added = append(added, l.OID)
		} else if l.Persistent && l.settled() {
			j.held = false // see Table.lock
		}
	}
	// The publication first: at an ALTER TABLE the event triggers publish what is not.
	err = s.alter(ctx, t.lock(), append(t.publish(s.Publication), t.settle()...), func(tx pgx.Tx) error {
		if err := s.verify(ctx, tx, t); err != nil || len(added) == 0 {
			return err
		}
		if err := tx.QueryRow(ctx, "SELECT pg_catalog.pg_current_wal_insert_lsn()::text").Scan(&j.from); err != nil {
			return err
		}
		if tell != nil {
			if err := tell(ctx, tx, added); err != nil {
				return err
			}
		}
		if t.Published { // through its root
			j.whole = added
			return nil
		}
		rows, err := tx.Query(ctx, "SELECT c.oid FROM pg_catalog.pg_class c WHERE c.oid = ANY ($1) AND "+untouched, added)
		if err != nil {
			return err
		}
		j.whole, err = pgx.CollectRows(rows, pgx.RowTo[uint32])
		return err
	})
	if err != nil {
		return joined{}, fmt.Errorf("track table %s: %w", t.Ident(), err)
	}
	return j, nil
}

// untouched is a condition on pg_class c: nothing was ever written to the table. It has
// its first file still, without a page, and was never vacuumed, which could have taken
// pages away.
const untouched = `c.relfilenode = c.oid AND c.reltuples = -1 AND pg_catalog.pg_relation_size(c.oid) = 0`

// Writers returns the transactions that have, or may have, written to a table or to a
// part of it and are in progress: the virtual ids of those that hold a lock for that.
func (s *Setup) Writers(ctx context.Context, oid uint32) ([]string, error) {
	rows, err := s.DB.Query(ctx, `
		SELECT DISTINCT l.virtualtransaction
		FROM pg_catalog.pg_locks l
		JOIN pg_catalog.pg_database d ON d.oid = l.database AND d.datname = pg_catalog.current_database()
		WHERE l.locktype = 'relation' AND l.granted AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
		  AND (l.relation = $1 OR l.relation IN (SELECT relid FROM pg_catalog.pg_partition_tree($1)))`, oid)
	if err != nil {
		return nil, fmt.Errorf("look for transactions in progress: %w", err)
	}
	writers, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look for transactions in progress: %w", err)
	}
	return writers, nil
}

// alter runs statements in one transaction, in which done has the last word. Where a
// lock is not to be had in a tenth of a second it gives way.
func (s *Setup) alter(ctx context.Context, lock string, statements []string, done func(tx pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, s.DB, func(tx pgx.Tx) error {
		ctx, cancel := deadpeer.Bound(ctx)
		defer cancel()
		script := fmt.Sprintf("SET LOCAL lock_timeout = '%dms';\nSET LOCAL idle_in_transaction_session_timeout = '%dms';\n%s%s",
			alterLockTimeout.Milliseconds(), alterSilence.Milliseconds(), lock, strings.Join(statements, ";\n"))
		if _, err := tx.Conn().PgConn().Exec(ctx, script).ReadAll(); err != nil {
			return err
		}
		return done(tx)
	})
}

// errMadeAnew is the reason for a table that is tried again.
var errMadeAnew = errors.New("it was altered, or made anew under its name, meanwhile")

// verify fails unless the very tables that were looked at are as they should be.
// Statements name tables, and a name may be another table's meanwhile, which would be
// published without a replica identity: its UPDATEs would fail.
func (s *Setup) verify(ctx context.Context, tx pgx.Tx, was Table) error {
	tables, err := s.tables(ctx, tx, was.OID)
	if err != nil {
		return err
	}
	if len(tables) != 1 || tables[0].untrackable() != was.untrackable() {
		return errMadeAnew
	}
	for _, l := range was.Leaves {
		at := slices.IndexFunc(tables[0].Leaves, func(n Leaf) bool { return n.OID == l.OID })
		switch {
		case !l.Persistent:
		case at < 0:
			return errMadeAnew
		case was.untrackable() != "":
			if tables[0].Leaves[at].Row != 0 {
				return errMadeAnew
			}
		case !tables[0].Leaves[at].settled(), !was.byRoot() && !tables[0].Leaves[at].Published:
			return errMadeAnew
		}
	}
	return nil
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
	var dropped []uint32
	var part uint32
	var schema, name string
	var published bool
	_, err = pgx.ForEachRow(rows, []any{&part, &schema, &name, &published}, func() error {
		ident := pgx.Identifier{schema, name}.Sanitize()
		if published {
			sql = append(sql, "ALTER PUBLICATION "+pgx.Identifier{s.Publication}.Sanitize()+" DROP TABLE ONLY "+ident)
			dropped = append(dropped, part)
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
	err = s.alter(ctx, "", sql, func(tx pgx.Tx) error {
		var other bool
		err := tx.QueryRow(ctx, `
			SELECT EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE p.pubname = $1 AND r.prrelid = ANY ($2))`,
			s.Publication, dropped).Scan(&other)
		if err == nil && other {
			err = errMadeAnew // a statement took out another table, which has its name
		}
		return err
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
