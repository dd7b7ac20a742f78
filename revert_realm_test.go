package audit_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
)

// realm is a random schema with foreign keys, in which several sessions work at
// the same time. What they do comes from a seed; in which order they come to do it
// is up to the scheduler and to the locks, so a realm keeps a log.
type realm struct {
	*undo
	seed   uint64
	tables []*realmTable
	next   atomic.Int64 // the next key or word, the same for all tables
	rounds int

	mu   sync.Mutex // guards log and done
	log  []string
	done []string // the requests that were committed
}

// realmTable is a table with the key id, or id and k.
type realmTable struct {
	name      string
	composite bool
	unique    bool // has a unique column u
	links     []*realmLink
}

// realmLink is a foreign key; its columns are named after it, the second with a k
// behind.
type realmLink struct {
	name     string
	parent   *realmTable
	onUpdate string
}

func (l *realmLink) columns() []string {
	if l.parent.composite {
		return []string{l.name, l.name + "k"}
	}
	return []string{l.name}
}

func (t *realmTable) key() []string {
	if t.composite {
		return []string{"id", "k"}
	}
	return []string{"id"}
}

func newRealm(t *testing.T, seed uint64) *realm {
	t.Helper()
	w := &realm{seed: seed}
	random := rand.New(rand.NewPCG(seed, 11)) //nolint:gosec // It is to be repeatable.
	setup := w.schema(random)
	t.Logf("%s=%d\n%s", undoSeedEnv, seed, strings.Join(setup, ";\n"))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("what was done:\n%s", strings.Join(w.log, "\n"))
		}
	})
	for range 5 {
		for _, table := range w.tables {
			setup = append(setup, w.insert(random, table, w.next.Add(1)))
		}
	}
	w.undo = newUndo(t, setup...).direct(seed)
	return w
}

// schema makes tables, of which each may reference any that was made before it,
// itself, and sometimes the next one.
func (w *realm) schema(random *rand.Rand) []string {
	for i := range 2 + random.IntN(3) {
		w.tables = append(w.tables, &realmTable{name: fmt.Sprint("t", i), composite: random.IntN(4) == 0, unique: random.IntN(2) == 0})
	}
	var setup []string
	for i, t := range w.tables {
		columns := []string{"id int NOT NULL", "a text", "b text"}
		if t.composite {
			columns = append(columns, "k int NOT NULL")
		}
		if t.unique {
			columns = append(columns, "u int UNIQUE"+choose(random, "", "", " DEFERRABLE"))
		}
		columns = append(columns, "PRIMARY KEY ("+strings.Join(t.key(), ", ")+")")
		setup = append(setup, fmt.Sprintf("CREATE TABLE %s (%s)", t.name, strings.Join(columns, ", ")))
		for n := range 2 {
			parent := i - random.IntN(i+1)
			if n == 1 && (random.IntN(3) > 0 || parent == i) {
				continue
			}
			setup = append(setup, w.link(random, t, w.tables[parent])...)
		}
	}
	if random.IntN(4) == 0 { // a circle
		setup = append(setup, w.link(random, w.tables[0], w.tables[1])...)
	}
	return setup
}

func choose(random *rand.Rand, from ...string) string { return from[random.IntN(len(from))] }

func (w *realm) link(random *rand.Rand, t, parent *realmTable) []string {
	l := &realmLink{name: fmt.Sprint("p", len(t.links)), parent: parent}
	t.links = append(t.links, l)
	l.onUpdate = choose(random, "NO ACTION", "NO ACTION", "CASCADE", "SET NULL", "RESTRICT")
	onDelete := choose(random, "NO ACTION", "CASCADE", "SET NULL", "SET DEFAULT", "RESTRICT")
	var setup []string
	for _, column := range l.columns() {
		value := "" // with SET DEFAULT, NULL or the first row of all
		if onDelete == "SET DEFAULT" && !parent.composite && t != parent && parent == w.tables[0] {
			value = choose(random, "", " DEFAULT 1")
		}
		setup = append(setup, fmt.Sprintf("ALTER TABLE %s ADD %s int%s", t.name, column, value))
	}
	deferrable := choose(random, "", "", " DEFERRABLE", " DEFERRABLE INITIALLY DEFERRED")
	return append(setup, fmt.Sprintf("ALTER TABLE %s ADD FOREIGN KEY (%s) REFERENCES %s ON UPDATE %s ON DELETE %s%s",
		t.name, strings.Join(l.columns(), ", "), parent.name, l.onUpdate, onDelete, deferrable))
}

