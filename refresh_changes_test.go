package audit_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// keepWriting runs a statement again and again until the test ends.
func keepWriting(t *testing.T, db *audittest.Database, sql string) {
	t.Helper()
	conn := faulttest.Connect(t, db.URL())
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			if _, err := conn.Exec(ctx, sql); err != nil && ctx.Err() == nil {
				t.Errorf("%s: %v", sql, err)
				return
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-ended })
}

// While the host writes, a look for new tables does not have the server describe all tables,
// if there was no DDL.
func TestRefresh_NothingChanged(t *testing.T) {
	t.Parallel()
	const tables = 40
	db := audittest.NewDatabase(t)
	ddl := strings.Builder{}
	ddl.WriteString("CREATE TABLE other (id int PRIMARY KEY, n int); INSERT INTO other VALUES (1, 0);")
	for n := range tables {
		fmt.Fprintf(&ddl, "CREATE TABLE t_%d (id int PRIMARY KEY, v text);", n)
	}
	db.Exec(t, ddl.String())
	proxy := faulttest.NewProxy(t, db.URL())
	var answers, bytes atomic.Int64
	proxy.Rewrite(func(answer []byte) {
		if len(answer) > 0 && answer[0] != 'd' { // of the stream
			answers.Add(1)
			bytes.Add(int64(len(answer)))
		}
	})
	// The store is in the source: what we write there ourselves is no reason to look.
	client := openClient(t, audit.Config{SourceURL: proxy.URL(), StoreURL: db.URL(), Tables: []string{"public.t_*"}, RefreshInterval: 20 * time.Millisecond})
	if err := client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	keepWriting(t, db, "UPDATE other SET n = n + 1; SELECT pg_sleep(0.005)")
	faulttest.Poll(t, faulttest.Patience, "looks cost little", func() error {
		from, read := answers.Load(), bytes.Load()
		for answers.Load() < from+60 {
			faulttest.Pause(t, 20*time.Millisecond)
		}
		if each := (bytes.Load() - read) / (answers.Load() - from); each > 4*tables {
			return fmt.Errorf("an answer of the source has %d bytes", each)
		}
		return nil
	})
	db.Exec(t, "CREATE TABLE t_late (id int PRIMARY KEY)")
	faulttest.Poll(t, faulttest.Patience, "the next table is tracked", func() error {
		if !audittest.Value[bool](t, db, `SELECT EXISTS (SELECT FROM audit.coverage WHERE "table" = 't_late')`) {
			return errors.New("it is not")
		}
		return nil
	})
}

// What a look at the tables goes by changes the fingerprint of the catalog, and what it does
// not go by leaves it as it is.
func TestRefresh_FingerprintsOfTheCatalog(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, `
		CREATE TYPE mood AS ENUM ('sad', 'glad');
		CREATE TYPE place AS (street text, town text);
		CREATE DOMAIN amount AS int;
		CREATE FUNCTION twice(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 2 * $1';
		CREATE TABLE a (id int PRIMARY KEY, v text, m mood, p place, n amount, d int GENERATED ALWAYS AS (twice(id)) STORED);
		CREATE TABLE b (id int PRIMARY KEY);
		CREATE UNIQUE INDEX b_other ON b (id);
		CREATE TABLE part (id int PRIMARY KEY) PARTITION BY RANGE (id);
		CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10);
		CREATE TABLE part_2 (id int NOT NULL PRIMARY KEY);
		CREATE PUBLICATION feed FOR TABLE a;
		CREATE SCHEMA other`)
	pool, err := pgxpool.New(t.Context(), db.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	setup := &capture.Setup{DB: pool}
	take := func() [2]capture.Fingerprint {
		t.Helper()
		tables, err := setup.TablesFingerprint(t.Context(), 7)
		if err != nil {
			t.Fatal(err)
		}
		structures, err := setup.StructuresFingerprint(t.Context(), 7)
		if err != nil {
			t.Fatal(err)
		}
		return [2]capture.Fingerprint{tables, structures}
	}
	const neither, ofTables, ofStructures, either = 0, 1, 2, 3
	for _, test := range []struct {
		sql  string
		want int // which fingerprints change at least; neither: none does
	}{
		{"INSERT INTO a (id) SELECT generate_series(1, 500)", neither},
		{"UPDATE a SET v = repeat('x', 5000)", neither},
		{"ANALYZE", neither},
		{"VACUUM", neither},
		{"VACUUM FREEZE pg_catalog.pg_class", neither},
		{"VACUUM FREEZE pg_catalog.pg_attribute", neither},
		{"CREATE TEMP TABLE scratch (id int PRIMARY KEY, v text); DROP TABLE scratch", neither},
		{"CREATE TEMP TABLE scratch (id int PRIMARY KEY, v text) ON COMMIT DELETE ROWS", neither},
		{"CREATE VIEW pg_temp.v AS SELECT 1 AS x", neither},
		{"CREATE TABLE c (id int)", either},
		{"DROP TABLE c", either},
		{"ALTER PUBLICATION feed ADD TABLE b", ofTables},
		{"BEGIN; ALTER PUBLICATION feed DROP TABLE b; ALTER PUBLICATION feed ADD TABLE b; COMMIT", ofTables},
		{"ALTER PUBLICATION feed SET (publish = 'insert')", ofTables},
		{"ALTER PUBLICATION feed RENAME TO feeds", ofTables},
		{"ALTER TABLE a REPLICA IDENTITY FULL", ofTables},
		{"ALTER TABLE b REPLICA IDENTITY USING INDEX b_other", either},
		{"ALTER TABLE part_2 SET UNLOGGED; ALTER TABLE part_2 SET LOGGED", ofTables},
		{"ALTER TABLE a OWNER TO CURRENT_USER; ALTER TABLE b RENAME TO bb", ofTables},
		{"ALTER TABLE bb SET SCHEMA other", ofTables},
		{"ALTER SCHEMA other RENAME TO others", ofTables},
		{"ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES FROM (10) TO (20)", ofTables},
		{"ALTER TABLE part DETACH PARTITION part_2", ofTables},
		{"ALTER EXTENSION plpgsql ADD TABLE part_2", ofTables},
		{"ALTER EXTENSION plpgsql DROP TABLE part_2", ofTables},
		{"CREATE ROLE fingerprint_role_" + strings.ReplaceAll(db.Name(), "-", "_") + "; GRANT pg_monitor TO fingerprint_role_" + db.Name(), ofTables},
		{"DROP ROLE fingerprint_role_" + db.Name(), ofTables},
		{"ALTER TABLE a RENAME COLUMN v TO w", ofStructures},
		{"ALTER TABLE a ALTER COLUMN w TYPE varchar(100000)", ofStructures},
		{"ALTER TABLE a DROP COLUMN w", ofStructures},
		{"ALTER TABLE a ADD COLUMN w int", ofStructures},
		{"ALTER TABLE part_2 DROP CONSTRAINT part_2_pkey", ofStructures},
		{"ALTER TYPE mood RENAME VALUE 'sad' TO 'bad'", ofStructures},
		{"ALTER TYPE mood ADD VALUE 'mad'", ofStructures},
		{"ALTER TYPE mood RENAME TO moods", ofStructures},
		{"ALTER TYPE place RENAME ATTRIBUTE town TO city", ofStructures},
		{"ALTER TYPE place ADD ATTRIBUTE zip text", ofStructures},
		{"ALTER FUNCTION twice(int) RENAME TO doubled", ofStructures},
		{"ALTER TABLE a ALTER COLUMN d DROP EXPRESSION", ofStructures},
		{"ALTER DOMAIN amount RENAME TO amounts", ofStructures},
	} {
		before := take()
		db.Exec(t, test.sql)
		after := take()
		changed := neither
		for i, which := range []int{ofTables, ofStructures} {
			if before[i] != after[i] {
				changed |= which
			}
		}
		if changed&test.want != test.want || test.want == neither && changed != neither {
			t.Errorf("%s: fingerprints changed: %b, want %b", test.sql, changed, test.want)
		}
		if again := take(); again != after {
			t.Errorf("%s: fingerprints change by themselves", test.sql)
		}
	}
}

