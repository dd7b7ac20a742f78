// Package deadpeer makes both ends of a connection to PostgreSQL notice within
// seconds that the other is gone: a host that lost its power or its network closes
// nothing, and by default a server, or we, would wait for it for a quarter of an hour.
package deadpeer

import (
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// idle, interval and count find a peer that is silent because it is gone: after
	// 11 seconds.
	idle     = 5 * time.Second
	interval = 2 * time.Second
	count    = 3
	// Timeout finds one that does not take what it is sent, be it gone or frozen. The
	// server's checkpointer can wait for that long for a session of a frozen program.
	Timeout = 30 * time.Second
)

// Guard sets it up on the connections that are made with config: on the server's end
// by settings of the session, on ours by the dialer. Connections through a Unix socket
// do not need that. Connecting is bounded in any case.
func Guard(config *pgconn.Config) {
	for name, value := range map[string]string{
		"tcp_keepalives_idle":     strconv.Itoa(int(idle.Seconds())),
		"tcp_keepalives_interval": strconv.Itoa(int(interval.Seconds())),
		"tcp_keepalives_count":    strconv.Itoa(count),
		"tcp_user_timeout":        strconv.FormatInt(Timeout.Milliseconds(), 10),
	} {
		config.RuntimeParams[name] = value
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = ConnectTimeout
	}
	dialer := &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: idle, Interval: interval, Count: count},
		Control:         setUserTimeout,
	}
	config.DialFunc = dialer.DialContext
}
