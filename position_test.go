package audit_test

import (
	"encoding/json"
	"fmt"
	"math"
	"testing"

	"github.com/jackc/pglogrepl"

	"github.com/hindsight-go/audit"
)

func TestParsePosition(t *testing.T) {
	t.Parallel()
	good := map[string]audit.Position{
		"0/0#0":                        {},
		"0/0":                          {},
		"16/B374D848#3":                {LSN: 0x16_B374D848, Sequence: 3},
		"16/b374d848#3":                {LSN: 0x16_B374D848, Sequence: 3},
		"16/B374D848":                  {LSN: 0x16_B374D848},
		"FFFFFFFF/FFFFFFFF#2147483647": {LSN: math.MaxUint64, Sequence: math.MaxInt32},
	}
	for text, want := range good {
		got, err := audit.ParsePosition(text)
		if err != nil || got != want {
			t.Errorf("ParsePosition(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "/", "0/", "/0", "0", "1/2#", "1/2#-1", "1/2#x", "1/2#2147483648", "1/2 ", " 1/2", "1/2#3#4",
		"100000000/0", "+1/2", "0x1/2", "1/2/3", "1_0/2",
	} {
		if got, err := audit.ParsePosition(text); err == nil {
			t.Errorf("ParsePosition(%q) = %v, want an error", text, got)
		}
	}
}

func TestPositionsAreOrderedByLSNThenSequence(t *testing.T) {
	t.Parallel()
	ordered := []audit.Position{{}, {Sequence: 1}, {LSN: 1}, {LSN: 1, Sequence: 2}, {LSN: 1 << 40}, {LSN: math.MaxUint64, Sequence: 1}}
	for i, a := range ordered {
		for j, b := range ordered {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := a.Compare(b); got != want {
				t.Errorf("%v.Compare(%v) = %d, want %d", a, b, got, want)
			}
		}
		if a.IsZero() != (i == 0) {
			t.Errorf("%v.IsZero() = %t", a, a.IsZero())
		}
	}
}

func TestPositionStandsInJSON(t *testing.T) {
	t.Parallel()
	text, err := json.Marshal(map[audit.Position]audit.Position{{LSN: 1, Sequence: 2}: {LSN: 3}})
	if err != nil || string(text) != `{"0/1#2":"0/3#0"}` {
		t.Fatalf("Marshal = %s, %v", text, err)
	}
	var back map[audit.Position]audit.Position
	if err := json.Unmarshal(text, &back); err != nil || back[audit.Position{LSN: 1, Sequence: 2}].LSN != 3 {
		t.Fatalf("Unmarshal = %v, %v", back, err)
	}
	var p audit.Position
	if err := p.UnmarshalText([]byte("nonsense")); err == nil {
		t.Error("UnmarshalText took nonsense")
	}
}

func FuzzPosition(f *testing.F) {
	f.Add("16/B374D848#3")
	f.Add("0/0")
	f.Add("ffffffff/FFFFFFFF#2147483647")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := audit.ParsePosition(text)
		if err != nil {
			return
		}
		again, err := audit.ParsePosition(p.String())
		if err != nil || again != p {
			t.Fatalf("%q -> %v -> %v, %v", text, p, again, err)
		}
		// The text is that of pglogrepl, and of PostgreSQL.
		if want := fmt.Sprintf("%s#%d", p.LSN, p.Sequence); p.String() != want {
			t.Fatalf("String() = %s, want %s", p, want)
		}
		if lsn, err := pglogrepl.ParseLSN(p.LSN.String()); err != nil || lsn != p.LSN {
			t.Fatalf("LSN %v does not survive", p.LSN)
		}
	})
}

func ExamplePosition() {
	a, _ := audit.ParsePosition("16/B374D848#3")
	b := audit.Position{LSN: a.LSN, Sequence: 12}
	fmt.Println(a, a.Compare(b))
	// Output: 16/B374D848#3 -1
}
