package audit

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/hindsight-go/audit/internal/rowimage"
)

// What stands in an image for arrays and ranges.

func isBytes(t reflect.Type) bool {
	return t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8
}

// exactTexts is the text under which a json column's value stands in the image where
// jsonb would lose some of it.
func exactTexts(raw json.RawMessage) []string {
	if rowimage.HasBadEscape(raw) {
		return nil
	}
	return []string{string(raw)}
}

// arrayForms are the lists that an array's literal may stand for: of texts, and where all
// elements look like it, of numbers or booleans. There are none if it is no literal.
func arrayForms(literal string) []string {
	elements, err := rowimage.ParseArray(literal)
	if err != nil {
		return nil
	}
	list, err := json.Marshal(append([]json.RawMessage{}, elements...))
	if err != nil || rowimage.HasBadEscape(list) {
		return nil
	}
	lists := []string{string(list)}
	number := func(text string) (string, bool) { return text, isPlainNumber(text) }
	boolean := func(text string) (string, bool) {
		value, ok := map[string]string{"t": "true", "f": "false", "true": "true", "false": "false"}[text]
		return value, ok
	}
	for _, read := range []func(string) (string, bool){number, boolean} {
		if list, ok := readElements(elements, read); ok && list != lists[0] {
			lists = append(lists, list)
		}
	}
	return lists
}

// readElements is the list of what read makes of the elements, if it can of all.
func readElements(elements []json.RawMessage, read func(string) (string, bool)) (string, bool) {
	var values []string
	for _, element := range elements {
		value, ok := string(element), true
		switch {
		case element[0] == '[':
			var inner []json.RawMessage
			if json.Unmarshal(element, &inner) != nil {
				return "", false
			}
			value, ok = readElements(inner, read)
		case !rowimage.IsNull(element):
			value, ok = read(rowimage.RawText(element))
		}
		if !ok {
			return "", false
		}
		values = append(values, value)
	}
	return "[" + strings.Join(values, ",") + "]", true
}

// nestedList is an array of pgtype's as the slices that its dimensions make of it, nil
// for NULL.
func nestedList(array pgtype.ArrayGetter) any {
	dimensions := array.Dimensions()
	if dimensions == nil {
		return nil
	}
	total := min(1, len(dimensions))
	for _, d := range dimensions {
		total *= int(d.Length)
	}
	list := make([]any, total)
	for i := range list {
		list[i] = array.Index(i)
	}
	for i := len(dimensions) - 1; i > 0 && total > 0; i-- {
		var rows []any
		for row := range slices.Chunk(list, int(dimensions[i].Length)) {
			rows = append(rows, row)
		}
		list = rows
	}
	return list
}

// rangeText is the text of a range, whose bounds have to be as the type writes them.
func rangeText(r pgtype.RangeValuer) (string, error) {
	if r.IsNull() {
		return "", errNilValue
	}
	lowerType, upperType := r.BoundTypes()
	if lowerType == pgtype.Empty || upperType == pgtype.Empty {
		return "empty", nil
	}
	lower, upper := r.Bounds()
	from, err := boundText(lowerType, lower)
	if err != nil {
		return "", err
	}
	until, err := boundText(upperType, upper)
	open := map[bool]string{true: "[", false: "("}[lowerType == pgtype.Inclusive]
	end := map[bool]string{true: "]", false: ")"}[upperType == pgtype.Inclusive]
	return open + from + "," + until + end, err
}

// boundText is a bound, quoted as the server does.
//
// Source: range_bound_escape of PostgreSQL, src/backend/utils/adt/rangetypes.c.
func boundText(kind pgtype.BoundType, bound any) (string, error) {
	if kind == pgtype.Unbounded {
		return "", nil
	}
	texts, err := columnTexts(bound)
	if err != nil {
		return "", err
	}
	if text := texts[0]; text != "" && !strings.ContainsAny(text, "\"\\()[], \t\n\v\f\r") {
		return text, nil
	}
	return `"` + strings.NewReplacer(`"`, `""`, `\`, `\\`).Replace(texts[0]) + `"`, nil
}

// multirangeText is the text of a multirange of pgtype's.
func multirangeText(value any) (string, bool) {
	ranges, ok := value.(pgtype.MultirangeGetter)
	if !ok || ranges.IsNull() {
		return "", false
	}
	texts := make([]string, ranges.Len())
	for i := range texts {
		r, ok := ranges.Index(i).(pgtype.RangeValuer)
		if !ok {
			return "", false
		}
		text, err := rangeText(r)
		if err != nil {
			return "", false
		}
		texts[i] = text
	}
	return "{" + strings.Join(texts, ",") + "}", true
}
