package audit

import (
	"bytes"
	"encoding/json"
	"strings"

	sq "github.com/Masterminds/squirrel"
)

// verdict is what can be told in memory of whether a change passes a condition. What the
// condition means is up to SQL: a verdict is certain or impossible only where SQL could not
// say anything else.
type verdict int

const (
	possible verdict = iota
	impossible
	certain
)

func verdictOf(passes bool) verdict {
	if passes {
		return certain
	}
	return impossible
}

// judged is a condition that can be looked at in memory, too.
type judged struct {
	sq.Sqlizer
	judge func(c *seenChange) verdict
}

// seenChange is a change that many filters look at.
type seenChange struct {
	*Change
	before, after map[string]json.RawMessage // of columns, once they were asked for
}

// columns are those of an image. It is nil if that is no object.
func (c *seenChange) columns(after bool) map[string]json.RawMessage {
	columns, image := &c.before, c.Before
	if after {
		columns, image = &c.after, c.After
	}
	if *columns == nil && json.Unmarshal(image, columns) != nil {
		*columns = nil
	}
	return *columns
}

// judge says whether a change passes all conditions.
func judge(where []sq.Sqlizer, c *seenChange) verdict {
	all := certain
	for _, condition := range where {
		j, ok := condition.(judged)
		if !ok {
			all = possible
			continue
		}
		switch j.judge(c) {
		case impossible:
			return impossible
		case possible:
			all = possible
		case certain:
		}
	}
	return all
}

// exactly is a condition that memory knows as well as SQL does.
func exactly(condition sq.Sqlizer, passes func(c *Change) bool) sq.Sqlizer {
	return judged{condition, func(c *seenChange) verdict { return verdictOf(passes(c.Change)) }}
}

// mentioning is a condition that only a context with this text in it passes. JSON writes
// some characters in other ways, so that texts with these are left to SQL.
func mentioning(condition sq.Sqlizer, text string) sq.Sqlizer {
	if !hasOneForm(text) {
		return condition
	}
	return judged{condition, func(c *seenChange) verdict {
		if bytes.Contains(c.RawContext, []byte(text)) {
			return possible
		}
		return impossible
	}}
}

// hasOneForm reports whether JSON has no other way to write a text than the text itself.
func hasOneForm(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\\' })
}

// holding is a condition that only an image passes that has, of any of the rows, all the
// values.
func holding(condition sq.Sqlizer, after bool, rows []map[string]json.RawMessage) sq.Sqlizer {
	return judged{condition, func(c *seenChange) verdict {
		columns := c.columns(after)
		if columns == nil {
			return possible
		}
		for _, row := range rows {
			if mayHold(columns, row) {
				return possible
			}
		}
		return impossible
	}}
}

func mayHold(columns, row map[string]json.RawMessage) bool {
	for name, want := range row {
		value, ok := columns[name]
		if !ok || !mayEqual(value, want) {
			return false
		}
	}
	return true
}

// mayEqual reports whether jsonb could take two values for the same. It is sure that it
// does not for texts with one form, and for numbers without an exponent.
func mayEqual(a, b json.RawMessage) bool {
	a, b = bytes.TrimSpace(a), bytes.TrimSpace(b)
	if bytes.Equal(a, b) || len(a) == 0 || len(b) == 0 {
		return true
	}
	if kindOf(a) != kindOf(b) {
		return false
	}
	switch kindOf(a) {
	case '"':
		return !hasOneForm(strings.Trim(string(a), `"`)) || !hasOneForm(strings.Trim(string(b), `"`))
	case '0':
		return bytes.ContainsAny(a, "eE") || bytes.ContainsAny(b, "eE") || shortest(a) == shortest(b)
	}
	return true // objects and arrays
}

// kindOf tells the kinds of JSON values by their first characters. Numbers are '0'.
func kindOf(value json.RawMessage) byte {
	if first := value[0]; first != '-' && (first < '0' || first > '9') {
		return first
	}
	return '0'
}

// shortest is a number without zeros that say nothing.
func shortest(number json.RawMessage) string {
	text := string(number)
	if strings.Contains(text, ".") {
		text = strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
	}
	if text == "-0" {
		return "0"
	}
	return text
}
