package audit_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
)

// triggered is a page of which triggers set columns: stamp always, words from the two
// texts, mail from what the statement says, seen only if the title changes.
const triggered = `
	CREATE TABLE page (id int PRIMARY KEY, title text, body text, mail text, stamp int NOT NULL DEFAULT 0, words tsvector, seen int NOT NULL DEFAULT 0, slug text UNIQUE, tail text);
	CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN -- NEW.title := 'no';
			new . "stamp" = OLD.stamp + 1; NEW.mail := lower(NEW.mail); NEW.tail := right(NEW.title || ';', 3);
			NEW.slug := NEW.title;
			RETURN NEW;
		END $$;
	CREATE FUNCTION seen() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN IF OLD.seen < 100 THEN NEW.seen := OLD.seen + 1; END IF; RETURN NEW; END; $$;
	CREATE TRIGGER a BEFORE INSERT OR UPDATE ON page FOR EACH ROW EXECUTE FUNCTION tsvector_update_trigger(words, 'pg_catalog.simple', title, body);
	CREATE TRIGGER b BEFORE UPDATE ON page FOR EACH ROW EXECUTE FUNCTION stamp();
	CREATE TRIGGER c BEFORE UPDATE ON page FOR EACH ROW EXECUTE FUNCTION seen();
	INSERT INTO page VALUES (1, 'old', 'body', 'ann@x')`

// What triggers set in every UPDATE, whatever the statement says, is nobody's work and is
// left to them. What they make of the statement's own value, set at times, or set to
// something unique is not.
func TestRevert_ColumnsSetByTriggers(t *testing.T) {
	t.Parallel()
	u := newUndo(t, triggered)
	u.by(t, "ann", "r1", "UPDATE page SET title = 'new', mail = 'ANN@Y'")
	u.by(t, "bob", "r2", "UPDATE page SET body = 'bob'")
	r := u.Client.RevertRequest("r1")
	wantConflicts(t, r.Except("seen"))
	wantConflicts(t, r, "column changed public.page[1] seen")
	r = r.Except("seen")
	if diff := cmp.Diff([]string{"public.page stamp (trigger)", "public.page tail (trigger)", "public.page words (trigger)"}, unrestored(t, r)); diff != "" {
		t.Errorf("unrestored (-want +got):\n%s", diff)
	}
	// Without them, all that they have set is restored, and others' work is in the way.
	all := []string{"column changed public.page[1] stamp", "column changed public.page[1] words"}
	wantConflicts(t, r.WithoutTriggers(), all...)
	wantConflicts(t, r.AllColumns(), all...)
	for range 2 {
		result := apply(t, r)
		u.holds(t, "(SELECT title = 'old' AND body = 'bob' AND mail = 'ann@x' AND words = to_tsvector('simple', 'old bob') AND tail = 'ld;' AND slug = 'old' FROM page)")
		apply(t, u.Client.Redo(result.ID))
		u.holds(t, "(SELECT title = 'new' AND body = 'bob' AND mail = 'ann@y' AND words = to_tsvector('simple', 'new bob') AND slug = 'new' FROM page)")
	}
	u.by(t, "bob", "r3", "UPDATE page SET mail = 'bob@x'")
	wantConflicts(t, r, "column changed public.page[1] mail")
}