// some is the key of a row that is there, if any is.
func (w *realm) some(random *rand.Rand, t *realmTable) string {
	return fmt.Sprintf("(SELECT min(id) FROM %s WHERE id >= %d)", t.name, random.Int64N(w.next.Load()+1))
}

// insert gives the row parents, mostly.
func (w *realm) insert(random *rand.Rand, t *realmTable, id int64) string {
	columns, values := []string{"id", "a", "b"}, []string{fmt.Sprint(id), w.word(), w.word()}
	if t.composite {
		columns, values = append(columns, "k"), append(values, fmt.Sprint(1+random.IntN(3)))
	}
	if t.unique && w.undo != nil && random.IntN(2) == 0 {
		columns, values = append(columns, "u"), append(values, fmt.Sprint(random.IntN(12)))
	}
	from := " FROM (SELECT) one"
	for _, l := range t.links {
		if random.IntN(4) == 0 {
			continue
		}
		columns = append(columns, l.columns()...)
		for _, k := range l.parent.key() {
			values = append(values, l.name+"."+k)
		}
		from += fmt.Sprintf(" LEFT JOIN (SELECT * FROM %s WHERE id = %s LIMIT 1) %s ON true", l.parent.name, w.some(random, l.parent), l.name)
	}
	return fmt.Sprintf("INSERT INTO %s (%s) SELECT %s%s", t.name, strings.Join(columns, ", "), strings.Join(values, ", "), from)
}

// word is a value that was never written before: a value that comes back is one
// that nobody can tell from one that stayed.
func (w *realm) word() string { return fmt.Sprintf("'w%d'", w.next.Add(1)) }

// statement is some write, which the server may refuse.
func (w *realm) statement(random *rand.Rand) string {
	t := w.tables[random.IntN(len(w.tables))]
	row := "id = " + w.some(random, t)
	switch random.IntN(16) {
	case 0, 1:
		return w.insert(random, t, w.next.Add(1))
	case 2: // perhaps the key of one that was there
		return w.insert(random, t, 1+random.Int64N(w.next.Load()))
	case 3, 4:
		return fmt.Sprintf("DELETE FROM %s WHERE %s", t.name, row)
	case 5, 6, 7:
		if len(t.links) == 0 {
			return fmt.Sprintf("UPDATE %s SET a = %s WHERE %s", t.name, w.word(), row)
		}
		l := t.links[random.IntN(len(t.links))]
		if random.IntN(5) == 0 {
			return fmt.Sprintf("UPDATE %s SET %s = NULL WHERE %s", t.name, l.name, row)
		}
		return fmt.Sprintf("UPDATE %s SET (%s) = (SELECT %s FROM %s WHERE id = %s LIMIT 1) WHERE %s", t.name,
			strings.Join(l.columns(), ", "), strings.Join(l.parent.key(), ", "), l.parent.name, w.some(random, l.parent), row)
	case 8, 9:
		if t.unique {
			return fmt.Sprintf("UPDATE %s SET u = %s WHERE %s", t.name, choose(random, "NULL", fmt.Sprint(random.IntN(12)), fmt.Sprint(random.IntN(12))), row)
		}
		return fmt.Sprintf("UPDATE %s SET b = %s WHERE %s", t.name, w.word(), row)
	case 10, 11:
		return fmt.Sprintf("UPDATE %s SET id = %d WHERE %s", t.name, w.next.Add(1), row)
	case 12:
		return fmt.Sprintf("SELECT FROM %s WHERE %s FOR UPDATE", t.name, row)
	case 13:
		return fmt.Sprintf("UPDATE %s SET a = %s, b = %s WHERE id %% 3 = %d", t.name, w.word(), w.word(), random.IntN(3))
	default:
		return fmt.Sprintf("UPDATE %s SET a = %s WHERE %s", t.name, w.word(), row)
	}
}

