package audit

import (
	"context"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pgx/v5"
)

// revertClaim is what the context of a change says: that a revert made it.
type revertClaim struct {
	database, id  string
	transactionID uint64
}

// claimsRevert reports whether the context says that a revert made the change.
func claimsRevert(c *Context) bool {
	on, _ := c.Extra[revertMember].(bool)
	return on
}

func claimOf(database string, transactionID uint64, c *Context) revertClaim {
	id, _ := c.Extra[revertIDName].(string)
	return revertClaim{database: database, id: id, transactionID: transactionID}
}

// markClaims marks the changes that claim to be of a revert and are of none that the
// register knows.
func (c *Client) markClaims(ctx context.Context, changes []Change) error {
	var claims []revertClaim
	for i := range changes {
		if claimsRevert(&changes[i].Context) {
			claims = append(claims, claimOf(changes[i].Database, changes[i].TransactionID, &changes[i].Context))
		}
	}
	registered, err := c.registeredClaims(ctx, claims)
	if err != nil {
		return err
	}
	for i := range changes {
		change := &changes[i]
		change.RevertClaimed = claimsRevert(&change.Context) && !registered[claimOf(change.Database, change.TransactionID, &change.Context)]
	}
	return nil
}

// registeredClaims returns those claims that the register confirms: none for a role that
// may not read it.
func (c *Client) registeredClaims(ctx context.Context, claims []revertClaim) (map[revertClaim]bool, error) {
	if len(claims) == 0 {
		return nil, nil
	}
	databases, ids := make([]string, len(claims)), make([]string, len(claims))
	for i, claim := range claims {
		databases[i], ids[i] = claim.database, claim.id
	}
	entries, err := collect(ctx, c, "look for reverts", sq.Expr(`
		SELECT DISTINCT r.database, r.id, r.transaction_id
		FROM unnest($1::text[], $2::text[]) AS claimed (database, id)
		JOIN `+c.history.Relation("reverts")+` AS r ON r.database = claimed.database AND r.id = claimed.id`, databases, ids),
		func(row pgx.CollectableRow) (claim revertClaim, err error) {
			var transaction int64
			err = row.Scan(&claim.database, &claim.id, &transaction)
			claim.transactionID = uint64(transaction)
			return claim, err
		})
	if err != nil && !isDenied(err) {
		return nil, err
	}
	registered := make(map[revertClaim]bool, len(entries))
	for _, entry := range entries {
		registered[entry] = true
	}
	return registered, nil
}

// markClaim marks a change of the time since the selection began.
func (p *planner) markClaim(c *Change) {
	c.RevertClaimed = claimsRevert(&c.Context) && p.ours(c) == nil
}
