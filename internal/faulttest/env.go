package faulttest

import (
	"os"
	"strconv"
	"testing"
)

// EnvNumber returns the number in an environment variable, such as a seed, or otherwise
// where it is not set.
func EnvNumber(t testing.TB, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}
