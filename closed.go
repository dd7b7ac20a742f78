package audit

import (
	"errors"

	"github.com/jackc/puddle/v2"
)

// open returns ErrClosed once the client is closed.
func (c *Client) open() error {
	select {
	case <-c.closing:
		return ErrClosed
	default:
		return nil
	}
}

// isClosed reports whether a question failed because the client was closed meanwhile.
func isClosed(err error) bool {
	return errors.Is(err, ErrClosed) || errors.Is(err, puddle.ErrClosedPool)
}
