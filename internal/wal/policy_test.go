package wal_test

import (
	"testing"

	"github.com/hindsight-go/audit/internal/wal"
)

// secrets withholds notes.body, and keeps what a pattern would keep.
func secrets(_, table, column string) (wal.Policy, bool) {
	if table == "notes" && column == "body" {
		return wal.Exclude, true
	}
	return "", table == "open"
}

func TestWithPolicies_FollowsTheColumn(t *testing.T) {
	t.Parallel()
	table := func(name string, guessed bool, columns ...wal.Attribute) *wal.Structure {
		return &wal.Structure{OID: 1, Schema: "public", Table: name, Guessed: guessed, Columns: columns}
	}
	column := func(name string, attnum int16) wal.Attribute { return wal.Attribute{Name: name, Attnum: attnum} }
	known := table("notes", false, column("id", 1), column("body", 2)).WithPolicies(secrets, nil, nil)
	renamed := table("remarks", false, column("id", 1), column("text", 2)).WithPolicies(secrets, known, nil)
	guessed := table("notes", true, column("id", 1), column("text", -2)).WithPolicies(secrets, known, nil)
	for name, test := range map[string]struct {
		now, before, root *wal.Structure
		want              map[string]wal.Policy
	}{
		"renamed":                  {now: table("remarks", false, column("id", 1), column("body", 2)), before: known, want: map[string]wal.Policy{"body": wal.Exclude}},
		"renamed again":            {now: table("words", false, column("id", 1), column("phrase", 2)), before: renamed, want: map[string]wal.Policy{"phrase": wal.Exclude}},
		"a rule that says":         {now: table("open", false, column("id", 1), column("body", 2)), before: known},
		"another column":           {now: table("remarks", false, column("id", 1), column("body", 3)), before: known},
		"a new partition":          {now: &wal.Structure{OID: 9, Schema: "public", Table: "remarks_2", Root: 1, RootSchema: "public", RootTable: "remarks", Columns: []wal.Attribute{column("text", 1)}}, root: renamed, want: map[string]wal.Policy{"text": wal.Exclude}},
		"guessed, by name":         {now: table("remarks", true, column("id", -1), column("body", -2)), before: known, want: map[string]wal.Policy{"body": wal.Exclude}},
		"after a guess":            {now: table("notes", false, column("id", 1), column("text", 2)), before: guessed, want: map[string]wal.Policy{"text": wal.Exclude}},
		"after a guess, otherwise": {now: table("notes", false, column("id", 1), column("words", 2)), before: guessed, want: map[string]wal.Policy{"words": wal.Exclude}},
		"guessed, unknown":         {now: table("remarks", true, column("id", 1), column("x", -1), column("y", -2)), before: known, want: map[string]wal.Policy{"x": wal.Exclude, "y": wal.Exclude}},
	} {
		with := test.now.WithPolicies(secrets, test.before, test.root)
		for _, a := range with.Columns {
			if a.Policy != test.want[a.Name] {
				t.Errorf("%s: column %s is %q, want %q", name, a.Name, a.Policy, test.want[a.Name])
			}
		}
	}
}
