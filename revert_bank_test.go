package audit_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// bankSecondsEnv sets for how long the bank is open, bankSeedEnv repeats its choices.
const (
	bankSecondsEnv = "AUDIT_TEST_BANK_SECONDS"
	bankSeedEnv    = "AUDIT_TEST_BANK_SEED"
)

const (
	bankAccounts = 6
	bankProducts = 3
	bankWriters  = 4
	bankUndoers  = 2
)

// bankSchema are accounts with optimistic locks, the transfers between them, and a stock
// that a trigger keeps.
const bankSchema = `
	CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL, note text, lock_version int NOT NULL DEFAULT 0, updated_at timestamptz NOT NULL DEFAULT now());
	CREATE TABLE transfer (id bigint PRIMARY KEY, source int NOT NULL REFERENCES account, target int NOT NULL REFERENCES account, amount bigint NOT NULL);
	CREATE TABLE product (id int PRIMARY KEY, name text NOT NULL, stock bigint NOT NULL DEFAULT 0);
	CREATE TABLE movement (id bigint PRIMARY KEY, product int NOT NULL REFERENCES product, quantity bigint NOT NULL);
	CREATE FUNCTION keep_stock() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF TG_OP <> 'INSERT' THEN UPDATE product SET stock = stock - OLD.quantity WHERE id = OLD.product; END IF;
			IF TG_OP <> 'DELETE' THEN UPDATE product SET stock = stock + NEW.quantity WHERE id = NEW.product; END IF;
			RETURN NULL;
		END $$;
	CREATE TRIGGER keep AFTER INSERT OR UPDATE OR DELETE ON movement FOR EACH ROW EXECUTE FUNCTION keep_stock();
	INSERT INTO account SELECT n, 1000000000 FROM generate_series(1, 6) n;
	INSERT INTO product SELECT n, 'product ' || n FROM generate_series(1, 3) n`

// busyBank is the bank and what was done in it.
type busyBank struct {
	*audittest.Audited
	policies []audit.Policy

	mu       sync.Mutex // guards the rest
	requests []string
	serial   int
	reverts  map[string]bankRevert // by their ids
	ids      []string              // of reverts
	counts   map[string]int
}

// bankRevert is a revert as the one who asked for it knows it.
type bankRevert struct {
	unit   string // an owner: see bankModel
	policy audit.Policy
	result *audit.Result
}

func (b *busyBank) count(what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts[what]++
}

func (b *busyBank) next() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.serial++
	return b.serial
}

var wholePolicies = []audit.Policy{audit.Abort, audit.Cascade, audit.CascadeRequests}

// Transfers, movements of a stock that a trigger counts, and notes, with optimistic locks,
// by several at once, while requests are undone at random under every policy, and undone
// reverts are redone. An independent model goes through the history then.
func TestRevert_BankWithWriters(t *testing.T) {
	t.Parallel()
	for name, policies := range map[string][]audit.Policy{
		// The sum of the balances holds after every transaction.
		"WholeUnits": wholePolicies,
		// Skip and Overwrite leave a half of what they name in conflict.
		"EveryPolicy": append([]audit.Policy{audit.Skip, audit.Overwrite}, wholePolicies...),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed := faulttest.EnvNumber(t, bankSeedEnv, rand.Uint64())
			t.Logf("%s=%d", bankSeedEnv, seed)
			b := &busyBank{policies: policies, reverts: make(map[string]bankRevert), counts: make(map[string]int)}
			b.Audited = audittest.New(t, audit.Config{Tables: []string{"public.*"}, NeverRestored: []string{"*.updated_at", "product.stock"}}, bankSchema)
			b.work(t, seed)
			b.Sync(t)
			t.Logf("%v", b.counts)
			newBankModel(b).check(t, b.Connect(t))
		})
	}
}

// work has everybody work for some seconds.
func (b *busyBank) work(t *testing.T, seed uint64) {
	t.Helper()
	conns := make([]*pgx.Conn, bankWriters)
	for i := range conns {
		conns[i] = b.Connect(t)
	}
	open, cancel := context.WithTimeout(t.Context(), time.Duration(faulttest.EnvNumber(t, bankSecondsEnv, 3))*time.Second)
	defer cancel()
	var work sync.WaitGroup
	for i, conn := range conns {
		work.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			for open.Err() == nil {
				if err := b.write(t.Context(), conn, r, fmt.Sprintf("user %d", i)); err != nil {
					t.Errorf("write: %v", err)
					return
				}
			}
		})
	}
	for i := range bankUndoers {
		work.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(100+i)))
			for open.Err() == nil {
				if err := b.undo(t.Context(), r); err != nil {
					t.Errorf("undo: %v", err)
					return
				}
			}
		})
	}
	work.Wait()
}

