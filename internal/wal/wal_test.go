package wal_test

import (
	"math"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/wal"
)

// The list of built-in types is by OID: the server knows what each of them is.
func TestBuiltinKindsAreTheServers(t *testing.T) {
	t.Parallel()
	conn := audittest.NewDatabase(t).Connect(t)
	rows, err := conn.Query(t.Context(), `
		SELECT t.oid, t.typname, coalesce(e.oid, 0), coalesce(e.typdelim::text, '')
		FROM pg_type t
		LEFT JOIN pg_type e ON e.oid = t.typelem AND e.typarray = t.oid
		WHERE t.oid < 16384`)
	if err != nil {
		t.Fatal(err)
	}
	type builtin struct {
		OID       uint32
		Name      string
		Elem      uint32
		Delimiter string
	}
	types, err := pgx.CollectRows(rows, pgx.RowToStructByPos[builtin])
	if err != nil {
		t.Fatal(err)
	}
	bases := map[string]wal.Base{
		"bool": wal.Bool, "int2": wal.Number, "int4": wal.Number, "int8": wal.Number, "oid": wal.Number,
		"float4": wal.Number, "float8": wal.Number, "numeric": wal.Number, "json": wal.JSON, "jsonb": wal.JSONB,
	}
	arrays := 0
	for _, b := range types {
		kind, known := wal.BuiltinKind(b.OID)
		if !known {
			t.Errorf("%s is built in and not known", b.Name)
		}
		if kind.Base != wal.Array {
			if kind.Base != bases[b.Name] {
				t.Errorf("%s is %v, want %v", b.Name, kind.Base, bases[b.Name])
			}
			continue
		}
		arrays++
		elem, _ := wal.BuiltinKind(b.Elem)
		if b.Elem == 0 || kind != wal.ArrayOf(elem, b.Delimiter[0]) {
			t.Errorf("%s is an array of %v with %q between; the server has element type %d, which is %v, and %q",
				b.Name, kind.Elem, kind.Delimiter, b.Elem, elem.Base, b.Delimiter)
		}
	}
	if len(types) < 300 || arrays < 50 {
		t.Errorf("of %d types %d are arrays", len(types), arrays)
	}
	if _, known := wal.BuiltinKind(16384); known {
		t.Error("a type of a user's is taken for a built-in one")
	}
}

// An element that is itself JSON could not be told from a dimension.
func TestArraysOfWhatKeepsItsText(t *testing.T) {
	t.Parallel()
	for base, want := range map[wal.Base]wal.Base{
		wal.String: wal.Array, wal.Bool: wal.Array, wal.Number: wal.Array,
		wal.JSON: wal.String, wal.JSONB: wal.String, wal.Array: wal.String,
	} {
		if got := wal.ArrayOf(wal.Kind{Base: base}, ','); got.Base != want {
			t.Errorf("an array of %v is %v, want %v", base, got.Base, want)
		}
	}
}

func TestTimesOfTheWAL(t *testing.T) {
	t.Parallel()
	for micros, want := range map[int64]time.Time{
		0:                   time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		-1:                  time.Date(1999, 12, 31, 23, 59, 59, 999_999_000, time.UTC),
		762_739_200_000_001: time.Date(2024, 3, 3, 0, 0, 0, 1000, time.UTC),
	} {
		if got := wal.Time(micros); !got.Equal(want) || got.Location() != time.UTC {
			t.Errorf("%d is %s, want %s", micros, got, want)
		}
	}
	for _, micros := range []int64{0, 1, -1, math.MaxInt64 / 4, math.MinInt64 / 4} {
		if got := wal.Microseconds(wal.Time(micros)); got != micros {
			t.Errorf("%d comes back as %d", micros, got)
		}
	}
}
