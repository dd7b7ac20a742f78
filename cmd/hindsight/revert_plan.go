package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hindsight-go/audit"
)

// blockedError says what is in the way, and what can be done about it.
func (a *app) blockedError(plan *audit.Plan) error {
	total, inConflict := 0, 0
	var first audit.RowRef
	for row := range plan.Rows() {
		total++
		if row.Outcome == audit.InConflict {
			if inConflict++; inConflict == 1 {
				first = row.RowRef
			}
		}
	}
	if a.flags.output != formatTable {
		return exitf(exitConflict, "%d of %s are in conflict with later work. Nothing was written.", inConflict, plural(int64(total), "row"))
	}
	are, leaves := "are", "these rows as they are"
	if inConflict == 1 {
		are, leaves = "is", a.refText(first)+" as it is"
	}
	if inConflict == 0 { // of a cascade that finds no end
		return exitf(exitConflict, "%s in the way. Nothing was written.", plural(int64(len(plan.Blocked())), "conflict"))
	}
	return exitf(exitConflict, "%d of %s %s in conflict. Nothing was written.   --on-conflict skip   leaves %s", inConflict, plural(int64(total), "row"), are, leaves)
}

func (a *app) alreadyText(r *audit.PastRevert) string {
	by := ""
	if r.User != "" {
		by = " by " + printable(r.User)
	}
	return fmt.Sprintf("That was undone%s at %s, in revert %s: hindsight redo %s takes it back.", by, a.shortTime(r.CommittedAt), printable(r.ID), printable(r.ID))
}

func (a *app) resultText(r *audit.Result) string {
	text := fmt.Sprintf("Done: %s", countsText(r.Inserted, r.Updated, r.Deleted))
	if r.Unchanged > 0 {
		text += fmt.Sprintf(", %d as they should be already", r.Unchanged)
	}
	if r.Skipped > 0 {
		text += fmt.Sprintf(", %d skipped", r.Skipped)
	}
	text += "."
	for _, row := range r.Adjusted {
		text += fmt.Sprintf("\nA trigger has changed %s: %s", a.refText(row.RowRef), strings.Join(row.Columns, ", "))
	}
	return text
}

func countsText(inserts, updates, deletes int) string {
	return fmt.Sprintf("%s put back, %d restored, %d removed", plural(int64(inserts), "row"), updates, deletes)
}

