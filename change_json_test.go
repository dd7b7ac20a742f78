package audit_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
)

func TestChangeSurvivesJSON(t *testing.T) {
	t.Parallel()
	plain := sampleChange()
	odd := sampleChange()
	odd.HasKey, odd.PrimaryKey = false, ""
	odd.KeyChanged, odd.PreviousKey = true, ""
	odd.Stamped, odd.RawContext, odd.Context = false, nil, audit.Context{}
	odd.Environment, odd.Defect = "production", "something"
	for _, want := range []audit.Change{plain, odd} {
		text, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got audit.Change
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(got)
		if err != nil || string(again) != string(text) {
			t.Errorf("%s\nbecame\n%s (%v)", text, again, err)
		}
		got.Before, got.After, got.RawContext = want.Before, want.After, want.RawContext // spaces are lost
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
}
