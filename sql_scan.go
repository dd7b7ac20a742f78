package audit

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// sqlToken is a word, literal or mark of a text in SQL. Comments are none.
type sqlToken struct {
	kind sqlTokenKind
	// text is the name of an identifier, folded and without quotes, or the token as
	// it is written.
	text       string
	begin, end int
}

type sqlTokenKind int

const (
	tokenMark sqlTokenKind = iota
	tokenName
	tokenQuoted
	tokenLiteral
	tokenParameter
)

// isName reports whether the token is an identifier or a key word.
func (t sqlToken) isName() bool { return t.kind == tokenName || t.kind == tokenQuoted }

// is reports whether the token is a mark, or an unquoted word.
func (t sqlToken) is(text string) bool {
	return (t.kind == tokenMark || t.kind == tokenName) && t.text == text
}

// scanSQL cuts a text into tokens by the lexical rules of PostgreSQL, with
// standard_conforming_strings on. What is not closed goes up to the end.
//
// Source: PostgreSQL documentation, "Lexical Structure".
func scanSQL(sql string) []sqlToken {
	var tokens []sqlToken
	for at := 0; at < len(sql); {
		rest := sql[at:]
		c := sql[at]
		kind, text, n := tokenMark, "", 1
		switch {
		case strings.IndexByte(" \t\n\r\f\v", c) >= 0:
			at++
			continue
		case strings.HasPrefix(rest, "--"):
			at += lineEnd(rest)
			continue
		case strings.HasPrefix(rest, "/*"):
			at += commentEnd(rest)
			continue
		case c == '\'':
			kind, n = tokenLiteral, quotedEnd(rest, '\'', false)
		case (c == 'e' || c == 'E') && strings.HasPrefix(rest[1:], "'"):
			kind, n = tokenLiteral, 1+quotedEnd(rest[1:], '\'', true)
		case strings.IndexByte("bBxXnN", c) >= 0 && strings.HasPrefix(rest[1:], "'"):
			kind, n = tokenLiteral, 1+quotedEnd(rest[1:], '\'', false)
		case (c == 'u' || c == 'U') && strings.HasPrefix(rest[1:], "&'"):
			kind, n = tokenLiteral, 2+quotedEnd(rest[2:], '\'', false)
		case (c == 'u' || c == 'U') && strings.HasPrefix(rest[1:], `&"`):
			kind, n = tokenQuoted, 2+quotedEnd(rest[2:], '"', false)
			text = unicodeName(unquotedName(rest[2:n]))
		case c == '"':
			kind, n = tokenQuoted, quotedEnd(rest, '"', false)
			text = unquotedName(rest[:n])
		case c == '$':
			kind, n = dollar(rest)
		case isNameStart(c):
			kind, n = tokenName, nameEnd(rest)
			text = strings.ToLower(rest[:n])
		case c >= '0' && c <= '9':
			kind, n = tokenLiteral, numberEnd(rest)
		}
		if text == "" {
			text = rest[:n]
		}
		tokens = append(tokens, sqlToken{kind: kind, text: text, begin: at, end: at + n})
		at += n
	}
	return tokens
}

func lineEnd(s string) int {
	if i := strings.IndexAny(s, "\n\r"); i >= 0 {
		return i
	}
	return len(s)
}

// commentEnd is behind a comment, which may hold others.
func commentEnd(s string) int {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch {
		case strings.HasPrefix(s[i:], "/*"):
			depth++
			i++
		case strings.HasPrefix(s[i:], "*/"):
			depth--
			i++
			if depth == 0 {
				return i + 1
			}
		}
	}
	return len(s)
}

// quotedEnd is behind the closing quote. A doubled one is part of the text.
func quotedEnd(s string, quote byte, escapes bool) int {
	for i := 1; i < len(s); i++ {
		switch {
		case escapes && s[i] == '\\':
			i++
		case s[i] == quote && i+1 < len(s) && s[i+1] == quote:
			i++
		case s[i] == quote:
			return i + 1
		}
	}
	return len(s)
}

// dollar is a parameter, or a literal between dollar quotes.
func dollar(s string) (sqlTokenKind, int) {
	n := 1
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	if n > 1 {
		return tokenParameter, n
	}
	for n < len(s) && (isNameStart(s[n]) || s[n] >= '0' && s[n] <= '9') {
		n++
	}
	if n >= len(s) || s[n] != '$' {
		return tokenMark, 1
	}
	tag := s[:n+1]
	if i := strings.Index(s[n+1:], tag); i >= 0 {
		return tokenLiteral, n + 1 + i + len(tag)
	}
	return tokenLiteral, len(s)
}

func isNameStart(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= utf8.RuneSelf
}

func nameEnd(s string) int {
	n := 1
	for n < len(s) && (isNameStart(s[n]) || s[n] == '$' || s[n] >= '0' && s[n] <= '9') {
		n++
	}
	return n
}

func numberEnd(s string) int {
	n := 1
	for n < len(s) && (s[n] == '.' || s[n] == '_' || s[n] >= '0' && s[n] <= '9' || s[n] >= 'a' && s[n] <= 'z' || s[n] >= 'A' && s[n] <= 'Z') {
		if s[n] == '.' && n+1 < len(s) && s[n+1] == '.' {
			break // 1..10 in PL/pgSQL
		}
		n++
	}
	return n
}

