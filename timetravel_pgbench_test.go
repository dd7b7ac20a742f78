package audit_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// pgbench's bank: every transaction adds the same amount to an account, a teller
// and a branch, and notes it in a history without a key. The four sums are equal
// at every moment that there ever was.
const bankTables = `
	CREATE TABLE pgbench_branches (bid int PRIMARY KEY, bbalance int, filler char(88));
	CREATE TABLE pgbench_tellers (tid int PRIMARY KEY, bid int, tbalance int, filler char(84));
	CREATE TABLE pgbench_accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84));
	CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22))`

// momentsEnv sets at how many random moments each of these tests looks.
const momentsEnv = "AUDIT_TEST_MOMENTS"

func moments(t *testing.T, otherwise uint64) int {
	t.Helper()
	return int(faulttest.EnvNumber(t, momentsEnv, otherwise))
}

// bank is a bank of which history is kept while tellers work.
type bank struct {
	*audittest.Audited
	branches, tellers, accounts int
	begun                       time.Time
	// worked counts the transactions of our own tellers.
	worked atomic.Int64
}

func openBank(t *testing.T, branches, tellers, accounts int) *bank {
	t.Helper()
	b := &bank{branches: branches, tellers: tellers, accounts: accounts}
	db := audittest.NewDatabase(t)
	for _, sql := range []string{
		bankTables,
		fmt.Sprintf("INSERT INTO pgbench_branches SELECT i, 0 FROM generate_series(1, %d) i", branches),
		fmt.Sprintf("INSERT INTO pgbench_tellers SELECT i, (i - 1) %% %d + 1, 0 FROM generate_series(1, %d) i", branches, tellers),
		fmt.Sprintf("INSERT INTO pgbench_accounts SELECT i, (i - 1) %% %d + 1, 0 FROM generate_series(1, %d) i", branches, accounts),
		"ANALYZE",
	} {
		db.Exec(t, sql)
	}
	// Without the check of audittest.New: at the end, the books are compared.
	b.Audited = audittest.Open(t, db, audit.Config{})
	mustStart(t, b.Audited)
	t.Cleanup(func() { b.Stop(t) })
	b.begun = audittest.Value[time.Time](t, b.Database, "SELECT clock_timestamp()")
	return b
}

// work has eight tellers work, as pgbench's do, until the returned function is
// called, which waits for them.
func (b *bank) work(t *testing.T) (rest func()) {
	t.Helper()
	stop := make(chan struct{})
	var tellers sync.WaitGroup
	for range 8 {
		conn := b.Connect(t)
		tellers.Go(func() {
			// The bank is not to starve those who look at it.
			pace := time.NewTicker(20 * time.Millisecond)
			defer pace.Stop()
			for {
				select {
				case <-stop:
					return
				case <-pace.C:
				}
				if err := b.transfer(t.Context(), conn); err != nil {
					t.Errorf("a teller: %v", err)
					return
				}
				b.worked.Add(1)
			}
		})
	}
	var once sync.Once
	rest = func() {
		once.Do(func() { close(stop) })
		tellers.Wait()
	}
	t.Cleanup(rest)
	return rest
}

// transfer is the transaction of pgbench's script "TPC-B (sort of)"; one in ten
// thinks better of it.
func (b *bank) transfer(ctx context.Context, conn *pgx.Conn) error {
	aid, tid, bid := rand.IntN(b.accounts)+1, rand.IntN(b.tellers)+1, rand.IntN(b.branches)+1
	delta := rand.IntN(10_001) - 5_000
	regret := errors.New("regret")
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		batch := &pgx.Batch{}
		batch.Queue("UPDATE pgbench_accounts SET abalance = abalance + $1 WHERE aid = $2", delta, aid)
		batch.Queue("SELECT abalance FROM pgbench_accounts WHERE aid = $1", aid)
		batch.Queue("UPDATE pgbench_tellers SET tbalance = tbalance + $1 WHERE tid = $2", delta, tid)
		batch.Queue("UPDATE pgbench_branches SET bbalance = bbalance + $1 WHERE bid = $2", delta, bid)
		batch.Queue("INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES ($1, $2, $3, $4, CURRENT_TIMESTAMP)", tid, bid, aid, delta)
		if err := tx.SendBatch(ctx, batch).Close(); err != nil {
			return err
		}
		if rand.IntN(10) == 0 {
			return regret
		}
		return nil
	})
	if errors.Is(err, regret) {
		return nil
	}
	return err
}

