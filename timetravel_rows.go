package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/internal/rowimage"
	"github.com/hindsight-go/audit/store"
)

// pageRows is how many rows are fetched at a time, so that a loop can be left
// early at no cost.
const pageRows = 1000

// rows calls yield for every row of the table as it was then: one value in
// PostgreSQL's text format for each column. They come in no order.
func (p *pastTable) rows(ctx context.Context, yield func(values [][]byte) error) error {
	b, s, err := p.begin(ctx)
	if err != nil {
		return err
	}
	if s != nil {
		defer s.close()
	}
	return p.rebuild(ctx, b, s, func(_ string, values [][]byte) error { return yield(values) })
}

// begin finds a base and, if it is the live table, takes a snapshot of it. Much can
// have happened to the table until that is locked: what was known of it before is
// found out anew.
func (p *pastTable) begin(ctx context.Context) (base, *snapshot, error) {
	for {
		b, err := p.base(ctx)
		if err != nil || b.kind != baseLive {
			return b, nil, err
		}
		locked := p.live.Ident()
		s, err := p.snapshot(ctx, []*pgcatalog.Table{p.live}, pgx.ReadOnly)
		if err != nil && !history.IsCode(err, "42P01") {
			return b, nil, err
		}
		gone := err != nil
		if err = p.refresh(ctx); err == nil {
			b, err = p.base(ctx)
		}
		if err == nil && b.kind == baseLive && !gone {
			err = p.refuseUnpublished(ctx, s.tx)
		}
		if err == nil && b.kind == baseLive && !gone && p.live.Ident() == locked {
			return b, s, nil
		}
		if s != nil {
			s.close()
		}
		if err != nil || b.kind != baseLive {
			return b, nil, err
		}
		// It was renamed on the way.
	}
}

// refresh describes the table anew, by facts that were read since.
func (p *pastTable) refresh(ctx context.Context) error {
	for _, cov := range p.facts.Coverage {
		if cov.RelationID == p.oid && cov.From == p.covered.From && cov.Schema == p.covered.Schema && cov.Table == p.covered.Table {
			fresh, err := p.travel.tableOf(ctx, cov, p.client.history.FreshTable)
			if err != nil {
				return err
			}
			fills, before := p.fills, p.before
			*p = *fresh
			p.fills, p.before = fills, before
			return nil
		}
	}
	return p.refuse(ErrNotTracked, "its coverage was withdrawn", 0)
}

// rowsFrom is rows from a base that is not the live table, with the keys.
func (p *pastTable) rowsFrom(ctx context.Context, b base, yield func(key string, values [][]byte) error) error {
	return p.rebuild(ctx, b, nil, yield)
}

// rebuild reaches the moment from a base. s is the snapshot of a live one.
func (p *pastTable) rebuild(ctx context.Context, b base, s *snapshot, yield func(key string, values [][]byte) error) error {
	if !p.keyed(b) {
		return p.keylessRows(ctx, b, s, func(values [][]byte) error { return yield("", values) })
	}
	touched := make(map[string]struct{})
	derived, flush := p.deriving(ctx, yield)
	err := p.touched(ctx, b, s, func(row touchedRow) error {
		touched[row.key] = struct{}{}
		if row.values == nil {
			return nil
		}
		return derived(row.key, row.values)
	})
	if err != nil {
		return err
	}
	if err := flush(); err != nil {
		return err
	}
	whole := yield // the live row has its generated columns
	if b.kind == baseKeyframe {
		whole = derived
	}
	untouched := func(key string, values [][]byte, missing []int) error {
		if _, ok := touched[key]; ok {
			return nil
		}
		if len(missing) > 0 {
			if err := p.fill(ctx, key, values, missing); err != nil {
				return err
			}
		}
		return whole(key, values)
	}
	if b.kind == baseLive && p.computed {
		return p.derivedRows(ctx, s, untouched)
	}
	if err := p.baseRows(ctx, b, s, untouched); err != nil {
		return err
	}
	return flush()
}

// deriving returns a function that yields rows once their generated columns are computed,
// a page of rows at a time, and one that yields those that are left.
func (p *pastTable) deriving(ctx context.Context, yield func(key string, values [][]byte) error) (add func(key string, values [][]byte) error, flush func() error) {
	if !p.columns.HasDerived() {
		return yield, func() error { return nil }
	}
	var keys []string
	var page [][][]byte
	flush = func() error {
		if err := p.derive(ctx, page); err != nil {
			return err
		}
		for i, values := range page {
			if err := yield(keys[i], values); err != nil {
				return err
			}
		}
		keys, page = keys[:0], page[:0]
		return nil
	}
	add = func(key string, values [][]byte) error {
		if keys, page = append(keys, key), append(page, values); len(page) < pageRows {
			return nil
		}
		return flush()
	}
	return add, flush
}

