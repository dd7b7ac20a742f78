package rowimage

import (
	"bytes"
	"cmp"
	"encoding/json"
	"slices"
)

// Member is a column of an image with its value as JSON.
type Member struct {
	Name  string
	Value json.RawMessage
}

// Members returns the columns sorted by name, as copies. What is not a JSON object has
// none: images come out of jsonb, so that cannot be.
func Members(image []byte) []Member {
	var list []Member
	if !EachMember(image, func(name, value []byte) {
		list = append(list, Member{string(name), bytes.Clone(value)})
	}) {
		return nil
	}
	slices.SortStableFunc(list, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// IsNull reports whether a JSON value is null.
func IsNull(raw json.RawMessage) bool { return string(raw) == "null" }

// RawText is the text of a JSON value: what stands in a string, else the JSON.
func RawText(raw json.RawMessage) string {
	if len(raw) > 0 && raw[0] == '"' {
		var text string
		if json.Unmarshal(raw, &text) == nil {
			return text
		}
	}
	return string(raw)
}
