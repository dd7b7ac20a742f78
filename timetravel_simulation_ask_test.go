package audit_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
)

// ask compares some tables with some version of before.
func (s *simulation) ask(t *testing.T) {
	t.Helper()
	at := s.IntN(len(s.versions))
	if s.IntN(3) == 0 {
		at = len(s.versions) - 1 - s.IntN(min(3, len(s.versions)))
	}
	v := s.versions[at]
	p := s.a.Client.AtPosition(v.point)
	names := make([]string, 0, len(v.tables))
	for name := range v.tables {
		names = append(names, name)
	}
	slices.Sort(names)
	s.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for _, name := range names[:3] {
		for _, scan := range []bool{true, false} {
			got, err := past(t.Context(), audit.Searching(p, scan).Table(name))
			s.compare(t, fmt.Sprintf("version %d, %s, scan %t", at, name, scan), v.tables[name], got, err)
		}
		s.askCount(t, at, p, name)
		s.askRows(t, at, p, name)
		s.askDifference(t, at, name)
	}
	err := p.View(t.Context(), func(tx pgx.Tx) error {
		for _, name := range names {
			nested, err := tx.Begin(t.Context())
			if err != nil {
				return err
			}
			got, err := readState(t.Context(), nested, name)
			s.compare(t, fmt.Sprintf("version %d, view of %s", at, name), v.tables[name], got, err)
			if err != nil {
				if err := nested.Rollback(t.Context()); err != nil {
					return err
				}
			} else if err := nested.Commit(t.Context()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Errorf("version %d: view: %v", at, err)
	}
}

func past(ctx context.Context, table audit.PastTable) (simState, error) {
	state := simState{rows: []string{}}
	for row, err := range table.All(ctx) {
		if err != nil {
			return state, err
		}
		var isJSON []bool
		state.columns = ""
		for _, f := range row.FieldDescriptions() {
			state.columns += f.Name + "|"
			isJSON = append(isJSON, f.DataTypeOID == 114)
		}
		state.rows = append(state.rows, simText(row.RawValues(), isJSON))
	}
	slices.Sort(state.rows)
	return state, nil
}

func (s *simulation) compare(t *testing.T, what string, want, got simState, err error) {
	t.Helper()
	if errors.Is(err, audit.ErrIncomplete) {
		s.refused++
		return
	}
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	s.answered++
	if len(got.rows) == 0 && got.columns == "" {
		got.columns = want.columns // of no rows nothing is known
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(simState{})); diff != "" {
		t.Errorf("%s (-want +got):\n%.3000s", what, diff)
	}
}

func (s *simulation) askCount(t *testing.T, at int, p audit.Point, name string) {
	t.Helper()
	want := int64(len(s.versions[at].tables[name].rows))
	for _, table := range []audit.PastTable{p.Table(name), p.Table(name).Where("$1 = 1", 1)} {
		n, err := table.Count(t.Context())
		if errors.Is(err, audit.ErrIncomplete) {
			continue
		}
		if err != nil || n != want {
			t.Errorf("version %d: count of %s: %d, %v, want %d", at, name, n, err, want)
		}
	}
}

// askDifference compares the net changes between two versions, by their number,
// with what became of the rows.
func (s *simulation) askDifference(t *testing.T, at int, name string) {
	t.Helper()
	other := s.IntN(len(s.versions))
	first, last := s.versions[at], s.versions[other]
	before, after := first.tables[name], last.tables[name]
	if before.columns == "" || before.columns != after.columns {
		return
	}
	gone, come := slices.Clone(before.rows), []string{}
	for _, row := range after.rows {
		if i := slices.Index(gone, row); i >= 0 {
			gone = slices.Delete(gone, i, i+1)
		} else {
			come = append(come, row)
		}
	}
	differences, err := s.a.Client.DiffBetween(s.a.Client.AtPosition(first.point), s.a.Client.AtPosition(last.point)).Tables(name).List(t.Context())
	if errors.Is(err, audit.ErrIncomplete) {
		s.refused++
		return
	}
	befores, afters := 0, 0
	for _, d := range differences {
		if !d.Before.IsEmpty() {
			befores++
		}
		if !d.After.IsEmpty() {
			afters++
		}
	}
	if err != nil || befores != len(gone) || afters != len(come) {
		t.Errorf("from version %d to %d, %s: %d rows are gone and %d have come, %v, want %d and %d:\ngone %q\ncome %q\ngot %+v", at, other, name, befores, afters, err, len(gone), len(come), gone, come, differences)
	}
	s.answered++
}

// askRows asks for rows by keys that are there at some version.
func (s *simulation) askRows(t *testing.T, at int, p audit.Point, name string) {
	t.Helper()
	i := slices.IndexFunc(s.tables, func(o *simTable) bool { return o.name == name })
	if i < 0 || s.tables[i].name != "plain" {
		return
	}
	for id := range 7 {
		row, err := p.Row(t.Context(), name, id)
		if errors.Is(err, audit.ErrIncomplete) {
			continue
		}
		there := slices.ContainsFunc(s.versions[at].tables[name].rows, func(r string) bool { return strings.HasPrefix(r, fmt.Sprint(id, "|")) })
		if there != (err == nil) || err != nil && !errors.Is(err, audit.ErrNoRow) {
			t.Errorf("version %d: row %d of %s: %v, %v, want it there: %t", at, id, name, row, err, there)
		}
	}
}
