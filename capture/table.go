package capture

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Table is a table of the source that is to be tracked.
type Table struct {
	OID          uint32
	Schema, Name string
	// Named reports whether a pattern names the table, not only matches it.
	Named bool
	// Partitioned tables have Leaves; all others are their own leaf.
	Partitioned bool
	HasKey      bool
	Owned       bool // by the current role
	// MayPublish reports whether the current role may alter the publication.
	MayPublish bool
	Persistent bool   // neither unlogged nor temporary
	Identity   string // d, n, f, or i and the index name
	Membership
	Leaves []Leaf
}

// Membership is a table's place in the publication.
type Membership struct {
	Published bool
	// Partial reports whether it is published with a row filter or a column list, by
	// somebody else: what it leaves out would be missing from history.
	Partial bool
	// Row identifies the entry in pg_publication_rel: taken out and put in again,
	// a table has another.
	Row uint32
}

// Leaf is a table that holds rows of its own.
type Leaf struct {
	OID          uint32
	Schema, Name string
	Identity     string
	Owned        bool
	HasKey       bool
	Persistent   bool
	// Virtual reports whether it has a virtual generated column. PostgreSQL 18 refuses
	// every UPDATE and DELETE of such a table if it is published with REPLICA
	// IDENTITY FULL.
	Virtual bool
	Membership
}

// settled reports whether the replica identity is the one to track with.
func (l Leaf) settled() bool {
	if l.Virtual {
		return l.HasKey && (l.Identity == "d" || strings.HasPrefix(l.Identity, "i:"))
	}
	return l.Identity == "f"
}

// settle returns the statement that makes it so.
func (l Leaf) settle() string {
	if l.Virtual {
		return restoreIdentity(l.Ident(), "d")
	}
	return restoreIdentity(l.Ident(), "f")
}

// Ident returns the table's name, quoted.
func (t Table) Ident() string { return pgx.Identifier{t.Schema, t.Name}.Sanitize() }

// Ident returns the leaf's name, quoted.
func (l Leaf) Ident() string { return pgx.Identifier{l.Schema, l.Name}.Sanitize() }

// is reports whether p is about the table.
func (t Table) is(p Pending) bool { return p.OID == t.OID }

func (t Table) pending(reason error) Pending {
	return Pending{OID: t.OID, Schema: t.Schema, Name: t.Name, Reason: reason, Published: t.published()}
}

// byRoot reports whether the root of a partitioned table stands in the publication for
// its leaves, because somebody with more rights than the role put it there. We publish
// leaves: a root publishes each new partition from the moment it is made, before it has a
// replica identity, and if there is no primary key, every UPDATE of it fails.
func (t Table) byRoot() bool {
	return t.Partitioned && t.Published && t.HasKey && !(t.MayPublish && t.owned())
}

// untrackable says why the table cannot be tracked at all, or nothing.
func (t Table) untrackable() string {
	for _, l := range t.Leaves {
		if l.Virtual && !l.HasKey {
			return "PostgreSQL 18 cannot replicate updates of a table with a virtual generated column and no primary key: add a key, or make the column STORED"
		}
	}
	return ""
}

// incomplete says why the history cannot have all of the table, or nothing.
func (t Table) incomplete() string {
	for _, l := range t.Leaves {
		if t.Partitioned && !l.Persistent {
			return "its partition " + l.Ident() + " is unlogged, so that changes of it are not in the WAL: ALTER TABLE " + l.Ident() + " SET LOGGED"
		}
	}
	return t.untrackable()
}

// tracked reports whether nothing is left to do for the table.
func (t Table) tracked() bool {
	return t.published() && len(t.identities()) == 0 && t.untrackable() == ""
}

// owned reports whether the current role may alter all of it.
func (t Table) owned() bool {
	if !t.Owned {
		return false
	}
	for _, l := range t.Leaves {
		if !l.Owned {
			return false
		}
	}
	return true
}

