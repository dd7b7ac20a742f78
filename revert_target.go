package audit

import (
	"context"
	"slices"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// target is a table that a revert writes to, as it is now.
type target struct {
	*pgcatalog.Table
	// except are the names of columns that the revert leaves out; withheld are those of
	// them of which history does not store the values.
	except, withheld []string
	// named are those that it restores whatever else is said.
	named []string
	// former are names that columns had once, and that no column has now.
	former map[int][]string
	// pastTypes are types that columns had once.
	pastTypes []pastType
	// unrestored are the columns that it leaves out by themselves, leftOut those of them
	// that the selection changed.
	unrestored map[string]UnrestoredReason
	never      []capture.ColumnPattern // those of columns that are gone included
	leftOut    map[string]bool
	pgcatalog.Constraints
	// keyAt says where the key's columns stand.
	keyAt []int
	// keyless reports whether there is no primary key: rows are found by their place.
	keyless bool
	// rank orders the tables: parents before children.
	rank int
}

// label is the table's name for people and for filters.
func (t *target) label() string { return pgcatalog.Qualified(t.Schema, t.Name) }

// printsOtherwise reports whether keys may be equal and have different texts.
func (t *target) printsOtherwise() bool {
	return !t.keyless && slices.ContainsFunc(t.keyAt, func(at int) bool {
		return t.Columns.List[at].PrintsOtherwise()
	})
}

// noteFormer notes a name that a column had once.
func (t *target) noteFormer(at int, name string) {
	if _, taken := t.Columns.Index[name]; taken || slices.Contains(t.former[at], name) {
		return
	}
	if t.former == nil {
		t.former = make(map[int][]string)
	}
	t.former[at] = append(t.former[at], name)
}

// isNamed reports whether a column has one of the names, or had it where no other has it now.
func (t *target) isNamed(at int, names []string) bool {
	return slices.Contains(names, t.Columns.List[at].Name) ||
		slices.ContainsFunc(t.former[at], func(former string) bool { return slices.Contains(names, former) })
}

// from names the table in FROM, UPDATE and DELETE. What inherits from it has
// rows, and keys, of its own.
func (t *target) from() string {
	if t.Kind == "p" {
		return t.Ident()
	}
	return "ONLY " + t.Ident()
}

// describeTargets reads from the catalog all that a revert has to know of the
// tables.
func (c *Client) describeTargets(ctx context.Context, db capture.Querier, targets map[uint32]*target) error {
	oids := make([]uint32, 0, len(targets))
	for oid := range targets {
		oids = append(oids, oid)
	}
	slices.Sort(oids)
	all, err := pgcatalog.ReadConstraints(ctx, db, oids)
	if err != nil {
		return history.OpError("read constraints", err)
	}
	for oid, t := range targets {
		if t.Constraints = *all[oid]; !t.keyless {
			continue
		}
		t.KeyOperators = placeOps
		for _, f := range t.Parents {
			f.ChildKey = t.Key
		}
		for _, f := range t.Children {
			f.ParentKey = t.Key
		}
	}
	return nil
}
