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
// chosen it, and not the name alone.
type PolicyFunc func(schema, table, column string) (policy Policy, ruled bool)

// WithPolicies returns the structure with the policies of its columns, given what was
// known of the table before. A column that was renamed keeps its policy, unless there is
// a rule for its new name. What the server computes from a withheld column is excluded.
func (s *Structure) WithPolicies(of PolicyFunc, before *Structure) *Structure {
	with := *s
	with.Columns = slices.Clone(s.Columns)
	schema, table := s.Schema, s.Table
	if s.Root != 0 {
		schema, table = s.RootSchema, s.RootTable
	}
	var withheld []string
	for i := range with.Columns {
		a := &with.Columns[i]
		var ruled bool
		a.Policy, ruled = of(schema, table, a.Name)
		if known := before.attribute(a.Attnum); known != nil && !ruled {
			a.Formerly = known.Formerly
			if known.Name != a.Name && known.Policy != "" && a.Formerly == "" {
				a.Formerly = known.Name
			}
		}
		if a.Formerly == a.Name {
			a.Formerly = ""
		}
		if a.Formerly != "" && a.Policy == "" {
			a.Policy, _ = of(schema, table, a.Formerly)
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

// Mentions reports whether an expression has one of the names in it.
func Mentions(expression string, names []string) bool {
	return expression != "" && slices.ContainsFunc(names, func(name string) bool { return strings.Contains(expression, name) })
}

func (s *Structure) attribute(attnum int16) *Attribute {
	if s == nil || attnum <= 0 {
		return nil
	}
	at := slices.IndexFunc(s.Columns, func(a Attribute) bool { return a.Attnum == attnum })
	if at < 0 {
		return nil
	}
	return &s.Columns[at]
}
