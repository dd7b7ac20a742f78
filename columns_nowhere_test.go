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
	"bytea_digest": "bytea", "array_digest": "text[]", "numeric_digest": "numeric", "composite_mask": "pair", "json_mask": "jsonb",
	"name_secret": "name", "bigint_secret": "bigint", "float_secret": "float8", "money_secret": "money", "date_secret": "date",
	"time_secret": "timestamptz", "plain_time_secret": "timestamp", "interval_secret": "interval", "inet_secret": "inet", "mac_secret": "macaddr",
	"bit_secret": "varbit", "lexeme_secret": "tsvector", "query_secret": "tsquery", "path_secret": "jsonpath", "lsn_secret": "pg_lsn",
	"point_secret": "point", "range_secret": "int8range", "times_secret": "tstzrange", "text_range_secret": "letters", "multirange_secret": "int8multirange",
	"bytes_secret": "bytea[]", "numbers_secret": "numeric[]", "json_array_secret": "jsonb[]", "pairs_secret": "pair[]", "nested_secret": "nested",
	"array_domain_secret": "hidden_list", "number_domain_secret": "hidden_number", "stored_aside_secret": "text", "large_bytes_secret": "bytea",
}

// secretValue is a literal of the column's type with the n-th value of a secret.
func secretValue(typ string, n int) string {
	mark := fmt.Sprintf("%s%04d!", secretMark, n) // a mask shows no exclamation marks
	number := fmt.Sprintf("987650123456789%04d", n)
	switch typ {
	case "bigint", "float8":
		return fmt.Sprintf("4987650123456%03d", n)
	case "money":
		return fmt.Sprintf("'98765012345.%02d'", n)
	case "date", "timestamp", "timestamptz":
		return fmt.Sprintf("'3987-06-%02d'", n)
	case "interval":
		return fmt.Sprintf("'3987650%02d days'", n)
	case "inet":
		return fmt.Sprintf("'2001:db8:9876:50aa::%d'", n)
	case "macaddr":
		return fmt.Sprintf("'98:76:50:aa:bb:%02d'", n)
	case "varbit":
		return fmt.Sprintf("B'1001100001110110010100001010%04b'", n)
	case "tsvector", "tsquery":
		return fmt.Sprintf("'%s%04d'", secretMark, n)
	case "jsonpath":
		return fmt.Sprintf(`'$."%s%04d"'`, secretMark, n)
	case "pg_lsn":
		return fmt.Sprintf("'98765AA/BBCC%02d'", n)
	case "point":
		return "'(" + fmt.Sprintf("4987650123456%03d", n) + ",1)'"
	case "int8range":
		return fmt.Sprintf("'[4987650123456%03d,4987650123456999)'", n)
	case "int8multirange":
		return fmt.Sprintf("'{[4987650123456%03d,4987650123456999)}'", n)
	case "tstzrange":
		return fmt.Sprintf("'[3987-06-%02d,3987-07-01)'", n)
	case "letters":
		return `'["` + mark + `","` + mark + `z")'`
	case "bytea[]":
		return "ARRAY['" + mark + "'::bytea]"
	case "numeric[]":
		return "'{1," + number + "}'"
	case "jsonb[]":
		return `ARRAY['{"deep": ["` + mark + `"]}'::jsonb]`
	case "pair[]":
		return `ARRAY[ROW(1, '` + mark + `')::pair]`
	case "nested":
		return `ROW(1, ROW(2, '` + mark + `')::pair)`
	case "hidden_list":
		return `'{a,"` + mark + `"}'`
	case "hidden_number":
		return number
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
		return number
	case "uuid":
		return fmt.Sprintf("'987650aa-bbcc-4dde-8eff-00000000%04d'", n)
	}
	return "'" + mark + "'"
}

