package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/hindsight-go/audit"
)

// verified is what was found of one table.
type verified struct {
	Table string `json:"table"`
	// Compared counts rows whose last version in history was compared with the table,
	// Gone those of them that history saw deleted.
	Compared int64 `json:"compared"`
	Gone     int64 `json:"gone"`
	// Unsettled counts rows that were written to again and again meanwhile, Skipped those
	// whose last version history could not record faithfully.
	Unsettled int64 `json:"unsettled"`
	Skipped   int64 `json:"skipped"`
	// Different are keys of rows that are not what history says, at most 100 of them.
	Different []difference `json:"different"`
	// NotCompared says why a table was not.
	NotCompared string `json:"notCompared,omitempty"`

	total int64
}

// difference is a row that is not what history says.
type difference struct {
	Key    []string       `json:"key"`
	Change audit.Position `json:"change"`
	What   string         `json:"what"`
}

// shownDifferences is how many differences of a table are told.
const shownDifferences = 100

func (a *app) verifyCommand() *cobra.Command {
	var sample int
	cmd := &cobra.Command{
		Use:   "verify [TABLE...]",
		Short: "Compare the past as of now with the live tables",
		Long: `Compare what history says each row is as of now, its last version, with the row in the
table: every row that was changed since tracking began, or with --sample so many of each
table, half of them those that were changed last. Rows that were deleted have to be gone.
It may run while the application writes: a row that differs is looked at again when
history has caught up.

Rows that never changed since tracking began are not in history, and tables without a
primary key cannot be compared row by row. The exit code is 6 if a row differs.`,
		Example: "  hindsight verify\n  hindsight verify orders --sample 1000",
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return a.completeTables(cmd)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if sample < 0 {
				return usagef("--sample %d: give a number of rows, or 0 for all", sample)
			}
			client, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			return a.verify(cmd.Context(), client, args, sample)
		},
	}
	cmd.Flags().IntVar(&sample, "sample", 0, "how many rows of each table; 0: all")
	return cmd
}

