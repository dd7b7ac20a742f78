package auditgorm_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// Requests of many users share few connections. Each row tells whose it is, and no
// context may get to a row of another, whatever is rolled back, cancelled or panics.
func TestStorm_NoContextIsMixedUp(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	var dbs []*gorm.DB
	for _, config := range modes {
		db := open(t, postgres.Open(a.URL()), config)
		use(t, db)
		pool, err := db.DB()
		must(t, err)
		pool.SetMaxOpenConns(3)
		if config.PrepareStmt {
			pool.SetMaxOpenConns(20) // with less than there are requests, GORM itself locks up
		}
		dbs = append(dbs, db)
	}
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(20261127, uint64(i)))
			for j := range 12 {
				user := fmt.Sprintf("user%d.%d", i, j)
				ctx := by(context.Background(), user)
				if random.IntN(6) == 0 {
					ctx, user = context.Background(), "nobody"
				}
				writeInAStorm(ctx, t, random, dbs[i%len(dbs)], user)
			}
		})
	}
	wg.Wait()
	lines := history(t, a)
	if len(lines) < 500 {
		t.Errorf("only %d changes", len(lines))
	}
	for _, line := range lines {
		user, _ := strings.CutPrefix(line, "CREATE ")
		user, by, stamped := strings.Cut(user, " by ")
		if stamped != (user != "nobody") || stamped && by != user {
			t.Error(line)
		}
	}
}

var errUndone = errors.New("undone")

// writeInAStorm writes rows of a user in some way.
func writeInAStorm(ctx context.Context, t *testing.T, random *rand.Rand, db *gorm.DB, user string) {
	t.Helper()
	as := db.WithContext(ctx)
	kind := random.IntN(8)
	var err error
	switch kind {
	case 0:
		err = as.Create(&Todo{Task: user}).Error
	case 1:
		err = as.Exec("INSERT INTO todos (task) VALUES (?)", user).Error
	case 2:
		err = as.Raw("INSERT INTO todos (task) VALUES (?) RETURNING id", user).Scan(new(int64)).Error
	case 3:
		err = as.CreateInBatches([]Todo{{Task: user}, {Task: user}, {Task: user}}, 2).Error
	case 4:
		err = as.Transaction(func(tx *gorm.DB) error {
			inner := tx.Transaction(func(tx *gorm.DB) error {
				return errors.Join(tx.Create(&Todo{Task: user}).Error, errUndone)
			})
			if !errors.Is(inner, errUndone) {
				return inner
			}
			return tx.Create(&Todo{Task: user}).Error
		})
	case 5:
		func() {
			defer func() { _ = recover() }()
			_ = as.Transaction(func(tx *gorm.DB) error {
				_ = tx.Create(&Todo{Task: user}).Error
				panic("a handler panics")
			})
		}()
	case 6:
		cancelled, cancel := context.WithTimeout(ctx, time.Duration(random.IntN(2000))*time.Microsecond)
		_ = db.WithContext(cancelled).Create(&Todo{Task: user}).Error // it may be through or not
		cancel()
	case 7:
		tx := as.Begin()
		err = errors.Join(tx.Error, tx.Create(&Todo{Task: user}).Error)
		if random.IntN(2) == 0 {
			err = errors.Join(err, tx.Rollback().Error)
		} else {
			err = errors.Join(err, tx.Commit().Error)
		}
	}
	if err != nil {
		t.Errorf("%d: %v", kind, err)
	}
}

// A pool of one connection is enough, however requests end.
func TestPoolOfOne(t *testing.T) {
	t.Parallel()
	for name, config := range extremes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, db, _ := newDB(t, config)
			pool, err := db.DB()
			must(t, err)
			pool.SetMaxOpenConns(1)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					user := fmt.Sprint("user", i)
					for range 5 {
						if err := db.WithContext(by(ctx, user)).Create(&Todo{Task: user}).Error; err != nil {
							t.Error(err)
						}
						ended, end := context.WithCancel(by(ctx, user))
						end()
						if err := db.WithContext(ended).Create(&Todo{Task: user}).Error; !errors.Is(err, context.Canceled) {
							t.Errorf("ctx has ended: %v", err)
						}
					}
				})
			}
			wg.Wait()
			if stats := pool.Stats(); stats.InUse != 0 || stats.OpenConnections > 1 {
				t.Errorf("%+v", stats)
			}
			lines := history(t, a)
			for _, line := range lines {
				if user, by, _ := strings.Cut(strings.TrimPrefix(line, "CREATE "), " by "); user != by {
					t.Error(line)
				}
			}
			if len(lines) != 40 {
				t.Errorf("%d changes", len(lines))
			}
		})
	}
}

// A prepared statement outlives what is altered below it.
func TestPrepared_TableIsAltered(t *testing.T) {
	t.Parallel()
	a, db, _ := newDB(t, gorm.Config{PrepareStmt: true, SkipDefaultTransaction: true})
	write := func(user string) {
		must(t, db.WithContext(by(t.Context(), user)).Raw("INSERT INTO todos (task) VALUES (?) RETURNING *", "Sleep").Scan(&Todo{}).Error)
	}
	write("ann")
	write("ann")
	a.Exec(t, "ALTER TABLE todos ADD COLUMN note text")
	// The one that runs into it fails, as it does in pgx's cache, and those behind it do not.
	_ = db.WithContext(by(t.Context(), "bob")).Raw("INSERT INTO todos (task) VALUES (?) RETURNING *", "Sleep").Scan(&Todo{}).Error
	write("cat")
	lines := history(t, a)
	if diff := cmp.Diff("CREATE Sleep by cat", lines[len(lines)-1]); diff != "" {
		t.Error(diff)
	}
}