// statements returns what makes the table tracked, in an order in which none of them
// makes an UPDATE fail.
func (t Table) statements(publication string) []string {
	return append(t.settle(), t.publish(publication)...)
}

// settle returns the statements about replica identities.
func (t Table) settle() []string {
	var out []string
	for _, l := range t.Leaves {
		if l.Persistent && !l.settled() && t.untrackable() == "" {
			out = append(out, l.settle())
		}
	}
	return out
}

// publish returns the statements about the publication.
func (t Table) publish(publication string) []string {
	var out, add, drop []string
	for _, l := range t.Leaves {
		untrackable := t.untrackable() != ""
		if untrackable && l.Row != 0 || !untrackable && l.Partial {
			drop = append(drop, "ONLY "+l.Ident())
		}
		if !untrackable && l.Persistent && !l.Published && !t.byRoot() {
			add = append(add, "ONLY "+l.Ident())
		}
	}
	if t.Partitioned && t.Row != 0 && !t.byRoot() {
		drop = append(drop, "ONLY "+t.Ident())
	}
	pub := "ALTER PUBLICATION " + pgx.Identifier{publication}.Sanitize()
	if len(drop) > 0 {
		out = append(out, pub+" DROP TABLE "+strings.Join(drop, ", "))
	}
	if len(add) > 0 {
		out = append(out, pub+" ADD TABLE "+strings.Join(add, ", "))
	}
	return out
}

// lock returns the statements that keep writers out of what is altered.
func (t Table) lock() string {
	var settle, publish []string
	for _, l := range t.Leaves {
		switch {
		case !l.Persistent || t.untrackable() != "":
		case !l.settled():
			settle = append(settle, "ONLY "+l.Ident())
		case !l.Published && !t.byRoot():
			publish = append(publish, "ONLY "+l.Ident())
		}
	}
	var lock string
	if len(settle) > 0 { // at once what ALTER TABLE takes, for two locks one after the other can deadlock
		lock = "LOCK TABLE " + strings.Join(settle, ", ") + " IN ACCESS EXCLUSIVE MODE;\n"
	}
	if len(publish) > 0 {
		lock += "LOCK TABLE " + strings.Join(publish, ", ") + " IN SHARE ROW EXCLUSIVE MODE;\n"
	}
	return lock
}

// entries returns the entries that some of the leaves have in the publication.
func (t Table) entries(leaves []uint32) []string {
	var rows []string
	for _, l := range t.Leaves {
		if l.Row != 0 && slices.Contains(leaves, l.OID) {
			rows = append(rows, strconv.FormatUint(uint64(l.Row), 10))
		}
	}
	return rows
}

// membership returns the entries in the publication, which stay the same as long as the
// table, and each part of it, stays there.
func (t Table) membership() string {
	if t.byRoot() {
		return strconv.FormatUint(uint64(t.Row), 10)
	}
	var rows []string
	for _, l := range t.Leaves {
		if l.Persistent {
			rows = append(rows, strconv.FormatUint(uint64(l.Row), 10))
		}
	}
	slices.Sort(rows)
	return strings.Join(rows, ",")
}

// published reports whether all that has to be published is.
func (t Table) published() bool {
	if t.byRoot() {
		return true
	}
	return !slices.ContainsFunc(t.Leaves, func(l Leaf) bool { return l.Persistent && !l.Published }) && !(t.Partitioned && t.Row != 0)
}

// identities returns the replica identities that tracking changes, by OID.
func (t Table) identities() map[uint32]string {
	m := make(map[uint32]string)
	for _, l := range t.Leaves {
		if l.Persistent && !l.settled() {
			m[l.OID] = l.Identity
		}
	}
	return m
}

// identityClause is the argument of REPLICA IDENTITY that puts an identity back.
func identityClause(identity string) string {
	switch {
	case identity == "n":
		return "NOTHING"
	case identity == "f":
		return "FULL"
	case strings.HasPrefix(identity, "i:"):
		return "USING INDEX " + pgx.Identifier{identity[2:]}.Sanitize()
	}
	return "DEFAULT"
}

