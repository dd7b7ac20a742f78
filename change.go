package audit

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/internal/rowimage"
	"github.com/hindsight-go/audit/store"
)

// Operation says what happened to a row.
type Operation string

// The operations, as they stand in the store.
const (
	// Create is an INSERT or a row of a COPY.
	Create Operation = "CREATE"
	// Update is an UPDATE, also one that left every value as it was.
	Update Operation = "UPDATE"
	// Delete is a DELETE, also one that a foreign key cascaded.
	Delete Operation = "DELETE"
	// Truncate is a TRUNCATE of the whole table. It has no row, no key and no
	// image.
	Truncate Operation = "TRUNCATE"
)

func (o Operation) valid() bool {
	switch o {
	case Create, Update, Delete, Truncate:
		return true
	}
	return false
}

// Change is one row-level event of the source: what happened to which row, in
// which transaction, and what the application said about it.
//
// A Change is a plain value; it may be copied and shared, as long as nobody
// writes to the bytes of its images.
type Change struct {
	// Position is the change's place in history. It identifies the change among
	// those of its Database.
	Position Position
	// CommittedAt is the commit time of the transaction by the clock of the
	// source, in microseconds and UTC. It may run backwards by some milliseconds
	// from one position to the next: order by Position.
	CommittedAt time.Time
	// TransactionID is the 64-bit id of the transaction, as the source's
	// pg_current_xact_id() shows it.
	TransactionID uint64

	// Database, Schema and Table say where the row was. A partition's row stands
	// under the name of the partitioned table.
	Database string
	Schema   string
	Table    string

	// PrimaryKey is the text of the row's key: PostgreSQL's text of the value for
	// a key of one column, a JSON array of such texts for several. HasKey is false
	// where the table has none, and for a TRUNCATE. See [Change.Key].
	PrimaryKey string
	HasKey     bool
	// PreviousKey is the key before an UPDATE that changed the key; KeyChanged is
	// true then.
	PreviousKey string
	KeyChanged  bool

	Operation Operation
	// Before is the row before the change: empty for a CREATE and a TRUNCATE.
	Before Image
	// After is the row after the change: empty for a DELETE and a TRUNCATE.
	After Image

	// Types are the types of the columns by name, as they were when the change was made.
	// They are nil where they are unknown: in a Change that was read from JSON. Changes of
	// a table share them; they must not be written to.
	Types map[string]ColumnType

	// Withheld are the columns of which history does not store the values: Before and
	// After have what their policy says in their place. See Config.Columns.
	Withheld map[string]ColumnPolicy

	// Context is what the application stamped. Stamped is false if it stamped
	// nothing, as with a fix made in psql; Context is zero then.
	Context Context
	Stamped bool
	// RawContext is the context as stored. It is nil if Stamped is false. It
	// tells what Context cannot: some clients stamp arrays.
	RawContext json.RawMessage
	// RevertClaimed reports that the context says that a revert made the change, and that
	// the register of reverts knows of none that did: anybody can stamp that who may write
	// to a tracked table. To a role that may not read the register, all are claims.
	RevertClaimed bool

	// Environment is that of the program that captured the change, or empty.
	Environment string
	// Defect says what could not be recorded faithfully, in words without
	// values. It is empty for a faithful record.
	Defect string
	// QueuedAt is when capture read the change, CreatedAt when the store's
	// transaction that wrote it began.
	QueuedAt  time.Time
	CreatedAt time.Time
}

// Row is the image of the row that says most: After, or Before for a DELETE.
func (c Change) Row() Image {
	if c.Operation == Delete {
		return c.Before
	}
	return c.After
}

// TableName returns the name of the table in the form that [Query.ForTable]
// reads: schema and table with a dot between, each in quotes where it must be.
func (c Change) TableName() string { return pgcatalog.Qualified(c.Schema, c.Table) }

// KeyParts returns the texts of the key's columns in key order, or nil if the
// change has no key.
//
// A text column as the whole key may hold what looks like the JSON array of a
// composite key. It is then taken apart as well; PrimaryKey is not.
func (c Change) KeyParts() []string {
	if !c.HasKey {
		return nil
	}
	return splitKey(c.PrimaryKey)
}

// PreviousKeyParts is [Change.KeyParts] of the key before an UPDATE that
// changed it, and nil for every other change.
func (c Change) PreviousKeyParts() []string {
	if !c.KeyChanged {
		return nil
	}
	return splitKey(c.PreviousKey)
}

// Key reads the key's columns, in key order, into the values that dst points
// to, by the rules of [Change.DecodeAfter]:
//
//	var id int64
//	err := change.Key(&id)
//
// The number of destinations has to be that of the key's columns.
func (c Change) Key(dst ...any) error {
	parts := c.KeyParts()
	if len(dst) == 1 && len(parts) > 1 {
		// One destination asks for the key of one column.
		parts = []string{c.PrimaryKey}
	}
	if len(parts) != len(dst) {
		return &DecodeError{Reason: fmt.Sprintf("the key has %d columns and there are %d destinations", len(parts), len(dst))}
	}
	for i, part := range parts {
		text, err := json.Marshal(part)
		if err != nil {
			return err
		}
		if err := decodeError(rowimage.DecodeValue(text, dst[i], fmt.Sprintf("key[%d]", i))); err != nil {
			return err
		}
	}
	return nil
}

func splitKey(key string) []string {
	if strings.HasPrefix(key, `["`) {
		var parts []string
		if json.Unmarshal([]byte(key), &parts) == nil && len(parts) > 1 && store.KeyText(parts...) == key {
			return parts
		}
	}
	return []string{key}
}

// DecodeBefore reads the row as it was before the change into dst. See
// [Change.DecodeAfter]. It returns [ErrNoImage] if there is no row before.
func (c Change) DecodeBefore(dst any) error {
	return c.decode(c.Before, dst)
}

// DecodeAfter reads the row as it was after the change into dst, which is a non-nil
// pointer to a struct or to a map with string keys. It returns [ErrNoImage] if there is
// no row after.
//
// Values are converted as pgx converts those of a query and as [Point.Load] does, by the
// types of the columns in Types; into any go the types of [PastRow.Values]. Columns of
// which Types says nothing go by the rules of [Image.Decode], which also says which
// column goes to which field.
//
// Fields for columns in Withheld are left as they are; into a map go the texts that stand
// for them.
//
// What does not fit is reported as a [*DecodeError]; dst may be partly written then.
func (c Change) DecodeAfter(dst any) error {
	return c.decode(c.After, dst)
}

func (c Change) decode(image Image, dst any) error {
	if image.IsEmpty() {
		if c.Operation == "" {
			return fmt.Errorf("decode the zero Change: %w", ErrNoImage)
		}
		return fmt.Errorf("decode %s of %s: %w", c.Operation, c.TableName(), ErrNoImage)
	}
	return decodeError(rowimage.Decode(image, dst, rowimage.Options{
		TypeOf: func(column string) (rowimage.Type, bool) {
			t, ok := c.Types[column]
			return rowimage.Type(t), ok
		},
		Withheld: func(column string) bool { return c.Withheld[column] != "" },
	}))
}
