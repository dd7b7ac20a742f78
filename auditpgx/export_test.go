package auditpgx

import "time"

// SetPatience sets for how long a connection that refused a stamp is not asked
// again.
func (db *DB) SetPatience(d time.Duration) { db.s.Patience = d }
