package capture

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
)

// CheckTimeline returns a *SourceMismatchError, as a permanent error, if a server
// on timeline now left the given earlier timeline before position: it was
// promoted, or restored, without what the history has up to there.
//
// Source: PostgreSQL documentation, "Streaming Replication Protocol",
// TIMELINE_HISTORY.
func CheckTimeline(ctx context.Context, connect *pgconn.Config, now, then int32, position LSN) error {
	config := replicationConfig(connect)
	config.DialFunc = connect.DialFunc // it may be the caller's own
	pg, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("connect for replication: %w", err)
	}
	defer func() { _ = pg.Close(context.WithoutCancel(ctx)) }()
	var history string
	if now > 1 {
		result, err := pglogrepl.TimelineHistory(ctx, pg, now)
		if err != nil {
			return fmt.Errorf("read history of timeline %d: %w", now, err)
		}
		history = string(result.Content)
	}
	end, ok, err := timelineEnd(history, then)
	switch {
	case err != nil:
		return fmt.Errorf("read history of timeline %d: %w", now, err)
	case ok && position <= end:
		return nil
	}
	reason := fmt.Sprintf("the history was captured on timeline %d up to %s, the server is on timeline %d", then, position, now)
	if ok {
		reason += ", which began at " + end.String()
	}
	return Permanent(&SourceMismatchError{
		Reason: reason + ": it was promoted or restored without what the history has",
		Fix:    "keep what follows in a schema of its own (Config.Schema); what the old history says after the restored moment did not happen here",
	})
}

// timelineEnd returns where a timeline ended, by the history of a later one. Each
// line is a timeline, where the next one branched off, and why.
func timelineEnd(history string, timeline int32) (end LSN, ok bool, err error) {
	for line := range strings.Lines(history) {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		number, err := strconv.ParseInt(fields[0], 10, 32)
		if err != nil {
			return 0, false, fmt.Errorf("timeline %q: %w", fields[0], err)
		}
		if int32(number) != timeline {
			continue
		}
		end, err = pglogrepl.ParseLSN(fields[1])
		return end, err == nil, err
	}
	return 0, false, nil
}
