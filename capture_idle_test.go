package audit_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// What looks for new tables costs next to nothing while nothing is written to the source,
// however many tables there are, and sees the next table nevertheless.
func TestRefresh_NothingWritten(t *testing.T) {
	t.Parallel()
	const tables = 40
	// A server of its own: WAL is the cluster's.
	db := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	var ddl strings.Builder
	for n := range tables {
		fmt.Fprintf(&ddl, "CREATE TABLE t_%d (id int PRIMARY KEY, v text);", n)
	}
	db.Exec(t, ddl.String())
	proxy := faulttest.NewProxy(t, db.URL())
	var answers, bytes atomic.Int64
	proxy.Rewrite(func(answer []byte) {
		answers.Add(1)
		bytes.Add(int64(len(answer)))
	})
	store := audittest.NewDatabase(t)
	client := openClient(t, audit.Config{SourceURL: proxy.URL(), StoreURL: store.URL(), Tables: []string{"public.*"}, RefreshInterval: 20 * time.Millisecond})
	if err := client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	faulttest.Poll(t, faulttest.Patience, "looks cost next to nothing", func() error {
		from, read := answers.Load(), bytes.Load()
		for answers.Load() < from+30 {
			faulttest.Pause(t, 20*time.Millisecond)
		}
		if each := (bytes.Load() - read) / (answers.Load() - from); each > 4*tables {
			return fmt.Errorf("an answer of the source has %d bytes", each)
		}
		return nil
	})
	db.Exec(t, "CREATE TABLE late (id int PRIMARY KEY)")
	faulttest.Poll(t, faulttest.Patience, "the next table is tracked", func() error {
		if !audittest.Value[bool](t, store, `SELECT EXISTS (SELECT FROM audit.coverage WHERE "table" = 'late')`) {
			return fmt.Errorf("it is not")
		}
		return nil
	})
}
