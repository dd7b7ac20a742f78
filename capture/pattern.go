package capture

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Pattern says which tables to track. In its text form it is schema.table,
// where either part may hold asterisks and a leading ! excludes:
//
//	public.*           every table of schema public
//	*.*                every table of every schema
//	billing.invoices   one table
//	!public.sessions   but not this one
//	"Odd.Schema"."a b" parts that hold dots, quotes or asterisks are quoted as in SQL
//	todo               short for public.todo
//
// Names are compared exactly, upper and lower case included; they are not folded
// as unquoted names in SQL are.
type Pattern struct {
	Schema, Table Name
	Exclude       bool
	// yields reports whether the exclusion does not hold for what another pattern names.
	yields bool
	text   string
}

// Name is one part of a Pattern.
type Name struct {
	Text string
	// Glob reports whether asterisks in Text stand for anything.
	Glob bool
}

func (n Name) matches(s string) bool {
	if !n.Glob {
		return n.Text == s
	}
	// path.Match treats a slash and brackets in its own way: both are replaced
	// by what no name and no pattern means.
	clean := strings.NewReplacer("/", "\x01", "[", "\x02", "\\", "\x03", "?", "\x04")
	ok, err := path.Match(clean.Replace(n.Text), clean.Replace(s))
	return ok && err == nil
}

// Literal reports whether the pattern names exactly one table.
func (p Pattern) Literal() bool { return !p.Schema.Glob && !p.Table.Glob }

// String returns the pattern as it was written.
func (p Pattern) String() string { return p.text }

func (p Pattern) matches(schema, table string) bool {
	return p.Schema.matches(schema) && p.Table.matches(table)
}

// PatternError is returned for a pattern that cannot be read.
type PatternError struct{ Pattern, Reason string }

func (e *PatternError) Error() string {
	return fmt.Sprintf("table pattern %q: %s; write schema.table, for instance public.*, billing.invoices, !public.sessions", e.Pattern, e.Reason)
}

// ParsePattern reads the text form of a Pattern.
func ParsePattern(text string) (Pattern, error) {
	p := Pattern{text: text}
	rest := strings.TrimSpace(text)
	if rest, p.Exclude = strings.CutPrefix(rest, "!"); p.Exclude {
		rest = strings.TrimSpace(rest)
	}
	names, err := cutNames(rest)
	if err != "" {
		return p, &PatternError{Pattern: text, Reason: err}
	}
	switch len(names) {
	case 1:
		p.Schema, p.Table = Name{Text: "public"}, names[0]
	case 2:
		p.Schema, p.Table = names[0], names[1]
	default:
		return p, &PatternError{Pattern: text, Reason: "it has more than two parts; quote a name that holds a dot"}
	}
	return p, nil
}

// cutNames reads names with dots between them.
func cutNames(s string) (names []Name, problem string) {
	for {
		name, after, err := cutName(s)
		if err != "" {
			return nil, err
		}
		names = append(names, name)
		if after == "" {
			return names, ""
		}
		if after[0] != '.' {
			return nil, fmt.Sprintf("unexpected %q behind a quoted name", after)
		}
		s = after[1:]
	}
}

// cutName reads one name, quoted or not, and returns what follows it.
func cutName(s string) (name Name, rest, problem string) {
	if !strings.HasPrefix(s, `"`) {
		end := strings.IndexByte(s, '.')
		if end < 0 {
			end = len(s)
		}
		text := s[:end]
		switch {
		case text == "":
			return Name{}, "", "a name is empty"
		case strings.ContainsAny(text, `"`):
			return Name{}, "", "a quote stands in the midst of a name"
		}
		return Name{Text: text, Glob: strings.Contains(text, "*")}, s[end:], ""
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] != '"' {
			b.WriteByte(s[i])
			continue
		}
		if i+1 < len(s) && s[i+1] == '"' {
			b.WriteByte('"')
			i++
			continue
		}
		if b.Len() == 0 {
			return Name{}, "", "a name is empty"
		}
		return Name{Text: b.String()}, s[i+1:], ""
	}
	return Name{}, "", "a quoted name does not end"
}

// Patterns is a set of patterns, in which exclusions win.
type Patterns []Pattern

// ParsePatterns reads patterns. Without any that includes, everything is
// included: public.* is the default of package audit, not of this one.
func ParsePatterns(texts []string) (Patterns, error) {
	var patterns Patterns
	for _, text := range texts {
		p, err := ParsePattern(text)
		if err != nil {
			return nil, err
		}
		patterns = append(patterns, p)
	}
	return patterns, nil
}

// Match tells whether a table is to be tracked, and whether because a pattern
// names it rather than matches it.
func (ps Patterns) Match(schema, table string) (track, named bool) {
	var matching, yielding []Pattern
	for _, p := range ps {
		switch {
		case !p.matches(schema, table):
		case p.yields:
			yielding = append(yielding, p)
		case p.Exclude:
			return false, false
		default:
			matching = append(matching, p)
		}
	}
	for _, p := range matching {
		if !slices.ContainsFunc(yielding, func(excluded Pattern) bool { return !p.names(excluded) }) {
			track, named = true, named || p.Literal()
		}
	}
	return track, named
}
