package audit_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// secretMark stands in each secret value, in a column of each kind.
const secretMark = "Xq7Zt9Kv"

var secretColumns = map[string]string{
	"user_password": "text", "api_token": "varchar(200)", "fixed_secret": "char(40)", "raw_secret": "bytea", "json_secret": "json",
	"jsonb_secret": "jsonb", "secrets": "text[]", "xml_secret": "xml", "domain_secret": "hidden", "composite_secret": "pair",
	"number_secret": "numeric", "uuid_secret": "uuid", "large_secret": "text",
	"digested": "text", "masked": "text", "noted": "text",
}

// secretValue is a literal of the column's type with the n-th value of a secret.
func secretValue(typ string, n int) string {
	mark := fmt.Sprintf("%s%04d!", secretMark, n) // a mask shows no exclamation marks
	switch typ {
	case "bytea":
		return `'\x` + hex.EncodeToString([]byte(mark)) + "'"
	case "json", "jsonb":
		return `'{"deep": ["` + mark + `"]}'`
	case "text[]":
		return `'{a,"` + mark + `"}'`
	case "xml":
		return "'<a>" + mark + "</a>'"
	case "pair":
		return `'(1,"` + mark + `")'`
	case "numeric":
		return fmt.Sprintf("987650123456789%04d", n)
	case "uuid":
		return fmt.Sprintf("'987650aa-bbcc-4dde-8eff-00000000%04d'", n)
	}
	return "'" + mark + "'"
}

// secretBytes are what must not be found: the marks as they are, and as bytea and WAL
// and images could hold them.
var secretBytes = [][]byte{
	[]byte(secretMark), []byte(hex.EncodeToString([]byte(secretMark))), []byte("987650123456789"), []byte("987650aa-bbcc"),
	{0x98, 0x76, 0x50, 0xaa, 0xbb, 0xcc}, // a uuid
}

func wantNoSecret(t *testing.T, where string, text []byte) {
	t.Helper()
	for _, secret := range secretBytes {
		if at := bytes.Index(text, secret); at >= 0 {
			t.Errorf("%s holds %q: %q", where, secret, text[max(0, at-80):min(len(text), at+80)])
		}
	}
}

