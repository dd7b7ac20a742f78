// Package auditcontainer lets audittest start its PostgreSQL in a container,
// on machines that have a container engine and no server binaries. Import it
// for that alone, in a test or in a program that uses audittest:
//
//	import _ "github.com/hindsight-go/audit/audittest/auditcontainer"
//
// It is a module of its own, so that Docker's client and what that needs is
// required by nobody else. It finds the engine as testcontainers-go does:
// DOCKER_HOST, the current Docker context, the usual sockets. The image is
// AUDIT_PG_IMAGE, or postgres:17-alpine.
//
// The container is removed when the process ends. If that was killed,
// testcontainers' reaper sees to it, which is a container, too.
package auditcontainer

import (
	"github.com/hindsight-go/audit/audittest/auditcontainer/internal/container"
	"github.com/hindsight-go/audit/internal/pgserver"
)

func init() { pgserver.RegisterContainers(container.Start) }
