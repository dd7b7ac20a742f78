package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
)

// setup says what would keep a program from starting.
func (d *doctor) setup(ctx context.Context) error {
	err := d.client.Check(ctx)
	var pooled *audit.PoolerError
	var missing *audit.SetupError
	var secret *audit.SecretKeyError
	switch {
	case errors.As(err, &pooled):
		flag := map[string]string{"SourceURL": "--database-url", "StoreURL": "--store-url"}[pooled.Field]
		d.set("pooler", levelFail, flag+" leads to a pooler: capture cannot go through one, questions can", "for the program that captures, give Config."+pooled.Field+" the address of the server itself")
		return nil
	case errors.As(err, &secret):
		d.set("secrets", levelFail, "a column of a primary key is to be withheld: "+strings.Join(secret.Columns, ", "), "Config.Columns: keep it, or leave the table out in Config.Tables")
		return nil
	case errors.As(err, &missing):
		for _, p := range missing.Problems {
			sql := p.SQL
			setting := ""
			if p.Config != "" {
				if name, value, ok := strings.Cut(p.Config, " = "); ok && len(sql) == 0 {
					sql = []string{fmt.Sprintf("ALTER SYSTEM SET %s = '%s'", name, value)}
				}
				setting = "and restart the server"
			}
			d.findings = append(d.findings, finding{Code: problemCode(p.What), Level: levelFail, Text: p.What, SQL: sql, Setting: setting})
		}
		return nil
	case err != nil:
		return err
	}
	return d.app.onSource(ctx, func(conn *pgx.Conn) error {
		var version, level, role string
		if err := conn.QueryRow(ctx, "SELECT current_setting('server_version'), current_setting('wal_level'), current_user::text").Scan(&version, &level, &role); err != nil {
			return err
		}
		version, _, _ = strings.Cut(version, " ")
		d.add("setup", levelOK, fmt.Sprintf("PostgreSQL %s, wal_level %s, role %s may replicate", version, level, printable(role)))
		return nil
	})
}

// problems tell by its text what a problem of the set-up is.
var problems = []struct {
	code string
	text *regexp.Regexp
}{
	{"wal-level", regexp.MustCompile(`^wal_level`)},
	{"slots", regexp.MustCompile(`replication slots are in use`)},
	{"senders", regexp.MustCompile(`^max_wal_senders`)},
	{"store-rights", regexp.MustCompile(`the store's schema`)},
	{"role", regexp.MustCompile(`may not use replication slots`)},
	{"owner", regexp.MustCompile(`^table .* is not owned`)},
	{"publication", regexp.MustCompile(`publication`)},
	{"standby", regexp.MustCompile(`standby`)},
	{"version", regexp.MustCompile(`^the server is PostgreSQL`)},
}

func problemCode(what string) string {
	for _, p := range problems {
		if p.text.MatchString(what) {
			return p.code
		}
	}
	return "setup"
}

// recentGap is how long a gap is a warning; it stays in history.
const recentGap = 7 * 24 * time.Hour

// capture says whether somebody captures, and how far.
func (d *doctor) capture(ctx context.Context) (err error) {
	if d.status, err = d.client.Status(ctx); err != nil {
		return err
	}
	s := d.status
	d.captured = s.Position != 0
	const start = "start the program that captures"
	switch {
	case !d.captured:
		d.set("capture", levelWarn, "nothing was ever captured here", start+", or see --schema, --slot and --store-url")
		return nil
	case !s.Slot.Exists:
		d.set("slot", levelFail, fmt.Sprintf("replication slot %s is gone: what was written since then is lost to history", s.Slot.Name), start+": it makes another one, and records the gap")
	case s.Slot.Status == "lost":
		d.set("slot", levelFail, fmt.Sprintf("replication slot %s is lost: the server has dropped WAL that was not captured", s.Slot.Name), start+": it makes another one, and records the gap")
	case !s.Slot.Active:
		d.set("capture", levelFail, fmt.Sprintf("nobody captures: replication slot %s keeps %s of WAL", s.Slot.Name, shortBytes(s.Slot.RetainedBytes)), start)
	case s.LagBytes > d.options.maxLag:
		return d.lag(ctx)
	default:
		d.add("capture", levelOK, fmt.Sprintf("captured: %s, slot %s keeps %s of WAL", plural(s.Changes, "change"), s.Slot.Name, shortBytes(s.Slot.RetainedBytes)))
	}
	old := 0
	for _, g := range s.Gaps {
		if d.app.now().Sub(g.ToTime) > recentGap {
			old++
			continue
		}
		d.set("gap", levelWarn, fmt.Sprintf("history has a gap from %s to %s (%s to %s): %s", d.app.shortTime(g.FromTime), d.app.shortTime(g.ToTime), g.From, g.To, g.Reason),
			"it stays, and questions across it are refused: keep an instance running, and max_slot_wal_keep_size large enough for its absence")
	}
	if old > 0 {
		d.add("gap", levelOK, fmt.Sprintf("%s older than %d days, see hindsight status", plural(int64(old), "gap"), int(recentGap.Hours()/24)))
	}
	return nil
}