const identityColumn = `CASE c.relreplident
	WHEN 'i' THEN 'i:' || coalesce((SELECT ic.relname FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid WHERE i.indrelid = c.oid AND i.indisreplident), '')
	ELSE c.relreplident::text END`

// tables lists the tables that match, partitions under their root. Tables that
// belong to an extension are the extension's business unless they are named. If an OID
// is given, it looks at that table and its partitions only.
func (s *Setup) tables(ctx context.Context, db Querier, of ...uint32) ([]Table, error) {
	only, args := "", []any{s.Publication, s.StoreSchema}
	if len(of) > 0 {
		only = "AND c.oid IN (SELECT $3::oid UNION ALL SELECT t.relid FROM pg_catalog.pg_partition_tree($3::oid::regclass) t)"
		args = append(args, of[0])
	}
	rows, err := db.Query(ctx, `
		SELECT c.oid, n.nspname, c.relname, c.relkind = 'p', c.relpersistence = 'p',
			coalesce(pg_catalog.pg_has_role(c.relowner, 'USAGE'), false),
			EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary),
			coalesce(pg_catalog.pg_has_role(p.pubowner, 'USAGE'), true),
			coalesce(pr.oid, 0), coalesce(coalesce(to_jsonb(pr) ->> 'prqual', to_jsonb(pr) ->> 'prattrs') IS NOT NULL, false),
			EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'),
			`+identityColumn+`,
			c.relispartition, coalesce(CASE WHEN c.relispartition THEN pg_catalog.pg_partition_root(c.oid)::oid END, 0),
			EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated = 'v' AND NOT a.attisdropped)
		FROM pg_catalog.pg_class c
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		LEFT JOIN pg_catalog.pg_publication p ON p.pubname = $1
		LEFT JOIN pg_catalog.pg_publication_rel pr ON pr.prpubid = p.oid AND pr.prrelid = c.oid
		WHERE c.relkind IN ('r', 'p')
		  AND c.relpersistence <> 't'
		  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND n.nspname <> $2
		  AND NOT `+ofHistory+`
		  AND NOT EXISTS (SELECT FROM pg_catalog.pg_proc f WHERE f.pronamespace = n.oid AND f.proname = 'trace_ddl' AND f.prorettype = 'pg_catalog.event_trigger'::regtype)
		  `+only+`
		ORDER BY c.relispartition, n.nspname, c.relname`, args...)
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	defer rows.Close()
	var tables []Table
	roots := make(map[uint32]int)
	for rows.Next() {
		var t Table
		var extension, virtual, part bool
		var root uint32
		if err := rows.Scan(&t.OID, &t.Schema, &t.Name, &t.Partitioned, &t.Persistent, &t.Owned, &t.HasKey, &t.MayPublish, &t.Row, &t.Partial, &extension, &t.Identity, &part, &root, &virtual); err != nil {
			return nil, fmt.Errorf("list tables: %w", err)
		}
		t.Published = t.Row != 0 && !t.Partial
		leaf := Leaf{OID: t.OID, Schema: t.Schema, Name: t.Name, Identity: t.Identity, Owned: t.Owned, HasKey: t.HasKey, Persistent: t.Persistent, Virtual: virtual, Membership: t.Membership}
		if part {
			// Partitions follow their root's pattern, under their root's name. One that
			// is dropped while it is listed has none.
			if at, ok := roots[root]; ok && !t.Partitioned {
				tables[at].Leaves = append(tables[at].Leaves, leaf)
			}
			continue
		}
		var track bool
		if track, t.Named = s.Patterns.Match(t.Schema, t.Name); !track || extension && !t.Named {
			continue
		}
		if !t.Partitioned {
			t.Leaves = []Leaf{leaf}
		}
		roots[t.OID] = len(tables)
		tables = append(tables, t)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	return tables, nil
}
