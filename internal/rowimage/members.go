package rowimage

import (
	"bytes"
	"encoding/json"
	"slices"
)

// Member is a column of an image with its value as JSON.
type Member struct {
	Name  string
	Value json.RawMessage
}

// Members returns the columns sorted by name. What is not a JSON object has
// none: images come out of jsonb, so that cannot be.
func Members(image []byte) []Member {
	decoder := json.NewDecoder(bytes.NewReader(image))
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return nil
	}
	var list []Member
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return nil
		}
		name, _ := token.(string)
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return nil
		}
		list = append(list, Member{name, value})
	}
	slices.SortStableFunc(list, func(a, b Member) int {
		return bytes.Compare([]byte(a.Name), []byte(b.Name))
	})
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
