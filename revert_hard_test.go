package audit_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// hard is a schema and a request in it that takes care to revert.
var hard = map[string]struct {
	schema  string
	request []string
}{
	"CascadedDelete": {
		`CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a ON DELETE CASCADE);
		CREATE TABLE c (id int PRIMARY KEY, b int REFERENCES b ON DELETE CASCADE);
		INSERT INTO a VALUES (1), (2); INSERT INTO b VALUES (1, 1), (2, 1), (3, 2); INSERT INTO c VALUES (1, 1), (2, 1), (3, 3)`,
		[]string{"DELETE FROM a WHERE id = 1"},
	},
	"OnUpdateCascade": {
		`CREATE TABLE a (id int PRIMARY KEY, n text); CREATE TABLE b (a int REFERENCES a ON UPDATE CASCADE, line int, n text, PRIMARY KEY (a, line));
		INSERT INTO a VALUES (1, 'x'), (2, 'y'); INSERT INTO b VALUES (1, 1, 'p'), (1, 2, 'q'), (2, 1, 'r')`,
		[]string{"UPDATE a SET id = 10 WHERE id = 1", "UPDATE b SET n = 'changed' WHERE a = 10 AND line = 2"},
	},
	"OnDeleteSetNull": {
		`CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a ON DELETE SET NULL);
		INSERT INTO a VALUES (1), (2); INSERT INTO b VALUES (1, 1), (2, 2)`,
		[]string{"DELETE FROM a WHERE id = 1"},
	},
	"OnDeleteSetDefault": {
		`CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int DEFAULT 2 REFERENCES a ON DELETE SET DEFAULT);
		INSERT INTO a VALUES (1), (2); INSERT INTO b VALUES (1, 1), (2, 2)`,
		[]string{"DELETE FROM a WHERE id = 1"},
	},
	"SelfReference": {
		`CREATE TABLE a (id int PRIMARY KEY, parent int REFERENCES a); INSERT INTO a VALUES (1, NULL), (2, 1), (3, 2), (4, 4)`,
		[]string{"DELETE FROM a", "INSERT INTO a VALUES (9, NULL), (8, 9)"},
	},
	"SelfReferenceRestrict": {
		`CREATE TABLE a (id int PRIMARY KEY, parent int REFERENCES a ON DELETE RESTRICT); INSERT INTO a VALUES (1, NULL)`,
		[]string{"INSERT INTO a VALUES (2, 1), (3, 2), (4, 3)"},
	},
	"CircleDeferrable": {
		`CREATE TABLE a (id int PRIMARY KEY, b int NOT NULL); CREATE TABLE b (id int PRIMARY KEY, a int NOT NULL REFERENCES a DEFERRABLE);
		ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b DEFERRABLE INITIALLY DEFERRED; INSERT INTO a VALUES (1, 1); INSERT INTO b VALUES (1, 1)`,
		[]string{"SET CONSTRAINTS ALL DEFERRED", "DELETE FROM a", "DELETE FROM b", "INSERT INTO a VALUES (2, 2)", "INSERT INTO b VALUES (2, 2)"},
	},
	"CircleNullable": {
		`CREATE TABLE a (id int PRIMARY KEY, b int); CREATE TABLE b (id int PRIMARY KEY, a int NOT NULL REFERENCES a);
		ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b; INSERT INTO a VALUES (1, NULL), (5, NULL); INSERT INTO b VALUES (1, 1), (5, 5); UPDATE a SET b = id`,
		[]string{"UPDATE a SET b = NULL WHERE id = 1", "DELETE FROM b WHERE id = 1", "DELETE FROM a WHERE id = 1", "INSERT INTO a VALUES (2, NULL)", "INSERT INTO b VALUES (2, 2)", "UPDATE a SET b = 2 WHERE id = 2"},
	},
	"MovedToANewParent": {
		`CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int NOT NULL REFERENCES a ON DELETE CASCADE); INSERT INTO a VALUES (1); INSERT INTO b VALUES (1, 1), (2, 1)`,
		[]string{"INSERT INTO a VALUES (2)", "UPDATE b SET a = 2", "DELETE FROM a WHERE id = 1"},
	},
	"UniqueSwapNullable": {
		`CREATE TABLE a (id int PRIMARY KEY, n text UNIQUE); INSERT INTO a VALUES (1, 'x'), (2, 'y'), (3, 'z')`,
		[]string{"UPDATE a SET n = NULL WHERE id = 1", "UPDATE a SET n = 'x' WHERE id = 2", "UPDATE a SET n = 'y' WHERE id = 3", "UPDATE a SET n = 'z' WHERE id = 1"},
	},
	"UniqueSwapNotNull": {
		`CREATE TABLE a (id int PRIMARY KEY, n int NOT NULL UNIQUE, t varchar(3) NOT NULL UNIQUE); INSERT INTO a VALUES (1, 1, 'x'), (2, 2, 'y')`,
		[]string{"UPDATE a SET n = 9, t = '-' WHERE id = 1", "UPDATE a SET n = 1, t = 'x' WHERE id = 2", "UPDATE a SET n = 2, t = 'y' WHERE id = 1"},
	},
	"UniqueSwapDeferrable": {
		`CREATE TABLE a (id int PRIMARY KEY, n int NOT NULL UNIQUE DEFERRABLE); INSERT INTO a VALUES (1, 1), (2, 2)`,
		[]string{"UPDATE a SET n = 3 - n"},
	},
	"KeySwap": {
		`CREATE TABLE a (id int PRIMARY KEY, n text); INSERT INTO a VALUES (1, 'x'), (2, 'y')`,
		[]string{"UPDATE a SET id = 9 WHERE id = 1", "UPDATE a SET id = 1 WHERE id = 2", "UPDATE a SET id = 2 WHERE id = 9"},
	},
	"KeyTakenOver": {
		`CREATE TABLE a (id int PRIMARY KEY, n text); INSERT INTO a VALUES (1, 'x'), (2, 'y')`,
		[]string{"DELETE FROM a WHERE id = 1", "UPDATE a SET id = 1 WHERE id = 2"},
	},
	"UniqueFreedByDelete": {
		`CREATE TABLE a (id int PRIMARY KEY, n text NOT NULL UNIQUE); INSERT INTO a VALUES (1, 'x')`,
		[]string{"DELETE FROM a", "INSERT INTO a VALUES (2, 'x')"},
	},
	"Exclusion": {
		`CREATE TABLE a (id int PRIMARY KEY, during int4range, EXCLUDE USING gist (during WITH &&)); INSERT INTO a VALUES (1, '[1,5)'), (2, '[5,9)')`,
		[]string{"UPDATE a SET during = '[20,21)' WHERE id = 1", "UPDATE a SET during = '[2,5)' WHERE id = 2", "UPDATE a SET during = '[7,8)' WHERE id = 1"},
	},
	"IdentityAlways": {
		`CREATE TABLE a (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int); INSERT INTO a (n) VALUES (1), (2)`,
		[]string{"DELETE FROM a WHERE n = 1", "INSERT INTO a (n) VALUES (3)", "UPDATE a SET n = 4 WHERE n = 2"},
	},
	"GeneratedColumn": {
		`CREATE TABLE a (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED UNIQUE); INSERT INTO a (id, n) VALUES (1, 1), (2, 2)`,
		[]string{"DELETE FROM a WHERE id = 1", "UPDATE a SET n = 5 WHERE id = 2", "INSERT INTO a (id, n) VALUES (3, 3)"},
	},
	"PartitionMove": {
		`CREATE TABLE a (id int, region text, n int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
		CREATE TABLE a_eu PARTITION OF a FOR VALUES IN ('eu'); CREATE TABLE a_us PARTITION OF a FOR VALUES IN ('us');
		INSERT INTO a VALUES (1, 'eu', 1), (2, 'us', 2), (3, 'us', 3)`,
		[]string{"UPDATE a SET region = 'us', n = 10 WHERE id = 1", "UPDATE a SET n = 20 WHERE id = 2", "DELETE FROM a WHERE id = 3"},
	},
	"Inheritance": {
		`CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE a_child (PRIMARY KEY (id)) INHERITS (a); INSERT INTO a VALUES (1, 1); INSERT INTO a_child VALUES (1, 100)`,
		[]string{"UPDATE ONLY a SET n = 2", "UPDATE a_child SET n = 200"},
	},
	"OddNames": {
		`CREATE SCHEMA app; CREATE TABLE app."Select ""x""" ("ID" int PRIMARY KEY, "from" text, "a.b" text, "ünï""code" text, n int, t int, s int); INSERT INTO app."Select ""x""" VALUES (1, 'a', 'b', 'c', 1, 2, 3)`,
		[]string{`UPDATE app."Select ""x""" SET "from" = 'z', "a.b" = NULL, "ünï""code" = '', n = 2, t = 3, s = 4`, `INSERT INTO app."Select ""x""" VALUES (2, '''', '\', '"', 0, 0, 0)`},
	},
	"Toasted": {
		`CREATE TABLE a (id int PRIMARY KEY, big text, n int); INSERT INTO a SELECT i, (SELECT string_agg(md5((i * j)::text), '') FROM generate_series(1, 2000) j), 0 FROM generate_series(1, 3) i`,
		[]string{"UPDATE a SET n = 1 WHERE id = 1", "UPDATE a SET big = 'small' WHERE id = 2", "DELETE FROM a WHERE id = 3"},
	},
	"TriggersThatWriteOtherTables": {
		`CREATE TABLE customer (id int PRIMARY KEY, orders int NOT NULL DEFAULT 0); CREATE TABLE orders (id int PRIMARY KEY, customer int NOT NULL REFERENCES customer);
		CREATE FUNCTION count_orders() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF TG_OP <> 'DELETE' THEN UPDATE customer SET orders = orders + 1 WHERE id = NEW.customer; END IF;
			IF TG_OP <> 'INSERT' THEN UPDATE customer SET orders = orders - 1 WHERE id = OLD.customer; END IF;
			RETURN NULL; END $$;
		CREATE TRIGGER count_orders AFTER INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW EXECUTE FUNCTION count_orders();
		INSERT INTO customer VALUES (1), (2); INSERT INTO orders VALUES (1, 1), (2, 1)`,
		[]string{"INSERT INTO orders VALUES (3, 1), (4, 2)", "UPDATE orders SET customer = 2 WHERE id = 1", "DELETE FROM orders WHERE id = 2"},
	},
	"TextsThatDifferFromTheImage": {
		`CREATE TABLE a (id int PRIMARY KEY, f float8, g float4[], j json, k jsonb, t text[], b bool, c char(5), i inet, n numeric, d numeric(8,3)[], v interval, z timestamptz, y bytea);
		INSERT INTO a VALUES (1, 1e20, '{1e-10,NaN}', '{"a": [1, 2], "b": 1}', '{"b": 1, "a": null}', '{a,"b c",NULL}', true, 'ab', '10.0.0.1', 1.10, '{1.5,NULL}', '1 day -2 hours', '2024-01-01 00:00:00.5+03', '\x00ff')`,
		[]string{`UPDATE a SET f = 1e-7, g = '{}', j = '[ ]', k = '2', t = '{"{}"}', b = false, c = '', i = '::1/64', n = 1.1, d = '{}', v = '1 mon', z = 'infinity', y = ''`, "DELETE FROM a"},
	},
	"RowsOfDifferentColumns": {
		`CREATE TABLE a (id int PRIMARY KEY, x int, y text, z int); INSERT INTO a SELECT i, i, i, i FROM generate_series(1, 6) i`,
		[]string{"UPDATE a SET x = 0 WHERE id IN (1, 2, 3)", "UPDATE a SET y = NULL WHERE id IN (2, 3, 4)", "UPDATE a SET z = -1 WHERE id IN (3, 6)", "UPDATE a SET z = id WHERE id = 6"},
	},
}