// lag says what holds history up.
func (d *doctor) lag(ctx context.Context) error {
	text := fmt.Sprintf("history is %s behind the source", shortBytes(d.status.LagBytes))
	var sql []string
	err := d.app.onStore(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `
			SELECT DISTINCT b.pid
			FROM pg_catalog.pg_stat_activity a CROSS JOIN LATERAL unnest(pg_catalog.pg_blocking_pids(a.pid)) b (pid)
			WHERE a.datname = current_database() AND a.application_name LIKE 'audit%' AND a.pid <> pg_catalog.pg_backend_pid()
			ORDER BY 1`)
		if err != nil {
			return err
		}
		pids, err := pgx.CollectRows(rows, pgx.RowTo[int32])
		for _, pid := range pids {
			sql = append(sql, fmt.Sprintf("SELECT pg_terminate_backend(%d)", pid))
		}
		return err
	})
	if len(sql) > 0 {
		d.add("lag", levelFail, text+": sessions hold locks that it waits for", sql...)
		return err
	}
	d.set("lag", levelWarn, text, "give the store's disk and CPU a look; a large transaction is behind until it is stored")
	return err
}

// bound says whether a slot that nobody reads from can fill the disk.
func (d *doctor) bound(ctx context.Context) error {
	return d.app.onSource(ctx, func(conn *pgx.Conn) error {
		var bound, idle string
		err := conn.QueryRow(ctx, "SELECT current_setting('max_slot_wal_keep_size'), coalesce(current_setting('idle_replication_slot_timeout', true), '0')").Scan(&bound, &idle)
		if err != nil {
			return err
		}
		slot := d.status.Slot
		switch {
		case bound == "-1":
			d.add("wal-unbounded", levelWarn, "max_slot_wal_keep_size is -1: while nobody captures, the slot fills the disk, which stops the source",
				"ALTER SYSTEM SET max_slot_wal_keep_size = '20GB'", "SELECT pg_reload_conf()")
		case slot.Exists && (slot.Status == "unreserved" || slot.SafeBytes >= 0 && slot.SafeBytes < slot.BoundBytes/5):
			d.add("wal-near-bound", levelFail, fmt.Sprintf("the server is about to drop WAL that was not captured: it keeps %s of at most %s", shortBytes(slot.RetainedBytes), bound),
				fmt.Sprintf("ALTER SYSTEM SET max_slot_wal_keep_size = '%dMB'", max(1024, 4*slot.BoundBytes>>20)), "SELECT pg_reload_conf()")
		default:
			d.add("wal-bound", levelOK, "a stopped program keeps at most "+bound+" of WAL (max_slot_wal_keep_size)")
		}
		if idle != "0" && idle != "" {
			d.add("idle-slot", levelWarn, "idle_replication_slot_timeout is "+idle+": after so long without capture the slot is given up, which leaves a gap",
				"ALTER SYSTEM SET idle_replication_slot_timeout = 0", "SELECT pg_reload_conf()")
		}
		return nil
	})
}

