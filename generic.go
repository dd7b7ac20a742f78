package audit

import (
	"context"
	"fmt"
)

// After returns the row as it was after a change, as a T: a struct, a map from string to
// any, or a pointer to one of these.
//
//	todo, err := audit.After[Todo](change)
//
// It is [Change.DecodeAfter] for where there is no variable yet, and returns [ErrNoImage]
// if there is no row after.
func After[T any](change Change) (T, error) {
	var row, none T
	if err := change.DecodeAfter(&row); err != nil {
		return none, err
	}
	return row, nil
}

// ListAsOf returns all rows of a table as they were, as a slice of T: of structs, of maps
// from string to any, or of pointers to structs.
//
//	todos, err := audit.ListAsOf[Todo](ctx, audit.AsOf(lastTuesday))
//	open, err := audit.ListAsOf[Todo](ctx, audit.BeforeRequest(id).Table("todo").Where("NOT done"))
//
// Of a [Point] the table is the one that T names, see [Point.Load]; a [PastTable] is a
// table, or some rows of it, by itself. It is [PastTable.List] for where there is no
// variable yet.
func ListAsOf[T any, P Point | PastTable](ctx context.Context, past P) ([]T, error) {
	var table PastTable
	switch past := any(past).(type) {
	case PastTable:
		table = past
	case Point:
		name, err := past.tableOfType(ctx, new(T))
		if err != nil {
			return nil, err
		}
		table = past.Table(name)
	}
	var rows []T
	if err := table.List(ctx, &rows); err != nil {
		return nil, err
	}
	return rows, nil
}

// VersionOf is a version of a row of which the row is a T.
type VersionOf[T any] struct {
	RowVersion
	// Value is the row, or nil where it was gone. Fields of columns that the version does
	// not know are zero: Row tells which it knows.
	Value *T `json:"value"`
}

// HistoryOf returns the versions of a row, oldest first, each as a T: a struct, or a map
// from string to any.
//
//	versions, err := audit.HistoryOf[Todo](ctx, audit.History("todo", 26))
//	for _, v := range versions {
//		if v.Exists() {
//			fmt.Println(v.FromTime, v.Value.Task)
//		}
//	}
//
// Columns go to fields by the rules of [Change.DecodeAfter]: a version that had other
// columns than the table has today is no error. Where a value does not fit its field, it
// is a [*DecodeError].
func HistoryOf[T any](ctx context.Context, row RowHistory) ([]VersionOf[T], error) {
	versions, err := row.List(ctx)
	if err != nil {
		return nil, err
	}
	typed := make([]VersionOf[T], len(versions))
	for i, v := range versions {
		typed[i].RowVersion = v
		if !v.Exists() {
			continue
		}
		// A version that no change made is what the next one found.
		change := v.Change
		if change == nil && i+1 < len(versions) {
			change = versions[i+1].Change
		}
		if change == nil {
			change = new(Change)
		}
		value := new(T)
		if err := change.decode(v.Row, value); err != nil {
			return nil, fmt.Errorf("decode the version of %s: %w", v.since(), err)
		}
		typed[i].Value = value
	}
	return typed, nil
}

// since says when a version began, for errors.
func (v RowVersion) since() string {
	if v.From.IsZero() {
		return "before the first change"
	}
	return v.From.String()
}