func TestHardCases(t *testing.T) {
	t.Parallel()
	for name, h := range hard {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newUndo(t, h.schema).roundTrip(t, h.request...)
		})
	}
}

func TestCompositeForeignKey(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `CREATE TABLE a (x text, y date, n int, PRIMARY KEY (y, x));
		CREATE TABLE b (id int PRIMARY KEY, x text, y date, FOREIGN KEY (y, x) REFERENCES a);
		INSERT INTO a VALUES ('p', '2024-01-01', 1), ('p"q', '2024-01-02', 2); INSERT INTO b VALUES (1, 'p', '2024-01-01'), (2, NULL, '2024-01-02')`)
	before := u.state(t)
	u.request(t, "first", "DELETE FROM b", "DELETE FROM a", "INSERT INTO a VALUES ('new', '2024-01-03', 3)")
	u.request(t, "second", "INSERT INTO b VALUES (3, 'new', '2024-01-03')")
	wantConflicts(t, u.Client.RevertRequest("first"), "row referenced public.a[2024-01-03,new]")
	apply(t, u.Client.RevertRequest("first").OnConflict(audit.Cascade))
	u.want(t, "after the revert", before)
}

// What no statement can do is refused, with the reason.
func TestWhatCannotBeReverted(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]struct {
		schema, request, later, reason string
	}{
		"Truncate":      {"CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)", "TRUNCATE a", "SELECT 1", "does not know all of the rows"},
		"TableDropped":  {"CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)", "DELETE FROM a", "DROP TABLE a; CREATE TABLE a (id int PRIMARY KEY)", "dropped since"},
		"CircleNotNull": {"CREATE TABLE a (id int PRIMARY KEY, b int NOT NULL); CREATE TABLE b (id int PRIMARY KEY, a int NOT NULL); INSERT INTO a VALUES (1, 1); INSERT INTO b VALUES (1, 1)", "DELETE FROM a; DELETE FROM b", "ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b; ALTER TABLE b ADD FOREIGN KEY (a) REFERENCES a", "circle"},
		"IdentityMoved": {"CREATE TABLE a (id int PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY); INSERT INTO a VALUES (1)", "UPDATE a SET n = DEFAULT", "SELECT 1", "GENERATED ALWAYS"},
		"Retyped":       {"CREATE TABLE a (id int PRIMARY KEY, n text); INSERT INTO a VALUES (1, 'word')", "UPDATE a SET n = '7'", "ALTER TABLE a ALTER n TYPE int USING n::int", "another type"},
		"SwapOfEnums": {
			"CREATE TYPE orange AS ENUM ('a', 'b', 'c'); CREATE TABLE a (id int PRIMARY KEY, n orange NOT NULL UNIQUE); INSERT INTO a VALUES (1, 'a'), (2, 'b')",
			"UPDATE a SET n = 'c' WHERE id = 1; UPDATE a SET n = 'a' WHERE id = 2; UPDATE a SET n = 'b' WHERE id = 1", "SELECT 1", "DEFERRABLE",
		},
		"SwapOfBooleans": {
			"CREATE TABLE a (id int PRIMARY KEY, n bool NOT NULL UNIQUE); INSERT INTO a VALUES (1, true), (2, false)",
			"DELETE FROM a WHERE id = 1; UPDATE a SET n = true WHERE id = 2; INSERT INTO a VALUES (1, false)", "SELECT 1", "DEFERRABLE",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, h.schema)
			u.request(t, "first", strings.Split(h.request, "; ")...)
			u.Sync(t)
			u.Exec(t, h.later)
			var refused *audit.UnrevertableError
			if _, err := u.Client.RevertRequest("first").Apply(t.Context()); !errors.As(err, &refused) || !strings.Contains(refused.Reason, h.reason) {
				t.Errorf("the revert gives %v", err)
			}
		})
	}
}

