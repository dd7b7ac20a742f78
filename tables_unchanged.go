package audit

import (
	"context"
	"time"

	"github.com/hindsight-go/audit/capture"
)

// catalogSeen is the catalog as the last look at the tables found it, if that left nothing
// to do. A fingerprint that is empty stands for no catalog.
type catalogSeen struct {
	timeline           int32
	tables, structures capture.Fingerprint
}

// forgetLooks has the tables looked at as if for the first time: what the stream was told of
// them may lie in front of the slot, or in a gap.
func (r *run) forgetLooks() { r.seen, r.shapes = catalogSeen{}, nil }

const (
	// structuresShare is how many times as long as a fingerprint of the structures takes it
	// is not taken again: the periodic ones take half a percent of the time.
	structuresShare = 200
	// structuresPause is the longest time that this comes to.
	structuresPause = 30 * time.Second
)

// refreshIfChanged is refreshTables, unless there is nothing new for it to find: a catalog
// does not change without WAL, and not without another fingerprint.
func (c *Client) refreshIfChanged(ctx context.Context, r *run) error {
	if rest := LSN(r.rest.Load()); rest != 0 {
		here, err := c.history.Position(ctx)
		if err != nil || here == rest {
			return err
		}
	}
	select {
	case c.turn <- struct{}{}:
		same, err := c.unchanged(ctx, r)
		<-c.turn
		if err != nil || same {
			return err
		}
	default: // somebody sets up
	}
	return c.refreshTables(ctx, r, false)
}

// unchanged reports whether all is as the last look at the tables left it. Then this is a look as
// well: at its beginning all tables were published, and as the stream was told of them.
func (c *Client) unchanged(ctx context.Context, r *run) (bool, error) {
	was := r.seen
	if was.tables == "" {
		return false, nil
	}
	// What another instance has said of coverage since may be at odds with what there is.
	// So may what it has told the stream, of which a gap of its making has swallowed ours.
	if held, err := c.history.Records.HoldsSetup(ctx, r.holder); err != nil || !held {
		r.forgetLooks()
		return false, err
	}
	checkpoint, err := c.history.Records.Checkpoint(ctx, r.facts.Database)
	if err != nil || checkpoint.Timeline != was.timeline {
		return false, err
	}
	before, err := c.lookFrom(ctx)
	if err != nil {
		return false, err
	}
	if tables, err := c.setup.TablesFingerprint(ctx, r.seed); err != nil || tables != was.tables {
		return false, err
	}
	if time.Now().Before(r.structuresDue) {
		return true, nil // as far as it was looked
	}
	structures, err := c.structuresFingerprint(ctx, r)
	if err != nil {
		return false, err
	}
	if structures != was.structures {
		r.seen.structures = "" // for the look that follows
		return false, nil
	}
	return true, c.noteVerified(ctx, r, checkpoint, before)
}

// structuresFingerprint takes a fingerprint of the structures, and puts off the next by what
// that costs.
func (c *Client) structuresFingerprint(ctx context.Context, r *run) (capture.Fingerprint, error) {
	begun := time.Now()
	f, err := c.setup.StructuresFingerprint(ctx, r.seed)
	r.structuresDue = time.Now().Add(min(structuresShare*time.Since(begun), structuresPause))
	return f, err
}
