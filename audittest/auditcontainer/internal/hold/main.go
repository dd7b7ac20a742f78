// Command hold starts a container for a program that does not import
// auditcontainer, and removes it when its standard input ends. The tests and
// examples of this repository run it: see holder.go of internal/pgserver.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/hindsight-go/audit/audittest/auditcontainer/internal/container"
	"github.com/hindsight-go/audit/internal/pgserver"
)

func main() {
	// A terminal's Ctrl-C is meant for the program that holds the other end of
	// the pipe. When that is gone there may be nobody to read what is written
	// here, and the container is still to be removed.
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	if err := pgserver.HoldContainer(context.Background(), os.Stdin, os.Stdout, container.Start); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
