package faulttest

import (
	"regexp"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/audittest"
)

// Decoded reads what a replication slot with the plugin test_decoding has of a
// database: the text of each row that a transaction wrote, and the stamp that counts for
// it, the last one before it in the transaction or, without one, the first. It shares no
// code with what captures.
type Decoded struct{ db *audittest.Database }

// NewDecoded makes the slot, which is dropped with the test.
func NewDecoded(t testing.TB, db *audittest.Database) *Decoded {
	t.Helper()
	db.Exec(t, "SELECT pg_create_logical_replication_slot($1, 'test_decoding')", db.Name())
	t.Cleanup(func() { db.Exec(t, "SELECT pg_drop_replication_slot($1)", db.Name()) })
	return &Decoded{db: db}
}

var (
	decodedStamp = regexp.MustCompile(`(?s)^message: transactional: 1 prefix: audit, sz: \d+ content:(.*)$`)
	decodedRow   = regexp.MustCompile(`(?s)^table (\S+): (INSERT|UPDATE|DELETE): (.*)$`)
)

// Rows calls each for every row since the last call, in the order of the stream.
func (d *Decoded) Rows(t testing.TB, each func(table, operation, row, stamp string)) {
	t.Helper()
	conn := Connect(t, d.db.URL())
	rows, err := conn.Query(t.Context(), "SELECT data FROM pg_logical_slot_get_changes($1, NULL, NULL, 'include-xids', '0')", d.db.Name())
	if err != nil {
		t.Fatal(err)
	}
	stamp := ""
	var before [][]string // rows of the transaction that are waiting for its first stamp
	var data string
	flush := func() {
		for _, m := range before {
			each(m[1], m[2], m[3], stamp)
		}
		before = nil
	}
	_, err = pgx.ForEachRow(rows, []any{&data}, func() error {
		if data == "BEGIN" {
			stamp = ""
		} else if data == "COMMIT" {
			flush()
		} else if m := decodedStamp.FindStringSubmatch(data); m != nil {
			stamp = m[1]
			flush()
		} else if m := decodedRow.FindStringSubmatch(data); m != nil {
			if before = append(before, m); stamp != "" {
				flush()
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
