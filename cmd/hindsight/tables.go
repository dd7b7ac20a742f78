package main

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/capture"
)

// sourceTable is a table of the source that is to be tracked.
type sourceTable struct {
	schema, name string
	// parts are the partitions that hold its rows, or the table itself.
	parts []tablePart
}

// tablePart is a table that holds rows.
type tablePart struct {
	ident string
	// identity is pg_class.relreplident, hasKey tells of a primary key.
	identity string
	hasKey   bool
	// published reports whether the publication has it.
	published bool
	// virtual tells of a virtual generated column, which FULL does not go with.
	virtual bool
}

// full is the name in the form of the library.
func (t sourceTable) full() string {
	return audit.Change{Schema: t.schema, Table: t.name}.TableName()
}

// patterns are which tables are to be tracked, as the program reads them.
func (a *app) patterns() (capture.Patterns, error) {
	texts := a.flags.tables
	if len(texts) == 0 {
		texts = []string{"public.*"}
	}
	patterns, err := capture.ParsePatterns(texts)
	if err != nil {
		return nil, usagef("--tables: %v", err)
	}
	return append(patterns, capture.Machinery()...), nil
}

// publication is the name of the publication.
func (a *app) publication() string {
	switch {
	case a.flags.publication != "":
		return a.flags.publication
	case a.flags.schema == "audit":
		return "audit"
	}
	return "audit_" + a.flags.schema
}

// wantedTables lists the tables of the source that are to be tracked.
func (a *app) wantedTables(ctx context.Context) (tables []sourceTable, err error) {
	patterns, err := a.patterns()
	if err != nil {
		return nil, err
	}
	err = a.onSource(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `
			WITH RECURSIVE tree (root, leaf) AS (
				SELECT c.oid, c.oid FROM pg_catalog.pg_class c WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
				UNION ALL
				SELECT t.root, i.inhrelid FROM tree t JOIN pg_catalog.pg_class p ON p.oid = t.leaf AND p.relkind = 'p' JOIN pg_catalog.pg_inherits i ON i.inhparent = t.leaf)
			SELECT rn.nspname, r.relname, n.nspname, c.relname, c.relreplident::text,
				EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary),
				EXISTS (SELECT FROM pg_catalog.pg_publication_rel pr JOIN pg_catalog.pg_publication p ON p.oid = pr.prpubid WHERE p.pubname = $1 AND pr.prrelid = c.oid),
				EXISTS (SELECT FROM pg_catalog.pg_attribute t WHERE t.attrelid = c.oid AND t.attgenerated = 'v' AND NOT t.attisdropped)
			FROM tree
			JOIN pg_catalog.pg_class r ON r.oid = tree.root
			JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
			JOIN pg_catalog.pg_class c ON c.oid = tree.leaf AND c.relkind = 'r' AND c.relpersistence = 'p'
			JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			WHERE rn.nspname !~ '^pg_' AND rn.nspname NOT IN ('information_schema', 'audit_ddl', $2)
			ORDER BY 1, 2, 3, 4`, a.publication(), a.flags.schema)
		if err != nil {
			return err
		}
		var schema, name, partSchema, partName string
		var part tablePart
		_, err = pgx.ForEachRow(rows, []any{&schema, &name, &partSchema, &partName, &part.identity, &part.hasKey, &part.published, &part.virtual}, func() error {
			if track, _ := patterns.Match(schema, name); !track {
				return nil
			}
			part.ident = pgx.Identifier{partSchema, partName}.Sanitize()
			if last := len(tables) - 1; last < 0 || tables[last].schema != schema || tables[last].name != name {
				tables = append(tables, sourceTable{schema: schema, name: name})
			}
			t := &tables[len(tables)-1]
			t.parts = append(t.parts, part)
			return nil
		})
		return err
	})
	return tables, err
}

// untracked are the tables that history does not cover, though they are wanted.
func untracked(wanted []sourceTable, status audit.Status) (missing []sourceTable) {
	covered := make(map[[2]string]bool)
	for _, t := range status.Tables {
		if t.Until == 0 && t.Pending == nil {
			covered[[2]string{t.Schema, t.Table}] = true
		}
	}
	for _, t := range wanted {
		if !covered[[2]string{t.schema, t.name}] {
			missing = append(missing, t)
		}
	}
	return missing
}

// leftTime is when a table was left, or zero.
func leftTime(t sourceTable, status audit.Status) (left time.Time) {
	for _, s := range status.Tables {
		if s.Schema == t.schema && s.Table == t.name && s.UntilTime.After(left) {
			left = s.UntilTime
		}
	}
	return left
}

// number reads one number.
func number(ctx context.Context, conn *pgx.Conn, sql string, args ...any) (n int64, err error) {
	var read pgtype.Int8
	err = conn.QueryRow(ctx, sql, args...).Scan(&read)
	return read.Int64, err
}
