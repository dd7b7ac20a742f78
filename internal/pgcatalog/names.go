package pgcatalog

import (
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Name names a table, in any schema if schema is empty.
type Name struct {
	Schema, Table string
}

var (
	// ErrEmptyName is returned by ParseName for a name, or a part of one, that is empty.
	ErrEmptyName   = errors.New("an empty name")
	errQuoteInName = errors.New(`a quote in the wrong place: write a name with odd characters as "name", and a quote inside it twice`)
	errNULInName   = errors.New("a NUL byte, which no name in PostgreSQL can hold")
	errManyDots    = errors.New(`more than one dot: a table is named as "table" or "schema.table"; a part that holds a dot goes in double quotes`)
)

// ParseName reads table or schema.table. A part without quotes is taken as it
// stands, upper case included: the names come from the catalog, not from SQL.
func ParseName(name string) (Name, error) {
	var parts []string
	for rest := name; ; {
		part, next, more, err := namePart(rest)
		if err != nil {
			return Name{}, err
		}
		parts = append(parts, part)
		if !more {
			break
		}
		rest = next
	}
	switch len(parts) {
	case 1:
		return Name{Table: parts[0]}, nil
	case 2:
		return Name{Schema: parts[0], Table: parts[1]}, nil
	default:
		return Name{}, errManyDots
	}
}

// namePart takes the first part off a dotted name.
func namePart(text string) (part, rest string, more bool, err error) {
	if !strings.HasPrefix(text, `"`) {
		part, rest, more = strings.Cut(text, ".")
		switch {
		case part == "":
			err = ErrEmptyName
		case strings.Contains(part, `"`):
			err = errQuoteInName
		case strings.IndexByte(part, 0) >= 0:
			err = errNULInName
		}
		return part, rest, more, err
	}
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		if text[i] != '"' {
			b.WriteByte(text[i])
			continue
		}
		if strings.HasPrefix(text[i+1:], `"`) {
			b.WriteByte('"')
			i++
			continue
		}
		rest := text[i+1:]
		switch {
		case b.Len() == 0:
			return "", "", false, ErrEmptyName
		case strings.IndexByte(b.String(), 0) >= 0:
			return "", "", false, errNULInName
		case rest == "":
			return b.String(), "", false, nil
		case rest[0] == '.':
			return b.String(), rest[1:], true, nil
		}
		return "", "", false, errQuoteInName
	}
	return "", "", false, errQuoteInName
}

// Qualified is the text that ParseName reads back.
func Qualified(schema, table string) string {
	if schema == "" {
		return quotedPart(table)
	}
	return quotedPart(schema) + "." + quotedPart(table)
}

func quotedPart(name string) string {
	if name == "" || strings.ContainsAny(name, `."`) {
		return pgx.Identifier{name}.Sanitize()
	}
	return name
}

// QuoteIdent writes a name as SQL has to, in quotes only where it needs them.
func QuoteIdent(name string) string {
	if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == "" && name[0] > '9' {
		return name
	}
	return pgx.Identifier{name}.Sanitize()
}

// Matches reports whether a name, with a schema or without, is that of a table.
func (n Name) Matches(of Name) bool {
	return n.Table == of.Table && (n.Schema == "" || n.Schema == of.Schema)
}
