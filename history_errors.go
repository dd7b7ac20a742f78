package audit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"
)

// What the face calls by the same names says when.
var (
	errClosed      = errors.New("audit: the client is closed")
	errNoHistory   = errors.New("audit: there is no history in this database and schema: call Client.Start once, or set Config.StoreURL and Config.Schema to where it is")
	errRowSecurity = errors.New("audit: row-level security hides rows from this role, and the past cannot be computed from a part of them: use the owner of the table, or a role with BYPASSRLS")
	errStandby     = errors.New("audit: the server is a standby: connect to the primary")
)

// wrap adds the operation to an error and keeps nil.
func wrap(operation string, err error) error {
	if err == nil {
		return nil
	}
	if isClosed(err) {
		return fmt.Errorf("%w (%s)", errClosed, operation)
	}
	if isRowSecurity(err) {
		return fmt.Errorf("%w (%s: %w)", errRowSecurity, operation, err)
	}
	if isStandby(err) && !errors.Is(err, errStandby) {
		return fmt.Errorf("%w (%s: %w)", errStandby, operation, err)
	}
	if isUndefined(err) {
		return fmt.Errorf("%w (%s: %w)", errNoHistory, operation, err)
	}
	return fmt.Errorf("audit: %s: %w", operation, err)
}

// isClosed reports whether a question failed because the client was closed meanwhile.
func isClosed(err error) bool {
	if errors.Is(err, errClosed) || errors.Is(err, puddle.ErrClosedPool) || errors.Is(err, net.ErrClosed) {
		return true
	}
	// A pool goes on connecting when its caller has gone, and stops when it is closed.
	var connecting *pgconn.ConnectError
	return errors.As(err, &connecting) && errors.Is(err, context.Canceled)
}

// isRowSecurity reports whether the server refused because a policy of row-level
// security would hide rows.
func isRowSecurity(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "42501" && pgErr.Routine == "check_enable_rls"
}

// isStandby reports whether the server refused since it only replays the WAL of another.
// The codes mean other things as well, and texts are in the server's language.
func isStandby(err error) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return errors.Is(err, errStandby)
	}
	switch pgErr.Code {
	case "25006":
		return pgErr.Routine == "PreventCommandDuringRecovery"
	case "0A000":
		return pgErr.Routine == "call_bool_check_hook" // READ WRITE, as we begin transactions
	case "55000":
		return strings.HasPrefix(pgErr.Routine, "pg_current_wal_")
	}
	return false
}

func isUndefined(err error) bool { return isCode(err, "42P01", "3F000") }

func isCode(err error, codes ...string) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && slices.Contains(codes, pgErr.Code)
}
