package audit

import (
	"fmt"
	"slices"

	"github.com/hindsight-go/audit/store"
)

// turn is when something about a table became otherwise: at position, or, where
// that is not known better, at some time behind after.
type turn struct {
	after, position LSN
	// came reports whether rows came to the table, not only left it.
	came bool
}

// turnOf returns when a version came to be.
func turnOf(v store.Version) turn {
	if v.After != 0 {
		return turn{after: v.After, position: v.Position}
	}
	return turn{after: v.Position - 1, position: v.Position}
}

// in reports whether a turn may lie between two positions.
func (t turn) in(from, to LSN) bool { return t.position > from && t.after < to }

// ownVersions returns the versions of this very table, or, where its partitions
// stand for it, those under its name.
func (p *pastTable) ownVersions() ([]store.Version, error) {
	var own, named []store.Version
	for _, v := range p.facts.Versions {
		switch {
		case v.RelationID == p.oid && v.Dropped:
			if v.Position <= p.through {
				return nil, p.refuse(ErrNotTracked, "it was dropped at "+v.Position.String(), 0)
			}
		case v.RelationID == p.oid:
			own = append(own, v)
		case v.Schema == p.schema && v.Table == p.name && !v.Dropped && v.Position >= p.covered.From && (p.covered.Until == 0 || v.Position < p.covered.Until):
			named = append(named, v)
		}
	}
	if len(own) == 0 {
		return named, nil
	}
	return own, nil
}

// decide refuses a moment of which nobody can say whether the table had been
// altered by then.
func (p *pastTable) decide(versions []store.Version, at int) error {
	if at+1 < len(versions) {
		next := versions[at+1]
		renamed := next.Schema != versions[at].Schema || next.Table != versions[at].Table
		if next.After != 0 && next.After < p.through && (renamed || !sameColumns(versions[at], next)) {
			return p.refuse(ErrIncomplete, fmt.Sprintf("it was altered at some time between %s and %s, and whether before the moment nobody saw (event triggers do, see Config.NoEventTrigger)", next.After, next.Position), next.Position)
		}
	}
	for _, v := range p.facts.Versions {
		if v.RelationID == p.oid && v.Dropped && v.After != 0 && v.After < p.through && p.through < v.Position {
			return p.refuse(ErrIncomplete, fmt.Sprintf("it was dropped at some time between %s and %s, and whether it was altered before nobody saw (event triggers do, see Config.NoEventTrigger)", v.After, v.Position), 0)
		}
	}
	if versions[at].Guessed {
		return p.refuse(ErrIncomplete, "it was altered several times before capture saw it, and which of its columns was which cannot be told", 0)
	}
	return nil
}

// sameColumns reports whether a row of one version is a row of the other, and the
// same partitions hold them.
func sameColumns(a, b store.Version) bool {
	return slices.Equal(a.Columns, b.Columns) && slices.Equal(a.Parts, b.Parts)
}

// inherits refuses a table that others inherit from: what SELECT shows of it are
// their rows, too, and their past is another question.
func (p *pastTable) inherits(versions []store.Version) error {
	parent := p.live != nil && p.live.Kind == "r" && len(p.live.Parts) > 0
	for _, v := range versions {
		parent = parent || v.Kind == "r" && len(v.Parts) > 0
	}
	if parent {
		return p.refuse(ErrIncomplete, "other tables inherit from it, or did: ask for the past of each of them, and of this one with none", 0)
	}
	return nil
}

// turnsOfKey returns when the table got another key.
func (p *pastTable) turnsOfKey(versions []store.Version) []turn {
	var turns []turn
	for i := 1; i < len(versions); i++ {
		before, after := versions[i-1], versions[i]
		unseen := after.After != 0 && after.KeyConstraint != before.KeyConstraint // it may have had none for a while
		if unseen || !sameKey(before.KeyNumbers(), after.KeyNumbers()) || after.Guessed != before.Guessed {
			turns = append(turns, turnOf(versions[i]))
		}
	}
	if n := len(versions); n > 0 && p.live != nil && !sameKey(versions[n-1].KeyNumbers(), p.live.KeyNumbers()) {
		turns = append(turns, turn{after: versions[n-1].Position, position: maxLSN}) // nobody has told of it yet
	}
	return turns
}

