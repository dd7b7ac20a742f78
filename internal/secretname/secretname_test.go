package secretname_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/hindsight-go/audit/internal/secretname"
)

// corpus reads the names of a file, one a line.
func corpus(t *testing.T, file string) (names []string) {
	t.Helper()
	text, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if name := strings.TrimSpace(line); name != "" && !strings.HasPrefix(name, "# ") {
			names = append(names, name)
		}
	}
	if len(names) < 100 {
		t.Fatalf("%s has %d names", file, len(names))
	}
	return names
}

func TestLikely_CorpusOfNames(t *testing.T) {
	t.Parallel()
	for _, name := range corpus(t, "secret.txt") {
		if !secretname.Likely(name) {
			t.Errorf("%q is taken for harmless", name)
		}
	}
	for _, name := range corpus(t, "plain.txt") {
		if secretname.Likely(name) {
			t.Errorf("%q is taken for a secret", name)
		}
	}
}

func TestSplit_Words(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"":                "",
		"--":              "",
		"user_password":   "user password",
		"userAPIKey2":     "user api key 2",
		"APIKey":          "api key",
		"user[pass-word]": "user pass word",
		"Straßen Größe":   "straßen größe",
	} {
		if got := secretname.Split(name); !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

func FuzzLikely(f *testing.F) {
	f.Add("user", "Password")
	f.Fuzz(func(t *testing.T, before, after string) {
		// Nothing around a secret part hides it but the words that are about it.
		name := before + "_password_" + after + "_x"
		first := secretname.Split(name)[0]
		about := slices.Contains([]string{"max", "min", "has", "is", "num"}, first)
		if got := secretname.Likely(name); got == about {
			t.Errorf("%q: %t", name, got)
		}
	})
}
