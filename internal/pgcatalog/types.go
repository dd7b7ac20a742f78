package pgcatalog

import (
	"encoding/json"
	"slices"
	"strings"
)

// DefinitionKeeps reports whether all values of a type as it was defined have the
// same text in another definition: it got new labels, but none was renamed.
func DefinitionKeeps(from, to string) bool {
	if from == to || from == "" || to == "" {
		return true
	}
	var before, after []string
	if json.Unmarshal([]byte(from), &before) != nil || json.Unmarshal([]byte(to), &after) != nil {
		return false
	}
	for _, entry := range before {
		if !slices.Contains(after, entry) {
			return false
		}
	}
	return !slices.ContainsFunc(after, func(entry string) bool {
		return strings.HasPrefix(entry, "attribute ") && !slices.Contains(before, entry)
	})
}

type sqlType struct {
	oid uint32
	mod int32
}

// keeps reports whether altering a column from one type to another leaves the texts of
// its values as they are, unless USING says otherwise.
func keeps(from, to sqlType) bool {
	const (
		textOID    = 25
		varcharOID = 1043
		numericOID = 1700
	)
	whole := []uint32{21, 23, 20} // int2, int4, int8
	switch {
	case from == to:
		return true
	case (from.oid == varcharOID || from.oid == textOID) && (to.oid == textOID || to.oid == varcharOID && to.mod == -1):
		return true
	case from.oid == varcharOID && to.oid == varcharOID:
		return from.mod != -1 && to.mod >= from.mod
	case from.oid == numericOID && to.oid == numericOID && from.mod >= 4 && to.mod >= from.mod:
		return (from.mod-4)&0x7ff == (to.mod-4)&0x7ff // of the same scale
	}
	return slices.Contains(whole, from.oid) && slices.Index(whole, to.oid) > slices.Index(whole, from.oid)
}
