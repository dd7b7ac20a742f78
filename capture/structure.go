package capture

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/wal"
)

// StructureSuffix behind the context prefix makes the prefix of a transactional
// message that tells what a table looks like from there on. The event trigger
// writes them, and so does whoever finds a table changed without one.
const StructureSuffix = "_ddl"

// structureMessage is the content of such a message.
type structureMessage struct {
	// Token tells our own messages from those of strangers.
	Token string `json:"token"`
	// After is empty where the table was altered just there; else it was at some
	// time behind that position.
	After string `json:"after,omitempty"`
	// Attached reports whether the transaction had attached partitions with rows by then.
	Attached bool          `json:"attached,omitempty"`
	Table    wal.Structure `json:"table"`
	// Rewritten are the numbers of columns of the table whose values are computed anew
	// just there. Of the table there is only its OID then.
	Rewritten []int16 `json:"rewritten,omitempty"`
}

// definitionSQL is what the type of column a can be altered in, as a JSON array of
// texts: the labels of enums and the attributes of composite types, those that it
// is made of included; and the type under a domain. Types that PostgreSQL ships have nothing of the kind.
const definitionSQL = `CASE WHEN a.atttypid < 16384 THEN '' ELSE coalesce((
	WITH RECURSIVE made_of (oid) AS (
		SELECT a.atttypid
		UNION
		SELECT part.oid
		FROM made_of m
		JOIN pg_catalog.pg_type t ON t.oid = m.oid
		CROSS JOIN LATERAL (
			SELECT t.typelem WHERE t.typelem <> 0
			UNION ALL SELECT t.typbasetype WHERE t.typbasetype <> 0
			UNION ALL SELECT ta.atttypid FROM pg_catalog.pg_attribute ta WHERE ta.attrelid = t.typrelid AND t.typtype = 'c' AND ta.attnum > 0 AND NOT ta.attisdropped
			UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid) part (oid))
	SELECT pg_catalog.json_agg(d.entry ORDER BY d.entry)::text
	FROM (
		SELECT 'base ' || base.oid
		FROM (
			WITH RECURSIVE under (oid, base) AS (
				SELECT t.oid, t.typbasetype FROM pg_catalog.pg_type t WHERE t.oid = a.atttypid AND t.typtype = 'd'
				UNION ALL SELECT t.oid, t.typbasetype FROM under u JOIN pg_catalog.pg_type t ON t.oid = u.base)
			SELECT u.oid FROM under u WHERE u.base = 0) base
		UNION ALL
		SELECT 'label ' || e.oid || ' ' || e.enumlabel
		FROM made_of m JOIN pg_catalog.pg_enum e ON e.enumtypid = m.oid
		UNION ALL
		SELECT 'attribute ' || t.oid || ' ' || ta.attnum || ' ' || ta.attname || ' ' || pg_catalog.format_type(ta.atttypid, ta.atttypmod)
		FROM made_of m
		JOIN pg_catalog.pg_type t ON t.oid = m.oid AND t.typtype = 'c'
		JOIN pg_catalog.pg_attribute ta ON ta.attrelid = t.typrelid AND ta.attnum > 0 AND NOT ta.attisdropped) d (entry)), '[]') END`

// KeyIsSent is a condition on all attributes a of a primary key: the stream has them
// all. Before version 18 it does not have generated columns, and a row whose key it
// lacks is told apart like that of a table without a key.
const KeyIsSent = `coalesce(pg_catalog.bool_and(a.attgenerated = ''), true) OR pg_catalog.current_setting('server_version_num')::int >= 180000`