// books are what the bank's tables add up to.
type books struct {
	Accounts, Tellers, Branches, Deltas int64
	// Transfers is the number of rows in pgbench_history.
	Transfers int64
	// Astray is the number of branches whose balance is not what was paid there.
	Astray int64
}

const booksSQL = `
	SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
		(SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history),
		(SELECT count(*) FROM pgbench_history),
		(SELECT count(*) FROM pgbench_branches b
		 WHERE bbalance <> (SELECT coalesce(sum(delta), 0) FROM pgbench_history h WHERE h.bid = b.bid))`

func (b *books) fields() []any {
	return []any{&b.Accounts, &b.Tellers, &b.Branches, &b.Deltas, &b.Transfers, &b.Astray}
}

// audited looks at the books at a moment, in a View, and checks them against one
// another and against what the changes say was paid until then.
func (b *bank) audited(t *testing.T, p audit.Point) (books, audit.Completeness) {
	t.Helper()
	var found books
	var known audit.Completeness
	err := p.Report(&known).View(t.Context(), func(tx pgx.Tx) error {
		return tx.QueryRow(t.Context(), booksSQL).Scan(found.fields()...)
	})
	if err != nil {
		t.Errorf("%s: %v", p, err)
		return found, known
	}
	b.balanced(t, p, found, known)
	return found, known
}

// listed is audited by Table, without a View.
func (b *bank) listed(t *testing.T, p audit.Point) (books, audit.Completeness) {
	t.Helper()
	var found books
	var known audit.Completeness
	// The four tables are four questions. For all of them to be about one moment,
	// also of Now, it is given as a position.
	known, err := p.Resolve(t.Context())
	if err != nil {
		t.Errorf("%s: %v", p, err)
		return found, known
	}
	at := b.Client.AtPosition(known.Position)
	sum := func(table, column string) (sum, n int64) {
		for row, err := range at.Columns(column).Table(table).All(t.Context()) {
			var values map[string]any
			if err == nil {
				values, err = row.Map()
			}
			if err != nil {
				t.Errorf("%s: %s: %v", p, table, err)
				return sum, n
			}
			sum, n = sum+int64(values[column].(int32)), n+1
		}
		return sum, n
	}
	found.Accounts, _ = sum("pgbench_accounts", "abalance")
	found.Tellers, _ = sum("pgbench_tellers", "tbalance")
	found.Branches, _ = sum("pgbench_branches", "bbalance")
	found.Deltas, found.Transfers = sum("pgbench_history", "delta")
	b.balanced(t, p, found, known)
	return found, known
}

func (b *bank) balanced(t *testing.T, p audit.Point, found books, known audit.Completeness) {
	t.Helper()
	want := books{}
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, b.URL())
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = conn.Close(ctx) }()
	err = conn.QueryRow(ctx, `
		SELECT count(*), coalesce(sum((after ->> 'delta')::int), 0)
		FROM audit.changes
		WHERE "table" = 'pgbench_history' AND position <= $1::text::pg_lsn`, known.Position.LSN.String()).Scan(&want.Transfers, &want.Deltas)
	if err != nil {
		t.Error(err)
		return
	}
	want.Accounts, want.Tellers, want.Branches = want.Deltas, want.Deltas, want.Deltas
	if diff := cmp.Diff(want, found); diff != "" {
		t.Errorf("the books at %s, which is %s, do not balance (-want +got):\n%s", p, known.Position, diff)
	}
}

