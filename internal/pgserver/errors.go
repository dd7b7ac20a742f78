package pgserver

import (
	"fmt"
	"strings"
)

// Attempt is one place that [Start] looked at and why it did not serve.
type Attempt struct {
	// Where names the place: an environment variable, a directory, an image.
	Where string
	// Problem is why it did not serve.
	Problem string
}

// NotFoundError is returned when there is no PostgreSQL server to be had. It
// lists everything that was tried, in order.
type NotFoundError struct {
	Attempts []Attempt
	// Err is the cause of the last attempt, if it had one.
	Err error
}

// Error lists the attempts one a line, followed by the ways out.
func (e *NotFoundError) Error() string {
	var b strings.Builder
	b.WriteString("pgserver: no PostgreSQL for tests; tried:\n")
	for _, a := range e.Attempts {
		fmt.Fprintf(&b, "  - %s: %s\n", a.Where, a.Problem)
	}
	fmt.Fprintf(&b, "any one of these helps:\n"+
		"  - install the server (%d or newer): apt-get install postgresql, dnf install postgresql-server, apk add postgresql, brew install postgresql\n"+
		"  - set %s to a directory that holds postgres and initdb\n"+
		"  - start a container engine (Docker or Podman), and let the tests or the program import _ %q, a module of its own\n"+
		"  - set %s to a server with wal_level = logical, as a role that may create databases",
		MinMajor, EnvBinDir, ContainerModule, EnvDatabaseURL)
	return b.String()
}

// Unwrap gives the cause of the last attempt.
func (e *NotFoundError) Unwrap() error { return e.Err }

// NoContainersError is returned when no container can be started: there is no
// container engine, or the program cannot speak to one.
type NoContainersError struct {
	Problem string
	Err     error
}

// Error gives the problem.
func (e *NoContainersError) Error() string { return e.Problem }

// Unwrap gives the cause.
func (e *NoContainersError) Unwrap() error { return e.Err }

// StartError is returned when a server was found and could not be brought up.
type StartError struct {
	// Op is what was being done: "initdb", "start", "restart", ...
	Op string
	// Log is the end of what the server or initdb wrote.
	Log string
	Err error
}

// Error gives the operation, the cause and the end of the server's log: for a
// server that does not start, the log is the message.
func (e *StartError) Error() string {
	if e.Log == "" {
		return fmt.Sprintf("pgserver: %s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("pgserver: %s: %v; the server's log ends:\n%s", e.Op, e.Err, e.Log)
}

// Unwrap gives the cause.
func (e *StartError) Unwrap() error { return e.Err }

// UnsuitableError is returned when the server of AUDIT_TEST_DATABASE_URL can
// be reached and cannot be used.
type UnsuitableError struct {
	// Problem is what is wrong with it, Hint how to put it right.
	Problem, Hint string
}

// Error gives the problem and the hint.
func (e *UnsuitableError) Error() string {
	return fmt.Sprintf("pgserver: the server of %s %s: %s", EnvDatabaseURL, e.Problem, e.Hint)
}

// NotPrivateError is returned by the operations that only a private cluster
// has (stop, restart) for a server of another kind.
type NotPrivateError struct {
	Op   string
	Kind Kind
}

// Error names the operation and the kind of server.
func (e *NotPrivateError) Error() string {
	return fmt.Sprintf("pgserver: %s: the server is a %s one, and only a private cluster can be controlled; install PostgreSQL or set %s",
		e.Op, e.Kind, EnvBinDir)
}

// ClosedError is returned by operations on a server after Close.
type ClosedError struct{ Op string }

// Error names the operation.
func (e *ClosedError) Error() string { return fmt.Sprintf("pgserver: %s: the server is closed", e.Op) }
