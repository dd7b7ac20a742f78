package audit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"unicode"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/internal/rowimage"
	"github.com/hindsight-go/audit/store"
)

// Load reads one row, as it was at the moment, into the struct that dst points
// to, by its primary key:
//
//	var todo Todo
//	err := audit.AsOf(t).Load(ctx, &todo, 26)
//
// The table is the one that a TableName method of the struct names, or else its
// type's name in snake case, also in the plural: Todo is in todo or todos,
// UserAccount in user_account or user_accounts. [Point.Table] takes any other.
//
// Columns go to fields by their db tag, their json tag or their name, as pgx
// converts them; those of embedded structs count as the struct's own. Where
// columns and fields do not go together the error is a [*ColumnsError], see
// [Point.Lax].
//
// It returns [ErrNoRow] if there was no row of the key then, and a
// [*HistoryError] where history cannot tell.
func (p Point) Load(ctx context.Context, dst any, key ...any) error {
	name, err := p.tableOfType(ctx, dst)
	if err != nil {
		return err
	}
	return p.Table(name).Load(ctx, dst, key...)
}

// tableOfType returns the name of the table that the type of a destination names.
func (p Point) tableOfType(ctx context.Context, dst any) (string, error) {
	name, err := tableFor(dst)
	if err != nil {
		return "", err
	}
	if _, ok := dst.(interface{ TableName() string }); ok {
		return name, nil
	}
	return p.tracked(ctx, name)
}

// Row returns one row, as it was at the moment, by its primary key: its values by
// column, in the Go types that pgx gives them by default, nil for NULL. Types
// that pgx does not know are strings of PostgreSQL's text.
//
// It returns [ErrNoRow] if there was no row of the key then, and a
// [*HistoryError] where history cannot tell.
func (p Point) Row(ctx context.Context, table string, key ...any) (map[string]any, error) {
	return p.Table(table).Row(ctx, key...)
}

// tracked returns which of the conventional names is in history.
func (p Point) tracked(ctx context.Context, name string) (string, error) {
	c, err := p.ready()
	if err != nil {
		return "", err
	}
	database, err := c.history.Database(ctx)
	if err != nil {
		return "", err
	}
	facts, err := c.history.Facts(ctx, database)
	if err != nil {
		return "", err
	}
	for _, candidate := range []string{name, name + "s", name + "es", strings.TrimSuffix(name, "y") + "ies"} {
		if slices.ContainsFunc(facts.Coverage, func(cov store.Coverage) bool { return cov.Table == candidate }) {
			return candidate, nil
		}
	}
	return name, nil
}

// tableFor returns the name of the table for a destination.
func tableFor(dst any) (string, error) {
	t := reflect.TypeOf(dst)
	if t == nil || t.Kind() != reflect.Pointer {
		return "", &DecodeError{Reason: fmt.Sprintf("the destination must be a pointer to a struct, not %T", dst)}
	}
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if named, ok := reflect.New(t).Interface().(interface{ TableName() string }); ok {
		if name := named.TableName(); name != "" {
			return name, nil
		}
	}
	if t.Kind() != reflect.Struct || t.Name() == "" {
		return "", &DecodeError{Reason: fmt.Sprintf("%s names no table: use Point.Table", t)}
	}
	name, _, _ := strings.Cut(t.Name(), "[") // of a generic type
	return snakeCase(name), nil
}

