package stamp_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/hindsight-go/audit/internal/sqltext"
	"github.com/hindsight-go/audit/internal/stamp"
)

func TestParseIsThatOfTheTextWhetherKnownOrNot(t *testing.T) {
	t.Parallel()
	s := stamp.New("", false, nil)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 3000 { // more than are remembered
				sql := fmt.Sprintf("INSERT INTO todo VALUES (%d)", i)
				if i%3 == 0 {
					sql = fmt.Sprintf("SELECT %d; COMMIT", i)
				}
				if got, want := s.Parse(sql), sqltext.Parse(sql); got != want {
					t.Errorf("%s: %+v, want %+v", sql, got, want)
				}
			}
		})
	}
	wg.Wait()
}

func TestParseOfAKnownTextDoesNotAllocate(t *testing.T) {
	s := stamp.New("", false, nil)
	const sql = "INSERT INTO todo VALUES ($1)"
	s.Parse(sql)
	if n := testing.AllocsPerRun(100, func() { s.Parse(sql) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestStatementsInSavepointsAreOthers(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, identity := range []bool{false, true} {
		s := stamp.New("", identity, nil)
		for _, inSavepoint := range []bool{false, true} {
			seen[s.SQL(inSavepoint)] = true
			seen[s.Name(inSavepoint)] = true
		}
	}
	if len(seen) != 8 {
		t.Errorf("%d of 8 statements and names", len(seen))
	}
}
