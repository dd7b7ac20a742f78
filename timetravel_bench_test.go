package audit_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// benchRowsEnv is the number of rows of the large history that the benchmarks of
// time travel look at. Each has 50 versions.
const benchRowsEnv = "AUDIT_BENCH_ROWS"

const benchVersions = 50

// longHistory is a table of which every row has 50 versions. The last round of
// changes came last: version v of all rows was written before version v+1 of any.
type longHistory struct {
	*audittest.Audited
	rows  int
	first audit.LSN
}

// benchTransaction is how many changes a transaction has.
const benchTransaction = 500

// newLongHistory fills the store directly, with what capture would have written,
// at positions that the write-ahead log has passed.
func newLongHistory(b *testing.B, rows int) *longHistory {
	b.Helper()
	h := &longHistory{rows: rows}
	h.Audited = audittest.Open(b, audittest.NewDatabase(b), audit.Config{})
	h.Exec(b, `
		CREATE TABLE item (id int PRIMARY KEY, sku text NOT NULL, title text NOT NULL, price numeric(12,2) NOT NULL,
			stock int NOT NULL, active boolean NOT NULL, note text, updated timestamptz NOT NULL);
		CREATE TABLE shelf (id int PRIMARY KEY, place text NOT NULL)`)
	h.Exec(b, fmt.Sprintf("INSERT INTO item SELECT i, 'SKU-' || i, 'Item number ' || i || ' of the catalogue', i / 100.0, %d, true, NULL, '2024-01-01Z' FROM generate_series(1, %d) i", benchVersions, rows))
	h.Exec(b, fmt.Sprintf("INSERT INTO shelf SELECT i, 'Shelf ' || i FROM generate_series(1, %d) i", rows))
	if err := h.Client.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { h.Stop(b) })
	h.Exec(b, "UPDATE item SET stock = stock WHERE id = 1; UPDATE shelf SET place = place WHERE id = 1")
	h.Sync(b)
	h.first = must(audit.ParsePosition(audittest.Value[string](b, h.Database, "SELECT position::text FROM audit.checkpoints"))).LSN
	// A position for each transaction, 8 bytes from one to the next.
	passed := rows * benchVersions / benchTransaction * 8
	for range passed/1_000_000 + 1 {
		h.Exec(b, "SELECT pg_logical_emit_message(false, 'filler', repeat('x', 1000000))")
	}
	h.Sync(b)
	for version := 1; version <= benchVersions; version++ {
		h.Exec(b, fmt.Sprintf(`
			INSERT INTO audit.changes (position, sequence, committed_at, transaction_id, database, schema, "table", primary_key, operation, before, after, environment, queued_at)
			SELECT '%[1]s'::pg_lsn + 8 * (1 + n / %[2]d), n %% %[2]d + 1, now(), 3, current_database(), 'public', 'item', id::text, 'UPDATE',
				to_jsonb(i) || '{"stock": %[3]d, "updated": "2024-01-01 00:00:00+00"}', to_jsonb(i) || '{"stock": %[4]d, "updated": "2024-01-01 00:00:00+00"}', '', now()
			FROM (SELECT i, i.id, (i.id - 1) + %[5]d AS n FROM item i) item`,
			h.first, benchTransaction, version-1, version, (version-1)*rows))
	}
	h.Exec(b, "ANALYZE")
	h.Exec(b, "VACUUM audit.changes")
	return h
}

// before returns the moment after which there are n changes.
func (h *longHistory) before(n int) audit.Point {
	transactions := (h.rows*benchVersions - n) / benchTransaction
	return h.Client.AtPosition(audit.Position{LSN: h.first + audit.LSN(8*transactions)})
}

// versionOf is the stock that a row had when n changes were still to come.
func (h *longHistory) versionOf(id, n int) int {
	written := (h.rows*benchVersions - n) / benchTransaction * benchTransaction
	version := written / h.rows
	if id <= written%h.rows {
		version++
	}
	return version
}