// structureSQL describes the table that of_oid is, as a wal.Structure in JSON.
func structureSQL(oid string) string {
	return `SELECT pg_catalog.json_build_object(
	'oid', c.oid::bigint, 'schema', n.nspname, 'table', c.relname, 'kind', c.relkind,
	'root', coalesce(root.oid::bigint, 0), 'rootSchema', coalesce(rn.nspname, ''), 'rootTable', coalesce(root.relname, ''),
	'parts', (SELECT coalesce(pg_catalog.json_agg(part.oid::bigint ORDER BY part.oid), '[]') FROM (
		SELECT t.relid::oid FROM pg_catalog.pg_partition_tree(c.oid) t WHERE c.relkind = 'p' AND t.isleaf AND t.relid <> c.oid
		UNION ALL SELECT i.inhrelid FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid AND c.relkind = 'r') part (oid)),
	'key', (SELECT coalesce(pg_catalog.json_agg(k.attnum ORDER BY k.n), '[]')
		FROM pg_catalog.pg_index i, pg_catalog.unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY k (attnum, n)
		JOIN pg_catalog.pg_attribute a ON a.attnum = k.attnum
		WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid
		HAVING ` + KeyIsSent + `),
	'keyConstraint', coalesce((SELECT k.oid::bigint FROM pg_catalog.pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'p'), 0),
	'columns', (SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_object(
			'name', a.attname, 'type', pg_catalog.format_type(a.atttypid, a.atttypmod), 'typeOid', a.atttypid::bigint, 'typeMod', a.atttypmod, 'attnum', a.attnum,
			'generated', a.attgenerated, 'identity', a.attidentity,
			'expression', CASE WHEN a.attgenerated <> '' THEN coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid), '') ELSE '' END,
			'definition', ` + definitionSQL + `) ORDER BY a.attnum), '[]')
		FROM pg_catalog.pg_attribute a
		LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
		WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped))
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_class root ON c.relispartition AND root.oid = pg_catalog.pg_partition_root(c.oid)::oid
LEFT JOIN pg_catalog.pg_namespace rn ON rn.oid = root.relnamespace
WHERE c.oid = ` + oid + ` AND (root.oid IS NOT NULL OR NOT c.relispartition)` // or it is being dropped
}

// LookUpStructure describes a table as it is now; nil if it is gone.
func LookUpStructure(ctx context.Context, db Querier, oid uint32) (*wal.Structure, error) {
	var content []byte
	err := db.QueryRow(ctx, structureSQL("$1"), oid).Scan(&content)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up structure of relation %d: %w", oid, err)
	}
	s := &wal.Structure{}
	if err := json.Unmarshal(content, s); err != nil {
		return nil, fmt.Errorf("look up structure of relation %d: %w", oid, err)
	}
	return s, nil
}

// DigestsSQL is a query with two columns for each of the tables in $1, an array of
// OIDs: the OID, and a digest of the table's structure. Those that are gone are left
// out.
var DigestsSQL = `SELECT o.oid, pg_catalog.md5(s.structure::text) FROM pg_catalog.unnest($1::oid[]) o (oid) CROSS JOIN LATERAL (` + structureSQL("o.oid") + `) s (structure)`

// TellStructures writes messages about tables as they are now into the WAL, in one
// statement, as the rows of the transaction tx will find them. after is, for each table,
// the position behind which it came to be so, or 0 where that is here.
func TellStructures(ctx context.Context, tx pgx.Tx, prefix, token string, oids []uint32, after []LSN) error {
	texts := make([]*string, len(after))
	for i, lsn := range after {
		if lsn != 0 {
			text := lsn.String()
			texts[i] = &text
		}
	}
	_, err := tx.Exec(ctx, `
		SELECT pg_catalog.pg_logical_emit_message(true, $1, pg_catalog.json_build_object('token', $2::text, 'after', told.after, 'table', described.structure)::text)
		FROM ROWS FROM (pg_catalog.unnest($3::oid[]), pg_catalog.unnest($4::text[])) told (oid, after)
		CROSS JOIN LATERAL (`+structureSQL("told.oid")+`) described (structure)`, prefix+StructureSuffix, token, oids, texts)
	if err != nil {
		return fmt.Errorf("tell structures: %w", err)
	}
	return nil
}

// StructureMessage returns the content of a message that tells of a structure. It
// was found with the table locked against changes of it, and the table was another
// at the position after.
func StructureMessage(token string, after LSN, s wal.Structure) ([]byte, error) {
	m := structureMessage{Token: token, Table: s}
	if after != 0 {
		m.After = after.String()
	}
	return json.Marshal(m)
}

