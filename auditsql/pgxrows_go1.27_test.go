//go:build go1.27

package auditsql_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/hindsight-go/audit/audittest"
)

// counted is a Scanner that fails at its first call, so that a second shows.
type counted struct{ calls int }

func (c *counted) Scan(any) error {
	if c.calls++; c.calls == 1 {
		return errors.New("at first")
	}
	return nil
}

type (
	name    string
	moment  time.Time
	payload []byte
	endless *endless
)

// Every destination gets from a stamped statement what stdlib gives it: by database/sql
// for what that knows, by pgx for the rest.
func TestScan_DestinationsOfPgx(t *testing.T) {
	t.Parallel()
	database := audittest.NewDatabase(t)
	database.Exec(t, todoSQL)
	expressions := []string{
		"ARRAY['John', NULL]", "ARRAY['John', 'Jane']", "ARRAY[1, 2]", "ARRAY[[1, 2], [3, 4]]", "NULL::int[]", `'{"a": [1.10]}'::jsonb`, "'[1,5)'::int4range",
		"true", "7::int2", "7", "7::int8", "1.10::numeric", "1.5::float8", "'7'", `'\x0001ff'::bytea`, "NULL::text", "NULL::bytea", "'a8098c1a-f86e-11da-bd1a-00112444be1e'::uuid",
		"'2024-02-29'::date", "'infinity'::date", "'2024-02-29 12:34:56.789012+05:30'::timestamptz", "'12:34:56'::time", "'1 day'::interval", "'10.0.0.1'::inet", "ROW(1, 'a')", "'(1,2)'::point",
	}
	destinations := []reflect.Type{
		reflect.TypeFor[[]string](), reflect.TypeFor[[]*string](), reflect.TypeFor[[]int32](), reflect.TypeFor[[][]int](), reflect.TypeFor[map[string]any](), reflect.TypeFor[pgtype.Range[int32]](),
		reflect.TypeFor[pgtype.FlatArray[int]](), reflect.TypeFor[pgtype.FlatArray[byte]](), reflect.TypeFor[pgtype.PreallocBytes](), reflect.TypeFor[pgtype.Numeric](), reflect.TypeFor[pgtype.Interval](),
		reflect.TypeFor[pgtype.Point](), reflect.TypeFor[bool](), reflect.TypeFor[int](), reflect.TypeFor[uint8](), reflect.TypeFor[float32](), reflect.TypeFor[string](), reflect.TypeFor[any](),
		reflect.TypeFor[[]byte](), reflect.TypeFor[*int](), reflect.TypeFor[**string](), reflect.TypeFor[*[]string](), reflect.TypeFor[sql.NullInt64](), reflect.TypeFor[sql.Null[string]](), reflect.TypeFor[time.Time](),
		reflect.TypeFor[*time.Time](), reflect.TypeFor[name](), reflect.TypeFor[moment](), reflect.TypeFor[payload](), reflect.TypeFor[[16]byte](), reflect.TypeFor[struct{ A int }](),
		reflect.TypeFor[counted](), reflect.TypeFor[time.Duration](), reflect.TypeFor[chan int](),
	}
	query := "INSERT INTO todo VALUES ($1, $2) RETURNING " + strings.Join(expressions, ", ")
	for _, d := range []aDriver{ofPgx, drivers[3], drivers[4], drivers[5]} {
		db, connector := d.open(t, parse(t, database, nil))
		// What pgx says of NULL may depend on what its connection has scanned before.
		bare := openDB(t, d.connector(parse(t, database, nil)))
		for j, destination := range destinations {
			plain := scanned(t, t.Context(), bare, destination, len(expressions), query, d.name, 2*j)
			stamped := scanned(t, by(t.Context(), "ann"), db, destination, len(expressions), query, d.name, 2*j+1)
			if diff := cmp.Diff(plain, stamped); diff != "" {
				t.Errorf("%s: %v: %s", d.name, destination, diff)
			}
		}
		if stats := connector.Stats(); stats.Stamped != uint64(len(destinations)) {
			t.Errorf("%s: %+v", d.name, stats)
		}
	}
}