// masked writes a document, with --no-values without the values in it.
func (a *app) masked(item any) error {
	if !a.flags.noValues {
		return a.document(item)
	}
	text, err := json.Marshal(item)
	if err != nil {
		return err
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var document any
	if err := decoder.Decode(&document); err != nil {
		return err
	}
	return a.document(maskDocument(document, a.keyless))
}

// refText names a row.
func (a *app) refText(r audit.RowRef) string {
	if a.flags.noValues && a.keyless[r.Table] {
		return tableName(r.Table) + " " + masked
	}
	return strings.TrimSpace(tableName(r.Table) + " " + keyText(r.Key))
}

func (a *app) printPlan(ctx context.Context, client *audit.Client, plan *audit.Plan, o revertOptions) error {
	title, err := a.planTitle(ctx, client, plan, o)
	if err != nil {
		return err
	}
	if err := a.writef("%s\n\n", title); err != nil {
		return err
	}
	conflicts := make(map[string][]audit.Conflict)
	for _, c := range plan.Conflicts {
		at := c.Table + "\x00" + strings.Join(c.Key, "\x00")
		conflicts[at] = append(conflicts[at], c)
	}
	out := &tablePrinter{app: a, w: a.writer(), flexible: []int{2}}
	n := 0
	for row := range plan.Rows() {
		if n++; n > plannedRows {
			continue
		}
		cells := a.plannedCells(row, conflicts[row.Table+"\x00"+strings.Join(row.Key, "\x00")])
		if err := out.add(cells, nil); err != nil {
			return err
		}
	}
	if err := out.close(); err != nil {
		return err
	}
	var b strings.Builder
	if n > plannedRows {
		fmt.Fprintf(&b, "  ... and %d more (-o json has all)\n", n-plannedRows)
	}
	for i, c := range plan.Cascaded {
		if i == 0 {
			b.WriteString("\nLater work that is undone as well:\n")
		}
		if i == plannedRows {
			fmt.Fprintf(&b, "  ... and %d more\n", len(plan.Cascaded)-i)
			break
		}
		fmt.Fprintf(&b, "  %s %s %s %s, by %s\n", c.Position, c.Operation, tableName(c.TableName()), keyText(c.KeyParts()), a.workText(&c))
	}
	for i, c := range plan.Unrestored {
		if i == 0 {
			b.WriteString("\nLeft as they are (--all-columns restores them):\n")
		}
		fmt.Fprintf(&b, "  %s: %s\n", tableName(c.Table), printable(c.Column))
	}
	if len(plan.Blocked()) == 0 && !plan.Empty() {
		fmt.Fprintf(&b, "\nPlan %s: %s", plan.Hash, countsText(plan.Inserts, plan.Updates, plan.Deletes))
		if plan.Skipped > 0 {
			fmt.Fprintf(&b, ", %d skipped", plan.Skipped)
		}
		b.WriteString(".\n")
	} else if n > 0 {
		b.WriteByte('\n')
	}
	return a.writef("%s", b.String())
}

// planTitle says what is undone: by whom it was done, when and where.
func (a *app) planTitle(ctx context.Context, client *audit.Client, plan *audit.Plan, o revertOptions) (string, error) {
	title := "Undo " + printable(plan.Of.String())
	switch plan.Of.Kind {
	case "row", "tables":
		title = "Put back " + o.title
	case "revert":
		title = "Redo: undo " + printable(plan.Of.String())
	}
	var users []string
	for _, o := range plan.Origins {
		user := o.User
		if user == "" {
			user = "(nobody said who)"
		}
		if !slices.Contains(users, user) {
			users = append(users, user)
		}
	}
	if len(users) > 0 {
		title += " by " + printable(users[0])
	}
	if len(users) > 1 {
		title += fmt.Sprintf(" and %d more", len(users)-1)
	}
	if !plan.First.IsZero() {
		first, err := client.Changes().AtPosition(plan.First).First(ctx)
		if err != nil && !errors.Is(err, audit.ErrNotFound) {
			return "", err
		}
		if err == nil {
			title += ", " + a.shortTime(first.CommittedAt)
		}
	}
	if len(plan.Origins) == 1 && plan.Origins[0].Endpoint != "" {
		title += ", " + printable(plan.Origins[0].Endpoint)
	}
	tables := make(map[string]bool)
	for row := range plan.Rows() {
		tables[row.Table] = true
	}
	return fmt.Sprintf("%s: %s in %s", title, plural(int64(plan.Changes), "change"), plural(int64(len(tables)), "table")), nil
}

// plannedCells is what becomes of a row, as a line.
func (a *app) plannedCells(row audit.PlannedRow, conflicts []audit.Conflict) []cell {
	sign, look := signOf(row.Action)
	var parts []string
	for _, c := range row.Columns {
		name := printable(c.Column) + ": "
		switch row.Action {
		case audit.Create:
			parts = append(parts, name+a.sqlValue(c.Restore))
		case audit.Delete:
			parts = append(parts, name+a.sqlValue(c.Live))
		default:
			parts = append(parts, name+a.sqlValue(c.Live)+" → "+a.sqlValue(c.Restore))
		}
	}
	text := strings.Join(parts, ", ")
	switch row.Outcome {
	case audit.InConflict, audit.Skipped:
		sign, look = "!", styleRed
		if row.Outcome == audit.Skipped {
			sign, look = "·", styleDim
		}
		texts := make([]string, len(conflicts))
		for i, c := range conflicts {
			texts[i] = a.conflictText(c)
		}
		if len(texts) > 0 {
			text = strings.Join(texts, "; ")
		}
		if row.Outcome == audit.Skipped {
			text = "skipped: " + text
		}
	case audit.AlreadyReverted:
		sign, look, text = "=", styleDim, "is as it should be already"
	default:
		for _, c := range conflicts { // which the policy has decided on
			text += "; over " + a.workText(c.Change)
		}
	}
	return []cell{styled("  "+sign, look), styled(a.refText(row.RowRef), styleBold), plain(text)}
}

// conflictText says what is in the way.
func (a *app) conflictText(c audit.Conflict) string {
	by := a.workText(c.Change)
	switch c.Kind {
	case audit.ColumnChanged, audit.ColumnInterleaved, audit.ValueReturned:
		return fmt.Sprintf("%s: %s (would be %s: changed by %s)", printable(c.Column), a.sqlValue(c.Live), a.sqlValue(c.Restore), by)
	case audit.RowGone:
		return "is gone: removed by " + by
	case audit.RowRecreated:
		return "is there again: made by " + by
	}
	text := c.Kind.String()
	for _, name := range []string{c.Column, c.Constraint} {
		if name != "" {
			text += " (" + printable(name) + ")"
		}
	}
	if c.Other != nil {
		text += " by " + a.refText(*c.Other)
	}
	if c.Change != nil {
		text += ": " + by
	}
	return text
}

// workText says whose later work something is.
func (a *app) workText(c *audit.Change) string {
	if c == nil {
		return "somebody whom history does not know yet"
	}
	text := "somebody without context"
	if c.Stamped {
		text = who(*c)
	}
	text += " at " + a.shortTime(c.CommittedAt)
	if c.Context.RequestID != "" {
		text += " in " + printable(c.Context.RequestID)
	}
	return text
}
