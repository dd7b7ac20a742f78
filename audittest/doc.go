// Package audittest gives tests and examples a throwaway PostgreSQL database
// from which changes can be captured. It needs no configuration and leaves
// nothing behind.
//
// # In a test
//
// A test asks for a database and has it to itself until it ends:
//
//	func TestSignup(t *testing.T) {
//		t.Parallel()
//		db := audittest.NewDatabase(t)
//		db.Exec(t, "CREATE TABLE users (user_id bigint PRIMARY KEY, name text)")
//
//		signup(t.Context(), db.URL(), "Ada")
//
//		if n := audittest.Value[int](t, db, "SELECT count(*) FROM users"); n != 1 {
//			t.Errorf("users: %d, want 1", n)
//		}
//	}
//
// All databases of a test process are on one server, which the first of them
// starts. That costs about a second once, and a database some tens of
// milliseconds. When the test ends its database is dropped, together with the
// replication slots on it: those belong to the server and would hold its WAL
// back for ever. Sessions that are still open are ended first. Cleanup
// functions run last in, first out, so whatever a test starts after
// NewDatabase, and stops in a cleanup function of its own, has stopped by then.
//
// # In a test that crashes the server
//
// [NewServer] starts a server that belongs to one test, which may restart it,
// stop it in the middle of things, kill it and start it again, and give it
// settings of its own.
//
// # In a program
//
// [StartDatabase] is for programs, which have no testing.TB: an example can be
// run by anyone with nothing set up.
//
// # Where the server comes from
//
// The first of these that is there:
//
//  1. the server that the environment variable AUDIT_TEST_DATABASE_URL names,
//     with wal_level = logical and a role that may create databases and
//     replicate;
//  2. the server binaries in the directory AUDIT_PG_BIN;
//  3. a container of the image AUDIT_PG_IMAGE, if that is set;
//  4. server binaries on PATH or where the usual packages put them, from which
//     a private cluster is made in a temporary directory, without a port. A
//     test process of root's runs it as the user postgres, or nobody;
//  5. a container of PostgreSQL's own image, where there is a container engine.
//
// Containers need one more import, since what it takes to speak to a container
// engine is many times what this package takes:
//
//	import _ "github.com/hindsight-go/audit/audittest/auditcontainer"
//
// It is a module of its own: go get github.com/hindsight-go/audit/audittest/auditcontainer.
//
// If there is none, tests fail, on a build machine and elsewhere, with a list
// of what was tried and what would help. They never skip: a test that did not
// run would look like one that passed.
//
// The server is gone when the test process is, however that ends: by itself,
// with a panic, at go test's time limit, by Ctrl-C or kill -9. On a server that
// was given by AUDIT_TEST_DATABASE_URL, databases whose process was killed are
// dropped by the next process that uses this package there.
package audittest
