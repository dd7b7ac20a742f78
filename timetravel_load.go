package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// fill loads the past of a table into its temporary tables, once. If that fails the
// view goes on without the table.
func (v *pastView) fill(ctx context.Context, t *viewTable) error {
	if t.full || !t.changed() {
		return nil
	}
	load := v.fillCopy
	if t.mode == viewOverlay {
		load = v.fillOverlay
	}
	err := v.prepare(ctx, func(ctx context.Context) error { return load(ctx, t) })
	t.full = err == nil
	return t.misfit(err)
}

// misfits finds the column in what the server says of a row that it does not take.
var misfits = regexp.MustCompile(`^COPY [^,]+, line \d+, column ([^:]+)`)

// misfit says of which column a past value is none of today's type. The server's own
// words hold the value.
func (p *pastTable) misfit(err error) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || !strings.HasPrefix(pgErr.Code, "22") && !strings.HasPrefix(pgErr.Code, "23") {
		return err
	}
	name := pgErr.ColumnName
	if match := misfits.FindStringSubmatch(pgErr.Where); match != nil {
		name = match[1]
	}
	detail := "a past value does not fit today's type of its column (SQLSTATE " + pgErr.Code + ")"
	if i, ok := p.columns.Index[name]; ok {
		detail = fmt.Sprintf("a past value of column %q does not fit its type of today, %s (SQLSTATE %s): leave the column out with Point.Columns, or read the table without conditions, which gives the text", name, p.columns.List[i].TypeName, pgErr.Code)
	}
	return p.refuse(ErrIncomplete, detail, 0)
}

// quotedNames are those of the columns.
func (t *viewTable) quotedNames() []string {
	var names []string
	for _, c := range t.columns.List {
		names = append(names, pgx.Identifier{c.Name}.Sanitize())
	}
	return names
}

func (v *pastView) fillOverlay(ctx context.Context, t *viewTable) error {
	conn := v.snapshot.tx.Conn()
	rows, keys := newCopier(conn, t.store("rows"), t.quotedNames()), newCopier(conn, t.store("keys"), t.keys)
	var derived [][][]byte
	err := t.touched(ctx, t.base, v.snapshot, func(row touchedRow) error {
		if err := keys.add(ctx, nil, row.keyValues); err != nil || row.values == nil {
			return err
		}
		if t.columns.HasDerived() {
			derived = append(derived, row.values)
			return nil
		}
		return rows.add(ctx, nil, row.values)
	})
	if err == nil {
		err = t.derive(ctx, derived)
	}
	for _, values := range derived {
		if err == nil {
			err = rows.add(ctx, nil, values)
		}
	}
	if err == nil {
		err = errors.Join(rows.flush(ctx), keys.flush(ctx))
	}
	if err != nil {
		return err
	}
	return v.script(ctx, "ANALYZE "+t.store("rows")+", "+t.store("keys"))
}

func (v *pastView) fillCopy(ctx context.Context, t *viewTable) error {
	rows := newCopier(v.snapshot.tx.Conn(), t.tempIdent(), t.quotedNames())
	err := t.rebuild(ctx, t.base, v.snapshot, func(_ string, values [][]byte) error { return rows.add(ctx, nil, values) })
	if err == nil {
		err = rows.flush(ctx)
	}
	if err != nil {
		return err
	}
	return v.script(ctx, "ANALYZE "+t.tempIdent())
}

// errStop ends a loop that its caller has left.
var errStop = errors.New("audit: stopped")

// copyChunk is how much is gathered before it is sent. In between, the connection
// is free to read what comes next.
const copyChunk = 1 << 20

// copier loads rows into a table by COPY, in chunks.
type copier struct {
	conn      *pgx.Conn
	statement string
	buffer    []byte
}

func newCopier(conn *pgx.Conn, table string, columns []string) *copier {
	return &copier{conn: conn, statement: "COPY " + table + " (" + strings.Join(columns, ", ") + ") FROM STDIN"}
}

// add adds a row. Of columns, if they are given, those that the server computes
// are left out.
func (c *copier) add(ctx context.Context, columns []pgcatalog.Column, values [][]byte) error {
	c.buffer = appendCopyLine(c.buffer, columns, values)
	if len(c.buffer) < copyChunk {
		return nil
	}
	return c.flush(ctx)
}

func (c *copier) flush(ctx context.Context) error {
	if len(c.buffer) == 0 {
		return nil
	}
	_, err := c.conn.PgConn().CopyFrom(ctx, bytes.NewReader(c.buffer), c.statement)
	c.buffer = c.buffer[:0]
	return history.OpError("load past rows", err)
}

// appendCopyLine appends a row in COPY's text format. Of columns, if they are
// given, those that the server computes are left out.
//
// Source: PostgreSQL documentation, COPY, "Text Format".
func appendCopyLine(dst []byte, columns []pgcatalog.Column, values [][]byte) []byte {
	first := true
	for i, v := range values {
		if columns != nil && columns[i].GeneratedKind != "" {
			continue
		}
		if !first {
			dst = append(dst, '\t')
		}
		first = false
		if v == nil {
			dst = append(dst, '\\', 'N')
			continue
		}
		for _, c := range v {
			switch c {
			case '\\':
				dst = append(dst, '\\', '\\')
			case '\n':
				dst = append(dst, '\\', 'n')
			case '\r':
				dst = append(dst, '\\', 'r')
			case '\t':
				dst = append(dst, '\\', 't')
			default:
				dst = append(dst, c)
			}
		}
	}
	return append(dst, '\n')
}
