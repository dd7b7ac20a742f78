//go:build unix

package auditsql_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// TestThroughPgBouncer needs the program pgbouncer, which Debian and others have
// as a package of that name.
func TestThroughPgBouncer(t *testing.T) {
	t.Parallel()
	// The modes that go with a pooler that does not know prepared statements.
	for _, d := range []aDriver{
		{name: "pgx", mode: pgx.QueryExecModeExec},
		{name: "another driver", hide: hidden, mode: pgx.QueryExecModeSimpleProtocol},
	} {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{}, todoSQL)
			config := faulttest.FindPgBouncer(t).Start(t, a.Database, "ignore_startup_parameters = extra_float_digits")
			db, connector := d.open(t, config)
			db.SetMaxOpenConns(12)
			serveMany(t, db, nil, 1000)
			if stats := connector.Stats(); stats.Lost != 0 {
				t.Errorf("%+v", stats)
			}
			checkUsers(t, a)
		})
	}
}