// aligned gives the columns of a Relation message the attribute numbers that they
// must have, if that can be told: of all columns that the table has or had, which
// are those? A column that is there now, and was made before one of them, was there
// then. live are those of now, dropped the numbers of the dropped ones, before what
// was known of the table last. It reports false if there are several ways.
func aligned(columns []wal.Column, live []wal.Attribute, dropped []int16, before []wal.Attribute) ([]int16, bool) {
	type place struct {
		attnum    int16
		live      bool
		known     bool // before had it
		now, then *wal.Attribute
	}
	var places []place
	for i := range live {
		if live[i].Generated == "" {
			places = append(places, place{attnum: live[i].Attnum, live: true, now: &live[i]})
		}
	}
	for _, attnum := range dropped {
		places = append(places, place{attnum: attnum})
	}
	slices.SortFunc(places, func(a, b place) int { return int(a.attnum) - int(b.attnum) })
	for i := range before {
		for j := range places {
			if places[j].attnum == before[i].Attnum {
				places[j].known, places[j].then = true, &before[i]
			}
		}
	}
	fits := func(c wal.Column, p place) (cost int, ok bool) {
		sameType := func(a *wal.Attribute) bool { return a != nil && a.TypeOID == c.TypeOID }
		sameName := func(a *wal.Attribute) bool { return a != nil && a.Name == c.Name }
		if !sameName(p.now) && !sameName(p.then) {
			cost++
		}
		if (p.now != nil || p.then != nil) && !sameType(p.now) && !sameType(p.then) {
			cost++
		}
		return cost, cost < 2 // else it was altered more than once: too much to guess
	}
	// ways[i][j] is the cheapest way to place the columns from i on at the places
	// from j on, and how many cheapest ways there are.
	type way struct{ cost, n int }
	const none = 1 << 20
	n, m := len(columns), len(places)
	ways := make([][]way, n+1)
	for i := range ways {
		ways[i] = make([]way, m+1)
	}
	for i := n; i >= 0; i-- {
		for j := m; j >= 0; j-- {
			w := way{cost: none}
			add := func(cost, count int) {
				switch {
				case count == 0 || cost > w.cost:
				case cost < w.cost:
					w = way{cost, count}
				default:
					w.n += count
				}
			}
			switch {
			case i == n:
				// What is left was made later, or had been dropped before. Before had
				// what it had, unless that was dropped.
				w = way{0, 1}
				for _, p := range places[j:] {
					if p.live && p.known {
						w = way{cost: none}
					}
				}
			case j < m:
				if cost, ok := fits(columns[i], places[j]); ok {
					add(cost+ways[i+1][j+1].cost, ways[i+1][j+1].n)
				}
				if !places[j].live {
					add(ways[i][j+1].cost, ways[i][j+1].n)
				}
			}
			ways[i][j] = w
		}
	}
	if ways[0][0].n != 1 {
		return nil, false
	}
	numbers := make([]int16, 0, n)
	for i, j := 0, 0; i < n; j++ {
		cost, ok := fits(columns[i], places[j])
		if ok && ways[i+1][j+1].n > 0 && cost+ways[i+1][j+1].cost == ways[i][j].cost {
			numbers = append(numbers, places[j].attnum)
			i++
		}
	}
	return numbers, true
}

// align makes found, the structure of now, that of a Relation message. Columns of
// which it cannot be told which they are have no number, and the structure says so.
func (s *session) align(ctx context.Context, found, known *wal.Structure, m relationMessage) error {
	var dropped []int16
	err := s.cfg.Catalog.QueryRow(ctx, `
		SELECT coalesce(pg_catalog.array_agg(a.attnum), '{}')
		FROM pg_catalog.pg_attribute a
		WHERE a.attrelid = $1 AND a.attnum > 0 AND a.attisdropped`, m.OID).Scan(&dropped)
	if err != nil {
		return err
	}
	var before []wal.Attribute
	if known != nil {
		before = known.Columns
	}
	numbers, ok := aligned(m.Columns, found.Columns, dropped, before)
	if !ok {
		numbers, found.Guessed = guessed(m.Columns, before, found.Columns), true
	}
	columns := make([]wal.Attribute, len(m.Columns))
	for i, c := range m.Columns {
		columns[i] = wal.Attribute{Name: c.Name, TypeOID: c.TypeOID, TypeMod: c.TypeMod, Attnum: numbers[i]}
		for _, of := range [][]wal.Attribute{before, found.Columns} {
			for _, a := range of {
				if a.TypeOID == c.TypeOID && a.TypeMod == c.TypeMod && a.Attnum == numbers[i] {
					name := columns[i].Name
					columns[i] = a
					columns[i].Name, columns[i].Attnum = name, numbers[i]
				}
			}
		}
	}
	found.Columns = columns
	if !found.HasKey() && known != nil {
		found.Key = known.Key
	}
	if !found.HasKey() {
		found.Key, found.Guessed = nil, true
	}
	return nil
}

// guessed numbers columns by their names; a number below zero is nobody's.
func guessed(columns []wal.Column, known ...[]wal.Attribute) []int16 {
	numbers := make([]int16, len(columns))
	for i, c := range columns {
		numbers[i] = int16(-1 - i)
		for _, attributes := range slices.Backward(known) {
			for _, a := range attributes {
				if a.Name == c.Name {
					numbers[i] = a.Attnum
				}
			}
		}
	}
	return numbers
}

