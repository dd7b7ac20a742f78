//go:build unix

package chaos_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// strike is one kind of harm.
type strike struct {
	kind string
	// weight is how often it is chosen, against the others.
	weight int
	// gap reports whether history may have a gap by it, sourceDown whether writes of others fail.
	gap, sourceDown bool
	// silent reports whether nobody is left who could say anything.
	silent bool
	do     func(t *testing.T, w *world)
}

// short and long are for how long a strike lasts.
func (w *world) short() time.Duration { return time.Duration(w.rand.IntN(2000)) * time.Millisecond }

// long is now and then beyond what timeouts are, in a run that is long itself.
func (w *world) long() time.Duration {
	d := 500 + w.rand.IntN(5000)
	if w.rand.IntN(3) == 0 {
		d = 8000 + w.rand.IntN(30_000)
	}
	return min(time.Duration(d)*time.Millisecond, w.length/5)
}

func strikes() []strike {
	return []strike{
		{kind: "SIGKILL of the holder", weight: 6, do: func(_ *testing.T, w *world) { w.holder().signal(syscall.SIGKILL) }},
		{kind: "SIGKILL of all", weight: 2, do: func(_ *testing.T, w *world) {
			for _, i := range w.instances {
				i.signal(syscall.SIGKILL)
			}
		}},
		{kind: "SIGSTOP of the holder", weight: 4, do: func(t *testing.T, w *world) { freeze(t, w.long(), w.holder()) }},
		{kind: "SIGSTOP of any", weight: 2, do: func(t *testing.T, w *world) { freeze(t, w.short(), w.any()) }},
		{kind: "SIGSTOP of all", weight: 2, silent: true, do: func(t *testing.T, w *world) { freeze(t, w.long(), w.instances...) }},
		{kind: "the holder's host vanishes", weight: 3, do: func(t *testing.T, w *world) {
			t.Helper()
			i := w.holder()
			vanish(t, w.long(), i.source, i.store)
		}},
		{kind: "the store's host vanishes", weight: 2, do: func(t *testing.T, w *world) {
			t.Helper()
			vanish(t, w.long(), w.instances[0].store, w.instances[1].store, w.instances[2].store)
		}},
		{kind: "the source's host vanishes", weight: 2, do: func(t *testing.T, w *world) {
			t.Helper()
			vanish(t, w.long(), w.instances[0].source, w.instances[1].source, w.instances[2].source)
		}},
		{kind: "stalled connections", weight: 3, do: func(t *testing.T, w *world) {
			t.Helper()
			i := w.holder()
			stalled := [][]*faulttest.Proxy{{i.source}, {i.store}, {i.source, i.store}}[w.rand.IntN(3)]
			for _, p := range stalled {
				p.Freeze()
			}
			pause(t, w.long())
			for _, p := range stalled {
				p.Thaw()
			}
		}},
		{kind: "cut connections", weight: 5, do: func(_ *testing.T, w *world) {
			i := w.holder()
			for n := w.rand.IntN(3); n >= 0; n-- {
				[]*faulttest.Proxy{i.source, i.store}[w.rand.IntN(2)].Cut()
				i = w.any()
			}
		}},
		{kind: "sessions ended by the server", weight: 2, do: func(t *testing.T, w *world) {
			t.Helper()
			w.do(t, []*audittest.Database{w.source, w.store}[w.rand.IntN(2)], endSessions)
		}},
		{kind: "immediate stop of the source", weight: 4, sourceDown: true, do: func(t *testing.T, w *world) { restart(t, w, w.source) }},
		{kind: "immediate stop of the store", weight: 4, do: func(t *testing.T, w *world) { restart(t, w, w.store) }},
		{kind: "full disk of the store", weight: 4, do: fullDisk},
		{kind: "revoked rights", weight: 4, do: revoke},
		{kind: "changed password", weight: 3, do: changePassword},
		{kind: "clock jump", weight: 4, do: func(t *testing.T, w *world) { jump(t, w) }},
		{kind: "slot dropped", weight: 3, gap: true, do: func(t *testing.T, w *world) {
			t.Helper()
			w.do(t, w.source, fmt.Sprintf(`
				SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '%s' AND active;
				SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '%[1]s'`, w.slot))
		}},
		{kind: "slot invalidated", weight: 2, gap: true, do: invalidate},
		{kind: "publication dropped", weight: 3, gap: true, do: func(t *testing.T, w *world) {
			t.Helper()
			w.do(t, w.source, "DROP PUBLICATION IF EXISTS audit")
			if w.rand.IntN(2) == 0 {
				pause(t, w.short())
			}
		}},
		{kind: "hostile messages", weight: 5, do: hostile},
	}
}

const endSessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'program'"

func freeze(t *testing.T, d time.Duration, instances ...*instance) {
	t.Helper()
	for _, i := range instances {
		i.signal(syscall.SIGSTOP)
	}
	pause(t, d)
	for _, i := range instances {
		i.signal(syscall.SIGCONT)
	}
}

func vanish(t *testing.T, d time.Duration, proxies ...*faulttest.Proxy) {
	t.Helper()
	for _, p := range proxies {
		p.Vanish()
	}
	pause(t, d)
	for _, p := range proxies {
		p.Appear()
	}
}

func restart(t *testing.T, w *world, db *audittest.Database) {
	t.Helper()
	if w.rand.IntN(4) == 0 {
		db.Server().Kill(t)
	} else {
		db.Server().StopImmediate(t)
	}
	if db == w.store && w.rand.IntN(3) == 0 {
		pause(t, w.long())
	} else {
		pause(t, w.short())
	}
	db.Server().StartAgain(t)
}

// fullDisk fills the disk that the store's tables are on. Where none may be mounted, a
// trigger says what the server would.
func fullDisk(t *testing.T, w *world) {
	t.Helper()
	d := w.long()
	if w.disk == nil {
		w.do(t, w.store, `
			CREATE OR REPLACE FUNCTION public.full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
			BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
			CREATE TRIGGER full_disk BEFORE INSERT ON audit.changes FOR EACH STATEMENT EXECUTE FUNCTION public.full_disk()`)
		pause(t, d)
		w.do(t, w.store, "DROP TRIGGER full_disk ON audit.changes")
		return
	}
	if err := w.disk.fill(); err != nil {
		t.Fatalf("fill the disk: %v", err)
	}
	pause(t, d)
	if err := w.disk.empty(); err != nil {
		t.Fatalf("empty the disk: %v", err)
	}
}

func revoke(t *testing.T, w *world) {
	t.Helper()
	d := w.long()
	switch w.rand.IntN(4) {
	case 0:
		w.do(t, w.source, "ALTER ROLE program NOREPLICATION", endSessions)
		pause(t, d)
		w.do(t, w.source, "ALTER ROLE program REPLICATION")
	case 1:
		w.do(t, w.store, "REVOKE ALL ON SCHEMA audit FROM program")
		pause(t, d)
		w.do(t, w.store, "GRANT ALL ON SCHEMA audit TO program")
	case 2:
		w.do(t, w.store, "REVOKE INSERT ON audit.changes FROM program")
		pause(t, d)
		w.do(t, w.store, "GRANT INSERT ON audit.changes TO program")
	default:
		db := []*audittest.Database{w.source, w.store}[w.rand.IntN(2)]
		w.do(t, db, "REVOKE CONNECT ON DATABASE "+db.Name()+" FROM PUBLIC, program", endSessions)
		pause(t, d)
		w.do(t, db, "GRANT CONNECT ON DATABASE "+db.Name()+" TO PUBLIC, program")
	}
}

func changePassword(t *testing.T, w *world) {
	t.Helper()
	w.passwords++
	password := fmt.Sprintf("secret %d", w.passwords)
	for _, db := range []*audittest.Database{w.source, w.store} {
		w.do(t, db, "ALTER ROLE program PASSWORD '"+password+"'", endSessions)
	}
	pause(t, w.long())
	w.writePassword(t, password)
}