func (a *app) verify(ctx context.Context, client *audit.Client, names []string, sample int) error {
	token, err := client.Token(ctx)
	if err != nil {
		return err
	}
	if err := client.WaitFor(ctx, token); err != nil {
		return err
	}
	status, err := client.Status(ctx)
	if err != nil {
		return err
	}
	tables, err := chosen(status, names)
	if err != nil {
		return err
	}
	out := a.printer([]string{"table", "compared", "gone", "unsettled", "skipped", "different", "not_compared"}, false, 1)
	different := 0
	err = a.onSource(ctx, func(conn *pgx.Conn) error {
		// A value of the stored image becomes one of the table's type: what that takes
		// must not write.
		// Types are named as history names them, and hidden rows are an error.
		if _, err := conn.Exec(ctx, "SET default_transaction_read_only = on; SET search_path = pg_catalog; SET row_security = off", pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
		for _, t := range tables {
			v := &verifier{app: a, client: client, conn: conn, status: t, database: status.Database, sample: sample}
			if err := v.run(ctx); err != nil {
				a.progressDone()
				return fmt.Errorf("verify %s: %w", printable(v.found.Table), err)
			}
			a.progressDone()
			if v.found.total > 0 {
				different++
			}
			if err := out.add(a.verifiedCells(v.found), v.found); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, out.close()); err != nil {
		return err
	}
	if different > 0 {
		return exitf(exitUnhealthy, "history and %s differ", plural(int64(different), "table"))
	}
	return nil
}

// chosen are the tracked tables of these names, or all.
func chosen(status audit.Status, names []string) (tables []audit.TableStatus, err error) {
	for _, name := range names {
		found := false
		for _, t := range status.Tables {
			full := audit.Change{Schema: t.Schema, Table: t.Table}.TableName()
			if t.Until == 0 && t.Pending == nil && (full == name || t.Table == name || full == "public."+name) {
				tables, found = append(tables, t), true
			}
		}
		if !found {
			return nil, exitf(exitCannotTell, "%s is not tracked", printable(name))
		}
	}
	if len(names) > 0 {
		return tables, nil
	}
	for _, t := range status.Tables {
		if t.Until == 0 && t.Pending == nil {
			tables = append(tables, t)
		}
	}
	return tables, nil
}

func (a *app) verifiedCells(v verified) []cell {
	if a.flags.output == formatCSV {
		return []cell{
			plain(v.Table), plain(fmt.Sprint(v.Compared)), plain(fmt.Sprint(v.Gone)), plain(fmt.Sprint(v.Unsettled)), plain(fmt.Sprint(v.Skipped)),
			plain(fmt.Sprint(v.total)), plain(v.NotCompared),
		}
	}
	mark, text := marks[levelOK], plural(v.Compared, "row")+" as history says"
	if v.Gone > 0 {
		text += fmt.Sprintf(", %d of them deleted", v.Gone)
	}
	if v.Unsettled > 0 {
		text += fmt.Sprintf(", %d written to again and again meanwhile", v.Unsettled)
	}
	if v.Skipped > 0 {
		text += fmt.Sprintf(", %d not recorded faithfully (hindsight log --defects)", v.Skipped)
	}
	if v.NotCompared != "" {
		mark, text = marks[levelWarn], "not compared: "+v.NotCompared
	}
	if v.total > 0 {
		mark = marks[levelFail]
		parts := make([]string, 0, len(v.Different))
		for i, d := range v.Different {
			if i == 5 {
				parts = append(parts, fmt.Sprintf("and %d more", v.total-5))
				break
			}
			parts = append(parts, fmt.Sprintf("%s %s (%s)", keyText(d.Key), d.What, d.Change))
		}
		text = fmt.Sprintf("%d of %s differ: %s", v.total, plural(v.Compared, "row"), strings.Join(parts, "; "))
	}
	return []cell{styled(fmt.Sprintf("%-4s", mark.text), mark.style), styled(tableName(v.Table), styleBold), plain(text)}
}

// verifier compares one table.
type verifier struct {
	app      *app
	client   *audit.Client
	conn     *pgx.Conn
	status   audit.TableStatus
	database string
	sample   int
	found    verified

	ident string   // quoted
	only  string   // "ONLY " for what may have children that are tables of their own
	key   []string // columns of the key, quoted
	// columns are the names of all that can be compared.
	columns []verifyColumn
}

type verifyColumn struct{ name, typ string }

// compareAtOnce is how many rows are compared in a statement.
const compareAtOnce = 500

func (v *verifier) run(ctx context.Context) error {
	v.found.Table = audit.Change{Schema: v.status.Schema, Table: v.status.Table}.TableName()
	v.found.Different = []difference{}
	v.ident = pgx.Identifier{v.status.Schema, v.status.Table}.Sanitize()
	if err := v.describe(ctx); err != nil || v.found.NotCompared != "" {
		return err
	}
	if v.sample > 0 {
		return v.runSample(ctx)
	}
	return v.compareAll(ctx, v.query(), 0)
}

// query asks for the changes of the table since it is tracked, newest first.
func (v *verifier) query() audit.Query {
	return v.client.Changes().ForTable(v.found.Table).InDatabase(v.database)
}

// describe looks at the table as it is now.
func (v *verifier) describe(ctx context.Context) error {
	rows, err := v.conn.Query(ctx, `
		SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), coalesce(a.attnum = ANY (i.indkey), false),
			coalesce(NOT i.indimmediate, false), c.relkind = 'r'
		FROM pg_catalog.pg_class c
		JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
		LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisprimary
		WHERE c.oid = pg_catalog.to_regclass($1)
		ORDER BY array_position(i.indkey::int2[], a.attnum), a.attnum`, v.ident)
	if err != nil {
		return err
	}
	var column verifyColumn
	var inKey, deferrable, ordinary bool
	_, err = pgx.ForEachRow(rows, []any{&column.name, &column.typ, &inKey, &deferrable, &ordinary}, func() error {
		v.columns = append(v.columns, column)
		if inKey {
			v.key = append(v.key, pgx.Identifier{column.name}.Sanitize())
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case len(v.columns) == 0:
		v.found.NotCompared = "there is no such table now"
	case len(v.key) == 0:
		v.found.NotCompared = "it has no primary key"
	case deferrable:
		v.found.NotCompared = "its primary key is deferrable, so that two rows may have had one key for a moment"
	}
	if ordinary {
		v.only = "ONLY "
	}
	return nil
}

// compareAll compares the last version of every row that the query gives, or of the
// first most of them.
func (v *verifier) compareAll(ctx context.Context, q audit.Query, most int) error {
	seen := make(map[[16]byte]bool)
	var batch []audit.Change
	for c, err := range q.All(ctx) {
		if err != nil {
			return err
		}
		if c.Operation == audit.Truncate || c.Position.LSN < v.status.From {
			break // what is older was of no row that there is
		}
		if most > 0 && len(seen) >= most {
			break
		}
		// A row that was given another key is gone under the old one.
		if c.KeyChanged && v.first(seen, c.PreviousKey) {
			batch = append(batch, v.departure(c))
		}
		if v.first(seen, c.PrimaryKey) {
			batch = append(batch, c)
		}
		if len(batch) >= compareAtOnce {
			if err := v.compare(ctx, batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	return v.compare(ctx, batch)
}

// first reports whether a key comes for the first time.
func (v *verifier) first(seen map[[16]byte]bool, key string) bool {
	sum := sha256.Sum256([]byte(key))
	short := [16]byte(sum[:])
	if seen[short] {
		return false
	}
	seen[short] = true
	return true
}

// departure is a change of a key as what it is to the row of the old one.
func (v *verifier) departure(c audit.Change) audit.Change {
	c.Operation, c.PrimaryKey, c.After = audit.Delete, c.PreviousKey, nil
	return c
}

// runSample compares the rows that were changed last, and some of all.
func (v *verifier) runSample(ctx context.Context) error {
	if err := v.compareAll(ctx, v.query(), max(1, v.sample/2)); err != nil {
		return err
	}
	texts := make([]string, len(v.key))
	for i, k := range v.key {
		texts[i] = k + "::text"
	}
	rows, err := v.conn.Query(ctx, fmt.Sprintf("SELECT ARRAY[%s] FROM %s ORDER BY random() LIMIT $1", strings.Join(texts, ", "), v.only+v.ident), v.sample-v.sample/2)
	if err != nil {
		return err
	}
	keys, err := pgx.CollectRows(rows, pgx.RowTo[[]string])
	if err != nil {
		return err
	}
	var batch []audit.Change
	for _, key := range keys {
		c, err := v.query().ForRow(keyOf(key)...).First(ctx)
		if errors.Is(err, audit.ErrNotFound) {
			continue // it never changed
		}
		if err != nil {
			return err
		}
		if c.KeyChanged && !slices.Equal(c.KeyParts(), key) {
			c = v.departure(c)
		}
		if c.Position.LSN >= v.status.From {
			batch = append(batch, c)
		}
	}
	return v.compare(ctx, batch)
}

// attempts is how often a row that differs is looked at.
const attempts = 3

// compare compares last versions with the table, and looks again at rows that differ:
// they may have been written to meanwhile.
func (v *verifier) compare(ctx context.Context, changes []audit.Change) error {
	sound := changes[:0:0]
	for _, c := range changes {
		if c.Defect != "" && !strings.HasPrefix(c.Defect, "context") {
			v.found.Skipped++
			continue
		}
		sound = append(sound, c)
		if v.found.Compared++; c.Operation == audit.Delete {
			v.found.Gone++
		}
	}
	if len(sound) == 0 {
		return nil
	}
	v.app.progress("%s: %s", tableName(v.found.Table), plural(v.found.Compared, "row"))
	whats, err := v.differences(ctx, sound)
	if err != nil {
		return err
	}
	for i, what := range whats {
		if what == "" {
			continue
		}
		if err := v.again(ctx, sound[i], what); err != nil {
			return err
		}
	}
	return nil
}

// again looks at one row until history has nothing newer of it than what was compared.
func (v *verifier) again(ctx context.Context, c audit.Change, what string) error {
	key := c.KeyParts()
	for range attempts {
		token, err := v.client.Token(ctx) // of a moment behind the look at the table
		if err == nil {
			err = v.client.WaitFor(ctx, token)
		}
		if err != nil {
			return err
		}
		last, err := v.query().ForRow(keyOf(key)...).First(ctx)
		if err != nil {
			return err
		}
		if last.Position == c.Position {
			v.found.total++
			if len(v.found.Different) < shownDifferences {
				v.found.Different = append(v.found.Different, difference{Key: key, Change: c.Position, What: what})
			}
			return nil
		}
		if last.KeyChanged && last.PrimaryKey != c.PrimaryKey {
			last = v.departure(last)
		}
		c = last
		whats, err := v.differences(ctx, []audit.Change{c})
		if err != nil {
			return err
		}
		if what = whats[0]; what == "" {
			return nil
		}
	}
	v.found.Unsettled++
	return nil
}

// differences says of each change in what the row is not as it left it, or nothing.
func (v *verifier) differences(ctx context.Context, changes []audit.Change) ([]string, error) {
	sql := v.statement(changes)
	images := make([]string, len(changes))
	gone := make([]bool, len(changes))
	for i, c := range changes {
		images[i], gone[i] = string(c.After), c.Operation == audit.Delete
		if gone[i] {
			images[i] = string(c.Before)
		}
	}
	rows, err := v.conn.Query(ctx, sql, images, gone)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// statement compares images with the rows of their keys. A column counts where the
// image has it in the type that it has now: columns are added, dropped and altered.
func (v *verifier) statement(changes []audit.Change) string {
	withheld, types := make(map[string]bool), make(map[string]string)
	for _, c := range changes {
		for name := range c.Withheld {
			withheld[name] = true
		}
		for name, typ := range c.Types {
			if known, ok := types[name]; ok && known != typ.Name {
				withheld[name] = true // of two types: which one it was is not worth the while
			}
			types[name] = typ.Name
		}
	}
	var parts []string
	for _, c := range v.columns {
		if withheld[c.name] || types[c.name] != c.typ {
			continue
		}
		ident := pgx.Identifier{c.name}.Sanitize()
		differs := fmt.Sprintf("WHEN l.%[1]s::text IS DISTINCT FROM p.%[1]s::text THEN %[2]s", ident, literal(c.name))
		if c.typ == "json" {
			// What it means, not its blanks. What jsonb cannot hold is kept as text.
			differs = fmt.Sprintf("WHEN l.%[1]s::text IS NOT DISTINCT FROM p.%[1]s #>> '{}' THEN NULL WHEN l.%[1]s::jsonb::text IS DISTINCT FROM p.%[1]s::jsonb::text THEN %[2]s", ident, literal(c.name))
		}
		parts = append(parts, fmt.Sprintf("CASE WHEN NOT i.image ? %s THEN NULL %s END", literal(c.name), differs))
	}
	parts = append(parts, "NULL")
	equal := make([]string, len(v.key))
	for i, k := range v.key {
		equal[i] = "l." + k + " = p." + k
	}
	return fmt.Sprintf(`
		SELECT CASE
			WHEN i.gone THEN CASE WHEN l.* IS NULL THEN '' ELSE 'is there, though it was deleted' END
			WHEN l.* IS NULL THEN 'is not there'
			ELSE coalesce('has another ' || nullif(concat_ws(', ', %s), ''), '') END
		FROM unnest($1::text[], $2::boolean[]) WITH ORDINALITY i1 (text, gone, n)
		CROSS JOIN LATERAL (SELECT i1.text::jsonb AS image, i1.gone, i1.n) i
		CROSS JOIN LATERAL jsonb_populate_record(NULL::%s, i.image) p
		LEFT JOIN %s l ON %s
		ORDER BY i.n`, strings.Join(parts, ", "), v.ident, v.only+v.ident, strings.Join(equal, " AND "))
}

// literal is a text of SQL.
func literal(text string) string {
	quoted := "'" + strings.ReplaceAll(text, "'", "''") + "'"
	if strings.Contains(text, `\`) {
		return "E" + strings.ReplaceAll(quoted, `\`, `\\`)
	}
	return quoted
}