// work has some sessions do transactions at the same time, each with statements
// that wait for each other's locks, and returns when all are done.
func (w *realm) work(t *testing.T, sessions, transactions int) {
	t.Helper()
	w.workUntil(t, nil, sessions, transactions)
}

// workUntil is work that ends early when stop is closed.
func (w *realm) workUntil(t *testing.T, stop <-chan struct{}, sessions, transactions int) {
	t.Helper()
	w.rounds++
	var all sync.WaitGroup
	for n := range sessions {
		conn, random := w.worker(t, n)
		all.Go(func() {
			for i := range transactions {
				select {
				case <-stop:
					return
				default:
				}
				if err := w.transaction(t.Context(), conn, random, fmt.Sprintf("r%d.%d.%d", w.rounds, n, i)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
}

func (w *realm) worker(t *testing.T, n int) (*pgx.Conn, *rand.Rand) {
	t.Helper()
	conn := w.Connect(t)
	if _, err := conn.Exec(t.Context(), "SET deadlock_timeout = '10ms'; SET lock_timeout = '3s'"); err != nil {
		t.Fatal(err)
	}
	return conn, rand.New(rand.NewPCG(w.seed, uint64(1000*w.rounds+n))) //nolint:gosec // It is to be repeatable.
}

// errRefused ends a transaction whose statement was refused.
var errRefused = errors.New("refused")

// transaction does some statements in the name of a request. What is refused is
// rolled back, alone or with all of the transaction.
func (w *realm) transaction(ctx context.Context, conn *pgx.Conn, random *rand.Rand, request string) error {
	ctx = audit.WithContext(ctx, audit.Context{UserID: "ann", RequestID: request})
	options := pgx.TxOptions{IsoLevel: pgx.ReadCommitted}
	if random.IntN(4) == 0 {
		options.IsoLevel = pgx.RepeatableRead
	}
	strict, deferred := random.IntN(4) == 0, random.IntN(2) == 0
	err := pgx.BeginTxFunc(ctx, conn, options, func(tx pgx.Tx) error {
		if err := audit.Stamp(ctx, tx); err != nil {
			return err
		}
		if deferred {
			if _, err := tx.Exec(ctx, "SET CONSTRAINTS ALL DEFERRED"); err != nil {
				return err
			}
		}
		for range 1 + random.IntN(5) {
			sql := w.statement(random)
			err := pgx.BeginFunc(ctx, tx, func(nested pgx.Tx) error {
				_, err := nested.Exec(ctx, sql)
				return err
			})
			w.note("%s: %s: %v", request, sql, err)
			if err != nil && strict {
				return errRefused
			}
		}
		return nil
	})
	w.note("%s ends: %v", request, err)
	if err == nil {
		w.mu.Lock()
		w.done = append(w.done, request)
		w.mu.Unlock()
	}
	if conn.IsClosed() {
		return fmt.Errorf("%s: %w", request, err)
	}
	return nil // a deferred constraint may well say no
}

// latest returns one of the requests that were committed last.
func (w *realm) latest(random *rand.Rand) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.done[max(0, len(w.done)-1-random.IntN(10))]
}

func (w *realm) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, fmt.Sprintf(format, args...))
}

// rowsSQL reads all rows of all tables as text.
func (w *realm) rowsSQL() string {
	parts := make([]string, len(w.tables))
	for i, t := range w.tables {
		parts[i] = fmt.Sprintf("SELECT '%s ' || whole::text FROM %s whole", t.name, t.name)
	}
	return strings.Join(parts, " UNION ALL ")
}

func (w *realm) read(ctx context.Context, tx querier) ([]string, error) {
	rows, err := tx.Query(ctx, w.rowsSQL())
	if err != nil {
		return nil, err
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	slices.Sort(lines)
	return lines, err
}

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// live is all rows as they are, past as they were.
func (w *realm) live(t *testing.T) []string {
	t.Helper()
	lines, err := w.read(t.Context(), w.conn)
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func (w *realm) past(t *testing.T, at audit.Point) []string {
	t.Helper()
	var lines []string
	err := at.View(t.Context(), func(tx pgx.Tx) (err error) {
		lines, err = w.read(t.Context(), tx)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}
