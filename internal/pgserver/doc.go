// Package pgserver finds or starts a throwaway PostgreSQL server for tests,
// benchmarks and examples.
//
// [Start] takes the first of these that is there:
//
//  1. the server named by AUDIT_TEST_DATABASE_URL, used as it is. Databases
//     are created on it, so it must allow that, and its wal_level must be
//     logical;
//  2. a private cluster made with the server binaries in AUDIT_PG_BIN;
//  3. a container of the image AUDIT_PG_IMAGE, if that variable is set;
//  4. a private cluster made with the binaries found on PATH, else with those
//     of the newest major version in the directories that Debian, Red Hat,
//     Alpine, SUSE, Homebrew and Postgres.app install to;
//  5. a container of [DefaultImage].
//
// Containers are started by the module [ContainerModule], which a program has
// to import; in a checkout of this repository it is run as a program if it is
// not imported: see holder.go.
//
// Where a variable is set it is a decision: if what it names does not work,
// Start says so and does not quietly go on to the next. If nothing is there,
// a [*NotFoundError] lists everything that was tried and how to fix it. The
// package never decides to skip: a test that could not run is not a test that
// passed.
//
// # Private clusters
//
// A private cluster listens on a Unix socket in a temporary directory of its
// own and on no port, so any number of them run side by side. It trusts
// everyone who can enter that directory, which only its owner can. Since
// PostgreSQL refuses to run as root, a process of root's starts it as the user
// postgres, or nobody.
//
// It does not outlive the process that started it, whatever that process dies
// of: see guardian.go. Close is good manners, not a necessity.
//
// # Environment
//
// This is test tooling, so unlike the library it reads the environment:
// AUDIT_TEST_DATABASE_URL, AUDIT_PG_BIN, AUDIT_PG_IMAGE, PATH, and in
// [ContainerModule] the variables of the Docker client. The private server itself
// does not see any variable starting with PG or LC_, nor LANG, so that it is
// the same server on every machine.
package pgserver
