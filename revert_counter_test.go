package audit_test

import (
	"testing"

	"github.com/hindsight-go/audit"
)

// A row that comes back with the rows that it counts has their number: what it had when
// it was removed itself, they were no longer in.
func TestRevert_CounterOfARowThatComesBack(t *testing.T) {
	t.Parallel()
	for name, request := range map[string][]string{
		"OneByOne":  {"DELETE FROM line", "DELETE FROM purchase"},
		"Together":  {"DELETE FROM purchase"},
		"KeyBefore": {"UPDATE purchase SET id = 2", "DELETE FROM line WHERE id = 1", "DELETE FROM purchase"},
		"Made":      {"INSERT INTO purchase VALUES (5)", "INSERT INTO line VALUES (5, 5), (6, 5)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := openUndo(t, audit.Config{Tables: []string{"public.*"}, NeverRestored: []string{"purchase.lines"}}, `
				CREATE TABLE purchase (id int PRIMARY KEY, lines int NOT NULL DEFAULT 0);
				CREATE TABLE line (id int PRIMARY KEY, purchase int NOT NULL REFERENCES purchase ON DELETE CASCADE ON UPDATE CASCADE);
				CREATE FUNCTION count_line() RETURNS trigger LANGUAGE plpgsql AS $$
					BEGIN
						IF TG_OP = 'INSERT' THEN UPDATE purchase SET lines = lines + 1 WHERE id = NEW.purchase; END IF;
						IF TG_OP = 'DELETE' THEN UPDATE purchase SET lines = lines - 1 WHERE id = OLD.purchase; END IF;
						RETURN NULL;
					END $$;
				CREATE TRIGGER count AFTER INSERT OR DELETE ON line FOR EACH ROW EXECUTE FUNCTION count_line();
				INSERT INTO purchase VALUES (1); INSERT INTO line VALUES (1, 1), (2, 1)`)
			u.roundTrip(t, request...)
		})
	}
}