// scanned says what came of scanning each column into a destination of a type.
func scanned(t *testing.T, ctx context.Context, db *sql.DB, destination reflect.Type, columns int, query string, args ...any) []string {
	t.Helper()
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	if !rows.Next() {
		t.Fatal("no row: ", rows.Err())
	}
	var seen []string
	nulls := []int{4, 15, 16}
	for i := range columns {
		if slices.Contains(nulls, i) && isFickle(destination) {
			continue
		}
		into := reflect.New(destination)
		ignoring := make([]any, columns)
		for j := range ignoring {
			ignoring[j] = new(ignored)
		}
		ignoring[i] = into.Interface()
		err := rows.Scan(ignoring...)
		seen = append(seen, fmt.Sprintf("%#v %v", dereferenced(into), err))
	}
	for _, odd := range []any{nil, (*int)(nil), 7} {
		ignoring := make([]any, columns)
		for j := range ignoring {
			ignoring[j] = new(ignored)
		}
		ignoring[0] = odd
		seen = append(seen, fmt.Sprint(rows.Scan(ignoring...)))
	}
	return append(seen, fmt.Sprint(rows.Next(), rows.Err()))
}

// isFickle reports whether pgx may or may not scan NULL into a type: where it has no plan
// it asks all the types that it knows, in no order.
func isFickle(destination reflect.Type) bool {
	return slices.Contains([]reflect.Kind{reflect.Array, reflect.Chan, reflect.Map, reflect.Struct}, destination.Kind())
}

// ignored takes any value.
type ignored struct{}

func (*ignored) Scan(any) error { return nil }

// dereferenced is what pointers lead to, whose addresses differ.
func dereferenced(v reflect.Value) any {
	for v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
	}
	if v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Pointer {
		var elements []any
		for i := range v.Len() {
			elements = append(elements, dereferenced(v.Index(i)))
		}
		return elements
	}
	return v.Interface()
}

// A pointer to pointers without an end is decided, not followed for ever.
func TestScan_EndlessPointers(t *testing.T) {
	t.Parallel()
	database := audittest.NewDatabase(t)
	database.Exec(t, todoSQL)
	db, _ := ofPgx.open(t, parse(t, database, nil))
	scan := func(ctx context.Context, id int) string {
		return fmt.Sprint(db.QueryRowContext(ctx, insert+" RETURNING id", "endless", id).Scan(new(endless)))
	}
	if plain, stamped := scan(t.Context(), 1), scan(by(t.Context(), "ann"), 2); plain != stamped || plain == "<nil>" {
		t.Errorf("%s, stamped %s", plain, stamped)
	}
}

// RawBytes point into what the driver holds, and stay until the next row.
func TestScan_RawBytes(t *testing.T) {
	t.Parallel()
	database := audittest.NewDatabase(t)
	database.Exec(t, todoSQL)
	db, _ := ofPgx.open(t, parse(t, database, nil))
	rows, err := db.QueryContext(by(t.Context(), "ann"), "INSERT INTO todo SELECT 'raw', i FROM generate_series(1, 3) i RETURNING 'row ' || id")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	var got []string
	for rows.Next() {
		var raw sql.RawBytes
		if err := rows.Scan(&raw); err != nil {
			t.Fatal(err)
		}
		got = append(got, string(raw))
	}
	if diff := cmp.Diff([]string{"row 1", "row 2", "row 3"}, got); diff != "" || rows.Err() != nil {
		t.Error(diff, rows.Err())
	}
}

// The rows of other drivers are read ahead, by Next.
func TestScan_RowsOfOtherDrivers(t *testing.T) {
	t.Parallel()
	database := audittest.NewDatabase(t)
	database.Exec(t, todoSQL)
	db, connector := other.open(t, parse(t, database, nil))
	ctx := by(t.Context(), "ann")
	conn, err := db.Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	offers := func(query string) (offers bool) {
		err := conn.Raw(func(c any) error {
			rows, err := c.(driver.QueryerContext).QueryContext(ctx, query, nil)
			if err != nil {
				return err
			}
			_, offers = rows.(driver.RowsColumnScanner)
			return rows.Close()
		})
		if err != nil {
			t.Fatal(err)
		}
		return offers
	}
	if !offers("SELECT 1") {
		t.Error("rows that are not stamped are not the driver's own")
	}
	if offers("INSERT INTO todo VALUES ('read ahead', 1) RETURNING id") {
		t.Error("rows that were read ahead say that the driver scans them")
	}
	if stats := connector.Stats(); stats.Stamped != 1 || stats.Lost != 0 {
		t.Errorf("%+v", stats)
	}
}
