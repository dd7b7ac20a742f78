package auditpgx

import "github.com/jackc/pgx/v5/pgconn"

// cache holds descriptions of statements by their text. When it is full it
// drops one that was not used since it was put in or last looked at.
type cache struct {
	limit int
	known map[string]*cached
	queue []string // the texts in known, the next to be looked at first
	gone  []*pgconn.StatementDescription
}

type cached struct {
	sd   *pgconn.StatementDescription
	used bool
}

func (c *cache) get(sql string) *pgconn.StatementDescription {
	entry := c.known[sql]
	if entry == nil {
		return nil
	}
	entry.used = true
	return entry.sd
}

func (c *cache) put(sql string, sd *pgconn.StatementDescription) {
	if c.known == nil {
		c.known = map[string]*cached{}
	}
	for len(c.queue) >= c.limit {
		oldest := c.queue[0]
		c.queue = c.queue[1:]
		if entry := c.known[oldest]; entry.used {
			entry.used = false
			c.queue = append(c.queue, oldest)
			continue
		}
		c.forget(oldest)
	}
	c.known[sql] = &cached{sd: sd}
	c.queue = append(c.queue, sql)
}

func (c *cache) drop(sql string) {
	if c.known[sql] == nil {
		return
	}
	for i, text := range c.queue {
		if text == sql {
			c.queue = append(c.queue[:i:i], c.queue[i+1:]...)
			break
		}
	}
	c.forget(sql)
}

func (c *cache) forget(sql string) {
	c.gone = append(c.gone, c.known[sql].sd)
	delete(c.known, sql)
}

// dropped returns what was dropped since it was asked last.
func (c *cache) dropped() []*pgconn.StatementDescription {
	gone := c.gone
	c.gone = nil
	return gone
}