// derivedRows is the rows of a live table that does not have a generated column as
// it was: it is computed for each of them.
func (p *pastTable) derivedRows(ctx context.Context, s *snapshot, yield func(key string, values [][]byte, missing []int) error) error {
	var keys []string
	var page [][][]byte
	flush := func() error {
		if err := p.derive(ctx, page); err != nil {
			return err
		}
		for i, values := range page {
			if err := yield(keys[i], values, p.absent); err != nil {
				return err
			}
		}
		keys, page = keys[:0], page[:0]
		return nil
	}
	err := p.baseRows(ctx, base{kind: baseLive}, s, func(key string, values [][]byte, _ []int) error {
		if keys, page = append(keys, key), append(page, values); len(page) == pageRows {
			return flush()
		}
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// touchedRow is a row that is, or was, different from the base.
type touchedRow struct {
	key string
	// values is the row as it was then; nil if it did not exist.
	values [][]byte
	// keyValues are those of the key's columns.
	keyValues [][]byte
}

// touched calls yield for every row that is not, or may not be, as the base has
// it. s is the snapshot of a live base.
func (p *pastTable) touched(ctx context.Context, b base, s *snapshot, yield func(touchedRow) error) error {
	forward := b.forward(p)
	direction := side{from: p.through, to: b.position}
	if forward {
		direction = side{from: b.position, to: p.through, newest: true}
		if b.kind == baseEmpty {
			direction.from--
		}
	}
	unseen, err := p.unseen(ctx, s)
	if err != nil {
		return err
	}
	emit := func(e event) error {
		row := touchedRow{key: e.key}
		if forward && b.kind == baseEmpty && e.position == b.position && e.sequence < b.sequence {
			e.image = nil // the TRUNCATE came behind it
		}
		identity := e.image
		if e.image != nil {
			if !forward && e.position > p.through {
				if err := p.came(e.position); err != nil {
					return err
				}
			}
			var missing []int
			row.values, missing = p.read(e)
			if len(missing) > 0 && !(forward || unseen[e.key].key != "") {
				if err := p.fill(ctx, e.key, row.values, missing); err != nil {
					return err
				}
			} else if len(missing) > 0 {
				return p.unknown(missing)
			}
		} else {
			identity = e.keyImage
		}
		if row.keyValues, err = p.keyOf(e, identity); err != nil {
			return err
		}
		return yield(row)
	}
	err = p.events(ctx, direction, func(e event) error {
		if _, ok := unseen[e.key]; ok {
			return nil
		}
		return emit(e)
	})
	if err != nil {
		return err
	}
	for _, e := range unseen {
		if err := emit(e); err != nil {
			return err
		}
	}
	return nil
}

// keyOf reads the values of the key's columns out of an image of the row.
func (p *pastTable) keyOf(e event, image Image) ([][]byte, error) {
	if image == nil {
		image = e.keyImage
	}
	values, _ := rowimage.Texts(image, p.columns.List, p.versionAt(e.position, e.sequence))
	key := make([][]byte, len(p.keyAt))
	for i, at := range p.keyAt {
		if values[at] == nil {
			return nil, p.refuse(ErrIncomplete, "a change of it does not say of which row", 0)
		}
		if labels := p.columns.List[at].Labels; len(labels) > 0 && !slices.Contains(labels, string(values[at])) {
			return nil, p.refuse(ErrIncomplete, "a label of the enum "+p.columns.List[at].TypeName+", which is in its key, was renamed or dropped since", 0)
		}
		key[i] = values[at]
	}
	return key, nil
}

// unseen returns the rows that transactions changed which are in the moment, but
// not yet in the snapshot. The last change until then is the row.
func (p *pastTable) unseen(ctx context.Context, s *snapshot) (map[string]event, error) {
	if s == nil || len(s.hidden) == 0 {
		return nil, nil
	}
	found := make(map[string]event)
	for _, span := range p.names {
		rows, err := p.client.history.Store.Query(ctx, `
			SELECT c.primary_key, c.previous_key
			FROM `+p.client.history.Relation("changes")+` c
			WHERE c."table" = $2 AND c.schema = $3 AND c.database = $4
			  AND c.position > $5 AND c.position <= $6 AND c.primary_key IS NOT NULL
			  AND c.transaction_id = ANY ($1)`+span.within(), s.hidden, span.name, span.schema, p.database, span.from.String(), min(p.through, span.to).String())
		if err != nil {
			return nil, history.OpError("look for changes not visible yet", err)
		}
		var key, previous *string
		var keys []string
		if _, err := pgx.ForEachRow(rows, []any{&key, &previous}, func() error {
			keys = append(keys, text(key))
			if previous != nil {
				keys = append(keys, *previous)
			}
			return nil
		}); err != nil {
			return nil, history.OpError("look for changes not visible yet", err)
		}
		for _, key := range keys {
			e, ok, err := p.lastEvent(ctx, key)
			if err != nil {
				return nil, err
			}
			if ok {
				found[key] = e
			}
		}
	}
	return found, nil
}

// baseRows calls yield for every row of the base, with the columns that it lacks.
func (p *pastTable) baseRows(ctx context.Context, b base, s *snapshot, yield func(key string, values [][]byte, missing []int) error) error {
	switch b.kind {
	case baseEmpty:
		return nil
	case baseKeyframe:
		return p.keyframeRows(ctx, b, yield)
	case baseLive:
	}
	return p.liveRows(ctx, s, false, yield)
}

// liveRows reads the live table through the snapshot: the rows of the partitions
// that have joined it since the moment, or all others. A row in one that joined is
// in history, or came with the partition.
func (p *pastTable) liveRows(ctx context.Context, s *snapshot, joined bool, yield func(key string, values [][]byte, missing []int) error) error {
	selected := make([]string, len(p.columns.List))
	for i, at := range p.liveAt {
		if at < 0 {
			selected[i] = "NULL"
		} else {
			selected[i] = pgx.Identifier{p.live.Columns.List[at].Name}.Sanitize()
		}
	}
	if len(selected) == 0 {
		selected = []string{"NULL"}
	}
	where := ""
	if len(p.joined) > 0 {
		oids := make([]string, len(p.joined))
		for i, oid := range p.joined {
			oids[i] = strconv.FormatUint(uint64(oid), 10)
		}
		not := "NOT "
		if joined {
			not = ""
		}
		where = " AS l WHERE l.tableoid " + not + "IN (" + strings.Join(oids, ", ") + ")"
	}
	_, err := s.tx.Exec(ctx, "DECLARE audit_rows NO SCROLL CURSOR FOR SELECT "+strings.Join(selected, ", ")+" FROM "+p.live.Ident()+where)
	if err != nil {
		return history.OpError("read the live table", err)
	}
	for {
		page, err := fetchPage(ctx, s.tx, len(p.columns.List))
		if err != nil {
			return history.OpError("read the live table", err)
		}
		for _, values := range page {
			if err := yield(p.keyText(values), values, p.absent); err != nil {
				return err
			}
		}
		if len(page) < pageRows {
			_, err := s.tx.Exec(ctx, "CLOSE audit_rows")
			return history.OpError("read the live table", err)
		}
	}
}

// fetchPage reads the next rows of the cursor as text.
func fetchPage(ctx context.Context, tx pgx.Tx, width int) ([][][]byte, error) {
	rows, err := tx.Query(ctx, fmt.Sprintf("FETCH FORWARD %d FROM audit_rows", pageRows), pgx.QueryExecModeExec, pgx.QueryResultFormats{pgx.TextFormatCode})
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var page [][][]byte
	for rows.Next() {
		raw := rows.RawValues()
		page = append(page, cloneValues(raw[:width]))
	}
	return page, rows.Err()
}

// cloneValues copies a row out of the connection's buffer, in one piece.
func cloneValues(raw [][]byte) [][]byte {
	size := 0
	for _, v := range raw {
		size += len(v)
	}
	buffer := make([]byte, 0, size)
	values := make([][]byte, len(raw))
	for i, v := range raw {
		if v == nil {
			continue
		}
		begin := len(buffer)
		buffer = append(buffer, v...)
		values[i] = buffer[begin:len(buffer):len(buffer)]
	}
	return values
}

// keyText returns the text under which history has the row.
func (p *pastTable) keyText(values [][]byte) string {
	if len(p.keyAt) == 1 {
		if v := values[p.keyAt[0]]; len(v) < 1000 {
			return string(v)
		}
	}
	if len(p.keyAt) == 0 {
		return ""
	}
	parts := make([]string, len(p.keyAt))
	for i, at := range p.keyAt {
		parts[i] = string(values[at])
	}
	return store.KeyText(parts...)
}

// keyframeRows reads a state that the store keeps.
func (p *pastTable) keyframeRows(ctx context.Context, b base, yield func(key string, values [][]byte, missing []int) error) error {
	index := p.versionAt(b.position, math.MaxInt)
	for after := int64(-1); ; {
		rows, err := p.client.history.StoreLong.Query(ctx, `
			SELECT r.ordinal, r.primary_key, r.image
			FROM `+p.client.history.Relation("keyframe_rows")+` r
			WHERE r.keyframe = $1 AND r.ordinal > $2
			ORDER BY r.ordinal
			LIMIT $3`, b.keyframe, after, pageRows)
		if err != nil {
			return history.OpError("read keyframe", err)
		}
		n := 0
		var key *string
		var image []byte
		_, err = pgx.ForEachRow(rows, []any{&after, &key, &image}, func() error {
			n++
			values, missing := Image(image).frameValues(p.columns.List, index)
			return yield(text(key), values, missing)
		})
		if err != nil {
			return history.OpError("read keyframe", err)
		}
		if n < pageRows {
			return nil
		}
	}
}

// unknown is the error for columns whose values nobody knows.
func (p *pastTable) unknown(missing []int) error {
	names := make([]string, len(missing))
	for i, at := range missing {
		names[i] = p.columns.List[at].Name
	}
	return p.refuse(ErrIncomplete, "for some rows the values of these columns, which were dropped or altered since or not sent by the server, are not in history: "+strings.Join(names, ", ")+" (leave them out with Point.Columns)", 0)
}

// fill finds the values of columns that an image, or the live row, does not have
// any more, in the last change of the row until then.
func (p *pastTable) fill(ctx context.Context, key string, values [][]byte, missing []int) error {
	e, ok, err := p.older(ctx, key)
	if err != nil {
		return err
	}
	if !ok || e.image == nil {
		return p.unknown(missing)
	}
	before, lacking := p.read(e)
	var still []int
	for _, at := range missing {
		values[at] = before[at]
		for _, l := range lacking {
			if l == at {
				still = append(still, at)
			}
		}
	}
	if len(still) > 0 {
		return p.unknown(still)
	}
	return nil
}

// fillOne is how many rows are looked up one by one before all are read.
const fillOne = 50

// older returns the last event of a row until then.
func (p *pastTable) older(ctx context.Context, key string) (event, bool, error) {
	if p.fills++; p.fills <= fillOne {
		return p.lastEvent(ctx, key)
	}
	if p.before == nil {
		p.before = make(map[string]event)
		err := p.events(ctx, side{from: 0, to: p.through, newest: true}, func(e event) error {
			p.before[e.key] = e
			return nil
		})
		if err != nil {
			return event{}, false, err
		}
	}
	e, ok := p.before[key]
	return e, ok, nil
}

// derive has the source compute the generated columns of rows out of history,
// which the stream does not carry.
func (p *pastTable) derive(ctx context.Context, rows [][][]byte) error {
	if len(rows) == 0 || !p.columns.HasDerived() {
		return nil
	}
	statement, at, err := p.deriveSQL(ctx)
	if err != nil {
		return err
	}
	for len(rows) > 0 {
		n := min(len(rows), pageRows)
		if err := p.deriveSome(ctx, statement, at, rows[:n]); err != nil {
			return history.OpError("compute generated columns", err)
		}
		rows = rows[n:]
	}
	return nil
}

func (p *pastTable) deriveSome(ctx context.Context, statement string, at []int, rows [][][]byte) error {
	batch := &pgx.Batch{}
	for _, values := range rows {
		var args []any
		for i, c := range p.columns.List {
			if !c.Generated {
				args = append(args, nullable(values[i]))
			}
		}
		batch.Queue(statement, args...)
	}
	// The expressions may call code of the table's owner: it may read, and whatever
	// else it does is undone.
	tx, err := p.client.history.Reading.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	results := tx.SendBatch(ctx, batch)
	defer func() { _ = results.Close() }()
	for _, values := range rows {
		computed := make([]*string, len(at))
		dst := make([]any, len(at))
		for i := range computed {
			dst[i] = &computed[i]
		}
		if err := results.QueryRow().Scan(dst...); err != nil {
			return err
		}
		for i, v := range computed {
			if v != nil {
				values[at[i]] = []byte(*v)
			}
		}
	}
	return results.Close()
}

func nullable(value []byte) *string {
	if value == nil {
		return nil
	}
	s := string(value)
	return &s
}

// deriveSQL returns the statement that computes the generated columns from the
// texts of the others, and where they stand.
func (p *pastTable) deriveSQL(ctx context.Context) (statement string, at []int, err error) {
	if err := errors.Join(p.checkOwners(ctx), p.checkDomains(ctx, true)); err != nil {
		return "", nil, err
	}
	var computed, given []string
	for i, c := range p.columns.List {
		quoted := pgx.Identifier{c.Name}.Sanitize()
		if !c.Generated {
			given = append(given, fmt.Sprintf("$%d::text::%s AS %s", len(given)+1, c.TypeName, quoted))
			continue
		}
		if c.Expression == "" {
			return "", nil, p.refuse(ErrIncomplete, "how its generated column "+c.Name+" was computed is not in history", 0)
		}
		computed = append(computed, fmt.Sprintf("((%s)::%s)::text AS c%d", c.Expression, c.TypeName, len(at))) // a view has each name once
		at = append(at, i)
	}
	statement = "SELECT " + strings.Join(computed, ", ") + " FROM (SELECT " + strings.Join(given, ", ") + ") AS given"
	if p.computed || p.live == nil {
		err = p.checkFormer(ctx, statement)
	}
	return statement, at, err
}

var parameter = regexp.MustCompile(`\$[0-9]+::text`)

// checkFormer refuses expressions that generated columns had before and that call
// functions of other roles: what they depend on is not in the catalog any more. As
// the query of a view it is, and nothing of a view runs when it is made.
func (p *pastTable) checkFormer(ctx context.Context, statement string) error {
	if p.client.cfg.TrustOwners {
		return nil
	}
	tx, err := p.client.history.Reading.Begin(ctx)
	if err != nil {
		return history.OpError("look at generated columns", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	_, err = tx.Exec(ctx, "CREATE TEMP VIEW audit_expressions AS "+parameter.ReplaceAllString(statement, "NULL::text"))
	if history.IsCode(err, "42883", "42704", "42703", "3F000") { // a function, a type, a column, a schema of it is gone
		return p.refuse(ErrIncomplete, "what a generated column was computed with is gone", 0)
	}
	if err != nil {
		return history.OpError("look at generated columns", err)
	}
	var function *string
	err = tx.QueryRow(ctx, `
		SELECT (SELECT f.oid::regprocedure::text
			FROM pg_catalog.pg_rewrite r
			JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid
			`+foreignFunctions+`
			WHERE r.ev_class = 'pg_temp.audit_expressions'::regclass AND `+areForeign+`
			LIMIT 1)`).Scan(&function)
	if err != nil {
		return history.OpError("look at generated columns", err)
	}
	return p.refuseFunction(function)
}

// foreignFunctions joins the functions that a pg_depend d refers to, as f, and
// areForeign says which of them are other roles'.
const (
	foreignFunctions = `LEFT JOIN pg_catalog.pg_operator o ON d.refclassid = 'pg_catalog.pg_operator'::regclass AND o.oid = d.refobjid
			JOIN pg_catalog.pg_proc f ON f.oid = CASE WHEN d.refclassid = 'pg_catalog.pg_proc'::regclass THEN d.refobjid ELSE o.oprcode::oid END`
	areForeign = `f.oid >= 16384
			  AND NOT pg_catalog.pg_has_role(f.proowner, current_user, 'MEMBER')
			  AND NOT EXISTS (
				SELECT FROM pg_catalog.pg_depend e
				WHERE e.classid = 'pg_catalog.pg_proc'::regclass AND e.objid = f.oid AND e.deptype = 'e')`
)

// checkOwners refuses generated columns that call functions of other roles, unless
// those may run with our rights.
func (p *pastTable) checkOwners(ctx context.Context) error {
	if p.client.cfg.TrustOwners {
		return nil
	}
	var function *string
	err := p.client.history.Reading.QueryRow(ctx, `
		SELECT (SELECT f.oid::regprocedure::text
			FROM pg_catalog.pg_attrdef a
			JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = a.oid
			`+foreignFunctions+`
			WHERE a.adrelid = $1 AND `+areForeign+`
			LIMIT 1)`, p.oid).Scan(&function)
	if err != nil {
		return history.OpError("read generated columns", err)
	}
	return p.refuseFunction(function)
}

func (p *pastTable) refuseFunction(function *string) error {
	if function != nil {
		return p.refuse(ErrUntrusted, "a generated column calls "+*function+", which another role owns: leave the column out with Point.Columns, or say with Config.TrustOwners that such code may run", 0)
	}
	return nil
}

// rowText is a row as one string, for telling rows without a key apart.
func (p *pastTable) rowText(values [][]byte) string {
	var b []byte
	for i, v := range values {
		switch c := p.columns.List[i]; {
		case c.Generated:
		case v == nil:
			b = append(b, 'n')
		default:
			v = rowimage.Canonical(c.Kind, v)
			b = append(b, 'v')
			b = binary.AppendUvarint(b, uint64(len(v)))
			b = append(b, v...)
		}
	}
	return string(b)
}
