package audit_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/hindsight-go/audit"
)

// What others have written is theirs, also where the column's collation takes it for
// the same.
func TestUndoTellsApartWhatTheCollationDoesNot(t *testing.T) {
	t.Parallel()
	const setup = `
		CREATE COLLATION ignores_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
		CREATE TABLE person (id int PRIMARY KEY, name text COLLATE ignores_case, nick text COLLATE ignores_case);
		INSERT INTO person SELECT i, 'ann', 'a' FROM generate_series(1, 3) i;
		CREATE TABLE tag (word text COLLATE ignores_case, n int);
		INSERT INTO tag VALUES ('ANN', 1), ('Ann', 1);`
	for _, rows := range []int{1, 1000} {
		t.Run(fmt.Sprint(rows), func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, setup)
			audit.DirectRows(u.Client, rows)
			before := u.state(t)
			u.request(t, "case", "UPDATE person SET name = 'ANN'")
			apply(t, u.Client.RevertRequest("case"))
			u.want(t, "what differs in case only is not put back", before)

			u.request(t, "insert", "INSERT INTO tag VALUES ('ann', 1)")
			apply(t, u.Client.RevertRequest("insert"))
			u.want(t, "another row than the inserted one was removed", before)

			u.request(t, "work", "UPDATE person SET name = 'bob', nick = 'b'")
			u.request(t, "later", "UPDATE person SET name = 'BOB' WHERE id = 2")
			u.request(t, "back", "UPDATE person SET name = 'Ann', nick = 'A' WHERE id = 3")
			now := u.state(t)
			var blocked *audit.ConflictError
			if _, err := u.Client.RevertRequest("work").Apply(t.Context()); !errors.As(err, &blocked) {
				t.Fatalf("the revert gives %v", err)
			}
			var columns []string
			for _, c := range blocked.Conflicts {
				columns = append(columns, c.RowRef.String()+" "+c.Column)
			}
			if want := []string{"public.person[2] name", "public.person[3] name", "public.person[3] nick"}; !slices.Equal(columns, want) {
				t.Errorf("the conflicts are of %q", columns)
			}
			u.want(t, "something was written", now)
			u.Check(t)
		})
	}
}
