//go:build unix && !linux

package chaos_test

import (
	"errors"
	"testing"
)

func inOwnMounts() (code int, done bool) { return 0, false }

type disk struct{ dir string }

func mountDisk(testing.TB, string) *disk { return nil }

func (*disk) fill() error { return errors.ErrUnsupported }

func (*disk) empty() error { return errors.ErrUnsupported }