func TestSchemaChangedSince(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]struct {
		alter, holds string
		conflicts    []string
	}{
		"ColumnAdded":   {alter: "ALTER TABLE a ADD extra int DEFAULT 7", holds: "(SELECT array_agg(whole::text ORDER BY id) = '{\"(1,x,1,7)\",\"(2,y,2,7)\"}' FROM a whole)"},
		"ColumnRenamed": {alter: "ALTER TABLE a RENAME n TO m", holds: "(SELECT array_agg(whole::text ORDER BY id) = '{\"(1,x,1)\",\"(2,y,2)\"}' FROM a whole)"},
		"TableRenamed":  {alter: "ALTER TABLE a RENAME TO a2", holds: "(SELECT array_agg(whole::text ORDER BY id) = '{\"(1,x,1)\",\"(2,y,2)\"}' FROM a2 whole)"},
		"Widened":       {alter: "ALTER TABLE a ALTER n TYPE numeric(9,2)", holds: "(SELECT array_agg(whole::text ORDER BY id) = '{\"(1,x,1.00)\",\"(2,y,2.00)\"}' FROM a whole)"},
		"ColumnDropped": {
			alter: "ALTER TABLE a DROP n", holds: "(SELECT array_agg(whole::text ORDER BY id) = '{\"(1,x)\",\"(2,y)\"}' FROM a whole)",
			conflicts: []string{"column gone public.a[1] n", "column gone public.a[2] n"},
		},
		"ColumnReplaced": {
			alter: "ALTER TABLE a DROP n, ADD n int", holds: "(SELECT array_agg(whole::text ORDER BY id) = '{\"(1,x,)\",\"(2,y,)\"}' FROM a whole)",
			conflicts: []string{"column gone public.a[1] n", "column gone public.a[2] n"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, "CREATE TABLE a (id int PRIMARY KEY, t text, n int); INSERT INTO a VALUES (1, 'x', 1), (2, 'y', 2)")
			u.request(t, "first", "UPDATE a SET n = 10, t = 'z' WHERE id = 1", "DELETE FROM a WHERE id = 2", "INSERT INTO a VALUES (3, '', 0)")
			u.Sync(t)
			u.Exec(t, h.alter)
			r := u.Client.RevertRequest("first")
			if h.conflicts != nil {
				wantConflicts(t, r, h.conflicts...)
				r = r.OnConflict(audit.Overwrite)
			}
			apply(t, r)
			u.holds(t, h.holds)
		})
	}
}

