package audit

import (
	"bytes"
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
)

// fill loads the past of a table into its temporary tables, once. If that fails the
// view goes on without the table.
func (v *pastView) fill(ctx context.Context, t *viewTable) error {
	if t.full || t.mode == viewLive || t.mode == viewBroken {
		return nil
	}
	load := v.fillCopy
	if t.mode == viewOverlay {
		load = v.fillOverlay
	}
	err := pgx.BeginFunc(pass(ctx), v.snapshot.tx, func(pgx.Tx) error { return load(pass(ctx), t) })
	t.full = err == nil
	return err
}

func (v *pastView) fillOverlay(ctx context.Context, t *viewTable) error {
	var sent []string
	for _, c := range t.columns.list {
		if c.generated == "" {
			sent = append(sent, pgx.Identifier{c.name}.Sanitize())
		}
	}
	conn := v.snapshot.tx.Conn()
	rows, keys := newCopier(conn, t.temp("rows"), sent), newCopier(conn, t.temp("keys"), t.keys)
	err := t.touched(ctx, t.base, v.snapshot, func(row touchedRow) error {
		if err := keys.add(ctx, nil, row.keyValues); err != nil || row.values == nil {
			return err
		}
		return rows.add(ctx, t.columns.list, row.values)
	})
	if err == nil {
		err = errors.Join(rows.flush(ctx), keys.flush(ctx))
	}
	if err != nil {
		return err
	}
	_, err = v.snapshot.tx.Exec(pass(ctx), "ANALYZE "+t.temp("rows")+", "+t.temp("keys"))
	return wrap("set up view", err)
}

func (v *pastView) fillCopy(ctx context.Context, t *viewTable) error {
	var names []string
	for _, c := range t.columns.list {
		names = append(names, pgx.Identifier{c.name}.Sanitize())
	}
	rows := newCopier(v.snapshot.tx.Conn(), t.temp("copy"), names)
	err := t.rebuild(pass(ctx), t.base, v.snapshot, func(_ string, values [][]byte) error { return rows.add(ctx, nil, values) })
	if err == nil {
		err = rows.flush(ctx)
	}
	if err != nil {
		return err
	}
	_, err = v.snapshot.tx.Exec(pass(ctx), "ANALYZE "+t.temp("copy"))
	return wrap("set up view", err)
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
func (c *copier) add(ctx context.Context, columns []column, values [][]byte) error {
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
	return wrap("load past rows", err)
}

// appendCopyLine appends a row in COPY's text format. Of columns, if they are
// given, those that the server computes are left out.
//
// Source: PostgreSQL documentation, COPY, "Text Format".
func appendCopyLine(dst []byte, columns []column, values [][]byte) []byte {
	first := true
	for i, v := range values {
		if columns != nil && columns[i].generated != "" {
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
