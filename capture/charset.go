package capture

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/internal/wal"
)

// charset is a source's encoding of one byte a character. The server is asked for its
// own encoding then, and what it sends is converted here: asked for UTF-8 it would
// stop for good at the first byte that has no equivalent there.
type charset struct {
	upper [128]string // the characters of 0x80 to 0xff; "" where there is none
	buf   []byte      // of the row at hand
}

// readCharset asks the server what each byte means to it. It returns nil where the
// encoding is UTF8, where it has no characters beyond ASCII, or more than one byte to
// a character.
func readCharset(ctx context.Context, pg *pgconn.PgConn) (*charset, error) {
	switch encoding := pg.ParameterStatus("server_encoding"); encoding {
	case "UTF8", "SQL_ASCII", "EUC_JP", "EUC_CN", "EUC_KR", "EUC_TW", "EUC_JIS_2004", "MULE_INTERNAL":
		return nil, nil //nolint:nilnil // There is nothing to convert.
	}
	c := &charset{}
	for i := range c.upper {
		results, err := pg.Exec(ctx, fmt.Sprintf("SELECT pg_catalog.chr(%d)", 0x80+i)).ReadAll()
		var pgErr *pgconn.PgError
		switch {
		case errors.As(err, &pgErr) && pgErr.Code == "22P05":
		case err != nil:
			return nil, fmt.Errorf("ask what byte %d is in the source's encoding: %w", 0x80+i, err)
		default:
			c.upper[i] = string(results[0].Rows[0][0])
		}
	}
	return c, nil
}

// convert returns text in UTF-8, or false if it has a byte that is no character.
func (c *charset) convert(text []byte) ([]byte, bool) {
	at := 0
	for at < len(text) && text[at] < 0x80 {
		at++
	}
	if at == len(text) {
		return text, true
	}
	start := len(c.buf)
	c.buf = append(c.buf, text[:at]...)
	for _, b := range text[at:] {
		if b < 0x80 {
			c.buf = append(c.buf, b)
			continue
		}
		char := c.upper[b-0x80]
		if char == "" {
			c.buf = c.buf[:start]
			return text, false
		}
		c.buf = append(c.buf, char...)
	}
	return c.buf[start:len(c.buf):len(c.buf)], true
}

// name is convert for names and messages: what is no character is a question mark.
func (c *charset) name(text []byte) []byte {
	var out []byte
	for _, b := range text {
		switch {
		case b < 0x80:
			out = append(out, b)
		case c.upper[b-0x80] == "":
			out = append(out, '?')
		default:
			out = append(out, c.upper[b-0x80]...)
		}
	}
	return out
}

// row converts the values of a row.
func (c *charset) row(row *wal.Row) {
	if cap(c.buf) > readBuffer {
		c.buf = nil // a giant row: its memory is not kept
	}
	c.buf = c.buf[:0]
	for _, tuple := range []wal.Tuple{row.Old, row.New} {
		for i := range tuple {
			if tuple[i].State == wal.Text {
				var ok bool
				tuple[i].Text, ok = c.convert(tuple[i].Text)
				tuple[i].Raw = !ok
			}
		}
	}
}

// relation converts the names of a table.
func (c *charset) relation(m *relationMessage) {
	m.Schema, m.Table = string(c.name([]byte(m.Schema))), string(c.name([]byte(m.Table)))
	for i := range m.Columns {
		m.Columns[i].Name = string(c.name([]byte(m.Columns[i].Name)))
	}
}
