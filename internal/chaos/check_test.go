//go:build unix

package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// gapRecord is a gap as the store has it.
type gapRecord struct {
	hole
	At     time.Time
	Reason string
}

// history reads what is stored.
func history(t *testing.T, db *audittest.Database) (all []told, gaps []gapRecord, spans map[string][]span) {
	t.Helper()
	conn := faulttest.Connect(t, db.URL())
	query := func(sql string, scan []any, each func() error) {
		rows, err := conn.Query(t.Context(), sql)
		if err == nil {
			_, err = pgx.ForEachRow(rows, scan, each)
		}
		if err != nil {
			t.Fatalf("read history: %v", err)
		}
	}
	var xid int64
	var from, to audit.LSN
	var sequence int
	var e entry
	var defect *string
	query(`
		SELECT transaction_id, position::text, sequence, "table", operation, before::text, after::text, coalesce(context ->> 'requestId', ''), defect
		FROM audit.changes c WHERE schema = 'public' ORDER BY c.position, c.sequence`,
		[]any{&xid, &from, &sequence, &e.Table, &e.Op, &e.Before, &e.After, &e.Request, &defect}, func() error {
			if len(all) == 0 || all[len(all)-1].position != from {
				all = append(all, told{xid: xid, position: from})
			}
			h := &all[len(all)-1]
			h.sequences, h.entries = append(h.sequences, sequence), append(h.entries, e)
			if defect != nil {
				t.Errorf("a change of %s at %s has a defect: %s", e.Table, from, *defect)
			}
			return nil
		})
	var g gapRecord
	query("SELECT from_position::text, to_position::text, to_time, reason FROM audit.gaps ORDER BY from_position", []any{&g.from, &g.to, &g.At, &g.Reason}, func() error {
		gaps = append(gaps, g)
		return nil
	})
	spans = make(map[string][]span)
	var table string
	query(`SELECT "table", from_position::text, coalesce(until_position, '0/0')::text FROM audit.coverage WHERE schema = 'public' ORDER BY 1, from_position`, []any{&table, &from, &to}, func() error {
		spans[table] = append(spans[table], span{from, to})
		return nil
	})
	return all, gaps, spans
}

// truth is what the tables held at a position.
type truth struct {
	at     audit.LSN
	tables map[string]map[string]int
}

// remember keeps what the tables hold, while nobody writes.
func (w *world) remember(ctx context.Context) (truth, error) {
	w.load.standstill.Lock()
	defer w.load.standstill.Unlock()
	conn, err := pgx.Connect(ctx, w.source.URL())
	if err != nil {
		return truth{}, err
	}
	defer func() { _ = conn.Close(ctx) }()
	k := truth{tables: make(map[string]map[string]int)}
	if err := conn.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&k.at); err != nil {
		return truth{}, err
	}
	for _, table := range lastingTables {
		if k.tables[table], err = contents(ctx, conn, "public."+table); err != nil {
			return truth{}, err
		}
	}
	return k, nil
}

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func contents(ctx context.Context, conn querier, table string) (map[string]int, error) {
	rows, err := conn.Query(ctx, "SELECT to_jsonb(t)::text FROM "+table+" t")
	if err != nil {
		return nil, err
	}
	all := make(map[string]int)
	var text string
	_, err = pgx.ForEachRow(rows, []any{&text}, func() error {
		all[text]++
		return nil
	})
	return all, err
}

// checkPast compares the past with what was remembered of it. It may be refused, by an
// error that says why, and never be wrong; of now it may be refused for a gap only. It
// returns of how many tables it was told, and counts the others by their reasons.
func checkPast(t *testing.T, client *audit.Client, then truth, now, gaps bool, refusals map[string]int) (toldOf int) {
	t.Helper()
	point := client.AtPosition(audit.Position{LSN: then.at})
	if now {
		point = client.Now()
	}
	for table, want := range then.tables {
		var got map[string]int
		_, err := point.Table("public." + table).Count(t.Context())
		if err == nil {
			err = point.View(t.Context(), func(tx pgx.Tx) (err error) {
				got, err = contents(t.Context(), tx, table)
				return err
			})
		}
		var history *audit.HistoryError
		switch {
		case errors.As(err, &history) && (!now || gaps && errors.Is(err, audit.ErrInGap)):
			refusals[history.Reason.Error()]++
		case err != nil:
			t.Errorf("%s as of %s (now: %t): %v", table, then.at, now, err)
		case !maps.Equal(got, want):
			t.Errorf("%s as of %s (now: %t) is not what it was: %s", table, then.at, now, differences(want, got))
		default:
			toldOf++
		}
	}
	return toldOf
}

func differences(want, got map[string]int) (text string) {
	n := 0
	for row, times := range want {
		if got[row] != times {
			if n++; n <= 3 {
				text += fmt.Sprintf("\n  %d times instead of %d: %.300s", got[row], times, row)
			}
		}
	}
	m := 0
	for row, times := range got {
		if _, known := want[row]; !known {
			if m++; m <= 3 {
				text += fmt.Sprintf("\n  %d times, and never was: %.300s", times, row)
			}
		}
	}
	return fmt.Sprintf("%d rows are wrong, %d too many:%s", n, m, text)
}
