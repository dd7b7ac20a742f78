package audit_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// A transaction is in the write-ahead log before others see it: with synchronous
// replication for as long as the standby takes.
func TestATransactionThatIsCapturedButNotVisibleYet(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{
		"synchronous_standby_names": "nobody", "synchronous_commit": "local",
	}})
	db := server.NewDatabase(t)
	db.Exec(t, `CREATE TABLE todo (id int PRIMARY KEY, task text); INSERT INTO todo VALUES (1, 'old'), (2, 'goes');
		CREATE TABLE log (line text); INSERT INTO log VALUES ('old'), ('goes')`)
	// The store's own writes are not to wait for the standby.
	store := audittest.NewDatabase(t)
	a := audittest.Open(t, db, audit.Config{StoreURL: store.URL()})
	mustStart(t, a)
	before := here(t, a)
	writer := db.Connect(t)
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan struct{})
	go func() {
		defer close(waiting)
		_, _ = writer.PgConn().Exec(ctx, `SET synchronous_commit = on; BEGIN; INSERT INTO todo VALUES (3, 'new'); UPDATE todo SET task = 'changed' WHERE id = 1; DELETE FROM todo WHERE id = 2;
			INSERT INTO log VALUES ('new'); UPDATE log SET line = 'changed' WHERE line = 'old'; DELETE FROM log WHERE line = 'goes'; COMMIT`).ReadAll()
	}()
	faulttest.Poll(t, faulttest.Patience, "the transaction is captured", func() error {
		if audittest.Value[int](t, store, "SELECT count(*) FROM audit.changes") < 6 {
			return errors.New("not yet")
		}
		return nil
	})
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM todo WHERE id = 3"); n != 0 {
		t.Fatal("it is visible, so nothing is tested")
	}
	// Before anything else is committed, the snapshot's end is before it.
	last := a.Client.AtPosition(must(audit.ParsePosition(audittest.Value[string](t, store, "SELECT max(position)::text FROM audit.changes"))))
	if diff := cmp.Diff([]string{"1|changed|", "3|new|"}, textRows(t, last.Table("todo"))); diff != "" {
		t.Errorf("the newest transaction (-want +got):\n%s", diff)
	}
	after := here(t, a)
	check := func(when string) {
		t.Helper()
		for _, p := range []audit.Point{after, a.Client.Now()} {
			wantAllWays(t, p, "todo", "1|changed|", "3|new|")
			for way, rows := range allWays(t, p, "log") {
				if diff := cmp.Diff([]string{"changed|", "new|"}, rows); diff != "" {
					t.Errorf("%s: %s of a table without a key (-want +got):\n%s", when, way, diff)
				}
			}
			if row, err := p.Row(t.Context(), "todo", 3); err != nil || row["task"] != "new" {
				t.Errorf("%s: %v, %v", when, row, err)
			}
			if row, err := p.Row(t.Context(), "todo", 2); !errors.Is(err, audit.ErrNoRow) {
				t.Errorf("%s: %v, %v", when, row, err)
			}
		}
		wantAllWays(t, before, "todo", "1|old|", "2|goes|")
		wantAllWays(t, before, "log", "old|", "goes|")
	}
	check("not visible")
	cancel()
	<-waiting
	db.Exec(t, "ALTER SYSTEM SET synchronous_standby_names = ''")
	db.Exec(t, "SELECT pg_reload_conf()")
	faulttest.Poll(t, faulttest.Patience, "the transaction is visible", func() error {
		if audittest.Value[int](t, db, "SELECT count(*) FROM todo WHERE id = 3") == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	check("visible")
}

// workers are goroutines whose first error counts.
type workers struct {
	sync.WaitGroup
	once sync.Once
	err  error
}

func (w *workers) Go(do func() error) {
	w.WaitGroup.Go(func() {
		if err := do(); err != nil {
			w.once.Do(func() { w.err = err })
		}
	})
}

func (w *workers) Wait() error {
	w.WaitGroup.Wait()
	return w.err
}

// The questions of many goroutines share few connections.
func TestManyQuestionsAtOnce(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoTable, "INSERT INTO todo SELECT n, 'old' FROM generate_series(1, 10) n")
	then := here(t, a)
	a.Exec(t, "UPDATE todo SET task = 'new' WHERE id > 5; DELETE FROM todo WHERE id > 8")
	ctx, cancel := context.WithTimeout(t.Context(), faulttest.Patience)
	defer cancel()
	var group workers
	for n := range 24 {
		group.Go(func() error {
			var got int64
			var err error
			switch n % 4 {
			case 0:
				got, err = then.Table("todo").Count(ctx)
			case 1:
				got, err = then.Table("todo").Where("task = 'old'").Count(ctx)
			case 2:
				err = then.View(ctx, func(tx pgx.Tx) error {
					// A question within a question.
					inner, err := then.Table("todo").Count(ctx)
					if err != nil || inner != 10 {
						return fmt.Errorf("within: %d: %w", inner, err)
					}
					got, err = scan(ctx, tx, countTodo)
					return err
				})
			case 3:
				_, err = then.Row(ctx, "todo", 3)
				got = 10
			}
			if err != nil || got != 10 {
				return fmt.Errorf("question %d: %d: %w", n, got, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// physical is what a snapshot held at a position: the rows of each table.
type physical struct {
	point  audit.Point
	tables map[string][]string
}

var truthTables = map[string]string{
	"account": "CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL, note text)",
	"pair":    "CREATE TABLE pair (id int PRIMARY KEY, balance int NOT NULL)",
	"line":    "CREATE TABLE line (what text, n int)",
	"part":    "CREATE TABLE part (k int, id int, balance int, PRIMARY KEY (k, id)) PARTITION BY LIST (k); CREATE TABLE part_0 PARTITION OF part FOR VALUES IN (0); CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1)",
}

// copyOut reads all tables in a transaction that sees what the slot's creation saw.
func copyOut(ctx context.Context, conn *pgx.Conn, snapshot string) (tables map[string][]string, err error) {
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if snapshot != "" {
			if _, err := tx.Exec(ctx, "SET TRANSACTION SNAPSHOT '"+snapshot+"'"); err != nil {
				return err
			}
		}
		tables, err = readTables(ctx, tx)
		return err
	})
	return tables, err
}

func readTables(ctx context.Context, tx pgx.Tx) (map[string][]string, error) {
	tables := make(map[string][]string)
	for table := range truthTables {
		rows, err := tx.Query(ctx, "SELECT * FROM "+table, pgx.QueryExecModeExec, pgx.QueryResultFormats{pgx.TextFormatCode})
		if err != nil {
			return nil, err
		}
		texts := []string{}
		for rows.Next() {
			texts = append(texts, rowText(rows.RawValues()))
		}
		if err := rows.Err(); err != nil {
			return nil, err
		}
		slices.Sort(texts)
		tables[table] = texts
	}
	return tables, nil
}

// write runs transactions until ctx ends. Each changes account and pair together,
// so that their sums are always equal.
func write(ctx context.Context, conn *pgx.Conn, n int, truncate bool) error {
	pace := time.NewTicker(10 * time.Millisecond) // so that capture keeps up
	defer pace.Stop()
	for i := 0; ctx.Err() == nil; i++ {
		<-pace.C
		err := pgx.BeginFunc(context.WithoutCancel(ctx), conn, func(tx pgx.Tx) error {
			for _, sql := range statements(n, i, truncate) {
				if _, err := tx.Exec(context.WithoutCancel(ctx), sql); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func statements(n, i int, truncate bool) []string {
	id := (i*7+n*31)%40 + 1000*n
	by := i%9 - 4
	all := []string{
		fmt.Sprintf("INSERT INTO account VALUES (%d, %d, repeat('x', %d)) ON CONFLICT (id) DO UPDATE SET balance = account.balance + excluded.balance", id, by, i%3*1500),
		fmt.Sprintf("INSERT INTO pair VALUES (%d, %d) ON CONFLICT (id) DO UPDATE SET balance = pair.balance + excluded.balance", id, by),
		fmt.Sprintf("INSERT INTO line VALUES ('%d', %d)", i%3, by),
		fmt.Sprintf("INSERT INTO part VALUES (%d, %d, %d) ON CONFLICT (k, id) DO UPDATE SET balance = part.balance + 1", i%2, id, by),
	}
	switch i % 8 {
	case 2:
		all = append(all, fmt.Sprintf("DELETE FROM account WHERE id = %d", id), fmt.Sprintf("DELETE FROM pair WHERE id = %d", id))
	case 3:
		all = append(all, fmt.Sprintf("UPDATE account SET id = %d WHERE id = %d AND NOT EXISTS (SELECT FROM account WHERE id = %[1]d)", id+500, id))
		all = append(all, fmt.Sprintf("DELETE FROM line WHERE ctid = (SELECT min(ctid) FROM line WHERE what = '%d')", i%3))
	case 4:
		all = append(all, fmt.Sprintf("UPDATE part SET k = 1 - k WHERE id = %d AND NOT EXISTS (SELECT FROM part o WHERE o.id = part.id AND o.k <> part.k)", id))
	case 5:
		all = append(all, "SAVEPOINT s", fmt.Sprintf("UPDATE account SET balance = 77 WHERE id = %d", id), "ROLLBACK TO s")
	}
	if truncate && i%16 == 9 {
		all = append(all, "TRUNCATE account, pair")
	}
	return all
}

// The past is what a snapshot held that was taken then, exactly: the server says
// at which position a slot's snapshot stands.
func TestThePastIsWhatASnapshotHeld(t *testing.T) {
	t.Parallel()
	var setup []string
	for _, sql := range truthTables {
		setup = append(setup, sql)
	}
	a := audittest.New(t, audit.Config{}, setup...)
	a.Exec(t, "INSERT INTO account SELECT n, 0, 'first' FROM generate_series(1, 30) n; INSERT INTO pair SELECT n, 0 FROM generate_series(1, 30) n")
	a.Sync(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var writers workers
	for n := range 3 {
		conn := a.Connect(t)
		writers.Go(func() error { return write(ctx, conn, n, false) })
	}
	var held []physical
	replication := must(pgx.Connect(t.Context(), a.URL()+replicationSuffix(a.URL())))
	t.Cleanup(func() { _ = replication.Close(context.WithoutCancel(t.Context())) })
	reader := a.Connect(t)
	for i := range int(faulttest.EnvNumber(t, "AUDIT_TEST_SNAPSHOTS", 3)) {
		held = append(held, snapshotWithPosition(t, a, replication, reader, i))
		compareHeld(t, held[len(held)-1], "at once")
	}
	cancel()
	if err := writers.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, p := range held {
		compareHeld(t, p, "later")
	}
}

func replicationSuffix(url string) string {
	for _, c := range url {
		if c == '?' {
			return "&replication=database"
		}
	}
	return "?replication=database"
}

// snapshotWithPosition makes a slot, which exports a snapshot of exactly the
// transactions that committed before its consistent point.
func snapshotWithPosition(t *testing.T, a *audittest.Audited, replication, reader *pgx.Conn, i int) physical {
	t.Helper()
	name := fmt.Sprintf("truth_%s_%d", a.Name(), i)
	results, err := replication.PgConn().Exec(t.Context(), fmt.Sprintf("CREATE_REPLICATION_SLOT %s TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT", name)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	position := must(audit.ParsePosition(string(results[0].Rows[0][1])))
	tables, err := copyOut(t.Context(), reader, string(results[0].Rows[0][2]))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := replication.PgConn().Exec(t.Context(), "DROP_REPLICATION_SLOT "+name).ReadAll(); err != nil {
		t.Fatal(err)
	}
	position.LSN-- // a commit at the consistent point itself is not in it
	return physical{a.Client.AtPosition(position), tables}
}

func compareHeld(t *testing.T, p physical, when string) {
	t.Helper()
	viewed := make(map[string][]string)
	err := p.point.View(t.Context(), func(tx pgx.Tx) (err error) {
		viewed, err = readTables(t.Context(), tx)
		return err
	})
	if err != nil {
		t.Errorf("%s: view as of %s: %v", when, p.point, err)
	}
	scan := when == "at once"
	for table, want := range p.tables {
		scan = !scan
		for way, got := range map[string][]string{"view": viewed[table], fmt.Sprintf("scan %t", scan): textRows(t, audit.Searching(p.point, scan).Table(table))} {
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: %s of %s as of %s (-want +got):\n%s", when, way, table, p.point, diff)
			}
		}
	}
}

// A transaction is visible whole or not at all, of two times the later one sees
// what the earlier one sees, and the same point gives the same again: while
// others write, and truncate.
func TestThePastHoldsStillWhileOthersWrite(t *testing.T) {
	t.Parallel()
	var setup []string
	for _, sql := range truthTables {
		setup = append(setup, sql)
	}
	a := audittest.New(t, audit.Config{}, setup...)
	a.Exec(t, "INSERT INTO account SELECT n, 0, 'first' FROM generate_series(1, 30) n; INSERT INTO pair SELECT n, 0 FROM generate_series(1, 30) n")
	a.Sync(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var writers, readers workers
	for n := range 2 {
		conn := a.Connect(t)
		writers.Go(func() error { return write(ctx, conn, n, n == 0) })
	}
	var mu sync.Mutex
	first := make(map[audit.Position][]string)
	var answered, refused atomic.Int64
	began := time.Now()
	rounds := int(faulttest.EnvNumber(t, "AUDIT_TEST_ROUNDS", 4))
	for n := range 3 {
		readers.Go(func() error {
			for i := range rounds {
				p := a.Client.Now()
				switch (i + n) % 3 {
				case 1:
					p = a.Client.AsOf(time.Now())
				case 2:
					p = a.Client.AsOf(began.Add(time.Since(began) / 2))
				}
				var c audit.Completeness
				got, err := sums(t.Context(), p.Report(&c))
				if errors.Is(err, audit.ErrIncomplete) {
					refused.Add(1) // truncated since
					continue
				}
				if err != nil {
					return fmt.Errorf("%s: %w", p, err)
				}
				answered.Add(1)
				if got[0] != got[1] {
					return fmt.Errorf("%s: half of a transaction: %v", p, got)
				}
				mu.Lock()
				first[c.Position] = got
				mu.Unlock()
			}
			return nil
		})
	}
	if err := readers.Wait(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := writers.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d answered, %d refused", answered.Load(), refused.Load())
	if answered.Load() == 0 {
		t.Error("nothing was answered")
	}
	for position, want := range first {
		got, err := sums(t.Context(), a.Client.AtPosition(position))
		if errors.Is(err, audit.ErrIncomplete) {
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", position, err)
		} else if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s, again (-first +now):\n%s", position, diff)
		}
	}
}

// sums are those of account and pair, and all rows of account, in one view, and
// account's rows by the other way.
func sums(ctx context.Context, p audit.Point) (got []string, err error) {
	err = p.View(ctx, func(tx pgx.Tx) error {
		got = make([]string, 3)
		return tx.QueryRow(ctx, `SELECT
			(SELECT coalesce(sum(balance), 0) FROM account)::text,
			(SELECT coalesce(sum(balance), 0) FROM pair)::text,
			coalesce((SELECT string_agg(a.id || ':' || a.balance || ':' || length(a.note), ' ' ORDER BY a.id) FROM account a), '')`).Scan(&got[0], &got[1], &got[2])
	})
	return got, err
}