// snakeCase makes user_account of UserAccount and http_log of HTTPLog.
func snakeCase(name string) string {
	runes := []rune(name)
	var b strings.Builder
	for i, r := range runes {
		if unicode.IsUpper(r) && i > 0 && (!unicode.IsUpper(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// locate returns the values of one row as it was then, and the texts of its key
// as history has them. The texts are there also if the row is not, or not known.
func (p *pastTable) locate(ctx context.Context, key []any) (values [][]byte, parts []string, err error) {
	if parts, err = p.keyParts(ctx, key); err != nil {
		return nil, nil, err
	}
	if !p.hasExactKey() {
		return p.equal(ctx, parts)
	}
	if horizon := p.facts.Horizon; p.through < horizon.Position {
		_, err := p.base(ctx) // which says so
		return nil, parts, err
	}
	values, err = p.findRow(ctx, store.KeyText(parts...), parts)
	if err == nil && values == nil {
		err = ErrNoRow
	}
	if err != nil {
		return nil, parts, err
	}
	return values, parts, p.derive(ctx, [][][]byte{values})
}

// equal finds a row by the server's own idea of equality, where different texts
// of a key are the same.
func (p *pastTable) equal(ctx context.Context, parts []string) (values [][]byte, spelled []string, err error) {
	point := AtPosition(Position{LSN: p.through}).of(p.client)
	table := PastTable{point: point, name: p.qualified()}
	for i, at := range p.keyAt {
		c := p.columns.List[at]
		typeName, err := p.client.plainType(ctx, c)
		if err != nil {
			return nil, nil, err
		}
		table = table.Where(pgx.Identifier{c.Name}.Sanitize()+" = $1::text::"+typeName, parts[i])
	}
	err = table.read(ctx, func(row PastRow) error {
		values = make([][]byte, len(p.columns.List))
		for i, c := range p.columns.List {
			if at, ok := row.table.columns.Index[c.Name]; ok {
				values[i] = row.values[at]
			}
		}
		for _, at := range p.keyAt {
			spelled = append(spelled, string(values[at]))
		}
		return nil
	})
	if err == nil && values == nil {
		err = ErrNoRow
	}
	if err != nil {
		return nil, parts, err
	}
	return values, spelled, nil
}

// keyParts returns the texts of a key's values, as history has them.
func (p *pastTable) keyParts(ctx context.Context, key []any) ([]string, error) {
	if err := p.decideKey(); err != nil {
		return nil, err
	}
	if len(p.key) == 0 {
		return nil, &FilterError{Filter: "Row", Reason: p.qualified() + " has no primary key, or one of generated columns, which the server does not send before version 18: use Table(...).Where"}
	}
	if len(key) != len(p.key) {
		return nil, &FilterError{Filter: "Row", Reason: fmt.Sprintf("the key of %s is (%s), and %d values were given", p.qualified(), strings.Join(p.key, ", "), len(key))}
	}
	parts := make([]string, len(key))
	for i, value := range key {
		texts, err := columnTexts(value)
		if err != nil {
			return nil, &FilterError{Filter: "Row", Reason: fmt.Sprintf("part %d of the key: %v", i+1, err), cause: err}
		}
		if len(texts) == 0 {
			return nil, &FilterError{Filter: "Row", Reason: fmt.Sprintf("part %d of the key is NULL", i+1)}
		}
		parts[i] = texts[0]
		if c := p.columns.List[p.keyAt[i]]; !isCanonical(c.TypeOID, value) {
			// Many texts mean the same numeric, time or bytea; the server's is in history.
			typeName, err := p.client.plainType(ctx, c)
			if err != nil {
				return nil, err
			}
			if parts[i], err = p.client.printed(ctx, typeName, parts[i]); err != nil {
				return nil, &FilterError{Filter: "Row", Reason: fmt.Sprintf("part %d of the key is no %s", i+1, c.TypeName), cause: err}
			}
		}
	}
	return parts, nil
}

// plainType returns the type of a column as SQL, or the one under it if it is a
// domain: the checks of that may be younger than the value, and somebody's code.
func (c *Client) plainType(ctx context.Context, of pgcatalog.Column) (string, error) {
	base, err := baseType(ctx, c.history.Source, of.TypeOID)
	if base == "" {
		base = of.TypeName
	}
	return base, err
}

// printed returns the text in which the server prints a value. A cast to text
// would take the padding off a char(n).
func (c *Client) printed(ctx context.Context, typeName, text string) (string, error) {
	rows, err := c.history.Source.Query(ctx, "SELECT $1::text::"+typeName, pgx.QueryExecModeExec, pgx.QueryResultFormats{pgx.TextFormatCode}, text)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	for rows.Next() {
		text = string(rows.RawValues()[0])
	}
	return text, rows.Err()
}

// isCanonical reports whether a Go value has just one text of the column's type.
func isCanonical(typeOID uint32, value any) bool {
	switch typeOID {
	case 20, 21, 23, 26: // int8, int2, int4, oid
		switch value.(type) {
		case int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64:
			return true
		}
	case 25, 1043: // text, varchar
		return true
	}
	return false
}

// exactTypes are those of which equal values have the same text: "char", name,
// text, varchar, char(n), whole numbers, oid, boolean, bytea, uuid, date, time,
// timestamp, timestamptz, inet, cidr, macaddr, pg_lsn.
var exactTypes = []uint32{18, 19, 25, 1043, 1042, 20, 21, 23, 26, 16, 17, 2950, 1082, 1083, 1114, 1184, 869, 650, 829, 774, 3220}

// hasExactKey reports whether rows which the server takes for one have one text of
// their key. It is not so with numeric, where 1 is 1.00.
func (p *pastTable) hasExactKey() bool {
	for _, at := range p.keyAt {
		if c := p.columns.List[at]; c.Nondeterministic || !slices.Contains(exactTypes, c.TypeOID) {
			return false
		}
	}
	return true
}

// found is what history says of a row around the moment.
type found struct {
	last, next           *event      // the changes of it at or before the moment, and after it
	truncated, truncates *truncation // those of the table
}

// findRow returns the values of a row, or nil if it did not exist.
func (p *pastTable) findRow(ctx context.Context, key string, parts []string) ([][]byte, error) {
	from, to := p.era()
	f, err := p.lastOf(ctx, key)
	if err != nil {
		return nil, err
	}
	if e := f.last; e != nil && (f.truncated == nil || f.truncated.at(e.position, e.sequence) < 0) {
		if _, gap := p.gapIn(e.position, p.through); !gap && e.position >= p.covered.From {
			return p.valuesOf(ctx, key, *e)
		}
	}
	if t := f.truncated; t != nil && !t.partial && t.position >= p.covered.From {
		if _, gap := p.gapIn(t.position, p.through); !gap {
			return nil, nil
		}
	}
	if err := p.nextOf(ctx, key, &f); err != nil {
		return nil, err
	}
	if values, ok, err := p.fromNext(ctx, key, f); ok || err != nil {
		return values, err
	}
	if to < maxLSN {
		return p.scanFor(ctx, key)
	}
	b, err := p.base(ctx)
	if err != nil {
		return nil, err
	}
	if b.forward(p) && b.position < from {
		return p.scanFor(ctx, key)
	}
	switch b.kind {
	case baseEmpty:
		return nil, nil
	case baseKeyframe:
		return p.keyframeRow(ctx, b, key)
	case baseLive:
	}
	return p.liveRow(ctx, key, parts)
}

// scanFor finds a row among all of the table: behind the moment the text of its key
// means another row, or rows came in a way that left no change.
func (p *pastTable) scanFor(ctx context.Context, key string) (row [][]byte, err error) {
	err = p.rows(ctx, func(values [][]byte) error {
		if p.keyText(values) == key {
			row = cloneValues(values)
		}
		return nil
	})
	return row, err
}

// fromNext is the row as the next change of it found it.
func (p *pastTable) fromNext(ctx context.Context, key string, f found) (values [][]byte, ok bool, err error) {
	e := f.next
	if e == nil || f.truncates != nil && f.truncates.at(e.position, e.sequence) < 0 {
		return nil, false, nil
	}
	if e.position >= p.facts.Checkpoint.Position {
		// It is newer than what is known of the table's columns.
		fresh, err := p.client.history.FreshFacts(ctx, p.database)
		if err != nil {
			return nil, false, err
		}
		p.facts = fresh
		if err := p.refresh(ctx); err != nil {
			return nil, false, err
		}
	}
	if _, gap := p.gapIn(p.through, e.position); gap || p.until != 0 && e.position > p.until {
		return nil, false, nil
	}
	values, err = p.valuesOf(ctx, key, *e)
	return values, true, err
}

// at compares the place of a TRUNCATE with another one.
func (t *truncation) at(position LSN, sequence int) int {
	return Position{t.position, t.sequence}.Compare(Position{position, sequence})
}

// valuesOf reads the image of an event.
func (p *pastTable) valuesOf(ctx context.Context, key string, e event) ([][]byte, error) {
	if e.image == nil {
		return nil, nil
	}
	values, missing := p.read(e)
	if len(missing) == 0 {
		return values, nil
	}
	if e.position > p.through {
		return values, p.fill(ctx, key, values, missing)
	}
	// A column that was added since the change: the next change has it, or the
	// live row.
	var f found
	if err := p.nextOf(ctx, key, &f); err != nil {
		return nil, err
	}
	later, ok, err := p.laterValues(ctx, key, f)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, p.unknown(missing)
	}
	for _, at := range missing {
		values[at] = later[at]
	}
	return values, nil
}

// laterValues are the values of a row that exists, by what comes after the moment.
func (p *pastTable) laterValues(ctx context.Context, key string, f found) ([][]byte, bool, error) {
	if e := f.next; e != nil {
		if e.image == nil || f.truncates != nil && f.truncates.at(e.position, e.sequence) < 0 {
			return nil, false, nil
		}
		values, missing := p.read(*e)
		return values, len(missing) == 0, nil
	}
	if _, to := p.era(); to < maxLSN || len(p.absent) > 0 || f.truncates != nil {
		return nil, false, nil
	}
	if err := p.liveBase(nil); err != nil {
		return nil, false, err
	}
	values, err := p.liveRow(ctx, key, nil)
	return values, values != nil, err
}

// aroundSQL is what the three questions on one side of the moment have in common:
// the change of the row, a change that took its key away, a TRUNCATE.
func (p *pastTable) aroundSQL(span nameSpan, s side) string {
	branch := func(of, where string) string {
		return `(SELECT ` + of + `::text AS of, c.position, c.sequence, c.transaction_id, c.primary_key, c.previous_key, ` + s.images() + `, c.defect
			FROM ` + p.client.history.Relation("changes") + ` c
			WHERE c."table" = $1 AND ` + where + ` AND c.schema = $2 AND c.database = $3
			  AND c.position > $4 AND c.position <= $5` + span.within() + `
			ORDER BY ` + s.order() + `
			LIMIT 1)`
	}
	return branch(`'row'`, `c.primary_key = $6`) + ` UNION ALL ` +
		branch(`'moved'`, `c.previous_key = $6`) + ` UNION ALL ` +
		branch(`'truncate'`, `c.primary_key IS NULL AND c.operation = 'TRUNCATE'`) + ` UNION ALL
			(SELECT 'horizon', h.position, 0, 0, NULL, NULL, NULL, NULL, NULL
			FROM ` + p.client.history.Relation("retention") + ` h
			ORDER BY h.position DESC NULLS LAST
			LIMIT 1)`
}

// around asks for the change of a row that is nearest to the moment on one side.
func (p *pastTable) around(ctx context.Context, s side, key string) (e *event, t *truncation, err error) {
	spans := slices.Clone(p.names)
	if s.newest {
		slices.Reverse(spans)
	}
	for _, span := range spans {
		from, to := s.clip(span)
		if from >= to {
			continue
		}
		if e, t, err = p.aroundIn(ctx, span, side{from, to, s.newest}, key); err != nil {
			return nil, nil, err
		}
		if e != nil || t != nil {
			break
		}
	}
	return e, t, nil
}

// aroundIn is around under one name of the table.
func (p *pastTable) aroundIn(ctx context.Context, span nameSpan, s side, key string) (e *event, t *truncation, err error) {
	for s.from < s.to {
		e, t = nil, nil
		rows, err := p.client.history.Store.Query(ctx, p.aroundSQL(span, s), span.name, span.schema, p.database, s.from.String(), s.to.String(), key)
		if err != nil {
			return nil, nil, history.OpError("look for changes of the row", err)
		}
		horizon, err := eachAround(rows, s, key, &e, &t)
		if err != nil {
			return nil, nil, history.OpError("look for changes of the row", err)
		}
		if p.through < horizon {
			return nil, nil, p.refuse(ErrPastRetention, "", horizon)
		}
		if e == nil || e.image != nil || !p.isDeferrable() {
			return e, t, nil
		}
		settled, ok, err := p.settle(ctx, span, s, *e)
		if err != nil || ok {
			return &settled, t, err
		}
		// Its transaction says nothing of the row: on to the next one.
		if s.newest {
			s.to = e.position - 1
		} else {
			s.from = e.position
		}
	}
	return nil, t, nil
}

// eachAround reads the answers, and up to where history was dropped.
func eachAround(rows pgx.Rows, s side, key string, e **event, t **truncation) (horizon LSN, err error) {
	var of string
	var lsn *lsnText
	var sequence int
	var xid int64
	var primary, previous *string
	var image, keyImage []byte
	var remarks *string
	_, err = pgx.ForEachRow(rows, []any{&of, &lsn, &sequence, &xid, &primary, &previous, &image, &keyImage, &remarks}, func() error {
		if lsn == nil {
			return nil // nothing was dropped that had changes in it
		}
		if of == "horizon" {
			horizon = LSN(*lsn)
			return nil
		}
		if of == "truncate" {
			*t = &truncation{position: LSN(*lsn), sequence: sequence, partial: truncatesPart(remarks)}
			return nil
		}
		c := event{position: LSN(*lsn), sequence: sequence, xid: uint64(xid), key: text(primary), image: image, keyImage: keyImage, defects: rowimage.ReadDefects(remarks, s.label())}
		for _, candidate := range split(c, previous, s) {
			if candidate.key == key && (*e == nil || candidate.before(**e) != s.newest) {
				*e = &candidate
			}
		}
		return nil
	})
	return horizon, err
}

func (p *pastTable) lastOf(ctx context.Context, key string) (f found, err error) {
	from, _ := p.era()
	f.last, f.truncated, err = p.around(ctx, side{from: from, to: p.through, newest: true}, key)
	return f, err
}

func (p *pastTable) nextOf(ctx context.Context, key string, f *found) (err error) {
	_, to := p.era()
	f.next, f.truncates, err = p.around(ctx, side{from: p.through, to: to}, key)
	return err
}

// lastEvent returns the last event of a row at or before the moment.
func (p *pastTable) lastEvent(ctx context.Context, key string) (event, bool, error) {
	f, err := p.lastOf(ctx, key)
	if err != nil || f.last == nil {
		return event{}, false, err
	}
	return *f.last, true, nil
}

// keyframeRow returns a row of a state that the store keeps.
func (p *pastTable) keyframeRow(ctx context.Context, b base, key string) ([][]byte, error) {
	var image []byte
	err := p.client.history.Store.QueryRow(ctx, `
		SELECT r.image
		FROM `+p.client.history.Relation("keyframe_rows")+` r
		WHERE r.keyframe = $1 AND r.primary_key = $2`, b.keyframe, key).Scan(&image)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, history.OpError("read keyframe", err)
	}
	values, missing := Image(image).frameValues(p.columns.List, p.versionAt(b.position, math.MaxInt))
	if len(missing) > 0 {
		return nil, p.unknown(missing)
	}
	return values, nil
}

// liveRow returns a row that history does not know of: as it is now, once history
// is known to have nothing of it up to then either.
func (p *pastTable) liveRow(ctx context.Context, key string, parts []string) ([][]byte, error) {
	if parts == nil {
		parts = splitKey(key)
	}
	b, s, err := p.begin(ctx)
	if err != nil {
		return nil, err
	}
	if s == nil { // since a moment ago
		if b.kind == baseKeyframe {
			return p.keyframeRow(ctx, b, key)
		}
		return nil, nil
	}
	defer s.close()
	var f found
	if err := p.nextOf(ctx, key, &f); err != nil {
		return nil, err
	}
	if f.truncates != nil && (f.next == nil || f.truncates.at(f.next.position, f.next.sequence) < 0) {
		return nil, p.liveBase([]truncation{*f.truncates})
	}
	if values, ok, err := p.fromNext(ctx, key, f); ok || err != nil {
		return values, err
	}
	values, err := p.selectLive(ctx, s, parts)
	if err != nil || values == nil {
		return nil, err
	}
	if len(p.absent) > 0 {
		if err := p.fill(ctx, key, values, p.absent); err != nil {
			return nil, err
		}
	}
	return values, nil
}

func (p *pastTable) selectLive(ctx context.Context, s *snapshot, parts []string) ([][]byte, error) {
	selected := make([]string, len(p.columns.List))
	for i, at := range p.liveAt {
		selected[i] = "NULL"
		if at >= 0 {
			selected[i] = pgx.Identifier{p.live.Columns.List[at].Name}.Sanitize()
		}
	}
	var where []string
	args := []any{pgx.QueryExecModeExec, pgx.QueryResultFormats{pgx.TextFormatCode}}
	for i, at := range p.keyAt {
		now := p.liveAt[at]
		if now < 0 {
			return nil, p.refuse(ErrIncomplete, "its key was changed since", 0)
		}
		c := p.live.Columns.List[now]
		where = append(where, fmt.Sprintf("%s = $%d::text::%s", pgx.Identifier{c.Name}.Sanitize(), i+1, c.TypeName))
		args = append(args, parts[i])
	}
	rows, err := s.tx.Query(ctx, "SELECT "+strings.Join(selected, ", ")+" FROM "+p.live.Ident()+" WHERE "+strings.Join(where, " AND "), args...)
	if err != nil {
		return nil, history.OpError("read the live row", err)
	}
	defer rows.Close()
	if !rows.Next() {
		return nil, history.OpError("read the live row", rows.Err())
	}
	return cloneValues(rows.RawValues()), nil
}
