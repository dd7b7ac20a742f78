package auditpgx

// Wants reports whether a statement is stamped: alone, and in a transaction.
func Wants(sql string) (alone, inTransaction bool) {
	c := classify(sql)
	_ = endsTransaction(sql)
	return c == write || c == unknown, c >= write
}

// Ends reports whether a text ends a transaction.
func Ends(sql string) bool { return endsTransaction(sql) }
