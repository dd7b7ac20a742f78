package audit_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// A music shop, with what sample databases of music shops have: artists with
// albums with tracks, customers with invoices with lines.
const musicShop = `
	CREATE TABLE artist (artist_id int PRIMARY KEY, name text NOT NULL);
	CREATE TABLE album (album_id int PRIMARY KEY, title text NOT NULL, artist_id int NOT NULL REFERENCES artist ON DELETE CASCADE);
	CREATE TABLE track (track_id int PRIMARY KEY, name text NOT NULL, album_id int NOT NULL REFERENCES album ON DELETE CASCADE, unit_price numeric(10,2) NOT NULL);
	CREATE TABLE customer (customer_id int PRIMARY KEY, name text NOT NULL, country text NOT NULL);
	CREATE TABLE invoice (invoice_id int PRIMARY KEY, customer_id int NOT NULL REFERENCES customer, invoice_date date NOT NULL);
	CREATE TABLE invoice_line (invoice_id int REFERENCES invoice ON DELETE CASCADE, line int, track_id int NOT NULL REFERENCES track ON DELETE CASCADE,
		unit_price numeric(10,2) NOT NULL, quantity int NOT NULL, PRIMARY KEY (invoice_id, line));
	CREATE VIEW track_listing AS SELECT t.track_id, t.name AS track, al.title AS album, ar.name AS artist
		FROM track t JOIN album al USING (album_id) JOIN artist ar USING (artist_id);
	INSERT INTO artist SELECT i, 'Artist ' || i FROM generate_series(1, 20) i;
	INSERT INTO album SELECT i, 'Album ' || i, (i - 1) % 20 + 1 FROM generate_series(1, 60) i;
	INSERT INTO track SELECT i, 'Track ' || i, (i - 1) % 60 + 1, 0.99 FROM generate_series(1, 600) i;
	INSERT INTO customer SELECT i, 'Customer ' || i, (ARRAY['Norway', 'Chile', 'India'])[i % 3 + 1] FROM generate_series(1, 30) i;
	INSERT INTO invoice SELECT i, (i - 1) % 30 + 1, '2024-01-01'::date + i FROM generate_series(1, 120) i;
	INSERT INTO invoice_line SELECT i, l, (i * 7 + l * 13) % 600 + 1, 0.99, l FROM generate_series(1, 120) i, generate_series(1, 4) l`

// What follows is in the style of sqlc: generated code, which knows nothing of the
// past.
type shopDB interface {
	Exec(context.Context, string, ...any) (pgconn.CommandTag, error)
	Query(context.Context, string, ...any) (pgx.Rows, error)
	QueryRow(context.Context, string, ...any) pgx.Row
}

type shopQueries struct{ db shopDB }

const salesByArtist = `-- name: SalesByArtist :many
SELECT ar.name, sum(l.unit_price * l.quantity)::text AS total
FROM invoice_line l
JOIN track t USING (track_id)
JOIN album al USING (album_id)
JOIN artist ar USING (artist_id)
JOIN invoice i USING (invoice_id)
JOIN customer c USING (customer_id)
WHERE c.country = $1
GROUP BY ar.artist_id, ar.name
ORDER BY ar.artist_id`

type salesByArtistRow struct {
	Name  string
	Total string
}

func (q *shopQueries) SalesByArtist(ctx context.Context, country string) ([]salesByArtistRow, error) {
	rows, err := q.db.Query(ctx, salesByArtist, country)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var items []salesByArtistRow
	for rows.Next() {
		var i salesByArtistRow
		if err := rows.Scan(&i.Name, &i.Total); err != nil {
			return nil, err
		}
		items = append(items, i)
	}
	return items, rows.Err()
}

const countListing = `-- name: CountListing :one
SELECT count(*), coalesce(max(track), '') FROM track_listing WHERE artist = $1`

func (q *shopQueries) CountListing(ctx context.Context, artist string) (n int64, last string, err error) {
	err = q.db.QueryRow(ctx, countListing, artist).Scan(&n, &last)
	return n, last, err
}

// shopState is what the queries said when a moment was the present.
type shopState struct {
	Sales  map[string][]salesByArtistRow
	Listed map[string]string
}

func shopNow(t *testing.T, db shopDB) shopState {
	t.Helper()
	q := &shopQueries{db}
	s := shopState{Sales: map[string][]salesByArtistRow{}, Listed: map[string]string{}}
	for _, country := range []string{"Norway", "Chile", "India"} {
		sales, err := q.SalesByArtist(t.Context(), country)
		if err != nil {
			t.Fatalf("sales in %s: %v", country, err)
		}
		s.Sales[country] = sales
	}
	for i := range 20 {
		artist := fmt.Sprintf("Artist %d", i+1)
		n, last, err := q.CountListing(t.Context(), artist)
		if err != nil {
			t.Fatalf("tracks of %s: %v", artist, err)
		}
		s.Listed[artist] = fmt.Sprintf("%d, up to %s", n, last)
	}
	return s
}

// Prices are raised by mistake, an artist is deleted with everything that hangs on
// it, the schema goes on: every moment still says what it said when it was now, to
// generated code, through joins and a view of the database.
func TestTheMusicShopRemembersItsMistakes(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, musicShop)
	conn := a.Connect(t)
	type moment struct {
		what string
		time time.Time
		said shopState
	}
	var moments []moment
	remember := func(what string) {
		m := moment{what: what, said: shopNow(t, conn)}
		if err := conn.QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&m.time); err != nil {
			t.Fatal(err)
		}
		moments = append(moments, m)
	}
	remember("in the beginning")
	for _, mistake := range []struct{ what, sql string }{
		{"after prices were raised", "UPDATE invoice_line SET unit_price = unit_price * 10 WHERE invoice_id % 2 = 0"},
		{"after an artist was deleted", "DELETE FROM artist WHERE artist_id = 7"},
		{"after customers moved", "UPDATE customer SET country = 'Chile' WHERE country = 'Norway' AND customer_id < 15"},
		{"after a key was changed", "INSERT INTO artist VALUES (7, 'Artist 7'); UPDATE track SET track_id = track_id + 5000 WHERE track_id NOT IN (SELECT track_id FROM invoice_line)"},
		{"after lines were lost", "DELETE FROM invoice WHERE invoice_id > 60"},
	} {
		a.Exec(t, mistake.sql)
		remember(mistake.what)
	}
	if diff := cmp.Diff(moments[1].said, moments[2].said); diff == "" {
		t.Fatal("the cascade has changed nothing")
	}
	for _, m := range moments {
		var got shopState
		err := a.Client.AsOf(m.time).View(t.Context(), func(tx pgx.Tx) error {
			got = shopNow(t, tx)
			return nil
		})
		if err != nil {
			t.Errorf("%s: %v", m.what, err)
		} else if diff := cmp.Diff(m.said, got); diff != "" {
			t.Errorf("%s (-then +as of then):\n%s", m.what, diff)
		}
	}
}