// Where a writer is busy and nobody tells of DDL, a look finds what was done to a table.
func TestRefresh_FindsWhatWasDone(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{NoEventTrigger: true, RefreshInterval: 20 * time.Millisecond}, `
		CREATE TABLE busy (id int PRIMARY KEY, n int); INSERT INTO busy VALUES (1, 0);
		CREATE TABLE todo (id int PRIMARY KEY, v text); INSERT INTO todo VALUES (1, 'x');
		CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
		CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10)`)
	keepWriting(t, a.Database, "UPDATE busy SET n = n + 1; SELECT pg_sleep(0.005)")
	holds := func(what, sql string) {
		t.Helper()
		faulttest.Poll(t, faulttest.Patience, what, func() error {
			if !audittest.Value[bool](t, a.Database, sql) {
				return errors.New("not yet")
			}
			return nil
		})
	}
	for _, test := range []struct{ do, finds string }{
		{"ALTER PUBLICATION audit DROP TABLE todo", `SELECT count(*) = 2 FROM audit.coverage WHERE "table" = 'todo'`},
		{"ALTER TABLE todo REPLICA IDENTITY NOTHING", `SELECT relreplident = 'f' FROM pg_class WHERE relname = 'todo'`},
		{"ALTER TABLE todo RENAME COLUMN v TO w", `SELECT EXISTS (SELECT FROM audit.relations WHERE "table" = 'todo' AND columns @> '[{"name": "w"}]')`},
		{"ALTER TABLE todo ADD COLUMN x int", `SELECT EXISTS (SELECT FROM audit.relations WHERE "table" = 'todo' AND columns @> '[{"name": "x"}]')`},
		{"CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20)", `SELECT EXISTS (SELECT FROM pg_publication_rel WHERE prrelid = 'parted_2'::regclass)`},
		{"ALTER TABLE todo RENAME TO todos", `SELECT EXISTS (SELECT FROM audit.coverage WHERE "table" = 'todos' AND until_position IS NULL)`},
		{"ALTER EXTENSION plpgsql ADD TABLE todos", `SELECT NOT EXISTS (SELECT FROM audit.coverage WHERE "table" = 'todos' AND until_position IS NULL)`},
		{"ALTER EXTENSION plpgsql DROP TABLE todos", `SELECT EXISTS (SELECT FROM audit.coverage WHERE "table" = 'todos' AND until_position IS NULL)`},
		{"DROP TABLE todos", `SELECT NOT EXISTS (SELECT FROM audit.coverage WHERE "table" = 'todos' AND until_position IS NULL)`},
	} {
		a.Exec(t, test.do)
		holds(test.do, test.finds)
	}
}