// No byte of a value that is withheld is anywhere but in the source: the store is in
// another server, whose files, WAL and log are searched, beside our logs, errors, metrics
// and exports.
func TestColumns_ValueIsNowhere(t *testing.T) {
	t.Parallel()
	storeServer := audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{"log_statement": "all", "log_min_messages": "debug1", "log_min_error_statement": "debug1"}})
	source, store := audittest.NewDatabase(t), storeServer.NewDatabase(t)
	source.Exec(t, "CREATE DOMAIN hidden AS text; CREATE TYPE pair AS (n int, s text)")
	var definitions, names []string
	for name, typ := range secretColumns {
		definitions, names = append(definitions, name+" "+typ), append(names, name)
	}
	definitions = append(definitions, "derived text GENERATED ALWAYS AS (upper(user_password) || user_password) STORED")
	columns := "id int, note text, " + strings.Join(definitions, ", ")
	source.Exec(t, "CREATE TABLE vault ("+columns+", PRIMARY KEY (id))")
	source.Exec(t, "CREATE TABLE keyless ("+columns+")")
	source.Exec(t, "CREATE TABLE parted ("+columns+", PRIMARY KEY (id)) PARTITION BY RANGE (id); CREATE TABLE part PARTITION OF parted DEFAULT")
	tables := []string{"vault", "keyless", "parted"}
	values := func(n int) string {
		var list []string
		for _, name := range names {
			value := secretValue(secretColumns[name], n)
			if name == "large_secret" { // out of line
				value = "(SELECT string_agg(" + value + " || md5(g::text), '') FROM generate_series(1, 400) g)"
			}
			list = append(list, value)
		}
		return strings.Join(list, ", ")
	}
	insert := func(table string, id int) {
		source.Exec(t, fmt.Sprintf("INSERT INTO %s (id, note, %s) VALUES (%d, 'n', %s)", table, strings.Join(names, ", "), id, values(id)))
	}

	log, metrics := faulttest.NewLog(t), sdkmetric.NewManualReader()
	client := openClient(t, audit.Config{
		SourceURL: source.URL(), StoreURL: store.URL(), Tables: []string{"public.*"}, Logger: log.Logger(),
		MeterProvider: sdkmetric.NewMeterProvider(sdkmetric.WithReader(metrics)), DigestKey: digestKey, NoEventTrigger: true,
		Columns: []audit.ColumnRule{
			{Columns: "public.*.digested", Policy: audit.DigestColumn}, {Columns: "public.*.masked", Policy: audit.MaskColumn}, {Columns: "*.*.noted", Policy: audit.ExcludeColumn},
		},
	})
	for _, table := range tables {
		insert(table, 1)
	}
	if err := client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Stop(context.WithoutCancel(t.Context())) }()
	var failures []error
	note := func(err error) {
		if err != nil {
			failures = append(failures, err)
		}
	}
	sync := func() {
		t.Helper()
		if err := client.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	sync()
	note(client.Baseline(t.Context(), nil))
	for _, table := range tables {
		insert(table, 2)
		insert(table, 3)
	}
	sync()
	then := time.Now()
	for _, table := range tables {
		var set []string
		for _, name := range names {
			set = append(set, name+" = "+secretValue(secretColumns[name], 9))
		}
		source.Exec(t, "UPDATE "+table+" SET "+strings.Join(set, ", ")+" WHERE id = 2")
		source.Exec(t, "UPDATE "+table+" SET note = 'only this' WHERE id = 3") // large values are not in the stream
		source.Exec(t, "DELETE FROM "+table+" WHERE id = 1")
	}
	sync()
	source.Exec(t, "ALTER TABLE vault RENAME noted TO written; UPDATE vault SET written = '"+secretMark+" renamed' WHERE id = 3")
	source.Exec(t, "TRUNCATE keyless")
	sync()
	note(client.Baseline(t.Context(), &audit.BaselineOptions{Tables: []string{"vault"}}))

	var out bytes.Buffer
	for _, format := range []audit.ExportFormat{audit.JSONL, audit.CSV, audit.SpreadsheetCSV} {
		if n, err := client.Changes().Export(t.Context(), &out, format); err != nil || n < 15 {
			t.Errorf("exported %d: %v", n, err)
		}
	}
	for change, err := range client.Changes().All(t.Context()) {
		note(err)
		fmt.Fprintln(&out, change, change.Diff())
	}
	// The past is of the store and of the live rows: what it tells has none of the columns.
	for _, table := range tables {
		for row, err := range client.AsOf(then).Table(table).All(t.Context()) {
			note(err)
			text, err := json.Marshal(row)
			note(err)
			out.Write(text)
		}
		var one struct{ UserPassword, Digested string }
		note(client.AsOf(then).Table(table).Load(t.Context(), &one, 2))
		note(client.AsOf(then).View(t.Context(), func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), "SELECT user_password FROM "+table)
			return err
		}))
		versions, err := client.History(table, 2).List(t.Context())
		note(err)
		fmt.Fprintln(&out, versions)
		plan, err := client.RevertTables(client.AsOf(then), table).Plan(t.Context())
		note(err)
		if plan != nil {
			fmt.Fprintln(&out, plan.String())
			text, err := json.Marshal(plan)
			note(err)
			out.Write(text)
			_, err = plan.Apply(t.Context())
			note(err)
		}
	}
	sync()
	var collected metricdata.ResourceMetrics
	note(metrics.Collect(t.Context(), &collected))
	text, err := json.Marshal(collected)
	note(err)
	if len(failures) < 3 {
		t.Errorf("too little failed to tell anything of errors: %v", failures)
	}
	wantNoSecret(t, "an export or what is printed", out.Bytes())
	wantNoSecret(t, "the errors", fmt.Appendf(nil, "%+v", errors.Join(failures...)))
	wantNoSecret(t, "the metrics", text)
	wantNoSecret(t, "the log", []byte(log.Text()))

	// Nothing is compressed in a dump of the text of everything in the store.
	for _, table := range audittest.Value[[]string](t, store, "SELECT array_agg(format('%I.%I', schemaname, tablename)) FROM pg_tables WHERE schemaname = 'audit'") {
		wantNoSecret(t, table, []byte(audittest.Value[string](t, store, "SELECT coalesce(string_agg(r::text, chr(10)), '') FROM "+table+" r")))
	}
	store.Exec(t, "CHECKPOINT")
	searchFiles(t, storeServer.DataDir())
}

// searchFiles looks into every file of a server: tables, WAL, its log.
func searchFiles(t *testing.T, dir string) {
	t.Helper()
	files, known := 0, false
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return nil //nolint:nilerr // it is gone meanwhile
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // so is this
		}
		files++
		known = known || bytes.Contains(content, []byte("only this")) // which is stored
		wantNoSecret(t, path, content)
		return nil
	})
	if err != nil || files < 500 || !known {
		t.Fatalf("searched %d files, found what is there: %t: %v", files, known, err)
	}
}
