// Package rowimage reads images of rows, JSON objects of columns by name as the history stores
// them: as the texts that PostgreSQL prints, and into values of Go. It says which values are
// equal. It asks no server.
package rowimage

import (
	"bytes"
	"encoding/json"

	"github.com/hindsight-go/audit/internal/wal"
)

// Canonical makes texts equal that mean the same: a json value keeps its spaces
// in the table, but not in history.
func Canonical(kind wal.Kind, text []byte) []byte {
	if kind.Base != wal.JSON && kind.Base != wal.JSONB {
		return text
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var value any
	if decoder.Decode(&value) != nil {
		return text
	}
	normal, err := json.Marshal(value)
	if err != nil {
		return text
	}
	return normal
}
