package audit

import (
	"bytes"
	"encoding/json"
	"slices"
)

// imageMember is a column of an image with its value as JSON.
type imageMember struct {
	name  string
	value json.RawMessage
}

// members returns the columns sorted by name. What is not a JSON object has
// none: images come out of jsonb, so that cannot be.
func members(image []byte) []imageMember {
	decoder := json.NewDecoder(bytes.NewReader(image))
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return nil
	}
	var list []imageMember
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
		list = append(list, imageMember{name, value})
	}
	slices.SortStableFunc(list, func(a, b imageMember) int {
		return bytes.Compare([]byte(a.name), []byte(b.name))
	})
	return list
}

// isNull reports whether a JSON value is null.
func isNull(raw json.RawMessage) bool { return string(raw) == "null" }

// rawText is the text of a JSON value: what stands in a string, else the JSON.
func rawText(raw json.RawMessage) string {
	if len(raw) > 0 && raw[0] == '"' {
		var text string
		if json.Unmarshal(raw, &text) == nil {
			return text
		}
	}
	return string(raw)
}
