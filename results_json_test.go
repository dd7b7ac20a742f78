package audit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

var updateGolden = flag.Bool("update", false, "write the golden files of the JSON of results")

// notResults are the exported structs that no query returns as an answer: settings,
// questions, and Client. Errors go by their name.
var notResults = map[string]bool{
	"Client": true, "Config": true, "BaselineOptions": true, "Query": true, "Reversal": true, "Point": true,
	"ColumnRule": true, "StoreRoles": true, "PastTable": true, "RowHistory": true, "Difference": true, "Fork": true,
}

var (
	jsonTime   = time.Date(2024, 3, 4, 5, 6, 7, 890000000, time.UTC)
	jsonAt     = audit.Position{LSN: 0x16_B374D848, Sequence: 3}
	jsonText   = "Sleep"
	jsonCursor = audit.Cursor("AUMBgICA")
)

func jsonChange() audit.Change {
	var c audit.Change
	c.Position, c.CommittedAt, c.TransactionID = jsonAt, jsonTime, 771
	c.Database, c.Schema, c.Table, c.PrimaryKey, c.HasKey = "shop", "public", "todo", "26", true
	c.Operation, c.Before, c.After = audit.Update, audit.Image(`{"id": 26, "task_name": "Eat", "password": "excluded"}`), audit.Image(`{"id": 26, "task_name": "Sleep", "password": "excluded"}`)
	c.Stamped, c.RawContext = true, json.RawMessage(`{"userId": "42", "requestId": "r-9"}`)
	c.Context = audit.Context{UserID: "42", RequestID: "r-9"}
	c.QueuedAt, c.CreatedAt = jsonTime, jsonTime
	c.Withheld = map[string]audit.ColumnPolicy{"password": audit.ExcludeColumn}
	return c
}

