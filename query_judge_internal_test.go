package audit

import (
	"testing"
	"time"
)

// What memory says of a change is what SQL says of it: Since begins at the next
// microsecond, and times that PostgreSQL has not are before or behind all.
func TestJudge_TimesAsTheServerGetsThem(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 4, 5, 6, 7, 890123000, time.UTC)
	c := &seenChange{Change: &Change{CommittedAt: at}}
	for name, row := range map[string]struct {
		since time.Time
		want  verdict
	}{
		"the very time":          {at, certain},
		"within its microsecond": {at.Add(999), impossible},
		"the next microsecond":   {at.Add(time.Microsecond), impossible},
		"before all times":       {time.Date(-9999, 1, 1, 0, 0, 0, 0, time.UTC), certain},
		"behind all times":       {time.Date(300000, 1, 1, 0, 0, 0, 0, time.UTC), impossible},
		"in another zone":        {at.In(time.FixedZone("", 5*3600+1800)), certain},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := judge((&Client{}).Changes().Since(row.since).where, c); got != row.want {
				t.Errorf("it is judged %d, want %d", got, row.want)
			}
		})
	}
}
