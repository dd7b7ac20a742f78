package auditpgx_test

import (
	"errors"

	"github.com/jackc/pgx/v5/pgconn"
)

// code returns the SQLSTATE of an error.
func code(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}