func TestTriggersHaveTheLastWord(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `CREATE SCHEMA app; CREATE TABLE app.a (id int PRIMARY KEY, n int, updated_by text);
		CREATE FUNCTION app.me() RETURNS text LANGUAGE sql AS $$ SELECT 'trigger' $$;
		CREATE FUNCTION app.touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.updated_by := me(); RETURN NEW; END $$;
		CREATE TRIGGER touch BEFORE UPDATE ON app.a FOR EACH ROW EXECUTE FUNCTION app.touch();
		INSERT INTO app.a VALUES (1, 1, 'hand')`)
	// The trigger finds its function by the search_path of the application.
	u.Exec(t, "ALTER DATABASE "+pgx.Identifier{u.Name()}.Sanitize()+" SET search_path = app, public")
	u.conn = u.Connect(t)
	u.request(t, "first", "UPDATE app.a SET n = 2")
	plan, err := u.Client.RevertRequest("first").AllColumns().Plan(t.Context()) // the trigger's, too
	if err != nil {
		t.Fatal(err)
	}
	result, err := plan.Apply(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	u.holds(t, "(SELECT n = 1 AND updated_by = 'trigger' FROM app.a)")
	if len(result.Adjusted) != 1 || result.Adjusted[0].Columns[0] != "updated_by" {
		t.Errorf("adjusted: %+v", result.Adjusted)
	}
	without := apply(t, u.Client.RevertRow(u.Client.BeforeRequest("first"), "app.a", 1).WithoutTriggers())
	u.holds(t, "(SELECT n = 1 AND updated_by = 'hand' FROM app.a)")
	if without.Adjusted != nil {
		t.Errorf("without triggers: %+v", without.Adjusted)
	}
}

