package audit

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/store"
)

// Extent is how far the history of the source reaches, and what is missing of it.
type Extent struct {
	// Database is the name of the source.
	Database string `json:"database"`
	// Stored is up to where the store holds everything.
	Stored LSN `json:"stored"`
	// Dropped is the last position in what retention has dropped, and DroppedUntil the
	// commit time up to which it was. They are zero where nothing was. In a store of several
	// sources Dropped may be a position of another one.
	Dropped      LSN       `json:"dropped,omitzero"`
	DroppedUntil time.Time `json:"droppedUntil,omitzero"`
	// Gaps are the holes, oldest first.
	Gaps []Gap `json:"gaps"`
	// AskedAt is the moment of all this, by the store's clock. A change with a later
	// CreatedAt may be behind gaps that are not in Gaps.
	AskedAt time.Time `json:"askedAt"`
}

// Extent returns how far the history of the source reaches. It asks the store alone, in one
// small transaction, and is for programs that copy the history elsewhere: a watch says
// nothing of what is missing between two of its changes. [Client.Status] has more.
//
// It returns [ErrNoHistory] where nothing was ever captured.
func (c *Client) Extent(ctx context.Context) (Extent, error) {
	if err := c.open(); err != nil {
		return Extent{}, err
	}
	database, err := c.history.Database(ctx)
	if err != nil {
		return Extent{}, err
	}
	e, err := c.history.Records.Extent(ctx, database)
	switch {
	case errors.Is(err, store.ErrNoCheckpoint), history.IsUndefined(err):
		return Extent{}, ErrNoHistory
	case err != nil:
		return Extent{}, history.OpError("ask how far history reaches", err)
	}
	return Extent{
		Database: database, Stored: e.Stored, Dropped: e.Dropped, DroppedUntil: e.DroppedUntil.UTC(),
		Gaps: list(e.Gaps), AskedAt: e.AskedAt.UTC(),
	}, nil
}

type extentJSON struct {
	plainExtent
	Stored  jsonLSN `json:"stored"`
	Dropped jsonLSN `json:"dropped,omitzero"`
	Gaps    []Gap   `json:"gaps"`
}

type plainExtent Extent

// MarshalJSON writes positions as texts.
func (e Extent) MarshalJSON() ([]byte, error) {
	return json.Marshal(extentJSON{plainExtent(e), jsonLSN(e.Stored), jsonLSN(e.Dropped), list(e.Gaps)})
}

// UnmarshalJSON reads what [Extent.MarshalJSON] writes.
func (e *Extent) UnmarshalJSON(text []byte) error {
	var in extentJSON
	if err := json.Unmarshal(text, &in); err != nil {
		return err
	}
	*e = Extent(in.plainExtent)
	e.Stored, e.Dropped, e.Gaps = LSN(in.Stored), LSN(in.Dropped), in.Gaps
	return nil
}
