package audit

import (
	"encoding/json"
	"time"

	"github.com/hindsight-go/audit/internal/rowimage"
)

// changeJSON is the stable JSON form of a change.
type changeJSON struct {
	Position      string                  `json:"position"`
	Sequence      int                     `json:"sequence"`
	CommittedAt   time.Time               `json:"committedAt"`
	TransactionID uint64                  `json:"transactionId"`
	Database      string                  `json:"database"`
	Schema        string                  `json:"schema"`
	Table         string                  `json:"table"`
	PrimaryKey    *string                 `json:"primaryKey"`
	PreviousKey   *string                 `json:"previousKey,omitempty"`
	Operation     Operation               `json:"operation"`
	Before        Image                   `json:"before"`
	After         Image                   `json:"after"`
	Context       json.RawMessage         `json:"context"`
	Stamped       bool                    `json:"stamped,omitempty"`
	RevertClaimed bool                    `json:"revertClaimed,omitempty"`
	Withheld      map[string]ColumnPolicy `json:"withheld,omitempty"`
	Environment   string                  `json:"environment,omitempty"`
	Defect        string                  `json:"defect,omitempty"`
	QueuedAt      time.Time               `json:"queuedAt"`
	CreatedAt     time.Time               `json:"createdAt"`
}

// MarshalJSON returns the change as an object whose members and their order do
// not change within a major version: position (the LSN), sequence, committedAt,
// transactionId, database, schema, table, primaryKey (null where there is
// none), previousKey (only where the key changed), operation, before, after,
// context (null where nothing was stamped), stamped (true, only where it was a null that
// was stamped), revertClaimed (true, only where the context says so of a revert that nobody knows), withheld (columns and their policies), environment and defect (only where there is one), queuedAt, createdAt.
func (c Change) MarshalJSON() ([]byte, error) { return json.Marshal(c.document()) }

func (c Change) document() changeJSON {
	out := changeJSON{
		Position:      string(appendLSN(nil, c.Position.LSN)),
		Sequence:      c.Position.Sequence,
		CommittedAt:   c.CommittedAt.UTC(),
		TransactionID: c.TransactionID,
		Database:      c.Database,
		Schema:        c.Schema,
		Table:         c.Table,
		Operation:     c.Operation,
		Before:        c.Before,
		After:         c.After,
		Withheld:      c.Withheld,
		Environment:   c.Environment,
		Defect:        c.Defect,
		QueuedAt:      c.QueuedAt.UTC(),
		CreatedAt:     c.CreatedAt.UTC(),
	}
	if c.HasKey {
		out.PrimaryKey = &c.PrimaryKey
	}
	if c.KeyChanged {
		out.PreviousKey = &c.PreviousKey
	}
	if c.Stamped {
		out.Context, out.Stamped = c.RawContext, rowimage.IsNull(c.RawContext)
	}
	out.RevertClaimed = c.RevertClaimed
	return out
}

// UnmarshalJSON reads what [Change.MarshalJSON] writes, so that an export can
// be read back.
func (c *Change) UnmarshalJSON(text []byte) error {
	var in changeJSON
	if err := json.Unmarshal(text, &in); err != nil {
		return err
	}
	lsn, err := parseLSN(in.Position)
	if err != nil {
		return err
	}
	*c = Change{
		Position:      Position{LSN: lsn, Sequence: in.Sequence},
		CommittedAt:   in.CommittedAt,
		TransactionID: in.TransactionID,
		Database:      in.Database,
		Schema:        in.Schema,
		Table:         in.Table,
		Operation:     in.Operation,
		Before:        in.Before,
		After:         in.After,
		Withheld:      in.Withheld,
		Environment:   in.Environment,
		Defect:        in.Defect,
		RevertClaimed: in.RevertClaimed,
		QueuedAt:      in.QueuedAt,
		CreatedAt:     in.CreatedAt,
	}
	if in.PrimaryKey != nil {
		c.PrimaryKey, c.HasKey = *in.PrimaryKey, true
	}
	if in.PreviousKey != nil {
		c.PreviousKey, c.KeyChanged = *in.PreviousKey, true
	}
	switch {
	case in.Stamped && len(in.Context) == 0:
		c.setContext(json.RawMessage("null"))
	case in.Stamped || !rowimage.IsNull(in.Context):
		c.setContext(in.Context)
	}
	return nil
}

// setContext takes the stored context; nil means that nothing was stamped. A context that
// is not an object is left to RawContext.
func (c *Change) setContext(raw json.RawMessage) {
	c.Context, c.Stamped, c.RawContext = Context{}, false, nil
	if len(raw) == 0 {
		return
	}
	c.Stamped, c.RawContext = true, raw
	c.Context = readContext(raw)
}
