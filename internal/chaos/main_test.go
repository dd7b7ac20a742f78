//go:build unix

package chaos_test

import (
	"os"
	"testing"
)

// TestMain lets this binary be a program that captures, for the test to strike at.
func TestMain(m *testing.M) {
	if isProgram() {
		os.Exit(runProgram())
	}
	if code, done := inOwnMounts(); done {
		os.Exit(code)
	}
	os.Exit(m.Run())
}