// Triggers that are off, have a condition or a list of columns leave a statement its
// values, and so do those of which one takes what the other has set.
func TestRevert_ColumnsSetByTriggersAtTimes(t *testing.T) {
	t.Parallel()
	for name, triggers := range map[string]string{
		"off":           "CREATE TRIGGER t BEFORE UPDATE ON page FOR EACH ROW EXECUTE FUNCTION f(); ALTER TABLE page DISABLE TRIGGER t",
		"condition":     "CREATE TRIGGER t BEFORE UPDATE ON page FOR EACH ROW WHEN (NEW.id > 1) EXECUTE FUNCTION f()",
		"columns":       "CREATE TRIGGER t BEFORE UPDATE OF id ON page FOR EACH ROW EXECUTE FUNCTION f()",
		"insert":        "CREATE TRIGGER t BEFORE INSERT ON page FOR EACH ROW EXECUTE FUNCTION f()",
		"chain":         "CREATE TRIGGER t BEFORE UPDATE ON page FOR EACH ROW EXECUTE FUNCTION chain()",
		"chain, partly": "CREATE TRIGGER t BEFORE UPDATE ON page FOR EACH ROW EXECUTE FUNCTION from_b(); CREATE TRIGGER u BEFORE UPDATE ON page FOR EACH ROW EXECUTE FUNCTION perhaps_b()",
		"whole row":     "CREATE TRIGGER t BEFORE UPDATE ON page FOR EACH ROW EXECUTE FUNCTION whole()",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, `
				CREATE TABLE page (id int PRIMARY KEY, a text, b text);
				CREATE FUNCTION a_of(page) RETURNS text LANGUAGE sql AS 'SELECT $1.a';
				CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.a := 'f'; RETURN NEW; END $$;
				CREATE FUNCTION chain() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.b := NEW.a; NEW.a := NEW.b; RETURN NEW; END $$;
				CREATE FUNCTION from_b() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.a := NEW.b; RETURN NEW; END $$;
				CREATE FUNCTION perhaps_b() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.b IS NULL THEN NEW.b := 'none'; END IF; RETURN NEW; END $$;
				CREATE FUNCTION whole() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.a := a_of(NEW); RETURN NEW; END $$;
				INSERT INTO page VALUES (1, 'old', 'old');`, triggers)
			u.by(t, "ann", "r1", "UPDATE page SET a = 'ann', b = 'ann'")
			u.by(t, "bob", "r2", "UPDATE page SET a = 'bob', b = 'bob'")
			if left := unrestored(t, u.Client.RevertRequest("r1")); left != nil {
				t.Errorf("left out: %s", left)
			}
			wantConflicts(t, u.Client.RevertRequest("r1"), "column changed public.page[1] a", "column changed public.page[1] b")
		})
	}
}

// What one of our reverts left in a column, with a trigger's help, is nobody's work: not
// when it is undone again, and not when the row is removed.
func TestRevert_ColumnsSetByReverts(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `
		CREATE TABLE page (id int PRIMARY KEY, title text, body text, seen int NOT NULL DEFAULT 0);
		CREATE FUNCTION seen() RETURNS trigger LANGUAGE plpgsql AS $$
			BEGIN IF NEW IS DISTINCT FROM OLD THEN NEW.seen := OLD.seen + 1; END IF; RETURN NEW; END; $$;
		CREATE TRIGGER t BEFORE UPDATE ON page FOR EACH ROW EXECUTE FUNCTION seen()`)
	u.by(t, "ann", "r1", "INSERT INTO page VALUES (1, 'old', 'body')")
	u.by(t, "ann", "r2", "UPDATE page SET title = 'new'")
	for range 3 {
		result := apply(t, u.Client.RevertRequest("r2"))
		if result.Already != nil || result.Updated != 1 {
			t.Fatalf("%+v", result)
		}
		u.holds(t, "(SELECT title = 'old' FROM page)")
		apply(t, u.Client.Redo(result.ID))
		u.holds(t, "(SELECT title = 'new' FROM page)")
	}
	apply(t, u.Client.RevertRequest("r2"))
	u.by(t, "bob", "r3", "UPDATE page SET body = 'bob'")
	undone := apply(t, u.Client.RevertRequest("r3"))
	wantConflicts(t, u.Client.RevertRequest("r1"))
	apply(t, u.Client.Redo(undone.ID))
	wantConflicts(t, u.Client.RevertRequest("r1"), "column changed public.page[1] body")
	apply(t, u.Client.RevertRequest("r3"))
	apply(t, u.Client.RevertRequest("r1"))
	u.holds(t, "NOT EXISTS (SELECT FROM page)")
}

// What a cascade has undone is undone, whatever others wrote afterwards.
func TestRevert_UndoneByACascade(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.by(t, "ann", "r1", "UPDATE customer SET city = 'Bonn' WHERE id = 1")
	u.by(t, "bob", "r2", "UPDATE customer SET city = 'Kyiv' WHERE id = 1")
	cascade := apply(t, u.Client.RevertRequest("r1").OnConflict(audit.Cascade))
	u.by(t, "cyd", "r3", "UPDATE customer SET city = 'Nice' WHERE id = 1")
	for _, request := range []string{"r1", "r2"} {
		wantConflicts(t, u.Client.RevertRequest(request))
		apply(t, u.Client.RevertRequest(request).OnConflict(audit.Overwrite))
		u.holds(t, "(SELECT city = 'Nice' FROM customer WHERE id = 1)")
	}
	apply(t, u.Client.RevertRequest("r3"))
	apply(t, u.Client.Redo(cascade.ID))
	u.holds(t, "(SELECT city = 'Kyiv' FROM customer WHERE id = 1)")
	apply(t, u.Client.RevertRequest("r2"))
	u.holds(t, "(SELECT city = 'Bonn' FROM customer WHERE id = 1)")
}