// moments are points of every kind, at random over all that is known so far.
func (b *bank) moments(t *testing.T, n int) []audit.Point {
	t.Helper()
	conn := b.Connect(t)
	var first, last audit.LSN
	var now time.Time
	var from, to string
	var xids []int64
	err := conn.QueryRow(t.Context(), `
		SELECT (SELECT max(from_position)::text FROM audit.coverage), (SELECT position::text FROM audit.checkpoints), clock_timestamp(),
			(SELECT coalesce(array_agg(x), '{}') FROM (
				SELECT transaction_id AS x FROM audit.changes WHERE "table" = 'pgbench_history' ORDER BY random() LIMIT $1) x)`, n).Scan(&from, &to, &now, &xids)
	if err != nil {
		t.Fatal(err)
	}
	first, last = must(audit.ParsePosition(from)).LSN, must(audit.ParsePosition(to)).LSN
	anyTime := func() time.Time { return b.begun.Add(rand.N(now.Sub(b.begun))) }
	points := make([]audit.Point, 0, n)
	for i := 0; len(points) < n; i++ {
		kind := i % 6
		if len(xids) == 0 && kind >= 3 && kind < 5 {
			continue
		}
		switch kind {
		case 0:
			points = append(points, b.Client.AsOf(anyTime()))
		case 1:
			points = append(points, b.Client.Before(anyTime()))
		case 2:
			points = append(points, b.Client.AtPosition(audit.Position{LSN: first + rand.N(last-first+1)}))
		case 3:
			points = append(points, b.Client.BeforeTransaction(uint64(xids[i%len(xids)])))
		case 4:
			points = append(points, b.Client.AfterTransaction(uint64(xids[i%len(xids)])))
		case 5:
			points = append(points, b.Client.Now())
		}
	}
	return points
}

// audit looks at the books at n random moments, several at a time.
func (b *bank) audit(t *testing.T, n int) {
	t.Helper()
	points := make(chan audit.Point, n)
	for _, p := range b.moments(t, n) {
		points <- p
	}
	close(points)
	var auditors sync.WaitGroup
	for i := range 3 {
		auditors.Go(func() {
			look := b.audited
			if i == 2 {
				look = b.listed
			}
			for p := range points {
				look(t, p)
			}
		})
	}
	auditors.Wait()
}

func TestTheBooksBalanceAtEveryMoment(t *testing.T) {
	t.Parallel()
	b := openBank(t, 2, 20, 1000)
	rest := b.work(t)
	n := moments(t, 120)
	for range 5 {
		b.audit(t, n/5)
	}
	rest()
	if b.worked.Load() < 100 {
		t.Fatalf("the tellers made %d transactions only", b.worked.Load())
	}
	b.Sync(t)
	b.audit(t, n/2)
}

// A transaction is in the books whole or not at all: just before and just behind
// each, and at the positions in between.
func TestOneTransferLiesBetweenTheMomentsAroundIt(t *testing.T) {
	t.Parallel()
	b := openBank(t, 2, 4, 50)
	rest := b.work(t)
	b.await(t, 200)
	rest()
	b.Sync(t)
	conn := b.Connect(t)
	rows, err := conn.Query(t.Context(), `
		SELECT transaction_id, position::text, (after ->> 'delta')::bigint
		FROM audit.changes
		WHERE "table" = 'pgbench_history'
		ORDER BY position
		OFFSET (SELECT count(*) / 2 FROM audit.changes WHERE "table" = 'pgbench_history') LIMIT $1`, moments(t, 40)/4)
	if err != nil {
		t.Fatal(err)
	}
	type transfer struct {
		ID       uint64
		Position string
		Delta    int64
	}
	transfers, err := pgx.CollectRows(rows, pgx.RowToStructByPos[transfer])
	if err != nil {
		t.Fatal(err)
	}
	if len(transfers) < 5 {
		t.Fatalf("only %d transfers", len(transfers))
	}
	for _, x := range transfers {
		at := must(audit.ParsePosition(x.Position))
		before, _ := b.audited(t, b.Client.BeforeTransaction(x.ID))
		after, _ := b.audited(t, b.Client.AfterTransaction(x.ID))
		just, _ := b.audited(t, b.Client.AtPosition(audit.Position{LSN: at.LSN - 1}))
		then, _ := b.audited(t, b.Client.AtPosition(at))
		if diff := cmp.Diff(before, just); diff != "" {
			t.Errorf("just before %s is not before its transaction:\n%s", at, diff)
		}
		if diff := cmp.Diff(after, then); diff != "" {
			t.Errorf("%s is not after its transaction:\n%s", at, diff)
		}
		if after.Transfers != before.Transfers+1 || after.Deltas != before.Deltas+x.Delta {
			t.Errorf("transaction %d of %d: %+v before, %+v after", x.ID, x.Delta, before, after)
		}
	}
}