// unquotedName takes the quotes off a name.
func unquotedName(s string) string {
	s = strings.TrimPrefix(s, `"`)
	s = strings.TrimSuffix(s, `"`)
	return strings.ReplaceAll(s, `""`, `"`)
}

// unicodeName resolves the escapes of a U& name.
func unicodeName(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		digits := 0
		switch {
		case s[i] != '\\':
			b.WriteByte(s[i])
			continue
		case strings.HasPrefix(s[i:], `\\`):
			b.WriteByte('\\')
			i++
			continue
		case strings.HasPrefix(s[i:], `\+`):
			i, digits = i+1, 6
		default:
			digits = 4
		}
		if i+digits >= len(s) {
			return b.String()
		}
		if r, err := strconv.ParseUint(s[i+1:i+1+digits], 16, 32); err == nil {
			b.WriteRune(rune(r))
		}
		i += digits
	}
	return b.String()
}

// sqlNames returns the identifiers of a text, each once.
func sqlNames(tokens []sqlToken) []string {
	var names []string
	seen := make(map[string]bool)
	for _, t := range tokens {
		if t.isName() && !seen[t.text] {
			seen[t.text] = true
			names = append(names, t.text)
		}
	}
	return names
}

// sqlCall is what may be a call of a function.
type sqlCall struct {
	schema, name string
	// attribute is for the notation row.function.
	attribute bool
}

// sqlCalls returns what may be calls. A name is one before a parenthesis, and
// behind the dot of an expression.
func sqlCalls(tokens []sqlToken) []sqlCall {
	var calls []sqlCall
	for i, t := range tokens {
		if !t.isName() {
			continue
		}
		call := sqlCall{name: t.text}
		dotted := i > 0 && tokens[i-1].is(".")
		if dotted && i > 1 && tokens[i-2].isName() {
			call.schema = tokens[i-2].text
		}
		switch {
		case i+1 < len(tokens) && tokens[i+1].is("("):
		case dotted && !(i+1 < len(tokens) && tokens[i+1].is(".")):
			call.schema, call.attribute = "", true
		default:
			continue
		}
		calls = append(calls, call)
	}
	return calls
}

// sqlRelation is what may be the name of a table.
type sqlRelation struct {
	schema, name string
	// certain reports whether hardly anything else can stand there, listed whether it stands
	// behind a comma, as columns do, too.
	certain, listed bool
}

// sqlRelations returns what may be names of tables: names behind the words and
// marks that one can stand behind.
func sqlRelations(tokens []sqlToken) []sqlRelation {
	var relations []sqlRelation
	for i, t := range tokens {
		if !t.isName() {
			continue
		}
		r, before := sqlRelation{name: t.text}, i-1
		if i > 1 && tokens[i-1].is(".") && tokens[i-2].isName() {
			r.schema, before = tokens[i-2].text, i-3
		}
		if before >= 0 && !mayPrecedeTable(tokens[before]) {
			continue
		}
		r.listed = before >= 0 && tokens[before].is(",") && !namesQuery(tokens, t.text)
		r.certain = before >= 0 && (tokens[before].is("join") || tokens[before].is("table") || tokens[before].is("only") ||
			tokens[before].is("from") && !(before > 0 && tokens[before-1].is("distinct"))) && !namesQuery(tokens, t.text)
		relations = append(relations, r)
	}
	return relations
}

// namesQuery reports whether a WITH query has the name.
func namesQuery(tokens []sqlToken, name string) bool {
	for i, t := range tokens {
		if t.isName() && t.text == name && i+2 < len(tokens) && tokens[i+1].is("as") &&
			(tokens[i+2].is("(") || tokens[i+2].is("materialized") || tokens[i+2].is("not")) {
			return true
		}
	}
	return false
}

func mayPrecedeTable(t sqlToken) bool {
	switch t.kind {
	case tokenMark:
		return t.text == "," || t.text == "(" || t.text == "."
	case tokenName:
		switch t.text {
		case "from", "join", "only", "table", "update", "into", "using", "copy", "lock", "truncate", "lateral":
			return true
		}
	case tokenQuoted, tokenLiteral, tokenParameter:
	}
	return false
}

// bareAliasStops are the key words that cannot be an alias without AS: behind the
// name of a table one of them begins what follows.
var bareAliasStops = func() map[string]bool {
	stops := make(map[string]bool)
	for _, word := range strings.Fields(`
		all analyse analyze and any array asc asymmetric both case cast check collate column constraint create current_catalog current_date
		current_role current_time current_timestamp current_user default deferrable desc distinct do else end except false fetch for foreign
		from grant group having in initially intersect into lateral leading limit localtime localtimestamp not null offset on only or order
		placing primary references returning select session_user some symmetric system_user table then to trailing true union unique user
		using variadic when where window with authorization binary collation concurrently cross current_schema freeze full ilike inner is
		isnull join left like natural notnull outer overlaps right similar tablesample verbose`) {
		stops[word] = true
	}
	return stops
}()
