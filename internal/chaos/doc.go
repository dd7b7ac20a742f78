// Package chaos has no code but a test: three programs that capture, a source and a
// store on servers of their own, writers and migrations, and strikes at all of them from
// a random seed. Writers keep a journal of their own, which history has to equal at the
// end.
//
//	AUDIT_TEST_CHAOS_SECONDS  how long it strikes, 6 by default
//	AUDIT_TEST_CHAOS_STRIKES  after how many strikes it ends before that
//	AUDIT_TEST_CHAOS_SEED     repeats the choices of a run
//	AUDIT_TEST_CHAOS_KINDS    the strikes to choose from, separated by commas
package chaos
