package rowimage

import (
	"encoding/json"
	"strings"

	"github.com/hindsight-go/audit/internal/wal"
)

// Type is the type of a column, as the stream of changes named it.
type Type struct {
	// Name is the type as DDL writes it, or empty.
	Name string
	OID  uint32
	// Base is the OID of the type under a domain, and 0 for other types.
	Base uint32
}

// Under is the type as which values are read.
func (t Type) Under() uint32 {
	if t.Base != 0 {
		return t.Base
	}
	return t.OID
}

// text turns a value of an image back into PostgreSQL's text of it. Nil is NULL. It
// reports false if the type leaves open what the value is.
func (t Type) text(raw json.RawMessage) ([]byte, bool) {
	if IsNull(raw) {
		return nil, true
	}
	kind, builtin := wal.BuiltinKind(t.Under())
	if !builtin && len(raw) > 0 && raw[0] == '[' && !strings.HasSuffix(t.Name, "[]") {
		return nil, false // a domain over an array, or one over a document
	}
	return sqlText(t.Under(), kind, raw), true
}
