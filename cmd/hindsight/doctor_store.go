package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
)

// store says how the store stands.
func (d *doctor) store(ctx context.Context) error {
	pending, version, err := d.app.pendingMigrations(ctx)
	var newer *exitCodeError
	switch {
	case errors.Is(err, audit.ErrNoHistory):
		return nil // there is none yet, of which capture has told
	case errors.As(err, &newer):
		d.set("version", levelFail, newer.text, "go install github.com/hindsight-go/audit/cmd/hindsight@latest")
		return nil
	case err != nil:
		return err
	case len(pending) > 0:
		d.findings = append(d.findings, finding{
			Code: "version", Level: levelFail, Text: fmt.Sprintf("the store is at version %d, this command is of version %d: a newer program migrates it when it starts, or a DBA does", version, pending[len(pending)-1].Version),
			SQL: []string{migrationScript(d.app.flags.schema, "", pending)},
		})
		return nil
	}
	return d.app.onStore(ctx, func(conn *pgx.Conn) error { return d.partitions(ctx, conn, version) })
}

// month is the name of a partition of the history.
var month = regexp.MustCompile(`^changes_(\d{4}_\d{2})(_\d+)?$`)

// partitions says whether the turn of the month finds its partition, and whether what
// is to be dropped is.
func (d *doctor) partitions(ctx context.Context, conn *pgx.Conn, version int) error {
	table := pgx.Identifier{d.app.flags.schema, "changes"}.Sanitize()
	rows, err := conn.Query(ctx, "SELECT c.relname FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = $1::text::regclass ORDER BY 1", table)
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	var now time.Time
	if err := conn.QueryRow(ctx, "SELECT now()").Scan(&now); err != nil {
		return err
	}
	var months []string
	for _, name := range names {
		if match := month.FindStringSubmatch(name); match != nil {
			months = append(months, match[1])
		}
	}
	schema := pgx.Identifier{d.app.flags.schema}.Sanitize()
	first := time.Date(now.UTC().Year(), now.UTC().Month(), 1, 0, 0, 0, 0, time.UTC)
	whole := true
	for ahead := range 2 {
		if at := first.AddDate(0, ahead, 0); !slices.Contains(months, at.Format("2006_01")) {
			whole = false
			d.add("partitions", levelFail, fmt.Sprintf("history has no partition for %s", at.Format("January 2006")),
				fmt.Sprintf("SELECT %s.ensure_partition('%s')", schema, at.Format(time.RFC3339)))
		}
	}
	var size string
	if err := conn.QueryRow(ctx, "SELECT pg_catalog.pg_size_pretty(sum(pg_catalog.pg_total_relation_size(i.inhrelid))) FROM pg_catalog.pg_inherits i WHERE i.inhparent = $1::text::regclass", table).Scan(&size); err != nil {
		return err
	}
	kept := d.options.keep
	if kept == 0 {
		seconds, err := number(ctx, conn, "SELECT extract(epoch FROM max(keep))::bigint FROM "+schema+".retention_limit")
		if err != nil {
			return err
		}
		kept = time.Duration(seconds) * time.Second
	}
	if len(months) > 0 && kept > 0 {
		oldest, err := time.Parse("2006_01", months[0])
		if err == nil && oldest.AddDate(0, 1, 0).Before(now.Add(-kept)) {
			whole = false
			d.set("retention", levelWarn, fmt.Sprintf("history of %s is there, and is to be kept for %d days", oldest.Format("January 2006"), int(kept.Hours()/24)),
				fmt.Sprintf("Config.Retention of the program that captures: %d * 24 * time.Hour; it drops a month when all of it is older", int(kept.Hours()/24)))
		}
	}
	if whole {
		d.add("store", levelOK, fmt.Sprintf("the store is at version %d, takes %s, and has partitions ahead", version, size))
	}
	return nil
}

// manyTables bounds how many tables are asked for their columns.
const manyTables = 1000

// secrets names columns that look like secrets, and of which history has the values.
func (d *doctor) secrets(ctx context.Context) error {
	if !d.captured {
		return nil
	}
	asked := 0
	for _, t := range d.status.Tables {
		if t.Until != 0 || t.Pending != nil {
			continue
		}
		if asked++; asked > manyTables {
			break
		}
		name := audit.Change{Schema: t.Schema, Table: t.Table}.TableName()
		change, err := d.client.Changes().ForTable(name).Operations(audit.Create, audit.Update, audit.Delete).InDatabase(d.status.Database).First(ctx)
		if errors.Is(err, audit.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		var stored []string
		for _, column := range change.Row().Columns() {
			if _, withheld := change.Withheld[column]; !withheld && audit.LikelySecret(column) {
				stored = append(stored, column)
			}
		}
		if len(stored) > 0 {
			d.set("secrets", levelWarn, fmt.Sprintf("history stores what looks like secrets: %s of %s", printable(strings.Join(stored, ", ")), printable(name)),
				fmt.Sprintf("Config.Columns: take the rule KeepColumn away that covers it, or put {Columns: %q, Policy: audit.ExcludeColumn} first", t.Schema+"."+t.Table+"."+stored[0]))
		}
	}
	return nil
}

// The share of writes without context from which on that is a finding, and since when
// they are counted.
const (
	muchWithout  = 0.1
	countedSince = 24 * time.Hour
)

// context says how many writes nobody has put a name to.
func (d *doctor) context(ctx context.Context) error {
	if !d.captured {
		return nil
	}
	q := d.client.Changes().Since(d.app.now().Add(-countedSince)).InDatabase(d.status.Database)
	all, err := q.Count(ctx)
	if err != nil || all == 0 {
		return err
	}
	without, err := q.WithoutContext().Count(ctx)
	if err != nil {
		return err
	}
	share := float64(without) / float64(all)
	text := fmt.Sprintf("%.0f %% of %s since yesterday have no context", 100*share, plural(all, "change"))
	if share <= muchWithout {
		d.add("context", levelOK, text)
		return nil
	}
	tables, err := q.WithoutContext().CountBy(ctx, audit.PerTable)
	if err != nil {
		return err
	}
	if len(tables) > 0 {
		text += ", most of them in " + tableName(tables[0].Value)
	}
	d.set("context", levelWarn, text, "hindsight log --no-context lists them; stamp what writes there (docs/context.md)")
	return nil
}