// results has a value of each type of results with everything set that can be.
func results() []any {
	change, row := jsonChange(), audit.RowRef{Table: "public.todo", Key: []string{"26"}}
	context, counts := audit.Context{UserID: "42", RequestID: "r-9"}, audit.Counts{Creates: 1, Updates: 2, Deletes: 3, Truncates: 4}
	conflict := audit.Conflict{Kind: audit.ColumnChanged, RowRef: row, Column: "task", Restore: &jsonText, Other: &row, Change: &change, Resolution: audit.Skip}
	origins := []audit.Origin{{User: "42", Endpoint: "POST /todo", Worker: "mailer", Environment: "production", Changes: 3}}
	left := audit.UnrestoredColumn{Table: "public.todo", Column: "updated_at", Reason: audit.UnrestoredByConfig}
	request := audit.Request{ID: "r-9", Context: context, StartedAt: jsonTime, EndedAt: jsonTime, Counts: counts, Tables: []string{"todo"}, Origins: origins}
	transaction := audit.Transaction{
		ID: 771, Position: jsonAt.LSN, Database: "shop", CommittedAt: jsonTime, First: 1, Last: 3,
		Context: context, Stamped: true, Counts: counts, Tables: []string{"todo"},
	}
	past := audit.PastRevert{ID: "v-1", Of: audit.Unit{Kind: "request", ID: "r-9"}, Position: jsonAt, TransactionID: 772, CommittedAt: jsonTime, User: "7", Reason: "a mistake", Partial: true}
	plan := &audit.Plan{Of: past.Of, Hash: "a1b2", Changes: 2, First: jsonAt, Last: jsonAt, Origins: origins, Updates: 1, Unrestored: []audit.UnrestoredColumn{left}, Conflicts: []audit.Conflict{conflict}, Cascaded: []audit.Change{change}, Already: &past}
	gap := audit.Gap{From: jsonAt.LSN, To: jsonAt.LSN + 1, FromTime: jsonTime, ToTime: jsonTime, Reason: "the slot was lost"}
	warning := audit.Warning{Code: audit.WarningIdleSlot, Text: "idle"}
	slot := audit.SlotStatus{Name: "audit_shop", Exists: true, Active: true, Status: "reserved", RetainedBytes: 5, BoundBytes: -1, SafeBytes: -1}
	table := audit.TableStatus{Schema: "public", Table: "todo", From: jsonAt.LSN, FromTime: jsonTime, Until: jsonAt.LSN, UntilTime: jsonTime, Pending: errors.New("must be owner of table todo")}
	completeness := audit.Completeness{Position: jsonAt, CoveredFrom: jsonAt, CoveredFromTime: jsonTime, CoveredTo: jsonAt, Lag: 1500 * time.Millisecond, Gaps: []audit.Gap{gap}}
	adjusted := audit.AdjustedRow{RowRef: row, Columns: []string{"updated_at"}}
	column := audit.PlannedColumn{Column: "task", Live: &jsonText}
	return []any{
		change,
		audit.Event{Change: change, Cursor: jsonCursor},
		context, past.Of, origins[0], left, row, conflict, past, plan, column,
		audit.Page{Changes: []audit.Change{change}, Next: jsonCursor, More: true, Warnings: []error{&audit.UnknownNameError{Kind: "table", Name: "notes"}}},
		request,
		audit.RequestPage{Requests: []audit.Request{request}, Next: jsonCursor, More: true},
		transaction,
		audit.TransactionPage{Transactions: []audit.Transaction{transaction}, Next: jsonCursor, More: true},
		audit.Group{Value: "42", Known: true, Changes: 3, First: jsonTime, Last: jsonTime},
		counts,
		audit.Step{Start: jsonTime, End: jsonTime, Counts: counts},
		audit.ColumnChange{Column: "task", Old: json.RawMessage(`"Eat"`), New: json.RawMessage(`"Sleep"`)},
		audit.ColumnType{Name: "numeric(12,2)", OID: 1700, Base: 1700},
		jsonAt,
		audit.Result{
			ID: "v-1", Of: past.Of, Plan: plan, Inserted: 1, Updated: 2, Deleted: 3, Unchanged: 4, Skipped: 5, Adjusted: []audit.AdjustedRow{adjusted},
			TransactionID: 772, Token: "0/16", Already: &past, DryRun: true,
		},
		adjusted,
		audit.PlannedRow{RowRef: row, Action: audit.Update, Columns: []audit.PlannedColumn{column}, Outcome: audit.Skipped},
		audit.Progress{Step: "apply", Table: "public.todo", Done: 1, Total: 2},
		audit.RowDiff{Schema: "public", Table: "todo", PrimaryKey: "26", Operation: audit.Update, Before: change.Before, After: change.After},
		audit.RowVersion{From: jsonAt, FromTime: jsonTime, Until: jsonAt, UntilTime: jsonTime, Row: change.After, Change: &change, AfterGap: true},
		audit.VersionOf[map[string]any]{RowVersion: audit.RowVersion{From: jsonAt, FromTime: jsonTime, Row: change.After, Change: &change}, Value: &map[string]any{"id": 26, "task": "Sleep"}},
		audit.Extent{Database: "shop", Stored: jsonAt.LSN, Dropped: jsonAt.LSN, DroppedUntil: jsonTime, Gaps: []audit.Gap{gap}, AskedAt: jsonTime},
		audit.ColumnBlame{Column: "task", Value: json.RawMessage(`"Sleep"`), Change: &change},
		completeness, gap, warning, slot, table,
		audit.Status{
			State: "streaming", Err: errors.New("the store is away"), Database: "shop", Position: jsonAt.LSN, SourcePosition: jsonAt.LSN, LagBytes: 7, CommittedAt: jsonTime,
			Changes: 9, Slot: slot, Warnings: []audit.Warning{warning}, Gaps: []audit.Gap{gap}, Tables: []audit.TableStatus{table},
		},
		audit.NamedMark{Name: "before the import", Position: jsonAt, MarkedAt: jsonTime},
		audit.BaselineProgress{Table: "public.todo", Rows: 3, Done: true},
		audit.ForkProgress{Table: "public.todo", Rows: 3, Done: true},
		audit.ForkResult{Completeness: completeness, Rows: map[string]int64{"public.todo": 3}, Skipped: []string{"todo_pkey"}},
	}
}