// jump commits a transaction whose time is ahead of the clock.
func jump(t *testing.T, w *world) {
	t.Helper()
	ahead := []time.Duration{2 * time.Second, time.Hour, -time.Hour, 40 * 24 * time.Hour}[w.rand.IntN(4)]
	s := w.load.session(3000 + int(w.probe))
	defer s.close()
	w.probe++
	id := w.probe
	faulttest.Poll(t, faulttest.Patience, "commit at another time", func() error {
		if err := s.connect(t.Context()); err != nil {
			return err
		}
		for _, sql := range []string{
			"SELECT pg_replication_origin_create('jumps') WHERE NOT EXISTS (SELECT FROM pg_replication_origin WHERE roname = 'jumps')",
			"SELECT pg_replication_origin_session_setup('jumps')",
		} {
			if _, err := s.conn.Exec(t.Context(), sql); err != nil {
				s.close()
				return err
			}
		}
		return s.transact(t.Context(), func(a *act) error {
			var at time.Time
			if err := a.conn.QueryRow(a.ctx, "SELECT clock_timestamp() + $1::text::interval", ahead.String()).Scan(&at); err != nil {
				return err
			}
			if err := a.exec("SELECT pg_replication_origin_xact_setup('0/1', '" + at.Format(time.RFC3339Nano) + "')"); err != nil {
				return err
			}
			return a.write("probe", "CREATE", "INSERT INTO public.probe AS t VALUES ($1, 'from another time') RETURNING '{}', to_jsonb(t)::text", id)
		})
	})
}

// invalidate has the server give up the slot, while nobody can read from it.
func invalidate(t *testing.T, w *world) {
	t.Helper()
	for _, i := range w.instances {
		i.signal(syscall.SIGSTOP)
	}
	w.do(t, w.source, "ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'", "SELECT pg_reload_conf()")
	conn, err := pgx.Connect(t.Context(), w.source.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	faulttest.Poll(t, faulttest.Patience, "the slot is lost", func() error {
		for range 3 {
			if _, err := conn.Exec(t.Context(), "SELECT pg_switch_wal() FROM (SELECT pg_logical_emit_message(false, 'noise', repeat('x', 1000))) x"); err != nil {
				return err
			}
		}
		if _, err := conn.Exec(t.Context(), "CHECKPOINT"); err != nil {
			return err
		}
		var status string
		err := conn.QueryRow(t.Context(), "SELECT coalesce(max(wal_status), 'lost') FROM pg_replication_slots WHERE slot_name = $1", w.slot).Scan(&status)
		if err == nil && status != "lost" {
			err = fmt.Errorf("it is %s", status)
		}
		return err
	})
	w.do(t, w.source, "ALTER SYSTEM RESET max_slot_wal_keep_size", "SELECT pg_reload_conf()")
	for _, i := range w.instances {
		i.signal(syscall.SIGCONT)
	}
}

// hostile writes messages that a stranger can.
func hostile(t *testing.T, w *world) {
	t.Helper()
	var sql []string
	for range 1 + w.rand.IntN(6) {
		prefix := []string{"audit", "_bemi", "audit_sync", "audit_refresh", "audit_structure", "foreign", ""}[w.rand.IntN(7)]
		content := []string{
			"''", `'{"requestId": '`, "'[1, 2'", `'"text"'`, `'\u0000'`, "'{}'", `'{"token": "x", "table": {}}'`, "repeat('[', 20000)", `'{"requestId": "' || repeat('x', 3000000) || '"}'`,
			"repeat('x', 60000000)", `'{"userId": {"a": [1e999999]}}'`, "E'\\x01\\xc3'",
		}[w.rand.IntN(12)]
		sql = append(sql, fmt.Sprintf("SELECT pg_logical_emit_message(%t, '%s', %s)", w.rand.IntN(3) > 0, prefix, content))
	}
	for _, s := range sql {
		if strings.Contains(s, `E'`) {
			s = strings.Replace(s, `E'\x01\xc3'`, `'\x01c3'::bytea`, 1)
		}
		w.do(t, w.source, s)
	}
}
