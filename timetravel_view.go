package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// View calls fn with a transaction in which every tracked table is as it was at
// the moment: any query in SQL, joins, aggregates, views and functions, and
// generated code such as sqlc's, runs in it unchanged.
//
//	err := audit.AsOf(t).View(ctx, func(tx pgx.Tx) error {
//		return tx.QueryRow(ctx, "SELECT count(*) FROM todo JOIN users USING (user_id)").Scan(&n)
//	})
//
// In it the names of tables and views mean what they mean to the application, with
// or without their schema, but as of then: see [Point.SearchPath]. Tables that have
// not changed since are the live ones; of the others, the rows that changed since
// are laid over the live table, so that its indexes still serve. A query costs what
// the tables that it names do: the number of their rows that changed since, at the
// first query of them. One that needs a real table, because it groups by a primary
// key or takes a TABLESAMPLE, copies it, once.
//
// Before a query runs, its plan and the functions that it calls are looked at. What
// would read the present of a table that has changed since, as a function with a
// qualified name in it does, is refused with a [*ViewError] that says what to write
// instead, and so is a table that is not tracked, unless [Point.WithLive] names it,
// and a function that somebody else owns, unless Config.TrustOwners says that this
// will do. Only queries can be run: SELECT, VALUES, TABLE and WITH, and EXPLAIN of
// them.
//
// The transaction is read-only and is rolled back at the end. View returns fn's
// error, or a [*HistoryError] where a table that a query reads has no such past.
// The role needs the right to make temporary tables in the source. While View
// runs it holds the lightest lock on the tracked tables, like a SELECT: ALTER
// TABLE and TRUNCATE wait for it.
func (p Point) View(ctx context.Context, fn func(tx pgx.Tx) error) (err error) {
	ctx, span := p.span(ctx, spanView)
	defer func() { span.end(err) }()
	t, err := p.travel(ctx)
	if err != nil {
		return err
	}
	v, err := t.view(ctx)
	if err != nil {
		return err
	}
	defer v.close()
	custom := v.snapshot.conn.Conn().PgConn().CustomData()
	custom[guardKey] = v.guard
	defer delete(custom, guardKey)
	return fn(&viewTx{Tx: v.snapshot.tx, view: v})
}

// pastView is a transaction in which tables are as they were. What it takes is made
// when a query first names it.
type pastView struct {
	*travel
	snapshot *snapshot
	tables   []*viewTable
	// alias is what the live tables are called inside of our views, so that a plan
	// tells our reading of them from others'. No two views have the same.
	alias   string
	guard   *guard
	missing map[pgcatalog.Name]error // why the table of a name has no past
	// path is the application's search_path, and its schemas that exist.
	path    string
	schemas []string
	role    string // whose rights the session has
	// sought are the names that were looked for, relations what the source has of
	// these names now.
	sought    map[string]bool
	relations map[string][]*relation
	// reading reports whether the session is in the savepoint that callers read in, and
	// savepoints are those of the caller in it.
	reading    bool
	savepoints []string
	serial     int
}

// relation is a table or view of the source as it is now.
type relation struct {
	oid          uint32
	schema, name string
	kind         string
	definition   string   // of a view
	ancestors    []uint32 // that it is a partition or a child of
	temp         string   // what a view over the past is called in pg_temp, or empty
	remade       bool     // it was looked at whether it needs to be
	looked       bool     // what it calls was looked at
	err          error    // why it cannot be had over the past
}

// viewTable is a table in a view.
type viewTable struct {
	*pastTable
	base  base
	mode  viewMode
	n     int    // tells its temporary tables from others'
	plain bool   // its plain name means it
	temp  string // its name in pg_temp
	err   error  // why it has no past
	keys  []string
	types []string // of its columns in our temporary tables
	full  bool     // its temporary tables are filled
}

type viewMode int

const (
	// viewLive: nothing has changed since; the live table is the past.
	viewLive viewMode = iota
	// viewOverlay: the rows that changed since are laid over the live table.
	viewOverlay
	// viewCopy: the whole table is rebuilt.
	viewCopy
	// viewBroken: there is no past.
	viewBroken
)

// changed reports whether the live table is not the past.
func (t *viewTable) changed() bool { return t.mode == viewOverlay || t.mode == viewCopy }