func TestResults_JSONOfEachType(t *testing.T) {
	t.Parallel()
	covered := map[string]bool{"PastRow": true} // TestPastRow_JSON
	for _, value := range results() {
		typ := reflect.Indirect(reflect.ValueOf(value)).Type()
		name, _, _ := strings.Cut(typ.Name(), "[") // of a generic type
		covered[name] = true
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, err := json.MarshalIndent(value, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			text = append(text, '\n')
			golden := filepath.Join("testdata", "json", name+".json")
			if *updateGolden {
				if err := os.WriteFile(golden, text, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(text)); diff != "" {
				t.Error(diff)
			}
			var read any
			if err := json.Unmarshal(text, &read); err != nil {
				t.Fatal(err)
			}
			wantOneMind(t, name, read)
			back := reflect.New(typ)
			if err := json.Unmarshal(text, back.Interface()); err != nil {
				t.Fatalf("it cannot be read back: %v", err)
			}
			again, err := json.MarshalIndent(back.Interface(), "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(bytes.TrimSpace(text)), string(again)); diff != "" {
				t.Errorf("it is another when it was read back:\n%s", diff)
			}
		})
	}
	for _, name := range exportedStructs(t) {
		if !covered[name] && !notResults[name] && !strings.HasSuffix(name, "Error") {
			t.Errorf("%s has no golden file", name)
		}
	}
}

// Empty results have the same lists as full ones.
func TestResults_JSONOfNothing(t *testing.T) {
	t.Parallel()
	for _, value := range results() {
		typ := reflect.Indirect(reflect.ValueOf(value)).Type()
		text, err := json.Marshal(reflect.New(typ).Interface())
		if err != nil {
			t.Errorf("%s: %v", typ.Name(), err)
		}
		for _, list := range []string{"changes", "requests", "transactions", "tables", "origins", "unrestored", "gaps", "conflicts", "rows"} {
			if strings.Contains(string(text), `"`+list+`":null`) && !(list == "rows" && typ.Name() == "ForkResult") {
				t.Errorf("%s: %s", typ.Name(), text)
			}
		}
	}
}

var camelCase = regexp.MustCompile(`^[a-z][A-Za-z0-9]*$`)

// wantOneMind wants members in camelCase and no position as a number. What is in images,
// and Rows of a fork, are names of the database's.
func wantOneMind(t *testing.T, path string, value any) {
	t.Helper()
	switch v := value.(type) {
	case []any:
		for _, element := range v {
			wantOneMind(t, path+"[]", element)
		}
	case map[string]any:
		for name, member := range v {
			if !camelCase.MatchString(name) {
				t.Errorf("%s has a member %q", path, name)
			}
			if _, number := member.(float64); number && regexp.MustCompile(`(?i)position|^from$|^until$|^to$`).MatchString(name) {
				t.Errorf("%s.%s is a number", path, name)
			}
			if name == "before" || name == "after" || name == "row" || name == "withheld" || path == "ForkResult" && name == "rows" {
				continue
			}
			wantOneMind(t, path+"."+name, member)
		}
	}
}

func exportedStructs(t *testing.T) (names []string) {
	t.Helper()
	files, err := fs.Glob(os.DirFS("."), "*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok && spec.Name.IsExported() {
				if _, ok := spec.Type.(*ast.StructType); ok {
					names = append(names, spec.Name.Name)
				}
			}
			return true
		})
	}
	if len(names) < 40 {
		t.Fatalf("found %v", names)
	}
	return names
}

// A row of the past is an object of its columns, in their order, as images are.
func TestPastRow_JSON(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, `CREATE TABLE item (id int PRIMARY KEY, price numeric, note text, "Tags" text[])`, `INSERT INTO item VALUES (1, 1.50, 'a "b"', '{x,y}'), (2, NULL, NULL, NULL)`)
	a.Sync(t)
	for columns, want := range map[string]string{
		"":         `[{"id":1,"price":1.50,"note":"a \"b\"","Tags":["x","y"]},{"id":2,"price":null,"note":null,"Tags":null}]`,
		"Tags, id": `[{"id":1,"Tags":["x","y"]},{"id":2,"Tags":null}]`,
	} {
		point := a.Client.Now()
		if columns != "" {
			point = point.Columns(strings.Split(columns, ", ")...)
		}
		var rows []audit.PastRow
		for row, err := range point.Table("item").OrderBy("id").All(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			rows = append(rows, row)
		}
		text, err := json.Marshal(rows)
		if err != nil || string(text) != want {
			t.Errorf("columns %q: %s %v\nwant %s", columns, text, err, want)
		}
	}
}
