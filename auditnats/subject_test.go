package auditnats_test

import (
	"strings"
	"testing"

	"github.com/hindsight-go/audit/auditnats"
)

func TestToken(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"todo": "todo", "Größe": "Größe", "": "%", "a.b": "a%2Eb", "a b": "a%20b", "*": "%2A", ">": "%3E", "100%": "100%25", "\x00\r\n": "%00%0D%0A", "\xff.": "%FF%2E",
	} {
		if got := auditnats.Token(name); got != want {
			t.Errorf("Token(%q) is %q, want %q", name, got, want)
		}
	}
}

func FuzzToken(f *testing.F) {
	f.Add("a.b", "a%2Eb")
	f.Add("", "%")
	f.Fuzz(func(t *testing.T, a, b string) {
		token := auditnats.Token(a)
		if token == "" || strings.ContainsAny(token, ".*> \t\r\n\x00") {
			t.Errorf("Token(%q) is %q", a, token)
		}
		if a != b && token == auditnats.Token(b) {
			t.Errorf("%q and %q have the same token %q", a, b, token)
		}
	})
}

func TestNew_SaysAllThatIsWrong(t *testing.T) {
	t.Parallel()
	_, err := auditnats.New(auditnats.Config{Stream: "a.b", Prefix: "a..b", MaxPending: -1, MaxPendingBytes: -1, AckWait: -1, OnLoss: 7, OnOversize: 7})
	if err == nil {
		t.Fatal("no error")
	}
	for _, field := range []string{"Client", "JetStream", "Stream", "Prefix", "MaxPending", "MaxPendingBytes", "AckWait", "OnLoss", "OnOversize"} {
		if !strings.Contains(err.Error(), "auditnats: Config."+field+": ") {
			t.Errorf("nothing is said of %s: %v", field, err)
		}
	}
}
