package audit

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/store"
)

// base is a state of a table that is known whole, from which the one asked for is
// reached: backwards, by undoing the changes in between, or forwards, by doing
// them again.
type base struct {
	kind baseKind
	// position is where it is; maxLSN for the live table.
	position LSN
	keyframe int64
	// sequence is that of the TRUNCATE: its transaction may have gone on.
	sequence int
}

type baseKind int

const (
	baseLive baseKind = iota
	// baseKeyframe is a state that the store keeps.
	baseKeyframe
	// baseEmpty is just behind a TRUNCATE.
	baseEmpty
)

// forward reports whether the base is before the moment.
func (b base) forward(p *pastTable) bool { return b.position <= p.through }

// base finds a whole state to begin with, or says why there is none.
func (p *pastTable) base(ctx context.Context) (base, error) {
	if horizon := p.facts.Horizon; p.through < horizon.Position {
		e := &HistoryError{Table: p.qualified(), Asked: p.point.String(), Reason: ErrPastRetention, Earliest: Position{LSN: horizon.Position}, EarliestTime: horizon.Time}
		return base{}, e
	}
	truncations, err := p.truncations(ctx)
	if err != nil {
		return base{}, err
	}
	after := slices.IndexFunc(truncations, func(t truncation) bool { return t.position > p.through })
	if after < 0 {
		after = len(truncations)
	}
	liveErr := p.liveBase(truncations[after:])
	if liveErr == nil {
		return base{kind: baseLive, position: maxLSN}, nil
	}
	if b, ok := p.storedBase(truncations[:after], truncations[after:]); ok {
		return b, nil
	}
	return base{}, liveErr
}

// liveBase says why the live table is no base, or nil.
func (p *pastTable) liveBase(later []truncation) error {
	if gap, ok := p.gapIn(p.through, maxLSN); ok {
		e := p.refuse(ErrInGap, gap.Reason, gap.To)
		var refusal *HistoryError
		if errors.As(e, &refusal) {
			refusal.EarliestTime = gap.ToTime
		}
		return e
	}
	switch {
	case p.live == nil:
		return p.refuse(ErrIncomplete, "it was dropped since; rows that did not change while it was tracked are not in history. Client.Baseline, in time, keeps them", 0)
	case p.until != 0:
		return p.refuse(ErrIncomplete, "it is not tracked any more, and what was written to it since is not in history", p.next())
	case p.departed() != 0:
		return p.refuse(ErrIncomplete, "a partition was detached from it or dropped since, with rows that history has not all seen. Client.Baseline, in time, keeps them", p.departed()%maxLSN)
	case len(later) > 0:
		return p.refuse(ErrIncomplete, "it was truncated since; rows that did not change while it was tracked are not in history. Client.Baseline, in time, keeps them", later[0].position)
	}
	return nil
}

// publishedSQL is a condition on pg_class c: the table is in the publication $2 itself. A view
// asks in a session whose search_path is the application's.
const publishedSQL = `EXISTS (
	SELECT FROM pg_catalog.pg_publication_rel r
	JOIN pg_catalog.pg_publication p ON p.oid OPERATOR(pg_catalog.=) r.prpubid
	WHERE p.pubname OPERATOR(pg_catalog.=) $2 AND r.prrelid OPERATOR(pg_catalog.=) c.oid)`

// refuseUnpublished refuses a live table that a snapshot shows with rows that capture does not
// read: a part of it that came without event triggers, or that somebody took out of the
// publication, is noticed by the next look only, and until then coverage says nothing of it.
func (p *pastTable) refuseUnpublished(ctx context.Context, snapshot pgx.Tx) error {
	var names []string
	err := snapshot.QueryRow(ctx, `
		WITH RECURSIVE part (oid, published) AS (
			SELECT c.oid, `+publishedSQL+`
			FROM pg_catalog.pg_class c
			WHERE c.oid OPERATOR(pg_catalog.=) $1
			UNION ALL
			SELECT c.oid, part.published OR `+publishedSQL+`
			FROM part
			JOIN pg_catalog.pg_inherits i ON i.inhparent OPERATOR(pg_catalog.=) part.oid
			JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) i.inhrelid AND c.relispartition)
		SELECT coalesce(pg_catalog.array_agg(pg_catalog.format('%I.%I', n.nspname, c.relname)), '{}')
		FROM part
		JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) part.oid
		JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
		WHERE c.relkind OPERATOR(pg_catalog.=) 'r' AND NOT part.published`,
		p.oid, p.client.setup.Publication).Scan(&names)
	if err != nil {
		return history.OpError("look whether the live table is published", err)
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return p.refuse(ErrIncomplete, "capture does not read "+strings.Join(names, ", ")+" yet, or not any more: it is made out at the next look at the catalog (Config.RefreshInterval), or by Client.Refresh", 0)
}

// next returns where the table's next stay in coverage begins, or 0.
func (p *pastTable) next() LSN {
	for _, cov := range p.facts.Coverage {
		if cov.RelationID == p.oid && cov.From > p.through {
			return cov.From
		}
	}
	return 0
}

// gapIn returns a hole in history between two positions.
func (p *pastTable) gapIn(from, to LSN) (store.Gap, bool) {
	for _, g := range p.facts.Gaps {
		if g.To > from && g.From < to {
			return g, true
		}
	}
	return store.Gap{}, false
}

// storedBase finds a keyframe or a TRUNCATE from which the moment can be reached,
// the nearest one before it, or else the nearest one behind it.
func (p *pastTable) storedBase(before, after []truncation) (base, bool) {
	found, ok := base{}, false
	reachable := func(from, to LSN) bool {
		_, gap := p.gapIn(from, to)
		parted := slices.ContainsFunc(p.parted, func(t turn) bool { return t.in(from, to) })
		return !gap && !parted && from >= p.facts.Horizon.Position && from >= p.covered.From && (p.until == 0 || to <= p.until)
	}
	for _, k := range p.facts.Keyframes {
		if k.RelationID == p.oid && k.Position <= p.through && reachable(k.Position, p.through) {
			found, ok = base{kind: baseKeyframe, position: k.Position, keyframe: k.ID}, true
		}
	}
	for _, t := range before {
		switch {
		case t.position < found.position:
		case t.partial:
			found, ok = base{}, false // which rows it took is not in history
		case reachable(t.position, p.through):
			found, ok = base{kind: baseEmpty, position: t.position, sequence: t.sequence}, true
		}
	}
	if ok {
		return found, true
	}
	for _, k := range p.facts.Keyframes {
		if k.RelationID == p.oid && k.Position > p.through && reachable(p.through, k.Position) && (len(after) == 0 || k.Position < after[0].position) {
			return base{kind: baseKeyframe, position: k.Position, keyframe: k.ID}, true
		}
	}
	return base{}, false
}
