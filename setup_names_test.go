package audit_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// oddSchemas are names in SQL that stand in quotes, in format and in functions.
var oddSchemas = []string{`it's`, `50%I`, `%s%1$L`, `a$$b`, `x"y`, `back\slash`, `{{schema}}`, "new\nline"}

func TestSchema_OddNames(t *testing.T) {
	ownStore(t, "it has the history of later months dropped, which only the owner may allow")
	t.Parallel()
	for i, name := range oddSchemas {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			db.Exec(t, "CREATE TABLE todo (id int PRIMARY KEY, task text)")
			a := audittest.Open(t, db, audit.Config{Schema: name, Retention: 24 * time.Hour})
			mustStart(t, a)
			db.Exec(t, "INSERT INTO todo VALUES (1, 'Eat'); UPDATE todo SET task = 'Sleep'; DELETE FROM todo")
			a.Sync(t)
			changes, err := a.Client.Changes().List(t.Context())
			if err != nil || len(changes) != 3 {
				t.Fatalf("%d changes, %v", len(changes), err)
			}
			if _, err := a.Client.RevertTransaction(changes[0].TransactionID).Apply(t.Context()); err != nil {
				t.Fatal(err)
			}
			a.Sync(t)
			if err := a.Client.Baseline(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			schema := pgx.Identifier{name}.Sanitize()
			db.Exec(t, "SELECT "+schema+".drop_before(now() + interval '3 months')")
			if n := audittest.Value[int](t, db, "SELECT count(*) FROM "+schema+".retention"); n == 0 {
				t.Error("retention dropped nothing")
			}
			if err := a.Client.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := a.Client.Uninstall(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestSetupSQL_NamesEndNoComment runs the script that a DBA is given for a database
// and a role whose names hold SQL.
func TestSetupSQL_NamesEndNoComment(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{})
	admin := server.NewDatabase(t)
	for i, end := range []string{"\n", "\r", "\r\n"} {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			name := "d" + strconv.Itoa(i) + end + "CREATE TABLE public.attacked (); --"
			admin.Exec(t, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize())
			admin.Exec(t, "CREATE ROLE "+pgx.Identifier{name}.Sanitize())
			config, err := pgx.ParseConfig(admin.URL())
			if err != nil {
				t.Fatal(err)
			}
			dsn := fmt.Sprintf("host='%s' port=%d user=%s dbname='%s'", config.Host, config.Port, config.User, name)
			client := openClient(t, audit.Config{SourceURL: dsn})
			script, err := client.SetupSQL(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			conn := faulttest.Connect(t, dsn)
			for n, paragraph := range strings.Split(script, "\n\n-- ") {
				if n > 0 {
					paragraph = "-- " + paragraph
				}
				if _, err := conn.Exec(t.Context(), paragraph); err != nil {
					t.Fatalf("%v\n%s", err, paragraph)
				}
			}
			var attacked bool
			if err := conn.QueryRow(t.Context(), "SELECT to_regclass('public.attacked') IS NOT NULL").Scan(&attacked); err != nil || attacked {
				t.Errorf("a name was run as SQL: %t, %v\n%s", attacked, err, script[:400])
			}
		})
	}
}