// namesake describes a table that is gone and was never heard of: by its message
// alone, with the key that one of its name had.
func (s *session) namesake(m relationMessage) *wal.Structure {
	found := &wal.Structure{OID: m.OID, Schema: m.Schema, Table: m.Table, Kind: "r", Guessed: true}
	for i, c := range m.Columns {
		found.Columns = append(found.Columns, wal.Attribute{Name: c.Name, TypeOID: c.TypeOID, TypeMod: c.TypeMod, Attnum: int16(i + 1)})
	}
	if root := s.rootOf(m.OID); root != nil {
		found = root.As(m.Schema, m.Table, m.Columns)
		found.OID, found.Kind, found.Parts = m.OID, "r", nil
		found.Root, found.RootSchema, found.RootTable = root.OID, root.Schema, root.Table
		return found
	}
	for _, other := range s.structures {
		name, table := other.Schema, other.Table
		if other.Root != 0 {
			name, table = other.RootSchema, other.RootTable
		}
		if name == m.Schema && table == m.Table && other.Sends(m.Columns) {
			found.Columns, found.Key, found.Kind = other.Columns, other.Key, other.Kind
		}
	}
	return found
}

// rootOf returns the partitioned table that has a table for a part at this place of the
// stream, as far as is known, or nil.
func (s *session) rootOf(oid uint32) *wal.Structure {
	for _, v := range s.structures {
		if v.Kind == "p" && v.Root == 0 && !v.Dropped && slices.Contains(v.Parts, oid) {
			return v
		}
	}
	return nil
}

// lent reports whether another table was told of under the name of this one since: nobody
// told that it gave the name back, and the name is this one's again.
func (s *session) lent(known *wal.Structure) bool {
	if known.Root != 0 {
		return false // changes stand under the name of the root
	}
	for _, v := range s.structures {
		if v.OID != known.OID && v.Root == 0 && !v.Dropped && v.Schema == known.Schema && v.Table == known.Table && v.At >= known.At {
			return true
		}
	}
	return false
}

// seen returns a position, before this place of the stream, at which a table was
// still as it was known.
func (s *session) seen(known *wal.Structure) LSN {
	at := max(known.At, 1)
	if s.cfg.Seen != nil {
		at = max(at, s.cfg.Seen(s.position-1))
	}
	return at
}

// tell makes a structure that of its table, here and in the sink.
func (s *session) tell(v *wal.Structure) {
	before, known := s.structures[v.OID]
	if s.cfg.Policy != nil {
		*v = *v.WithPolicies(s.cfg.Policy, before, s.structures[v.Root])
		s.warnOfPolicies(v, before)
	}
	v.KeepRewritten(before, s.structures[v.Root])
	v.At = s.position
	v.Attached = v.Attached || known && before.Attached && before.At == v.At // by an earlier statement of the transaction
	s.structures[v.OID] = v
	name, table := v.Schema, v.Table
	if v.Root != 0 {
		name, table = v.RootSchema, v.RootTable
	}
	if known || s.cfg.Wanted == nil || s.cfg.Wanted(name, table) {
		s.sink.Structure(v)
	}
}

// warnOfPolicies logs which columns keep the policy of a name that they had: a rule for
// the name of now would say so.
func (s *session) warnOfPolicies(v, before *wal.Structure) {
	var columns []string
	for _, a := range v.Columns {
		if a.Formerly == "" || a.Policy == "" || before != nil && slices.ContainsFunc(before.Columns, func(b wal.Attribute) bool { return b.Attnum == a.Attnum && b.Formerly != "" && b.Name == a.Name }) {
			continue
		}
		columns = append(columns, a.Name)
	}
	if len(columns) > 0 {
		s.cfg.Logger.Warn("audit: columns are withheld by the names that they or their table had: name them in Config.Columns", "schema", v.Schema, "table", v.Table, "columns", columns)
	}
}

// lookAtRoot tells of the root of a partition that was found altered. The columns
// of both have the same names; where the catalog of now says otherwise, the root
// was altered again, and is left to whoever looks next.
func (s *session) lookAtRoot(ctx context.Context, leaf *wal.Structure) error {
	root, err := LookUpStructure(ctx, s.cfg.Catalog, leaf.Root)
	if err != nil || root == nil {
		return err
	}
	for _, a := range leaf.Columns {
		if a.Generated == "" && !slices.ContainsFunc(root.Columns, func(b wal.Attribute) bool { return a.Name == b.Name && a.TypeOID == b.TypeOID }) {
			return nil
		}
	}
	known := s.structures[root.OID]
	if known != nil {
		root.Parts = known.Parts // of which the leaf says nothing
	}
	if known == nil || !known.Same(root) {
		root.After = leaf.After
		s.tell(root)
	}
	return nil
}

