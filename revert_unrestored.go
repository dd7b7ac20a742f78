package audit

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/internal/wal"
)

// Why a revert leaves a column out.
const (
	// UnrestoredByConfig is a column of Config.NeverRestored.
	UnrestoredByConfig UnrestoredReason = "config"
	// UnrestoredVersion is a column of Config.VersionColumns.
	UnrestoredVersion UnrestoredReason = "version"
	// UnrestoredByTrigger is a column that a trigger sets in every UPDATE, whatever the
	// statement says.
	UnrestoredByTrigger UnrestoredReason = "trigger"
)

// UnrestoredReason says why a revert does not restore a column.
type UnrestoredReason string

// UnrestoredColumn is a column that the selected changes changed, and that is neither
// restored nor counted as a conflict.
type UnrestoredColumn struct {
	// Table is in the form that [Query.ForTable] reads.
	Table  string           `json:"table"`
	Column string           `json:"column"`
	Reason UnrestoredReason `json:"reason"`
}

func (c UnrestoredColumn) String() string {
	return printable(c.Table) + " " + printable(c.Column) + " (" + string(c.Reason) + ")"
}

// AllColumns restores every column that the selection changed, those that
// Config.NeverRestored and Config.VersionColumns name included, and those that triggers
// set: each counts in conflicts then. It is for going back to a moment exactly.
func (r Reversal) AllColumns() Reversal {
	r.allColumns = true
	return r
}

// leaveOut finds the columns of a table that a revert leaves out by themselves.
func (a *atlas) leaveOut(ctx context.Context, t *target) error {
	t.unrestored, t.leftOut = make(map[string]UnrestoredReason), make(map[string]bool)
	if a.r.allColumns {
		return nil
	}
	if !a.r.noTriggers {
		set, err := columnsSetByTriggers(ctx, a.db, t.OID)
		if err != nil {
			return history.OpError("read triggers", err)
		}
		for _, name := range set {
			t.unrestored[name] = UnrestoredByTrigger
		}
	}
	t.never = slices.Concat(a.client.cfg.neverRestored, a.client.cfg.versions)
	for _, c := range t.Columns.List {
		means := func(p capture.ColumnPattern) bool { return p.Match(t.Schema, t.Name, c.Name) }
		switch {
		case slices.Contains(t.Key, c.Name):
			delete(t.unrestored, c.Name)
		case slices.ContainsFunc(a.client.cfg.versions, means):
			t.unrestored[c.Name] = UnrestoredVersion
		case slices.ContainsFunc(a.client.cfg.neverRestored, means):
			t.unrestored[c.Name] = UnrestoredByConfig
		}
	}
	return nil
}

// leaves reports whether the revert neither restores a column nor counts it in conflicts.
func (t *target) leaves(at int) bool { return t.leavesItself(at) || t.isNamed(at, t.except) }

// leavesItself reports whether a column is left out though nobody asked for that.
func (t *target) leavesItself(at int) bool {
	return t.unrestored[t.Columns.List[at].Name] != "" && !t.isNamed(at, t.named)
}

// leavesLost is leaves of a column that is gone.
func (t *target) leavesLost(name string) bool {
	return slices.Contains(t.except, name) || !slices.Contains(t.named, name) &&
		slices.ContainsFunc(t.never, func(p capture.ColumnPattern) bool { return p.Match(t.Schema, t.Name, name) })
}

// noteLeft notes that the selection changed a column that is left out.
func (t *target) noteLeft(at int) {
	if t.leavesItself(at) && !t.isNamed(at, t.except) {
		t.leftOut[t.Columns.List[at].Name] = true
	}
}

// isVersion reports whether a column is counted on when its row is restored.
func (t *target) isVersion(at int) bool {
	return t.unrestored[t.Columns.List[at].Name] == UnrestoredVersion && t.leavesItself(at)
}

// unrestoredColumns lists the columns that the selection changed and the revert leaves out.
func (a *atlas) unrestoredColumns() (list []UnrestoredColumn) {
	for _, t := range a.targets {
		for name := range t.leftOut {
			list = append(list, UnrestoredColumn{Table: t.label(), Column: name, Reason: t.unrestored[name]})
		}
	}
	slices.SortFunc(list, func(a, b UnrestoredColumn) int {
		return strings.Compare(a.Table+"\x00"+a.Column, b.Table+"\x00"+b.Column)
	})
	return list
}

// countOn lists the assignments that count on the versions of a row which is restored.
// The row goes by an alias, or by none.
func (t *target) countOn(alias string) (set []string) {
	if t.keyless {
		return nil // no program finds a row again without a key
	}
	for at, c := range t.Columns.List {
		if !t.isVersion(at) || c.Generated || t.dependsOn(c.Name) {
			continue
		}
		live := pgcatalog.ColumnIdent(alias, c.Name)
		name := pgcatalog.ColumnIdent("", c.Name)
		switch {
		case c.Kind.Base == wal.Number:
			set = append(set, fmt.Sprintf("%s = %s OPERATOR(pg_catalog.+) 1", name, live))
		case c.TypeOID == timestampOID || c.TypeOID == timestamptzOID:
			set = append(set, fmt.Sprintf("%s = GREATEST(%s OPERATOR(pg_catalog.+) '1 microsecond'::pg_catalog.interval, CURRENT_TIMESTAMP::%s)", name, live, c.TypeName))
		}
	}
	return set
}

const (
	timestampOID   = 1114
	timestamptzOID = 1184
)

// countedOn is the version behind one that the selection or others have given out.
func (t *target) countedOn(at int, d datum) datum {
	if column := &t.Columns.List[at]; t.isVersion(at) && column.Kind.Base == wal.Number {
		if n, err := strconv.ParseInt(string(d.text), 10, 64); err == nil {
			return datum{text: strconv.AppendInt(nil, n+1, 10), known: true}
		}
	}
	return d
}
