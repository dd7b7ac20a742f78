package audit

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// IsRetryable reports whether the same call may succeed if it is made again a little
// later, with nothing changed by anybody: a connection was refused or lost, a server was
// starting, stopping or had no connection left, a transaction was in the way of another, a
// lock was not to be had in time, or nobody captured, as while one instance takes over from
// another.
//
// It does not say that nothing was done. Reading again does no harm, and neither does a
// revert: one that was applied is found in [Result.Already], or by
// [Reversal.IdempotencyKey]. What else writes may have been done if the connection was
// lost.
//
// An ended ctx is not retryable, unless a wait that says for whom, or a connection that was
// not made in time, ended with it; neither is a closed client, nor what waits for somebody to
// act: a refused password, a missing right, a conflict. After a [*StaleError] a new plan is what
// helps. The error may come from any package here, or from pgx.
func IsRetryable(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, ErrClosed) {
		return false
	}
	var (
		locked  *SetupLockedError
		blocked *SlotBlockedError
		connect *pgconn.ConnectError
	)
	if errors.As(err, &locked) || errors.As(err, &blocked) {
		return true
	}
	if errors.Is(err, context.DeadlineExceeded) {
		// Connecting has a bound of its own, which is met where a server is away.
		return errors.As(err, &connect)
	}
	// That the server refuses our certificate is an error of the network to crypto/tls.
	var alert tls.AlertError
	if errors.As(err, &alert) {
		return false
	}
	// What the server said is more than what became of the connection.
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return isRetryableCode(pgErr.Code)
	}
	var (
		name    *net.DNSError
		network net.Error
	)
	switch {
	case errors.Is(err, ErrNotCaptured):
		return true
	case errors.As(err, &name):
		return !name.IsNotFound
	case errors.As(err, &network), errors.Is(err, io.ErrUnexpectedEOF), pgconn.SafeToRetry(err):
		return true
	}
	return false
}

// isRetryableCode reports whether an error of the server passes by itself.
//
// Source: PostgreSQL documentation, Appendix A, "PostgreSQL Error Codes".
func isRetryableCode(code string) bool {
	if code == "40002" || code == "08P01" {
		return false // a constraint at commit; one of the two does not speak the protocol
	}
	return strings.HasPrefix(code, "08") || strings.HasPrefix(code, "40") ||
		slices.Contains([]string{
			"53200",                   // out of memory
			"53300",                   // too many connections
			"55006",                   // object in use, as a slot is
			"55P03",                   // lock not available
			"57P01", "57P02", "57P03", // shutdown, crash, cannot connect now
			"57P05", // idle session timeout
		}, code)
}