// transactions are those that are open for long: they hold WAL, whatever capture does.
func (d *doctor) transactions(ctx context.Context) error {
	return d.app.onSource(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `
			SELECT a.pid, coalesce(a.usename::text, ''), coalesce(a.application_name, ''), coalesce(a.datname::text, ''), coalesce(a.state, ''),
				extract(epoch FROM clock_timestamp() - a.xact_start)::float8
			FROM pg_catalog.pg_stat_activity a
			WHERE a.backend_xid IS NOT NULL AND a.pid <> pg_catalog.pg_backend_pid() AND a.backend_type = 'client backend'
			  AND a.xact_start < clock_timestamp() - make_interval(secs => $1)
			ORDER BY a.xact_start`, d.options.older.Seconds())
		if err != nil {
			return err
		}
		var pid int32
		var user, program, database, state string
		var age float64
		_, err = pgx.ForEachRow(rows, []any{&pid, &user, &program, &database, &state, &age}, func() error {
			code, does := "long-transaction", "runs"
			if strings.HasPrefix(state, "idle in transaction") {
				code, does = "idle-transaction", "is idle in a transaction"
			}
			d.add(code, levelWarn, fmt.Sprintf("process %d of %s (%s) in database %s %s since %s, and holds WAL", pid, printable(user), printable(program), printable(database), does, shortDuration(time.Duration(age*float64(time.Second)))),
				fmt.Sprintf("SELECT pg_terminate_backend(%d)", pid))
			return nil
		})
		if err != nil {
			return err
		}
		rows, err = conn.Query(ctx, `
			SELECT p.gid, p.database::text, extract(epoch FROM clock_timestamp() - p.prepared)::float8
			FROM pg_catalog.pg_prepared_xacts p
			WHERE p.prepared < clock_timestamp() - make_interval(secs => $1)
			ORDER BY p.prepared`, d.options.older.Seconds())
		if err != nil {
			return err
		}
		var gid string
		_, err = pgx.ForEachRow(rows, []any{&gid, &database, &age}, func() error {
			d.add("prepared-transaction", levelWarn, fmt.Sprintf("transaction %s is prepared in database %s since %s, and holds WAL; run this there, or COMMIT PREPARED", printable(gid), printable(database), shortDuration(time.Duration(age*float64(time.Second)))),
				"ROLLBACK PREPARED '"+strings.ReplaceAll(gid, "'", "''")+"'")
			return nil
		})
		return err
	})
}

// tables says which are not tracked, or not as they should be.
func (d *doctor) tables(ctx context.Context) error {
	wanted, err := d.app.wantedTables(ctx)
	if err != nil {
		return err
	}
	publication := pgx.Identifier{d.app.publication()}.Sanitize()
	missing := make(map[string]bool)
	if d.captured {
		for _, t := range untracked(wanted, d.status) {
			missing[t.full()] = true
			d.untracked(t, publication)
		}
	}
	good := 0
	for _, t := range wanted {
		if missing[t.full()] {
			continue
		}
		bad := false
		for _, part := range t.parts {
			bad = d.identity(part) || bad
		}
		if !bad {
			good++
		}
	}
	switch {
	case len(wanted) == 0:
		d.set("tables", levelWarn, "no table matches --tables", "give --tables what Config.Tables of the program says")
	case d.captured && good > 0:
		d.add("tables", levelOK, plural(int64(good), "table")+" tracked, with their whole old rows")
	}
	return nil
}

// untracked is a table that history does not cover.
func (d *doctor) untracked(t sourceTable, publication string) {
	for _, f := range d.findings { // the set-up has said so, and why
		if f.Code == "owner" && strings.Contains(f.Text, pgx.Identifier{t.schema, t.name}.Sanitize()) {
			return
		}
	}
	text := fmt.Sprintf("%s is not tracked", printable(t.full()))
	if left := leftTime(t, d.status); !left.IsZero() {
		text += " since " + shortDuration(d.app.now().Sub(left))
	}
	var sql []string
	for _, part := range t.parts {
		if part.published {
			continue
		}
		if part.identity != "f" && !part.virtual {
			sql = append(sql, "ALTER TABLE ONLY "+part.ident+" REPLICA IDENTITY FULL")
		}
		sql = append(sql, "ALTER PUBLICATION "+publication+" ADD TABLE ONLY "+part.ident)
	}
	if len(sql) == 0 && len(t.parts) > 0 {
		text += " yet, though it is published: transactions that were writing to it have to end first"
	}
	d.add("untracked", levelFail, text, append(sql, "SELECT pg_logical_emit_message(false, 'audit_refresh', '')")...)
}

// identity reports whether the replica identity of a table is not what history needs.
func (d *doctor) identity(part tablePart) bool {
	if !part.published || part.identity == "f" || part.virtual && part.hasKey {
		return false
	}
	sql := "ALTER TABLE ONLY " + part.ident + " REPLICA IDENTITY FULL"
	if part.identity == "n" || part.identity == "d" && !part.hasKey {
		d.add("identity", levelFail, part.ident+" is published without a replica identity: its UPDATEs and DELETEs fail", sql)
		return true
	}
	d.add("identity", levelWarn, part.ident+" does not log its whole old rows: before has no more than the key", sql)
	return true
}
