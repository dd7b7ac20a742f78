package audit_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/store"
)

// epoch is when the histories of these tests begin. They have a partition for
// each of the three months from then on.
var epoch = time.Date(2024, 1, 10, 0, 0, 0, 0, time.UTC)

// history is a store that was filled by hand: what queries give is then known
// without any capture.
type history struct {
	db     *audittest.Database
	client *audit.Client
	schema string
}

func newHistory(t *testing.T) *history { return newHistoryIn(t, "audit") }

func newHistoryIn(t *testing.T, schema string) *history {
	t.Helper()
	db := audittest.NewDatabase(t)
	script, err := store.SetupSQL(store.Setup{Schema: schema, Roles: store.Roles{Writer: "postgres"}, Database: db.Name()})
	if err != nil {
		t.Fatal(err)
	}
	db.Exec(t, script)
	h := &history{db: db, schema: schema}
	for month := range 3 {
		from := time.Date(2024, time.Month(1+month), 1, 0, 0, 0, 0, time.UTC)
		db.Exec(t, fmt.Sprintf("CREATE TABLE %s PARTITION OF %s FOR VALUES FROM ('%s') TO ('%s')",
			h.table(fmt.Sprintf("changes_of_%d", month+1)), h.table("changes"),
			from.Format(time.RFC3339), from.AddDate(0, 1, 0).Format(time.RFC3339)))
	}
	h.client, err = audit.Open(t.Context(), audit.Config{SourceURL: db.URL(), Schema: schema})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *history) table(name string) string { return pgx.Identifier{h.schema, name}.Sanitize() }

// storedRow is a change as jsonb_to_recordset reads it.
type storedRow struct {
	Position      string          `json:"position"`
	Sequence      int             `json:"sequence"`
	CommittedAt   time.Time       `json:"committed_at"`
	TransactionID uint64          `json:"transaction_id"`
	Database      string          `json:"database"`
	Schema        string          `json:"schema"`
	Table         string          `json:"table"`
	PrimaryKey    *string         `json:"primary_key"`
	PreviousKey   *string         `json:"previous_key"`
	Operation     string          `json:"operation"`
	Before        json.RawMessage `json:"before"`
	After         json.RawMessage `json:"after"`
	Context       json.RawMessage `json:"context"`
	Environment   *string         `json:"environment"`
	Defect        *string         `json:"defect"`
}

// store writes the changes and, in the same transaction, the checkpoints behind
// them, as the writer does.
func (h *history) store(t *testing.T, changes ...audit.Change) {
	t.Helper()
	rows := make([]storedRow, len(changes))
	reached := map[string]audit.Position{}
	optional := func(s string) *string {
		if s == "" {
			return nil
		}
		return &s
	}
	for i, c := range changes {
		rows[i] = storedRow{
			Position: c.Position.LSN.String(), Sequence: c.Position.Sequence, CommittedAt: c.CommittedAt,
			TransactionID: c.TransactionID, Database: c.Database, Schema: c.Schema, Table: c.Table,
			Operation: string(c.Operation), Before: json.RawMessage(c.Before.String()), After: json.RawMessage(c.After.String()),
			Environment: optional(c.Environment), Defect: optional(c.Defect),
		}
		if c.HasKey {
			rows[i].PrimaryKey = &c.PrimaryKey
		}
		if c.KeyChanged {
			rows[i].PreviousKey = &c.PreviousKey
		}
		if c.Stamped {
			rows[i].Context = c.RawContext
		}
		if c.Position.Compare(reached[c.Database]) > 0 {
			reached[c.Database] = c.Position
		}
	}
	text, err := json.Marshal(rows)
	if err != nil {
		t.Fatal(err)
	}
	const columns = `position, sequence, committed_at, transaction_id, database, schema, "table", primary_key, previous_key,
		operation, before, after, context, environment, defect`
	conn := h.db.Connect(t)
	err = pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `
			INSERT INTO `+h.table("changes")+` (`+columns+`, queued_at)
			SELECT `+columns+`, now()
			FROM jsonb_to_recordset($1::jsonb) AS r (position pg_lsn, sequence integer, committed_at timestamptz,
				transaction_id bigint, database text, schema text, "table" text, primary_key text, previous_key text,
				operation text, before jsonb, after jsonb, context jsonb, environment text, defect text)`, string(text))
		if err != nil {
			return err
		}
		for database, position := range reached {
			if err := h.reach(t, tx, database, position); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// reach moves the checkpoint of a database behind a position.
func (h *history) reach(t *testing.T, tx pgx.Tx, database string, position audit.Position) error {
	t.Helper()
	_, err := tx.Exec(t.Context(), `
		INSERT INTO `+h.table("checkpoints")+` (database, slot, system_identifier, timeline, position)
		VALUES ($1, 'none', '1', 1, $2::pg_lsn)
		ON CONFLICT (database) DO UPDATE SET position = greatest(checkpoints.position, excluded.position)`,
		database, (position.LSN + 8).String())
	return err
}

// at is the position of the n-th transaction.
func at(n, sequence int) audit.Position {
	return audit.Position{LSN: pglogrepl.LSN(0x1000000 + 64*n), Sequence: sequence}
}

// change is an update of row n of public.todo by user 1, to be varied.
func change(n, sequence int, vary ...func(*audit.Change)) audit.Change {
	c := audit.Change{
		Position:      at(n, sequence),
		CommittedAt:   epoch.Add(time.Duration(n) * time.Minute),
		TransactionID: uint64(1000 + n),
		Database:      "shop",
		Schema:        "public",
		Table:         "todo",
		PrimaryKey:    fmt.Sprint(n),
		HasKey:        true,
		Operation:     audit.Update,
		Before:        audit.Image(fmt.Sprintf(`{"id": %d, "done": false}`, n)),
		After:         audit.Image(fmt.Sprintf(`{"id": %d, "done": true}`, n)),
	}
	for _, v := range vary {
		v(&c)
	}
	return c
}

func with(context string) func(*audit.Change) {
	return func(c *audit.Change) { c.Stamped, c.RawContext = true, json.RawMessage(context) }
}

func in(schema, table string) func(*audit.Change) {
	return func(c *audit.Change) { c.Schema, c.Table = schema, table }
}

func key(key string) func(*audit.Change) {
	return func(c *audit.Change) { c.PrimaryKey, c.HasKey = key, true }
}

func did(operation audit.Operation) func(*audit.Change) {
	return func(c *audit.Change) {
		c.Operation = operation
		switch operation {
		case audit.Create:
			c.Before = audit.Image("{}")
		case audit.Delete:
			c.After = audit.Image("{}")
		case audit.Truncate:
			c.Before, c.After, c.HasKey = audit.Image("{}"), audit.Image("{}"), false
		}
	}
}

// places names changes by their positions, as seen from the fixtures: "3#1".
func places(changes []audit.Change) []string {
	var names []string
	for _, c := range changes {
		names = append(names, fmt.Sprintf("%d#%d", (c.Position.LSN-at(0, 0).LSN)/64, c.Position.Sequence))
	}
	return names
}