func sameKey(a, b []int16) bool {
	return slices.Equal(a, b) && !slices.ContainsFunc(a, func(n int16) bool { return n <= 0 })
}

// turnsOfParts returns when rows left a partitioned table together with a
// partition, or may have come with one, and notes the partitions that it has now
// and had not at the moment.
func (p *pastTable) turnsOfParts(versions []store.Version, at int) []turn {
	if at < 0 || versions[at].Kind != "p" {
		return nil
	}
	var turns []turn
	for i := 1; i < len(versions); i++ {
		before, after := versions[i-1].Parts, versions[i].Parts
		left := slices.ContainsFunc(before, func(oid uint32) bool { return !slices.Contains(after, oid) })
		came := slices.ContainsFunc(after, func(oid uint32) bool { return !slices.Contains(before, oid) })
		if came = came && versions[i].Attached; left || came {
			t := turnOf(versions[i])
			t.came = came
			turns = append(turns, t)
		}
	}
	if p.live == nil {
		return turns
	}
	for _, oid := range p.live.Parts {
		if !slices.Contains(versions[at].Parts, oid) {
			p.joined = append(p.joined, oid)
		}
	}
	last := versions[len(versions)-1]
	if slices.ContainsFunc(last.Parts, func(oid uint32) bool { return !slices.Contains(p.live.Parts, oid) }) {
		turns = append(turns, turn{after: last.Position, position: maxLSN})
	}
	return turns
}

// departed returns the first position after the moment at which a partition that
// the table had then was no part of it any more, 0 if they all are.
func (p *pastTable) departed() LSN {
	if p.then == nil || p.then.Kind != "p" {
		return 0
	}
	gone := func(parts []uint32) bool {
		return slices.ContainsFunc(p.then.Parts, func(oid uint32) bool { return !slices.Contains(parts, oid) })
	}
	for _, v := range p.facts.Versions {
		if v.RelationID == p.oid && v.Position > p.through && !v.Dropped && gone(v.Parts) {
			return v.Position
		}
	}
	if p.live != nil && gone(p.live.Parts) {
		return maxLSN
	}
	return 0
}

// came refuses a row that a change found behind the time at which a partition came
// with rows of its own: it may be one of them, and then it was not in the table.
func (p *pastTable) came(change LSN) error {
	for _, t := range p.parted {
		if t.came && t.position > p.through && t.after < change {
			return p.refuse(ErrIncomplete, "a partition was attached to it since, and which rows came with it is not in history", t.position%maxLSN)
		}
	}
	return nil
}

// keyed reports whether rows can be told apart by their key on the way between the
// moment and a base.
func (p *pastTable) keyed(b base) bool {
	from, to := p.through, b.position
	if b.forward(p) {
		from, to = b.position, p.through
	}
	return len(p.key) > 0 && !p.turned(from, to)
}

// turned reports whether the table may have got another key between two positions.
func (p *pastTable) turned(from, to LSN) bool {
	return slices.ContainsFunc(p.rekeyed, func(t turn) bool { return t.in(from, to) })
}

// decideKey refuses a question about a key at a moment of which nobody can say
// whether the table had got another by then.
func (p *pastTable) decideKey() error {
	for _, t := range p.rekeyed {
		if t.after < p.through && p.through < t.position {
			return p.refuse(ErrIncomplete, fmt.Sprintf("it got another primary key at some time between %s and %s, and whether before the moment nobody saw", t.after, t.position), t.position%maxLSN)
		}
	}
	return nil
}

// rekeyedFrom returns from where on the text of a key has meant what it means at the
// moment.
func (p *pastTable) rekeyedFrom() (from LSN) {
	for _, t := range p.rekeyed {
		if t.after < p.through {
			from = max(from, min(t.position, p.through))
		}
	}
	return from
}

// era returns between which positions the text of a key means the row that it
// meant at the moment: in (from, to].
func (p *pastTable) era() (from, to LSN) {
	to = maxLSN
	limit := func(t turn, both bool) {
		switch {
		case t.position <= p.through:
			from = max(from, t.position)
		case t.after >= p.through && both:
			to = min(to, t.after)
		case t.after < p.through: // it may be either side
			from = p.through
			if both {
				to = p.through
			}
		}
	}
	for _, t := range p.rekeyed {
		limit(t, true)
	}
	for _, t := range p.parted {
		limit(t, t.came)
	}
	return from, to
}