// structure handles a message about a structure. One that does not know the token
// is a stranger's.
func (s *session) structure(content []byte) error {
	var m structureMessage
	if json.Unmarshal(content, &m) != nil || !s.trusts(m.Token) {
		return nil //nolint:nilerr // it says nothing
	}
	if len(m.Rewritten) > 0 {
		s.rewritten(m.Table.OID, m.Rewritten)
		return nil
	}
	found := m.Table
	found.Attached = found.Attached || m.Attached
	if m.After != "" {
		after, err := pglogrepl.ParseLSN(m.After)
		if err != nil {
			return nil //nolint:nilerr // nor does this
		}
		found.After = after
	}
	if found.Dropped {
		s.partGone(found.OID, found.After)
	}
	known := s.structures[found.OID]
	name, table := found.Schema, found.Table
	if found.Root != 0 {
		name, table = found.RootSchema, found.RootTable
	}
	switch {
	case known == nil && (found.Dropped || s.cfg.Wanted != nil && !s.cfg.Wanted(name, table)):
		return nil
	case known != nil && (known.Same(&found) || known.Dropped && found.Dropped):
		return nil
	case found.Dropped:
		gone := *known
		gone.Dropped, gone.After = true, found.After
		found = gone
	}
	s.tell(&found)
	s.describeAnew(found.OID)
	if found.Kind == "p" && !found.Dropped {
		s.adopt(&found)
	}
	return nil
}

// rewritten reports whether the values of columns of a table are computed anew, and of its root,
// whose rows they are.
func (s *session) rewritten(oid uint32, columns []int16) {
	known := s.structures[oid]
	if known == nil || known.Dropped {
		return
	}
	var names []string
	for _, a := range known.Columns {
		if slices.Contains(columns, a.Attnum) {
			names = append(names, a.Name)
		}
	}
	for _, table := range []*wal.Structure{known, s.structures[known.Root]} {
		if table == nil || table.Dropped {
			continue
		}
		as := *table
		as.After, as.Columns = 0, slices.Clone(table.Columns)
		for i := range as.Columns {
			if a := &as.Columns[i]; slices.Contains(names, a.Name) {
				a.Rewritten = s.position
			}
		}
		if !slices.Equal(as.Columns, table.Columns) { // another part of it has told already
			s.tell(&as)
			s.describeAnew(as.OID)
		}
	}
}

// describeAnew has the next row of a table described anew.
func (s *session) describeAnew(oid uint32) {
	if state := s.relations[oid]; state != nil {
		state.relation = nil
	}
	s.lastState = nil
}

// adopt tells of tables that were known by themselves, or as parts of another table, and
// are parts of this one now: what comes of their rows is of this table.
func (s *session) adopt(root *wal.Structure) {
	for _, oid := range root.Parts {
		known := s.structures[oid]
		if known == nil || known.Dropped || known.Root == root.OID {
			continue
		}
		part := *known
		part.After, part.Parts = root.After, nil
		part.Root, part.RootSchema, part.RootTable = root.OID, root.Schema, root.Table
		s.tell(&part)
		s.describeAnew(oid)
	}
}

// partGone tells of tables that a part of was dropped. The message about that does not,
// since the catalog has forgotten whose part it was.
func (s *session) partGone(oid uint32, after LSN) {
	for _, known := range s.structures {
		if known.Dropped || !slices.Contains(known.Parts, oid) {
			continue
		}
		without := *known
		without.After = after
		without.Parts = slices.DeleteFunc(slices.Clone(known.Parts), func(part uint32) bool { return part == oid })
		s.tell(&without)
	}
}

func (s *session) trusts(token string) bool {
	for _, t := range s.tokens {
		if t != "" && subtle.ConstantTimeCompare([]byte(t), []byte(token)) == 1 {
			return true
		}
	}
	return false
}

// leaves returns how many leaves a partitioned table has, as far as can be told: a
// TRUNCATE that names as many has emptied it.
func (s *session) leaves(ctx context.Context, root uint32) (int, error) {
	n := 0
	if known := s.structures[root]; known != nil {
		n = len(known.Parts)
	}
	now, err := LookUpStructure(ctx, s.cfg.Catalog, root)
	if err != nil {
		return 0, &lookupError{err}
	}
	if now != nil {
		n = max(n, len(now.Parts))
	}
	return n, nil
}
