package faulttest

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Proxy stands between clients and a server, so that the network can fail in a
// test, or the server say something else than it does.
type Proxy struct {
	listener net.Listener
	network  string
	address  string
	database string
	user     string

	mu      sync.Mutex
	frozen  chan struct{}          // guarded by mu: closed while traffic flows
	rewrite func(answer []byte)    // guarded by mu: changes what the server says, in place
	conns   map[io.Closer]struct{} // guarded by mu
	// guarded by mu: connections of an earlier generation are frozen for good
	generation int
	vanished   bool              // guarded by mu
	dumb       map[net.Conn]bool // guarded by mu: ends of connections that have lost bytes
	ended      bool              // guarded by mu
}

// NewProxy starts a proxy in front of the server of a connection string. It ends
// with the test.
func NewProxy(t testing.TB, serverURL string) *Proxy {
	t.Helper()
	config, err := pgx.ParseConfig(serverURL)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{database: config.Database, user: config.User, frozen: make(chan struct{}), conns: make(map[io.Closer]struct{}), dumb: make(map[net.Conn]bool)}
	close(p.frozen)
	p.network, p.address = "tcp", net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port)))
	if strings.HasPrefix(config.Host, "/") {
		p.network, p.address = "unix", filepath.Join(config.Host, fmt.Sprintf(".s.PGSQL.%d", config.Port))
	}
	p.listener, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go p.accept()
	t.Cleanup(p.close)
	return p
}

// URL leads through the proxy to the same database.
func (p *Proxy) URL() string {
	return fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable", url.PathEscape(p.user), p.listener.Addr(), url.PathEscape(p.database))
}

// Freeze lets nothing through any more, in either direction, and says so to
// nobody.
func (p *Proxy) Freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = make(chan struct{})
}

// FreezeOpen lets nothing through any more on the connections that there are, and
// says so to nobody. New ones work.
func (p *Proxy) FreezeOpen() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.generation++
}

// Thaw lets traffic flow again.
func (p *Proxy) Thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.frozen:
	default:
		close(p.frozen)
	}
}

// Vanish drops all that is sent from now on, in either direction, and the news that an
// end has closed: the host is gone, or the cable. Connections that there are, and those
// that are made until Appear, never work again.
func (p *Proxy) Vanish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.vanished = true
	for c := range p.conns {
		if end, ok := c.(net.Conn); ok {
			p.dumb[end] = true
		}
	}
}

// Appear lets new connections work again.
func (p *Proxy) Appear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.vanished = false
}

// Rewrite changes what the server says, in place.
func (p *Proxy) Rewrite(change func(answer []byte)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rewrite = change
}

// Cut breaks every connection.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close() // It may be closed.
	}
	clear(p.conns)
	clear(p.dumb)
}

func (p *Proxy) close() {
	_ = p.listener.Close()
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	p.Thaw()
	p.Cut()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		var dialer net.Dialer
		server, err := dialer.Dial(p.network, p.address) //nolint:noctx // It is this machine.
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		if p.ended {
			_, _ = client.Close(), server.Close()
		}
		p.conns[client], p.conns[server] = struct{}{}, struct{}{}
		if p.vanished {
			p.dumb[client], p.dumb[server] = true, true
		}
		generation := p.generation
		p.mu.Unlock()
		go p.copy(server, client, generation, false)
		go p.copy(client, server, generation, true)
	}
}

func (p *Proxy) copy(to, from net.Conn, generation int, answers bool) {
	frozen, dumb := false, false
	defer func() {
		if !frozen && !dumb { // Cut closes it
			_, _ = to.Close(), from.Close()
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		gate, rewrite := p.frozen, p.rewrite
		frozen, dumb = generation < p.generation && !p.ended, p.dumb[from] && !p.ended
		p.mu.Unlock()
		if frozen || dumb && err != nil {
			return
		}
		if dumb {
			continue
		}
		<-gate
		if answers && rewrite != nil {
			rewrite(buf[:n])
		}
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}