// secretBytes are what must not be found: the marks as they are, and as bytea and WAL
// and images could hold them.
var secretBytes = [][]byte{
	[]byte(secretMark), []byte(hex.EncodeToString([]byte(secretMark))), []byte("98765012345"), []byte("987650aa-bbcc"),
	[]byte("98,765,012,345"), []byte("3987-06-"), []byte("3987650"), []byte("9876:50aa"), []byte("98:76:50:aa"), []byte("100110000111011001010000101"), []byte("98765AA/BBCC"),
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
	source.Exec(t, `CREATE DOMAIN hidden AS text; CREATE TYPE pair AS (n int, s text); CREATE TYPE nested AS (n int, p pair); CREATE DOMAIN hidden_list AS text[];
		CREATE DOMAIN hidden_number AS numeric; CREATE TYPE letters AS RANGE (subtype = text)`)
	var definitions, names []string
	for name, typ := range secretColumns {
		definitions, names = append(definitions, name+" "+typ), append(names, name)
	}
	definitions = append(definitions, "derived text GENERATED ALWAYS AS (upper(user_password) || user_password) STORED")
	columns := "id int, note text, " + strings.Join(definitions, ", ")
	source.Exec(t, "CREATE TABLE vault ("+columns+", PRIMARY KEY (id))")
	source.Exec(t, "CREATE TABLE keyless ("+columns+")")
	source.Exec(t, "CREATE TABLE parted ("+columns+", PRIMARY KEY (id)) PARTITION BY RANGE (id); CREATE TABLE part PARTITION OF parted DEFAULT")
	// Out of line, and as it is: the stream leaves it out where nothing has changed.
	for _, table := range []string{"vault", "keyless", "part"} {
		source.Exec(t, "ALTER TABLE "+table+" ALTER stored_aside_secret SET STORAGE EXTERNAL")
	}
	tables := []string{"vault", "keyless", "parted"}
	values := func(n int) string {
		var list []string
		for _, name := range names {
			value := secretValue(secretColumns[name], n)
			switch name {
			case "large_secret", "stored_aside_secret": // out of line
				value = "(SELECT string_agg(" + value + " || md5(g::text), '') FROM generate_series(1, 400) g)"
			case "large_bytes_secret":
				value = "(SELECT string_agg(" + value + " || decode(md5(g::text), 'hex'), '') FROM generate_series(1, 400) g)"
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
		SourceURL: source.URL(), StoreURL: store.URL(), Tables: []string{"public.*"}, Logger: log.Logger(), Retention: months, MaxRowBytes: 1 << 20,
		MeterProvider: sdkmetric.NewMeterProvider(sdkmetric.WithReader(metrics)), DigestKey: digestKey, NoEventTrigger: true,
		Columns: []audit.ColumnRule{
			{Columns: "public.*.digested", Policy: audit.DigestColumn},
			{Columns: "public.*.*_digest", Policy: audit.DigestColumn},
			{Columns: "public.*.masked", Policy: audit.MaskColumn},
			{Columns: "public.*.*_mask", Policy: audit.MaskColumn},
			{Columns: "*.*.noted", Policy: audit.ExcludeColumn},
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
	watched := watchAll(t, client)
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
	storyOfLosses(t, client, source, store, note, insert)
	out.WriteString(watched())
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

// watchAll watches all changes, and returns what tells of those that have come.
func watchAll(t *testing.T, client *audit.Client) (text func() string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var out strings.Builder
	done := make(chan struct{})
	go func() {
		defer close(done)
		for event, err := range client.Changes().Watch(ctx) {
			content, _ := json.Marshal(event)
			fmt.Fprintln(&out, string(content), event, err)
		}
	}()
	return func() string {
		cancel()
		<-done
		if !strings.Contains(out.String(), "only this") {
			t.Error("nothing was watched")
		}
		return out.String()
	}
}

// storyOfLosses lets rows be incomplete, too large, refused by the store, lost in a gap and
// past their retention.
func storyOfLosses(t *testing.T, client *audit.Client, source, store *audittest.Database, note func(error), insert func(table string, id int)) {
	t.Helper()
	ctx := t.Context()
	sync := func() {
		t.Helper()
		if err := client.Sync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	// What the stream does not have.
	source.Exec(t, "ALTER TABLE vault RENAME written TO noted; ALTER TABLE vault REPLICA IDENTITY DEFAULT")
	source.Exec(t, "UPDATE vault SET note = 'no old row' WHERE id = 3; DELETE FROM vault WHERE id = 3")
	source.Exec(t, "ALTER TABLE vault REPLICA IDENTITY FULL")
	// More than Config.MaxRowBytes, of what is withheld and of what is not.
	insert("vault", 7)
	source.Exec(t, "UPDATE vault SET large_secret = repeat(user_password, 200000), note = repeat('x', 1200000) WHERE id = 7")
	sync()
	// Refused by the store, which has the row in its error.
	relent := refuse(t, store, "22000", "NEW.primary_key = '8'")
	insert("vault", 8)
	if err := client.Sync(ctx); err != nil {
		note(err)
	}
	relent()
	sync()
	// Lost.
	if err := client.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	source.Exec(t, "SELECT pg_drop_replication_slot($1)", slotOf(source))
	insert("vault", 9)
	source.Exec(t, "UPDATE vault SET note = 'in the gap' WHERE id = 7")
	if err := client.Start(ctx); err != nil {
		t.Fatal(err)
	}
	note(client.Baseline(ctx, &audit.BaselineOptions{Tables: []string{"vault", "parted"}}))
	source.Exec(t, "UPDATE vault SET note = 'behind the gap', user_password = '"+secretMark+" behind' WHERE id = 7")
	sync()
	if n := audittest.Value[int](t, store, "SELECT count(*) FROM audit.gaps"); n < 2 {
		t.Errorf("there are %d gaps, want one for the slot and one for the row that was refused", n)
	}
	if n := audittest.Value[int](t, store, "SELECT count(*) FROM audit.changes WHERE defect IS NOT NULL"); n == 0 {
		t.Error("no change has a defect")
	}
	// Dropped, and carried along.
	store.Exec(t, "SELECT audit.ensure_partition(now() - n * interval '1 day') FROM generate_series(1, 121, 20) n")
	store.Exec(t, "UPDATE audit.changes SET committed_at = committed_at - interval '100 days'; UPDATE audit.commit_times SET committed_at = committed_at - interval '100 days'")
	note(audit.KeepPartitions(ctx, client))
	if n := audittest.Value[int](t, store, "SELECT count(*) FROM audit.retention"); n == 0 {
		t.Error("retention has dropped nothing")
	}
	_, err := client.Now().Table("vault").Count(ctx)
	note(err)
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
