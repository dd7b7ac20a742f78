package docs

import (
	"context"
	"errors"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

func contains(text, part string) bool { return part != "" && strings.Contains(text, part) }

// What Start says where a right is missing, as docs/permissions.md shows it.
const printedByStart = `
audit: the source is not ready:
  - role program may not use replication slots
      run: ALTER ROLE "program" REPLICATION;
  - table "public"."invoices" is not owned by role program
      run: CREATE PUBLICATION "audit" WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true);
      run: ALTER TABLE ONLY "public"."invoices" REPLICA IDENTITY FULL;
      run: ALTER PUBLICATION "audit" ADD TABLE ONLY "public"."invoices";
`

// as is the connection string for another role.
func as(t *testing.T, role string, db *audittest.Database) string {
	t.Helper()
	u, err := url.Parse(db.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(role)
	return u.String()
}

func TestStartNamesWhatIsMissingAsTheGuideShows(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{})
	db := server.NewDatabase(t)
	db.Exec(t, "CREATE ROLE program LOGIN; CREATE TABLE invoices (id int PRIMARY KEY)")
	db.Exec(t, `GRANT CREATE ON DATABASE "`+db.Name()+`" TO program`)
	client, err := audit.Open(t.Context(), audit.Config{SourceURL: as(t, "program", db), Tables: []string{"public.*"}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	err = client.Start(t.Context())
	var setup *audit.SetupError
	if !errors.As(err, &setup) {
		t.Fatalf("Start: %v, want a *SetupError", err)
	}
	// From 18 on the publication has one more setting.
	said := regexp.MustCompile(`, publish_generated_columns = \w+`).ReplaceAllString(err.Error(), "")
	if diff := cmp.Diff(strings.TrimSpace(printedByStart), strings.TrimSpace(said)); diff != "" {
		t.Errorf("(-guide +Start):\n%s", diff)
	}
}

// scriptForDBA is what docs/permissions.md gives to a DBA.
func scriptForDBA(ctx context.Context, client *audit.Client) (string, error) {
	script, err := client.SetupSQL(ctx, "program")
	return script, err
}

// leastRights is the configuration of docs/permissions.md.
func leastRights(ctx context.Context) (*audit.Client, error) {
	client, err := audit.Open(ctx, audit.Config{
		SourceURL:  "postgres://program@db.example.com/shop",
		StoreURL:   "postgres://audit_writer@db.example.com/shop",
		StoreRoles: audit.StoreRoles{Owner: "audit_owner", Writer: "audit_writer", Reader: "audit_reader"},
		Retention:  365 * 24 * time.Hour,
	})
	return client, err
}

// vault is where passwords come from that expire.
type vault interface {
	Get(ctx context.Context) (string, error)
}

// expiring is a configuration whose password expires.
func expiring(tokens vault) audit.Config {
	return audit.Config{
		SourceURL: "postgres://app@db.example.com:5432/shop",
		BeforeConnect: func(ctx context.Context, config *pgconn.Config) error {
			token, err := tokens.Get(ctx) // IAM, Vault
			config.Password = token
			return err
		},
	}
}

type noTokens struct{}

var errNoToken = errors.New("the vault is sealed")

func (noTokens) Get(context.Context) (string, error) { return "", errNoToken }

func TestConfigurationsOfThePermissionsGuide(t *testing.T) {
	t.Parallel()
	client, err := leastRights(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	client.Close()

	// The token is asked for before the server is.
	client, err = audit.Open(t.Context(), expiring(noTokens{}))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.Start(t.Context()); !errors.Is(err, errNoToken) {
		t.Errorf("Start without a token: %v", err)
	}

	db := audittest.NewDatabase(t)
	script, err := scriptForDBA(t.Context(), audittest.Open(t, db, audit.Config{}).Client)
	if err != nil || !strings.Contains(script, `"program"`) {
		t.Errorf("script: %v\n%s", err, script)
	}
}
