package audit

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/multitracer"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit/internal/history"
)

// PoolerError is returned by [Client.Start] where a connection string leads to a pooler,
// such as PgBouncer: through one there is no replication, and no session that is ours
// alone. Everything else works through poolers.
type PoolerError struct {
	// Field is that of the Config: SourceURL or StoreURL.
	Field string
}

func (e *PoolerError) Error() string {
	return "audit: start: Config." + e.Field + " leads to a pooler, which keeps the settings of a session from the server: capture needs a direct connection: give the address of the server itself, here and wherever Start is called; programs that only ask may go through the pooler"
}

// sessionLink makes the connections of a pool have the settings that they need. A server
// takes them as startup parameters. A pooler refuses those, or ignores them, and gives
// the server's sessions to somebody else between two transactions: there, each
// transaction sets them for itself and leaves nothing behind.
type sessionLink struct {
	mu            sync.Mutex
	known, pooled bool // guarded by mu
}

// linkSession makes a pool, and its copies, ask what they are connected to before their first
// connection. All startup parameters of the pool are taken for settings.
func linkSession(pool *pgxpool.Config) *sessionLink {
	l := &sessionLink{}
	before := pool.BeforeConnect
	pool.BeforeConnect = func(ctx context.Context, config *pgx.ConnConfig) error {
		if before != nil {
			if err := before(ctx, config); err != nil {
				return err
			}
		}
		pooled, err := l.throughPooler(ctx, &config.Config)
		if err != nil || !pooled {
			return err
		}
		withoutSession(config)
		return nil
	}
	return l
}

// withoutSession makes a connection that leaves nothing in the server's session.
func withoutSession(config *pgx.ConnConfig) {
	tracers := []pgx.QueryTracer{localTracer{local: localSettings(config.RuntimeParams)}}
	if config.Tracer != nil {
		tracers = append([]pgx.QueryTracer{config.Tracer}, tracers...) // which may refuse a statement
	}
	config.Tracer = multitracer.New(tracers...)
	withoutSettings(&config.Config)
	// Named statements stay in a session that others have next.
	config.DefaultQueryExecMode = pgx.QueryExecModeDescribeExec
	config.StatementCacheCapacity, config.DescriptionCacheCapacity = 0, 0
}

// localSettings is SQL that makes startup parameters the settings of one transaction.
func localSettings(params map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(params)) {
		// The sockets of the server lead to the pooler, and BEGIN is behind us.
		if poolersTake(name) || name == "options" || strings.HasPrefix(name, "tcp_") || strings.HasPrefix(name, "default_transaction") {
			continue
		}
		b.WriteString("SET LOCAL " + name + " = " + quoteLiteral(params[name]) + ";")
	}
	return b.String()
}

// poolersTake reports whether poolers take a startup parameter, and keep it for us.
func poolersTake(name string) bool { return name == "application_name" || name == "client_encoding" }

func withoutSettings(config *pgconn.Config) {
	maps.DeleteFunc(config.RuntimeParams, func(name, _ string) bool { return !poolersTake(name) })
}

// throughPooler reports whether something between us and the server keeps our settings
// from it. It asks once.
func (l *sessionLink) throughPooler(ctx context.Context, config *pgconn.Config) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known {
		return l.pooled, nil
	}
	pooled, err := probe(ctx, config)
	if err != nil {
		return false, err
	}
	l.known, l.pooled = true, pooled
	return pooled, nil
}

// probe connects once, and looks whether our settings have come to the server.
func probe(ctx context.Context, config *pgconn.Config) (pooled bool, err error) {
	conn, err := pgconn.ConnectConfig(ctx, config)
	if history.IsCode(err, "08P01") { // unsupported startup parameter
		plain := config.Copy()
		withoutSettings(plain)
		if conn, err = pgconn.ConnectConfig(ctx, plain); err != nil {
			return false, err
		}
		closeConn(ctx, conn)
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer closeConn(ctx, conn)
	for _, name := range []string{"search_path", "row_security"} {
		want, ours := config.RuntimeParams[name]
		if !ours {
			continue
		}
		result := conn.ExecParams(ctx, "SELECT pg_catalog.current_setting($1)", [][]byte{[]byte(name)}, nil, nil, nil).Read()
		if result.Err != nil {
			return false, fmt.Errorf("ask for the settings of the session: %w", result.Err)
		}
		if string(result.Rows[0][0]) != want {
			return true, nil
		}
	}
	return false, nil
}

// pooledField returns which field of the Config leads to a pooler, or nothing.
func (c *Client) pooledField(ctx context.Context) (string, error) {
	for _, at := range []struct {
		field string
		pool  *pgxpool.Pool
		link  *sessionLink
	}{{"SourceURL", c.history.Source, c.sourceLink}, {"StoreURL", c.history.Store, c.storeLink}} {
		if err := at.pool.Ping(ctx); err != nil {
			return "", fmt.Errorf("connect by %s: %w", at.field, err)
		}
		at.link.mu.Lock()
		pooled := at.link.pooled
		at.link.mu.Unlock()
		if pooled {
			return at.field, nil
		}
	}
	return "", nil
}

// localTracer gives each transaction its settings: one that is begun, behind its BEGIN,
// and a query alone one of its own. Other statements alone name everything in full, and
// run as they are: what ends a transaction of ours has nobody to report to.
// Batches and copies run in transactions only.
type localTracer struct{ local string }

type localKey struct{}

// What to do behind a statement.
const (
	setBehind = iota + 1
	endBehind
)

func (t localTracer) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if conn.PgConn().TxStatus() != 'I' {
		return ctx
	}
	switch first := firstWord(data.SQL); first {
	case "BEGIN":
		return context.WithValue(ctx, localKey{}, setBehind)
	case "SELECT", "WITH", "TABLE", "VALUES":
		if err := t.script(ctx, conn, "BEGIN ISOLATION LEVEL READ COMMITTED;"+t.local); err != nil {
			return stopped{ctx, err}
		}
		return context.WithValue(ctx, localKey{}, endBehind)
	}
	return ctx
}

func (t localTracer) TraceQueryEnd(ctx context.Context, conn *pgx.Conn, _ pgx.TraceQueryEndData) {
	status := conn.PgConn().TxStatus()
	var err error
	switch behind := ctx.Value(localKey{}); {
	case behind == setBehind && status == 'T':
		err = t.script(ctx, conn, t.local)
	case behind == endBehind && status != 'I':
		err = t.script(ctx, conn, "COMMIT") // of a transaction that failed it is a rollback
	}
	if err != nil { // or the next statement would run without its settings
		closeConn(ctx, conn.PgConn())
	}
}

func (localTracer) script(ctx context.Context, conn *pgx.Conn, sql string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	return err
}

func firstWord(sql string) string {
	sql = strings.TrimLeft(sql, " \t\r\n(")
	end := strings.IndexFunc(sql, func(r rune) bool { return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z') })
	if end >= 0 {
		sql = sql[:end]
	}
	return strings.ToUpper(sql)
}
