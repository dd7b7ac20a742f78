package audit_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// Chore names the table chores, by the rule of Point.Load.
type Chore struct {
	ID    int64
	Task  string
	Due   time.Time
	Price string // numeric: with every digit
	Tags  []string
}

// renamedChore names its table itself.
type renamedChore struct{ ID int64 }

func (renamedChore) TableName() string { return "chores" }

func TestGenerics_ReadWhatTheirMethodsRead(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE chores (id bigint PRIMARY KEY, task text, due timestamptz, price numeric, tags text[])")
	a.Exec(t, "INSERT INTO chores VALUES (1, 'sweep', '2024-01-02 03:04:05.123456+00', 12345678901234567890.10, '{a,NULL}'), (2, 'cook', '2024-01-03 00:00:00+00', 1, '{}')")
	a.Exec(t, "UPDATE chores SET tags = '{b}', task = 'scrub' WHERE id = 1")
	before := must(a.Client.Mark(t.Context(), "before"))
	a.Exec(t, "UPDATE chores SET id = 3 WHERE id = 1; DELETE FROM chores WHERE id = 2")
	a.Sync(t)
	ctx, at := t.Context(), a.Client.AtPosition(before)
	scrub := Chore{1, "scrub", time.Date(2024, 1, 2, 3, 4, 5, 123456000, time.UTC), "12345678901234567890.10", []string{"b"}}
	cook := Chore{2, "cook", time.Date(2024, 1, 3, 0, 0, 0, 0, time.UTC), "1", []string{}}
	equalTimes := cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })

	change := must(a.Client.Changes().Operations(audit.Update).OldestFirst().First(ctx))
	if got, err := audit.After[Chore](change); err != nil || !cmp.Equal(got, scrub, equalTimes) {
		t.Errorf("After: %+v, error %v", got, err)
	}
	if got, err := audit.After[*Chore](change); err != nil || !cmp.Equal(*got, scrub, equalTimes) {
		t.Errorf("After of a pointer: %+v, error %v", got, err)
	}
	if got, err := audit.After[map[string]any](change); err != nil || got["task"] != "scrub" {
		t.Errorf("After of a map: %v, error %v", got, err)
	}
	gone := must(a.Client.Changes().Operations(audit.Delete).First(ctx))
	if got, err := audit.After[*Chore](gone); !errors.Is(err, audit.ErrNoImage) || got != nil {
		t.Errorf("After of a DELETE: %v, error %v", got, err)
	}
	var misfit *audit.DecodeError
	if got, err := audit.After[struct{ Task int }](change); !errors.As(err, &misfit) || misfit.Column != "task" || got.Task != 0 {
		t.Errorf("After of what does not fit: %v, error %v", got, err)
	}

	if got, err := audit.ListAsOf[Chore](ctx, at.Table("chores").OrderBy("id")); err != nil || !cmp.Equal(got, []Chore{scrub, cook}, equalTimes) {
		t.Errorf("ListAsOf: %+v, error %v", got, err)
	}
	if got, err := audit.ListAsOf[*Chore](ctx, at.Table("chores").Where("id = $1", 2)); err != nil || len(got) != 1 || !cmp.Equal(*got[0], cook, equalTimes) {
		t.Errorf("ListAsOf of pointers, with a condition: %+v, error %v", got, err)
	}
	if got, err := audit.ListAsOf[Chore](ctx, at); err != nil || len(got) != 2 {
		t.Errorf("ListAsOf of the table that the type names: %+v, error %v", got, err)
	}
	if got, err := audit.ListAsOf[renamedChore](ctx, at.Lax()); err != nil || len(got) != 2 {
		t.Errorf("ListAsOf of the table that a method names: %+v, error %v", got, err)
	}
	var columns *audit.ColumnsError
	if got, err := audit.ListAsOf[renamedChore](ctx, at); !errors.As(err, &columns) || got != nil {
		t.Errorf("ListAsOf without Lax: %v, error %v", got, err)
	}
	if got, err := audit.ListAsOf[map[string]any](ctx, at); !errors.As(err, &misfit) || got != nil {
		t.Errorf("ListAsOf of a type that names no table: %v, error %v", got, err)
	}
	if got, err := audit.ListAsOf[Chore](ctx, a.Client.Now().Table("chores").Where("id = 2")); err != nil || len(got) != 0 {
		t.Errorf("ListAsOf of nothing: %v, error %v", got, err)
	}
}

func TestHistoryOf(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, `CREATE TABLE chores (id bigint PRIMARY KEY, task text, due timestamptz, price numeric, tags text[]);
		INSERT INTO chores VALUES (1, 'sweep', '2024-01-02 03:04:05+00', 12345678901234567890.10, '{a}'), (2, 'cook', '2024-01-03 00:00:00+00', 1, '{}')`)
	a.Exec(t, "UPDATE chores SET task = 'scrub' WHERE id = 1")
	a.Exec(t, "ALTER TABLE chores ADD COLUMN room text; UPDATE chores SET room = 'hall', tags = NULL WHERE id = 1")
	a.Exec(t, "DELETE FROM chores WHERE id = 1")
	a.Sync(t)
	versions, err := audit.HistoryOf[Chore](t.Context(), a.Client.History("chores", 1))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range versions {
		if v.Exists() != (v.Value != nil) {
			t.Errorf("the version of %s exists: %t, and its value is %v", v.From, v.Exists(), v.Value)
		}
		if v.Value == nil {
			got = append(got, "gone")
			continue
		}
		got = append(got, v.Value.Task)
		if v.Value.ID != 1 || v.Value.Price != "12345678901234567890.10" || !v.Value.Due.Equal(time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)) {
			t.Errorf("the version of %s is %+v", v.From, *v.Value)
		}
	}
	if diff := cmp.Diff([]string{"sweep", "scrub", "scrub", "gone"}, got); diff != "" {
		t.Errorf("the versions differ (-want +got):\n%s", diff)
	}
	if versions[2].Value.Tags != nil || versions[1].Value.Tags[0] != "a" || versions[2].Change == nil {
		t.Errorf("the versions are %+v", versions)
	}

	// One that never changed, and one that never was.
	if versions, err := audit.HistoryOf[map[string]any](t.Context(), a.Client.History("chores", 2)); err != nil || len(versions) != 1 || (*versions[0].Value)["task"] != "cook" {
		t.Errorf("of a row that never changed: %+v, error %v", versions, err)
	}
	if versions, err := audit.HistoryOf[Chore](t.Context(), a.Client.History("chores", 9)); err != nil || len(versions) != 0 {
		t.Errorf("of a row that never was: %+v, error %v", versions, err)
	}
	if versions, err := audit.HistoryOf[Chore](t.Context(), a.Client.History("chores", 1).Limit(1)); err != nil || len(versions) != 1 || versions[0].Value != nil {
		t.Errorf("of the last version: %+v, error %v", versions, err)
	}
	var misfit *audit.DecodeError
	if versions, err := audit.HistoryOf[struct{ Task int }](t.Context(), a.Client.History("chores", 1)); !errors.As(err, &misfit) || versions != nil {
		t.Errorf("of what does not fit: %v, error %v", versions, err)
	}
}
