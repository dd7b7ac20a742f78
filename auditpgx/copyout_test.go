package auditpgx_test

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// TestCopyOut copies what a statement that writes returns to the client, which the server
// answers unlike other statements: none fails for its stamp, and all are stamped that can be.
func TestCopyOut(t *testing.T) {
	t.Parallel()
	const sql = "COPY (DELETE FROM todo RETURNING *) TO STDOUT"
	a := audittest.New(t, audit.Config{}, todoSQL)
	ways := map[string]func(q auditpgx.Querier, sql string, user string) error{
		"Exec": func(q auditpgx.Querier, sql, user string) error {
			_, err := q.Exec(by(t.Context(), user), sql)
			return err
		},
		"Query": func(q auditpgx.Querier, sql, user string) error {
			rows, err := q.Query(by(t.Context(), user), sql)
			if err != nil {
				return err
			}
			rows.Close()
			return rows.Err()
		},
	}
	for _, mode := range modes {
		for name, run := range ways {
			for _, text := range []string{sql, "named"} {
				for _, inTx := range []bool{false, true} {
					user := fmt.Sprintf("%s of %q, mode %s, in a transaction: %t", name, text, mode, inTx)
					errs := make([]error, 2)
					for i, wrapped := range []bool{false, true} {
						a.Exec(t, "TRUNCATE todo; INSERT INTO todo VALUES ('a', 1, 'x')")
						raw := connectMode(t, a.Database, mode, nil)
						if _, err := raw.Prepare(t.Context(), "named", sql); err != nil {
							t.Fatal(err)
						}
						var q auditpgx.Querier = raw
						begin := raw.Begin
						if wrapped {
							conn := auditpgx.Config{}.WrapConn(raw)
							q, begin = conn, conn.Begin
						}
						if inTx {
							tx, err := begin(t.Context())
							if err != nil {
								t.Fatal(err)
							}
							errs[i] = run(tx, text, user)
							if err := tx.Commit(t.Context()); err != nil && errs[i] == nil {
								t.Errorf("%s: commit: %v", user, err)
							}
						} else {
							errs[i] = run(q, text, user)
						}
						_ = raw.Close(t.Context())
					}
					if (errs[0] == nil) != (errs[1] == nil) {
						t.Errorf("%s: pgx says %v, and stamped %v", user, errs[0], errs[1])
						continue
					}
					stamped := inTx || mode == pgx.QueryExecModeExec && text == "named" ||
						text == sql && (name == "Exec" || mode == pgx.QueryExecModeSimpleProtocol)
					want := int64(0)
					if stamped && errs[0] == nil {
						want = 1
					}
					a.Sync(t)
					if n, err := a.Client.Changes().ByUser(user).Operations(audit.Delete).Count(t.Context()); err != nil || n != want {
						t.Errorf("%s: %d changes have the context, error %v, want %d; pgx says %v", user, n, err, want, errs[0])
					}
				}
			}
		}
	}
}
