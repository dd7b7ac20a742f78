package audit

import (
	"context"
	"errors"
	"fmt"
)

// Check looks at everything that [Client.Start] needs, in the source and in the store,
// and changes nothing. It returns nil where Start would find all of it, or can make it
// with the rights of the role; else what Start would return: a *[SetupError] that lists
// what is missing with the SQL that sets it right, a *[PoolerError], a
// *[SecretKeyError], or why a server does not answer.
//
// It is for deployments and doctors: a program that captures need not be stopped for it.
func (c *Client) Check(ctx context.Context) error {
	c.starting.Lock() // which decides what the store's schema means
	defer c.starting.Unlock()
	if err := c.open(); err != nil {
		return err
	}
	field, err := c.pooledField(ctx)
	if err != nil {
		return fmt.Errorf("audit: check: %w", err)
	}
	if field != "" {
		return &PoolerError{Field: field}
	}
	if err := c.locateStore(ctx); err != nil {
		return fmt.Errorf("audit: check: %w", err)
	}
	var notReady *SetupError
	if _, err := c.check(ctx); errors.As(err, &notReady) {
		return notReady
	} else if err != nil {
		return fmt.Errorf("audit: check: %w", err)
	}
	var secret *SecretKeyError
	if err := c.checkColumns(ctx); errors.As(err, &secret) {
		return secret
	} else if err != nil {
		return fmt.Errorf("audit: check: %w", err)
	}
	return nil
}