// Foreign keys are triggers, too: what they would have refused is found.
func TestWithoutTriggersForeignKeysHold(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	before := u.state(t)
	u.request(t, "first", "DELETE FROM orders", "DELETE FROM customer", "INSERT INTO customer VALUES (4, 'D', '')")
	apply(t, u.Client.RevertRequest("first").WithoutTriggers())
	u.want(t, "after the revert", before)
	u.request(t, "second", "INSERT INTO customer VALUES (5, 'E', '')")
	u.request(t, "third", "INSERT INTO orders VALUES (50, 5, 1, '')")
	var blocked *audit.ConflictError
	if _, err := u.Client.RevertRequest("second").WithoutTriggers().Apply(t.Context()); !errors.As(err, &blocked) {
		t.Errorf("a row that is referenced: %v", err)
	}
}

// Sequences are not moved back: numbers that were given out stay given out.
func TestSequencesStay(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE a (id serial PRIMARY KEY)")
	u.request(t, "first", "INSERT INTO a DEFAULT VALUES", "INSERT INTO a DEFAULT VALUES")
	apply(t, u.Client.RevertRequest("first"))
	u.request(t, "second", "INSERT INTO a DEFAULT VALUES")
	u.holds(t, "(SELECT array_agg(id) = '{3}' FROM a)")
}

// The caller's role decides what can be seen and written.
func TestRowLevelSecurityHolds(t *testing.T) {
	t.Parallel()
	role := "audit_test_tenant"
	u := newUndo(t, `CREATE TABLE a (id int PRIMARY KEY, tenant text, n int); INSERT INTO a VALUES (1, 'mine', 1), (2, 'theirs', 2);
		ALTER TABLE a ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON a USING (tenant = 'mine');
		DO $$ BEGIN CREATE ROLE audit_test_tenant; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
		GRANT ALL ON a TO audit_test_tenant`)
	u.request(t, "first", "UPDATE a SET n = 10")
	now := u.state(t)
	as := func(r audit.Reversal) error {
		return pgx.BeginFunc(t.Context(), u.Connect(t), func(tx pgx.Tx) error {
			if _, err := tx.Exec(t.Context(), "SET LOCAL ROLE "+role); err != nil {
				return err
			}
			_, err := r.ApplyTx(t.Context(), tx)
			return err
		})
	}
	var blocked *audit.ConflictError
	if err := as(u.Client.RevertRequest("first")); !errors.As(err, &blocked) || len(blocked.Conflicts) != 1 || blocked.Conflicts[0].Kind != audit.RowGone {
		t.Errorf("as the tenant: %v", err)
	}
	u.want(t, "something was written", now)
	if err := as(u.Client.RevertRequest("first").OnConflict(audit.Skip)); err != nil {
		t.Fatal(err)
	}
	u.holds(t, "(SELECT array_agg(n ORDER BY id) = '{1,10}' FROM a)")
}

