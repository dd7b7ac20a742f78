package wal

import (
	"slices"
	"strings"
)

// Policy says how much of a column's values is stored. The zero value stores them.
type Policy string

// The policies of columns that are withheld.
const (
	Exclude Policy = "excluded"
	Digest  Policy = "digest"
	Mask    Policy = "masked"
)

// Excluded stands in images for a value of which nothing is stored, NULL included.
const Excluded = "excluded"

// PolicyFunc tells the policy of a column by names: ruled reports whether somebody has
// chosen it for this very column, and not the name alone, or a pattern that keeps whatever
// it meets.
type PolicyFunc func(schema, table, column string) (policy Policy, ruled bool)

// origin is the full name under which a column got its policy.
type origin struct{ schema, table, column string }

// WithPolicies returns the structure with the policies of its columns, given what was
// known of the table before, and of its root. A policy follows the column: under other
// names of the column, of the table or of its schema it stays, unless there is a rule for
// the new ones. What the server computes from a withheld column is excluded.
func (s *Structure) WithPolicies(of PolicyFunc, before, root *Structure) *Structure {
	with := *s
	with.Columns = slices.Clone(s.Columns)
	schema, table := s.names()
	lost := s.lost(before)
	var withheld []string
	for i := range with.Columns {
		a := &with.Columns[i]
		a.Formerly, a.FormerlySchema, a.FormerlyTable = "", "", ""
		var ruled bool
		if a.Policy, ruled = of(schema, table, a.Name); !ruled {
			now := origin{schema, table, a.Name}
			for _, from := range []origin{before.origin(before.attribute(*a)), root.origin(root.named(a.Name))} {
				if from == (origin{}) || from == now || a.Policy != "" {
					continue
				}
				a.Policy, _ = of(from.schema, from.table, from.column)
				a.Formerly, a.FormerlySchema, a.FormerlyTable = from.column, from.schema, from.table
			}
			if a.Policy == "" && lost != (origin{}) && before.attribute(*a) == nil {
				a.Policy = Exclude // it may be the one
				a.Formerly, a.FormerlySchema, a.FormerlyTable = lost.column, lost.schema, lost.table
			}
		}
		if a.Policy != "" {
			withheld = append(withheld, a.Name)
		}
	}
	for i := range with.Columns {
		if a := &with.Columns[i]; a.Policy == "" && Mentions(a.Expression, withheld) {
			a.Policy = Exclude
		}
	}
	return &with
}

// names returns the names that the rows of the table stand under.
func (s *Structure) names() (schema, table string) {
	if s.Root != 0 {
		return s.RootSchema, s.RootTable
	}
	return s.Schema, s.Table
}

// origin returns the full name under which a column of the table got its policy, if it
// has, or had, one.
func (s *Structure) origin(a *Attribute) origin {
	switch {
	case a != nil && a.Formerly != "":
		return origin{a.FormerlySchema, a.FormerlyTable, a.Formerly}
	case a == nil || a.Policy == "":
		return origin{}
	}
	schema, table := s.names()
	return origin{schema, table, a.Name}
}

// lost returns the origin of a column that was withheld before and cannot be found any more
// where nobody knows, or knew, which columns are which: any could be it.
func (s *Structure) lost(before *Structure) origin {
	if before == nil || !s.Guessed && !before.Guessed {
		return origin{}
	}
	at := slices.IndexFunc(before.Columns, func(was Attribute) bool {
		return was.Policy != "" && !slices.ContainsFunc(s.Columns, func(a Attribute) bool {
			return a.Attnum == was.Attnum && a.Attnum > 0 || a.Name == was.Name
		})
	})
	if at < 0 {
		return origin{}
	}
	return before.origin(&before.Columns[at])
}

// Mentions reports whether an expression has one of the names in it.
func Mentions(expression string, names []string) bool {
	return expression != "" && slices.ContainsFunc(names, func(name string) bool { return strings.Contains(expression, name) })
}

// attribute returns the column that another structure's column was here: by its number,
// or by its name where nobody knows that.
func (s *Structure) attribute(of Attribute) *Attribute {
	if s == nil {
		return nil
	}
	if of.Attnum > 0 {
		if at := slices.IndexFunc(s.Columns, func(a Attribute) bool { return a.Attnum == of.Attnum }); at >= 0 {
			return &s.Columns[at]
		}
	}
	if a := s.named(of.Name); a != nil && (of.Attnum <= 0 || a.Attnum <= 0) {
		return a
	}
	return nil
}

// named returns the column of a name.
func (s *Structure) named(name string) *Attribute {
	if s == nil {
		return nil
	}
	at := slices.IndexFunc(s.Columns, func(a Attribute) bool { return a.Name == name })
	if at < 0 {
		return nil
	}
	return &s.Columns[at]
}

// PolicyOf returns the policy of the column of a name, if the structure has one.
func (s *Structure) PolicyOf(name string) Policy {
	if a := s.named(name); a != nil {
		return a.Policy
	}
	return ""
}
