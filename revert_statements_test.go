package audit_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
)

// statementCount counts the statements of a connection.
type statementCount int

func (c *statementCount) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	*c++
	return ctx
}

func (*statementCount) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// How many statements a large undo gives to the source does not grow with its rows, as long
// as the server can tell by itself whether anything is in the way.
func TestLargeUndo_Statements(t *testing.T) {
	t.Parallel()
	const (
		small, large = 2_500, 7_000 // both of them in a temporary table
		items        = `
			CREATE TABLE maker (id int PRIMARY KEY);
			CREATE TABLE item (id int PRIMARY KEY, maker int REFERENCES maker, price numeric);
			INSERT INTO maker VALUES (1), (2);
			INSERT INTO item SELECT n, 1, n FROM generate_series(1, %d) n`
		touch = `CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.maker := 2; RETURN NEW; END $$;
			CREATE TRIGGER touch BEFORE UPDATE ON item FOR EACH ROW EXECUTE FUNCTION touch()`
	)
	for name, h := range map[string]struct{ prepare, work string }{
		"Deletes": {work: "DELETE FROM item"},
		"Keys":    {work: "UPDATE item SET id = id + 100000"},
		"Trigger": {work: "UPDATE item SET price = 0", prepare: touch},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var counts []statementCount
			for _, rows := range []int{small, large} {
				u := newUndo(t, fmt.Sprintf(items, rows), h.prepare)
				u.request(t, "work", h.work)
				config := u.conn.Config().Copy()
				var count statementCount
				config.Tracer = &count
				conn, err := pgx.ConnectConfig(t.Context(), config)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close(context.WithoutCancel(t.Context()))
				err = pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
					result, err := u.Client.RevertRequest("work").ApplyTx(t.Context(), tx)
					if err == nil && result.Inserted+result.Updated != rows {
						t.Errorf("%d rows are put back, %d restored, of %d", result.Inserted, result.Updated, rows)
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				counts = append(counts, count)
			}
			t.Logf("%d statements", counts[1])
			if counts[0] != counts[1] || counts[1] > 40 {
				t.Errorf("%d statements for %d rows, %d for %d", counts[0], small, counts[1], large)
			}
		})
	}
}

var _ pgx.QueryTracer = (*statementCount)(nil)