// pgMemento overwrites later work without a word; see the comparison in the
// documentation.
func TestTheRivalsLostUpdate(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE account (id int PRIMARY KEY, balance int, owner text); INSERT INTO account VALUES (1, 100, 'ann')")
	u.request(t, "mistake", "UPDATE account SET balance = 0, owner = 'nobody' WHERE id = 1")
	u.request(t, "deposit", "UPDATE account SET balance = balance + 500 WHERE id = 1")
	wantConflicts(t, u.Client.RevertRequest("mistake"), "column changed public.account[1] balance")
	if _, err := u.Client.RevertRequest("mistake").Apply(t.Context()); err == nil {
		t.Error("the deposit was overwritten")
	}
	apply(t, u.Client.RevertRequest("mistake").Columns("owner"))
	u.holds(t, "(SELECT balance = 500 AND owner = 'ann' FROM account)")
}

// pgMemento turns a unique violation into a notice, and reports success for rows
// that it could not restore.
func TestTheRivalsSilentPartialRevert(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE account (id int PRIMARY KEY, email text UNIQUE); INSERT INTO account VALUES (1, 'ann@x'), (2, 'bob@x')")
	u.request(t, "mistake", "DELETE FROM account")
	u.request(t, "signup", "INSERT INTO account VALUES (3, 'ann@x')")
	now := u.state(t)
	var blocked *audit.ConflictError
	if _, err := u.Client.RevertRequest("mistake").Apply(t.Context()); !errors.As(err, &blocked) || blocked.Conflicts[0].Kind != audit.UniqueTaken || blocked.Conflicts[0].Other.Key[0] != "3" {
		t.Errorf("the revert gives %v", err)
	}
	u.want(t, "a part was restored", now)
	result := apply(t, u.Client.RevertRequest("mistake").OnConflict(audit.Skip))
	if result.Inserted != 1 || result.Skipped != 1 {
		t.Errorf("%d inserted, %d skipped", result.Inserted, result.Skipped)
	}
}

// Every built-in type survives being updated, deleted and restored.
func TestRevertOfEveryType(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{Tables: []string{"public.*"}})
	u := &undo{Audited: a, conn: a.Connect(t)}
	for i, kind := range builtinTypes {
		if kind.name == "json" {
			continue
		}
		table := pgx.Identifier{"kind_" + strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
				return r
			}
			return '_'
		}, kind.name) + string(rune('a'+i%26))}.Sanitize()
		u.Exec(t, "CREATE TABLE "+table+" (id int PRIMARY KEY, v "+kind.name+")")
		for n, value := range kind.values {
			if strings.HasPrefix(value, "kinds.") || strings.Contains(value, "Odd") {
				continue
			}
			if kind.name == "regtype" && value == "_int4" || strings.HasPrefix(kind.name, "reg") && strings.Contains(value, "kinds") {
				continue
			}
			u.Exec(t, "INSERT INTO "+table+" SELECT $1, $2::text::"+kind.name, n, value)
		}
	}
	if err := u.Client.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	var tables []string
	rows, err := u.conn.Query(t.Context(), "SELECT quote_ident(relname) FROM pg_class WHERE relname LIKE 'kind\\_%' AND relkind = 'r'")
	if err != nil {
		t.Fatal(err)
	}
	if tables, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
		t.Fatal(err)
	}
	before := u.state(t)
	var statements []string
	for _, table := range tables {
		statements = append(statements, "UPDATE "+table+" SET v = NULL WHERE id % 2 = 0", "DELETE FROM "+table+" WHERE id % 2 = 1")
	}
	u.request(t, "first", statements...)
	result := apply(t, u.Client.RevertRequest("first"))
	u.want(t, "after the revert", before)
	apply(t, u.Client.Redo(apply(t, u.Client.Redo(result.ID)).ID))
	u.want(t, "after the revert of the redo", before)
}