// Of two moments the earlier one is a prefix of the later one, for times, too,
// although commit times run backwards here and there.
func TestAnEarlierMomentIsAPrefixOfALaterOne(t *testing.T) {
	t.Parallel()
	b := openBank(t, 2, 20, 200)
	rest := b.work(t)
	b.await(t, 300)
	rest()
	b.Sync(t)
	end := audittest.Value[time.Time](t, b.Database, "SELECT clock_timestamp()")
	var last audit.Completeness
	var lastBooks books
	steps := moments(t, 40)
	for i := range steps + 1 {
		p := b.Client.AsOf(b.begun.Add(end.Sub(b.begun) * time.Duration(i) / time.Duration(steps)))
		found, known := b.audited(t, p)
		if found.Transfers < lastBooks.Transfers || known.Position.Compare(last.Position) < 0 {
			t.Errorf("%s has %d transfers at %s, the moment before it %d at %s", p, found.Transfers, known.Position, lastBooks.Transfers, last.Position)
		}
		last, lastBooks = known, found
	}
	if want := audittest.Value[int64](t, b.Database, "SELECT count(*) FROM pgbench_history"); lastBooks.Transfers != want {
		t.Errorf("%d of %d transfers at the end", lastBooks.Transfers, want)
	}
}

// pgbench finds the program beside the server's own, or on PATH; "" if it is in
// neither place, as with a server that was given by its address.
func pgbench(db *audittest.Database) string {
	if dir := db.Server().BinDir(); dir != "" {
		path := filepath.Join(dir, "pgbench")
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	path, err := exec.LookPath("pgbench")
	if err != nil {
		return ""
	}
	return path
}

// run has pgbench itself work, with its own tables and 8 clients. Where there is
// none, our own tellers do.
func (b *bank) run(t *testing.T) (rest func()) {
	t.Helper()
	program := pgbench(b.Database)
	if program == "" {
		t.Log("there is no pgbench: the load is the test's own")
		return b.work(t)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, program, "-n", "-c", "8", "-j", "2", "-R", "300", "-T", "600", b.URL())
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", program, err)
	}
	rest = sync.OnceFunc(func() {
		cancel()
		_ = cmd.Wait() // it was told to end
	})
	t.Cleanup(rest)
	return rest
}

func TestTheBooksOfPgbenchBalance(t *testing.T) {
	t.Parallel()
	b := openBank(t, 1, 10, 100_000)
	rest := b.run(t)
	b.await(t, 100)
	n := moments(t, 36)
	for range 3 {
		b.audit(t, n/3)
	}
	rest()
	// What the last transactions of an interrupted client became, the server knows.
	b.quiet(t)
	b.Sync(t)
	b.audit(t, n/3)
	found, _ := b.audited(t, b.Client.Now())
	var live books
	if err := b.Connect(t).QueryRow(t.Context(), booksSQL).Scan(live.fields()...); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(live, found); diff != "" {
		t.Errorf("now is not what the tables hold (-want +got):\n%s", diff)
	}
}

// await waits until history has n transfers.
func (b *bank) await(t *testing.T, n int) {
	t.Helper()
	b.until(t, fmt.Sprintf("%d transfers in history", n), `SELECT count(*) >= $1::int FROM audit.changes WHERE "table" = 'pgbench_history'`, n)
}

// quiet waits until no client of pgbench is connected any more.
func (b *bank) quiet(t *testing.T) {
	t.Helper()
	b.until(t, "pgbench to be gone", `SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1`, "pgbench")
}

func (b *bank) until(t *testing.T, what, condition string, args ...any) {
	t.Helper()
	conn := b.Connect(t)
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		var ok bool
		var pgErr *pgconn.PgError
		if err := conn.QueryRow(ctx, condition, args...).Scan(&ok); errors.As(err, &pgErr) || ctx.Err() != nil {
			t.Fatalf("waiting for %s: %v", what, err)
		}
		if ok {
			return
		}
		<-ticker.C
	}
}
