// Package history holds what every question about the history needs: the pools, the facts of the
// store and the tables of the source, remembered for a moment, and the errors of servers.
package history

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

// The package audit has them by the same names, and says when each is returned.
var (
	ErrClosed      = errors.New("audit: the client is closed")
	ErrNoHistory   = errors.New("audit: there is no history in this database and schema: call Client.Start once, or set Config.StoreURL and Config.Schema to where it is")
	ErrRowSecurity = errors.New("audit: row-level security hides rows from this role, and the past cannot be computed from a part of them: use the owner of the table, or a role with BYPASSRLS")
	ErrStandby     = errors.New("audit: the server is a standby: connect to the primary")
)

// OpError adds the operation to the error of a server, says in the terms of this package what it
// means where that is known, and keeps nil.
func OpError(operation string, err error) error {
	if err == nil {
		return nil
	}
	if IsClosed(err) {
		return fmt.Errorf("%w (%s)", ErrClosed, operation)
	}
	if IsRowSecurity(err) {
		return fmt.Errorf("%w (%s: %w)", ErrRowSecurity, operation, err)
	}
	if IsStandby(err) && !errors.Is(err, ErrStandby) {
		return fmt.Errorf("%w (%s: %w)", ErrStandby, operation, err)
	}
	if IsUndefined(err) {
		return fmt.Errorf("%w (%s: %w)", ErrNoHistory, operation, err)
	}
	return fmt.Errorf("audit: %s: %w", operation, err)
}

// IsClosed reports whether a question failed because the client was closed meanwhile.
func IsClosed(err error) bool {
	if errors.Is(err, ErrClosed) || errors.Is(err, puddle.ErrClosedPool) || errors.Is(err, net.ErrClosed) {
		return true
	}
	// A pool goes on connecting when its caller has gone, and stops when it is closed.
	var connecting *pgconn.ConnectError
	return errors.As(err, &connecting) && errors.Is(err, context.Canceled)
}

// IsRowSecurity reports whether the server refused because a policy of row-level
// security would hide rows.
func IsRowSecurity(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "42501" && pgErr.Routine == "check_enable_rls"
}

// IsStandby reports whether the server refused since it only replays the WAL of another.
// The codes mean other things as well, and texts are in the server's language.
func IsStandby(err error) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return errors.Is(err, ErrStandby)
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

// IsUndefined reports whether a table or a schema was not there.
func IsUndefined(err error) bool { return IsCode(err, "42P01", "3F000") }

// IsCode reports whether an error of a server has one of the SQLSTATEs.
func IsCode(err error, codes ...string) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && slices.Contains(codes, pgErr.Code)
}
