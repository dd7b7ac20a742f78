package audit

import (
	"fmt"
	"math"
	"slices"

	"github.com/hindsight-go/audit/store"
)

// nameSpan is a time under one name: positions in (from, to]. Of the first transaction, in
// which the table got the name, the changes behind the first begin ones are in it; of the
// last, in which it gave the name up, the first end ones.
type nameSpan struct {
	schema, name string
	from, to     LSN
	begin, end   int
}

// first is the place at which the table got the name, last that at which it gave it up.
func (s nameSpan) first() Position { return Position{LSN: s.from + 1, Sequence: s.begin} }

func (s nameSpan) last() Position { return Position{LSN: s.to, Sequence: s.end} }

// within is what is asked of a change c beside its position: another table may have, or
// have had, the name in the same transaction.
func (s nameSpan) within() (sql string) {
	if s.begin > 0 {
		sql = fmt.Sprintf(" AND (c.position <> '%s' OR c.sequence > %d)", s.from+1, s.begin)
	}
	if s.end < math.MaxInt {
		sql += fmt.Sprintf(" AND (c.position <> '%s' OR c.sequence <= %d)", s.to, s.end)
	}
	return sql
}

// spans returns under which names the changes of the table stand, and when: a
// name it gave up may be that of another table since.
func (p *pastTable) spans(own []store.Version) []nameSpan {
	spans := []nameSpan{{schema: p.schema, name: p.name, to: maxLSN, end: math.MaxInt}}
	if len(own) > 0 {
		spans = spans[:0]
	}
	for i, v := range own {
		at := Position{LSN: v.Position, Sequence: v.Sequence}
		if n := len(spans); n > 0 && spans[n-1].schema == v.Schema && spans[n-1].name == v.Table && !p.lent(own, spans[n-1], at) {
			continue
		}
		if n := len(spans); n > 0 && at.Compare(spans[n-1].last()) < 0 {
			// Its transaction may have changed rows before the name.
			spans[n-1].to, spans[n-1].end = v.Position, v.Sequence
		}
		span := nameSpan{schema: v.Schema, name: v.Table, from: v.Position - 1, begin: v.Sequence, to: maxLSN, end: math.MaxInt}
		if i == 0 {
			span.from, span.begin = 0, 0
		}
		spans = append(spans, span)
	}
	for i, s := range spans {
		for _, v := range p.facts.Versions {
			foreign := !v.Dropped && v.Schema == s.schema && v.Table == s.name && v.RelationID != p.oid && !p.isPart(own, v)
			at := Position{LSN: v.Position, Sequence: v.Sequence}
			switch {
			case foreign && at.Compare(s.first()) > 0 && at.Compare(spans[i].last()) < 0 && (len(own) == 0 || v.Position > own[0].Position):
				spans[i].to, spans[i].end = v.Position, v.Sequence
			case foreign && v.Position <= s.to && i == 0 && len(own) > 0 && v.Position < own[0].Position:
				spans[i].from = max(spans[i].from, p.covered.From-1)
			}
		}
	}
	return spans
}

// lent reports whether another table had the name for a while, before a place.
func (p *pastTable) lent(own []store.Version, s nameSpan, before Position) bool {
	return slices.ContainsFunc(p.facts.Versions, func(v store.Version) bool {
		at := Position{LSN: v.Position, Sequence: v.Sequence}
		return !v.Dropped && v.Schema == s.schema && v.Table == s.name && v.RelationID != p.oid && !p.isPart(own, v) && at.Compare(s.first()) > 0 && at.Compare(before) < 0
	})
}

// isPart reports whether a version under the table's name is one of its partitions.
func (p *pastTable) isPart(own []store.Version, v store.Version) bool {
	return v.Root == p.oid || len(own) > 0 && own[0].RelationID != p.oid && slices.ContainsFunc(own, func(o store.Version) bool { return o.RelationID == v.RelationID })
}