func benchRows(b *testing.B) int {
	b.Helper()
	text := os.Getenv(benchRowsEnv)
	if text == "" {
		return 100_000
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1000 {
		b.Fatalf("%s: want a number from 1000", benchRowsEnv)
	}
	return n
}

func timed(b *testing.B, do func() error) time.Duration {
	b.Helper()
	begun := time.Now()
	if err := do(); err != nil {
		b.Fatal(err)
	}
	return time.Since(begun)
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

type benchItem struct {
	ID      int       `db:"id"`
	SKU     string    `db:"sku"`
	Title   string    `db:"title"`
	Price   float64   `db:"price"`
	Stock   int       `db:"stock"`
	Active  bool      `db:"active"`
	Note    *string   `db:"note"`
	Updated time.Time `db:"updated"`
}

// BenchmarkAsOfRow compares one row as of a moment with the bare look-up of its
// change by the index, in turns, in a small history and in a large one.
func BenchmarkAsOfRow(b *testing.B) {
	for _, rows := range []int{1000, benchRows(b)} {
		b.Run(fmt.Sprintf("changes=%d", rows*benchVersions), func(b *testing.B) {
			h := newLongHistory(b, rows)
			conn, err := pgx.Connect(b.Context(), h.URL())
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = conn.Close(b.Context()) }()
			const samples = 2000
			bare, loaded := make([]time.Duration, 0, samples), make([]time.Duration, 0, samples)
			for range samples + 200 { // the first ones warm up
				id, n := rand.IntN(rows)+1, rand.IntN(rows*(benchVersions-2))+rows
				p := h.before(n)
				at := audit.Position{LSN: h.first + audit.LSN(8*((rows*benchVersions-n)/benchTransaction))}
				bare = append(bare, timed(b, func() error { return bareLookup(b.Context(), conn, id, at) }))
				var item benchItem
				loaded = append(loaded, timed(b, func() error { return p.Table("item").Load(b.Context(), &item, id) }))
				if want := h.versionOf(id, n); item.Stock != want {
					b.Fatalf("row %d with %d changes to come: version %d, want %d", id, n, item.Stock, want)
				}
			}
			x, y := median(bare[200:]), median(loaded[200:])
			b.ReportMetric(float64(x.Microseconds()), "us/bare")
			b.ReportMetric(float64(y.Microseconds()), "us/AsOf")
			b.ReportMetric(float64(y)/float64(x), "AsOf/bare")
		})
	}
}

func bareLookup(ctx context.Context, conn *pgx.Conn, id int, at audit.Position) error {
	var lsn string
	var image []byte
	return conn.QueryRow(ctx, `
		SELECT c.position::text, c.after
		FROM audit.changes c
		WHERE c."table" = 'item' AND c.primary_key = $1 AND c.schema = 'public' AND c.database = current_database() AND c.position <= $2::text::pg_lsn
		ORDER BY c.position DESC, c.sequence DESC
		LIMIT 1`, strconv.Itoa(id), at.LSN.String()).Scan(&lsn, &image)
}

// BenchmarkAsOfTable reads a whole table with 1, 50 and 99 % of the changes still
// to come: by the strategy that is chosen, and by each of the two, in turns.
func BenchmarkAsOfTable(b *testing.B) {
	h := newLongHistory(b, benchRows(b))
	for _, percent := range []int{1, 50, 99} {
		b.Run(fmt.Sprintf("to come=%d%%", percent), func(b *testing.B) {
			n := h.rows * benchVersions / 100 * percent
			p := h.before(n)
			ways := []struct {
				name  string
				point audit.Point
			}{{"chosen", p}, {"scan", audit.Searching(p, true)}, {"probe", audit.Searching(p, false)}}
			took := make([][]time.Duration, len(ways))
			for round := range 2 * len(ways) {
				for turn := range ways {
					i := (round + turn) % len(ways) // what ran before has its effect on caches
					took[i] = append(took[i], timed(b, func() error { return h.readWhole(b.Context(), ways[i].point, n) }))
				}
			}
			for i, way := range ways {
				b.ReportMetric(float64(median(took[i]).Milliseconds()), "ms/"+way.name)
			}
			b.ReportMetric(float64(median(took[0]))/float64(min(median(took[1]), median(took[2]))), "chosen/best")
		})
	}
}

// readWhole reads the table, and checks every row.
func (h *longHistory) readWhole(ctx context.Context, p audit.Point, n int) error {
	count := 0
	for row, err := range p.Table("item").All(ctx) {
		if err != nil {
			return err
		}
		raw := row.RawValues()
		id, err := strconv.Atoi(string(raw[0]))
		if err != nil {
			return err
		}
		if stock := string(raw[4]); stock != strconv.Itoa(h.versionOf(id, n)) {
			return fmt.Errorf("row %d is version %s, not %d", id, stock, h.versionOf(id, n))
		}
		count++
	}
	if count != h.rows {
		return fmt.Errorf("%d of %d rows", count, h.rows)
	}
	return nil
}

// BenchmarkAsOfView measures what it takes to set up a View, by the rows that
// changed since, and a join by primary keys in it.
func BenchmarkAsOfView(b *testing.B) {
	h := newLongHistory(b, benchRows(b))
	for _, touched := range []int{0, h.rows / 1000, h.rows / 100, h.rows / 10, h.rows} {
		b.Run(fmt.Sprintf("touched=%d", touched), func(b *testing.B) {
			const join = "SELECT i.stock, s.place FROM item i JOIN shelf s ON s.id = i.id WHERE i.id = $1"
			var setUps, joins []time.Duration
			for range 5 {
				begun := time.Now()
				err := h.before(touched).View(b.Context(), func(tx pgx.Tx) error {
					for i := range 20 {
						id := rand.IntN(h.rows) + 1
						var stock int
						var place string
						took := timed(b, func() error { return tx.QueryRow(b.Context(), join, id).Scan(&stock, &place) })
						if want := h.versionOf(id, touched); stock != want {
							return fmt.Errorf("row %d is version %d, not %d", id, stock, want)
						}
						if i == 0 {
							setUps = append(setUps, time.Since(begun)) // tables are filled when they are first read
							continue
						}
						joins = append(joins, took)
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(median(setUps).Microseconds())/1000, "ms/setup")
			b.ReportMetric(float64(median(joins).Microseconds())/1000, "ms/join")
		})
	}
}
