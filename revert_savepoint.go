package audit

import (
	"context"
	"errors"
	"maps"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
)

// behindSavepoint does something, and goes back to where it began after an error for
// which back says so. Nothing is left of the savepoint then either: a transaction that
// stays in a subtransaction cannot export its snapshot, for one.
func (a *applier) behindSavepoint(ctx context.Context, do func() error, back func(error) bool) error {
	name, settings := pgx.Identifier{"audit_revert_" + a.id[:12]}.Sanitize(), maps.Clone(a.env.inPlace)
	if _, err := a.tx.Exec(ctx, "SAVEPOINT "+name); err != nil {
		return history.OpError("set a savepoint", err)
	}
	err := do()
	if err == nil {
		_, err = a.tx.Exec(ctx, "RELEASE SAVEPOINT "+name)
		return history.OpError("release the savepoint", err)
	}
	if !back(err) {
		return err
	}
	for _, command := range []string{"ROLLBACK TO SAVEPOINT ", "RELEASE SAVEPOINT "} {
		if _, backErr := a.tx.Exec(ctx, command+name); backErr != nil {
			return errors.Join(err, history.OpError("go back to the savepoint", backErr))
		}
	}
	a.env.inPlace = settings
	return err
}