// written is what to write for the table in a query.
func (t *viewTable) written() string {
	if t.plain {
		return pgcatalog.QuoteIdent(t.pastTable.name)
	}
	return pgcatalog.QuoteIdent(t.schema) + "." + pgcatalog.QuoteIdent(t.pastTable.name)
}

// tempIdent is the table's name in pg_temp, quoted.
func (t *viewTable) tempIdent() string { return "pg_temp." + pgx.Identifier{t.temp}.Sanitize() }

// store is a temporary table behind it.
func (t *viewTable) store(what string) string { return fmt.Sprintf("pg_temp.audit_%s_%d", what, t.n) }

// view begins a view. All tables are locked before anything is found out about
// them.
func (t *travel) view(ctx context.Context) (*pastView, error) {
	v := &pastView{travel: t, missing: make(map[pgcatalog.Name]error), sought: make(map[string]bool), relations: make(map[string][]*relation)}
	live, err := t.liveTables(ctx)
	if err != nil {
		return nil, err
	}
	if v.snapshot, err = t.snapshot(ctx, live, pgx.ReadWrite); err != nil {
		return nil, err
	}
	if err := v.begin(ctx); err != nil {
		v.close()
		return nil, err
	}
	return v, nil
}

// begin learns what names mean, and goes to where callers read.
func (v *pastView) begin(ctx context.Context) error {
	var err error
	if v.path, err = v.client.applicationPath(ctx, v.point); err != nil {
		return err
	}
	err = v.snapshot.tx.QueryRow(ctx, `
		SELECT 'audit_live_' || pg_catalog.substr(pg_catalog.md5(pg_catalog.random()::text), 1, 8), current_user`).Scan(&v.alias, &v.role)
	if err != nil {
		return history.OpError("set up view", err)
	}
	if err := v.enter(ctx); err != nil {
		return err
	}
	if err := v.snapshot.tx.QueryRow(ctx, "SELECT pg_catalog.current_schemas(false)::pg_catalog.text[]").Scan(&v.schemas); err != nil {
		return history.OpError("read search_path", err)
	}
	v.schemas = slices.DeleteFunc(v.schemas, func(s string) bool { return strings.HasPrefix(s, "pg_temp") })
	v.guard, err = newGuard(ctx, v)
	return err
}

// close ends the view, and leaves nothing of it in the session.
func (v *pastView) close() {
	ctx, cancel := context.WithTimeout(pass(context.Background()), 5*time.Second)
	defer cancel()
	conn := v.snapshot.conn.Conn()
	err := v.snapshot.tx.Rollback(ctx)
	if err == nil || errors.Is(err, pgx.ErrTxClosed) {
		if err = conn.DeallocateAll(ctx); err == nil {
			_, err = conn.PgConn().Exec(ctx, "DISCARD ALL").ReadAll()
		}
	}
	if err != nil {
		_ = conn.Close(ctx)
	}
	v.snapshot.conn.Release()
}

// liveTables returns the tables that were ever tracked and are there now, by their
// names of now.
func (t *travel) liveTables(ctx context.Context) ([]*pgcatalog.Table, error) {
	var oids []uint32
	for _, cov := range t.facts.Coverage {
		oids = append(oids, cov.RelationID)
	}
	rows, err := t.client.history.Source.Query(ctx, `
		SELECT n.nspname, c.relname
		FROM pg_catalog.pg_class c
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.oid = ANY ($1) AND pg_catalog.has_table_privilege($2, c.oid, 'SELECT')`, oids, t.client.reader())
	if err != nil {
		return nil, history.OpError("look for the live tables", err)
	}
	tables, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*pgcatalog.Table, error) {
		table := &pgcatalog.Table{}
		return table, row.Scan(&table.Schema, &table.Name)
	})
	return tables, history.OpError("look for the live tables", err)
}

// enter goes to where callers read: read-only, with the application's names.
func (v *pastView) enter(ctx context.Context) error {
	script := []string{"SAVEPOINT audit_read", "SET TRANSACTION READ ONLY", "SELECT pg_catalog.set_config('search_path', " + quoteLiteral(v.path) + ", true)"}
	for _, name := range v.savepoints {
		script = append(script, "SAVEPOINT "+name)
	}
	if err := v.script(ctx, script...); err != nil {
		return err
	}
	v.reading = true
	return nil
}

