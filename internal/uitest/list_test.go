package uitest

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// goList lists packages of the main module.
func goList(t *testing.T, args ...string) []string {
	t.Helper()
	command := exec.CommandContext(t.Context(), "go", append([]string{"list"}, args...)...)
	command.Dir = "../.."
	out, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Fields(string(out))
	slices.Sort(names)
	return slices.Compact(names)
}
