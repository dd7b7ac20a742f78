//go:build !unix

package pgserver

import (
	"context"
	"errors"
)

// Private clusters need Unix sockets, process groups and a shell. Elsewhere
// there are containers and AUDIT_TEST_DATABASE_URL.
const clustersSupported = false

var errUnsupported = errors.New("private clusters are not supported on this operating system")

type account struct{}

func serverAccount() (account, error)   { return account{}, errUnsupported }
func (account) mayExecute(string) error { return errUnsupported }

func startCluster(context.Context, installation, Options) (host, error) {
	return nil, &StartError{Op: "start", Err: errUnsupported}
}