// prepare runs what makes a table or a view ready, outside of where callers read
// and of their savepoints, so that they cannot roll it back. If it fails, it has
// done nothing.
func (v *pastView) prepare(ctx context.Context, do func(ctx context.Context) error) error {
	if !v.reading {
		return do(ctx) // in the midst of another
	}
	if err := v.script(ctx, "ROLLBACK TO SAVEPOINT audit_read", "RELEASE SAVEPOINT audit_read", "SAVEPOINT audit_prepare"); err != nil {
		return err
	}
	v.reading = false
	ctx = pass(ctx)
	err := do(ctx)
	end := []string{"RELEASE SAVEPOINT audit_prepare"}
	if err != nil {
		end = []string{"ROLLBACK TO SAVEPOINT audit_prepare", "RELEASE SAVEPOINT audit_prepare"}
	}
	return errors.Join(err, v.script(ctx, end...), v.enter(ctx))
}

// script runs statements of ours in one round trip.
func (v *pastView) script(ctx context.Context, statements ...string) error {
	_, err := v.snapshot.conn.Conn().PgConn().Exec(pass(ctx), strings.Join(statements, ";\n")).ReadAll()
	return history.OpError("set up view", err)
}

func quoteLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// add finds a table and whether there is a past of it.
func (v *pastView) add(ctx context.Context, name string) (*viewTable, error) {
	past, err := v.lookedUp(ctx, name)
	var refusal *HistoryError
	var columns *ColumnsError
	if errors.As(err, &refusal) || errors.As(err, &columns) {
		parsed, _ := pgcatalog.ParseName(name)
		v.missing[parsed] = err
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(v.tables, func(t *viewTable) bool { return t.oid == past.oid }); i >= 0 {
		return nil, nil // the same table by another name of it
	}
	table := &viewTable{pastTable: past, n: len(v.tables) + 1}
	v.tables = append(v.tables, table)
	if table.base, err = past.base(ctx); err == nil && table.base.kind == baseLive {
		err = past.refuseUnpublished(pass(ctx), v.snapshot.tx)
	}
	if errors.As(err, &refusal) {
		table.mode, table.err, err = viewBroken, err, nil
		v.missing[pgcatalog.Name{Schema: past.schema, Table: past.name}] = table.err
	}
	if err != nil {
		return nil, err
	}
	return table, v.choose(ctx, table)
}

// lookedUp is table behind the locks: what was known of it before may be out of
// date.
func (v *pastView) lookedUp(ctx context.Context, name string) (*pastTable, error) {
	past, err := v.table(ctx, name)
	if err != nil {
		return nil, err
	}
	return past, past.refresh(ctx)
}

// choose decides how a table is shown.
func (v *pastView) choose(ctx context.Context, t *viewTable) error {
	if t.mode == viewBroken {
		return nil
	}
	t.mode = viewCopy
	if t.base.kind != baseLive {
		return nil
	}
	changed, err := t.changedSince(ctx)
	if err != nil {
		return err
	}
	unseen, err := t.unseen(ctx, v.snapshot)
	if err != nil {
		return err
	}
	renamed := t.live.Schema != t.schema || t.live.Name != t.pastTable.name
	asNow := !renamed && t.columns.Same(t.live.Columns)
	switch {
	case len(t.joined) > 0:
	case !changed && len(unseen) == 0 && asNow && (len(t.key) > 0 || len(v.snapshot.hidden) == 0):
		t.mode = viewLive
	case t.keyed(t.base) && len(t.absent) == 0 && !t.computed:
		t.mode = viewOverlay
	}
	return nil
}

// changedSince reports whether anything of the table has changed after the moment.
func (p *pastTable) changedSince(ctx context.Context) (bool, error) {
	for _, span := range p.names {
		from, to := side{from: p.through, to: maxLSN}.clip(span)
		if from >= to {
			continue
		}
		var changed bool
		err := p.client.history.Store.QueryRow(ctx, `
			SELECT EXISTS (
				SELECT FROM `+p.client.history.Relation("changes")+` c
				WHERE c."table" = $1 AND c.schema = $2 AND c.database = $3
				  AND c.position > $4 AND c.position <= $5`+span.within()+`)`, span.name, span.schema, p.database, from.String(), to.String()).Scan(&changed)
		if err != nil || changed {
			return changed, history.OpError("look for changes", err)
		}
	}
	return false, nil
}