// isDeadlock reports whether PostgreSQL gave up on a transaction that can be tried again.
func isDeadlock(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40P01" || pg.Code == "40001")
}

// write is a request of one or two transactions.
func (b *busyBank) write(ctx context.Context, conn *pgx.Conn, r *rand.Rand, user string) error {
	id := fmt.Sprintf("request %d", b.next())
	ctx = audit.WithContext(ctx, audit.Context{UserID: user, RequestID: id})
	written := false
	for range 1 + r.IntN(4)/3 {
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if err := audit.Stamp(ctx, tx); err != nil {
				return err
			}
			switch r.IntN(5) {
			case 0, 1, 2:
				return b.transfer(ctx, tx, r)
			case 3:
				_, err := tx.Exec(ctx, "INSERT INTO movement VALUES ($1, $2, $3)", b.next(), 1+r.IntN(bankProducts), 1+r.IntN(1000))
				return err
			default:
				_, err := tx.Exec(ctx, "UPDATE account SET note = $1, lock_version = lock_version + 1, updated_at = clock_timestamp() WHERE id = $2", id, 1+r.IntN(bankAccounts))
				return err
			}
		})
		switch {
		case err == nil:
			written = true
		case errors.Is(err, errStaleAccount), isDeadlock(err):
			b.count(fmt.Sprintf("write: %.20s", err))
		default:
			return err
		}
	}
	if written {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.requests = append(b.requests, id)
	}
	return nil
}

var errStaleAccount = errors.New("stale account")

// transfer moves money as programs with optimistic locks do: it reads both accounts, and
// writes what it has made of them if nobody has written to them since.
func (b *busyBank) transfer(ctx context.Context, tx pgx.Tx, r *rand.Rand) error {
	source, target, amount := 1+r.IntN(bankAccounts), 1+r.IntN(bankAccounts-1), int64(1+r.IntN(1_000_000))
	if target >= source {
		target++
	}
	change := map[int]int64{source: -amount, target: amount}
	type account struct {
		balance int64
		version int
	}
	read := make(map[int]account)
	for _, id := range []int{min(source, target), max(source, target)} {
		var a account
		if err := tx.QueryRow(ctx, "SELECT balance, lock_version FROM account WHERE id = $1", id).Scan(&a.balance, &a.version); err != nil {
			return err
		}
		read[id] = a
	}
	for _, id := range []int{min(source, target), max(source, target)} {
		tag, err := tx.Exec(ctx, "UPDATE account SET balance = $1, lock_version = lock_version + 1, updated_at = clock_timestamp() WHERE id = $2 AND lock_version = $3",
			read[id].balance+change[id], id, read[id].version)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return errStaleAccount
		}
	}
	_, err := tx.Exec(ctx, "INSERT INTO transfer VALUES ($1, $2, $3, $4)", b.next(), source, target, amount)
	return err
}

// undo undoes a request, one of the last mostly, or does a revert again.
func (b *busyBank) undo(ctx context.Context, r *rand.Rand) error {
	policy := b.policies[r.IntN(len(b.policies))]
	b.mu.Lock()
	from, unit := b.requests, "request "
	redo := len(b.ids) > 0 && r.IntN(3) == 0
	if redo {
		from, unit = b.ids, "revert "
	}
	if len(from) == 0 {
		b.mu.Unlock()
		return nil
	}
	id := from[len(from)-1-min(int(r.ExpFloat64()*5), len(from)-1)]
	b.mu.Unlock()
	reversal := b.Client.RevertRequest(id)
	if redo {
		reversal = b.Client.Redo(id)
	}
	ctx = audit.WithContext(ctx, audit.Context{UserID: "root", RequestID: fmt.Sprintf("undo %d", b.next())})
	result, err := reversal.OnConflict(policy).Apply(ctx)
	var blocked *audit.ConflictError
	switch {
	case errors.As(err, &blocked):
		b.count(fmt.Sprintf("%v: in conflict", policy))
		return nil
	case isDeadlock(err):
		b.count("undo: deadlock")
		return nil
	case err != nil:
		return fmt.Errorf("%s%s, %v: %w", unit, id, policy, err)
	case result.ID == "":
		b.count(fmt.Sprintf("%v: nothing to do", policy))
		return nil
	}
	b.count(fmt.Sprintf("%v: done (redo: %v, conflicts: %v)", policy, redo, len(result.Plan.Conflicts) > 0))
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reverts[result.ID] = bankRevert{unit: unit + id, policy: policy, result: result}
	b.ids = append(b.ids, result.ID)
	return nil
}
