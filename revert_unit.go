package audit

import (
	"crypto/sha256"
	"encoding/hex"
)

// Unit names what a revert reverts. It is stamped with the revert as revertOf.
type Unit struct {
	// Kind is "request", "transaction", "trace", "change", "revert", "row", "tables"
	// or "query".
	Kind string `json:"kind"`
	// ID is the id of the request and so on; a description for a row and tables; a
	// digest for a query.
	ID string `json:"id"`
}

// stamped is the unit as it stands in the revert's context.
func (u Unit) stamped() Unit {
	if len(u.ID) <= 500 {
		return u
	}
	// Others may begin the same.
	whole := sha256.Sum256([]byte(u.ID))
	return Unit{Kind: u.Kind, ID: clip(u.ID, 450) + " " + hex.EncodeToString(whole[:12])}
}

func (u Unit) String() string { return u.Kind + " " + printable(clip(u.ID, 80)) }

// repeatable reports whether the unit has no end: changes join it all the time, so it
// is never done with.
func (u Unit) repeatable() bool { return u.Kind == "row" || u.Kind == "tables" || u.Kind == "query" }
