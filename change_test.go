package audit_test

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/hindsight-go/audit"
)

func image(text string) audit.Image { return audit.Image(text) }

func sampleChange() audit.Change {
	return audit.Change{
		Position:      audit.Position{LSN: 0x16_B374D848, Sequence: 3},
		CommittedAt:   time.Date(2024, 1, 2, 3, 4, 5, 123456000, time.UTC),
		TransactionID: 770,
		Database:      "shop",
		Schema:        "public",
		Table:         "todo",
		PrimaryKey:    "26",
		HasKey:        true,
		Operation:     audit.Update,
		Before:        image(`{"id": 26, "task": "sleep", "completed": false}`),
		After:         image(`{"id": 26, "task": "sleep", "completed": true}`),
		Context:       audit.Context{UserID: int64(187234), Endpoint: "PUT /todo/26", RequestID: "5f1c"},
		Stamped:       true,
		RawContext:    json.RawMessage(`{"userId": 187234, "endpoint": "PUT /todo/26", "requestId": "5f1c"}`),
		QueuedAt:      time.Date(2024, 1, 2, 3, 4, 5, 125000000, time.UTC),
		CreatedAt:     time.Date(2024, 1, 2, 3, 4, 5, 126000000, time.UTC),
	}
}

func TestDecodeMatchesFieldsToColumns(t *testing.T) {
	t.Parallel()
	type Stamps struct {
		CreatedAt time.Time
		UpdatedAt *time.Time `json:"updated_at,omitempty"`
	}
	type Owner struct {
		OwnerID int64 `db:"owner"`
	}
	type todo struct {
		Stamps
		*Owner
		ID       int32
		Title    string `db:"task" json:"title"`
		Done     bool   `json:"is_done"`
		HTTPCode int
		Skipped  string `db:"-"`
		Kept     string
		private  string
	}
	got := todo{Kept: "as it was", Skipped: "too"}
	err := image(`{"id": 7, "task": "write", "is_done": true, "http_code": 204, "created_at": "2024-01-02 03:04:05.123456+00",
		"updated_at": null, "owner": 9007199254740993, "skipped": "no", "private": "no", "unknown": {"a": 1}}`).Decode(&got)
	if err != nil {
		t.Fatal(err)
	}
	want := todo{
		Stamps: Stamps{CreatedAt: time.Date(2024, 1, 2, 3, 4, 5, 123456000, time.UTC)},
		Owner:  &Owner{9007199254740993},
		ID:     7, Title: "write", Done: true, HTTPCode: 204, Kept: "as it was", Skipped: "too",
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(todo{})); diff != "" || got.private != "" {
		t.Error(diff)
	}
}

// The outer field wins, with or without tags; a json tag is no more exact than a name, and
// a db tag is nothing but exact.
func TestDecode_FieldsAndTags(t *testing.T) {
	t.Parallel()
	type base struct {
		UserID  int    `db:"user_id"`
		Version int    `json:"version"`
		Note    string `json:"note"`
	}
	type row struct {
		UserName string `json:"userName"`
		UserID   int
		VERSION  int
		Exact    string `db:"userName" json:"note"`
		base
	}
	var got row
	if err := image(`{"user_name": "ann", "user_id": 7, "version": 2, "userName": "exact", "note": "n"}`).Decode(&got); err != nil {
		t.Fatal(err)
	}
	want := row{UserName: "ann", UserID: 7, VERSION: 2, Exact: "exact", base: base{Note: "n"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(row{})); diff != "" {
		t.Error(diff)
	}
}

// A table may have user_id and userid. Neither takes the place of the other.
func TestDecode_ColumnsOfSimilarNames(t *testing.T) {
	t.Parallel()
	for _, columns := range []string{`{"user_id": 1, "userid": 2, "userId": 3}`, `{"userId": 3, "userid": 2, "user_id": 1}`} {
		var one struct {
			UserID int `json:"user_id"`
		}
		var two struct {
			UserID int `db:"userid"`
			Other  int `json:"userId"`
		}
		if err := image(columns).Decode(&one); err != nil || one.UserID != 1 {
			t.Errorf("%+v, %v", one, err)
		}
		if err := image(columns).Decode(&two); err != nil || two.UserID != 2 || two.Other != 3 {
			t.Errorf("%+v, %v", two, err)
		}
	}
}

func TestDecodeIntoMap(t *testing.T) {
	t.Parallel()
	var got map[string]any
	if err := image(`{"a": 9007199254740993, "b": [1.50, null], "c": {"d": "x"}, "e": null, "f": "{\"a\":1,\"a\":2}", "g": "{1,2}"}`).Decode(&got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"a": json.Number("9007199254740993"), "b": []any{json.Number("1.50"), nil}, "c": map[string]any{"d": "x"}, "e": nil,
		"f": `{"a":1,"a":2}`, "g": "{1,2}", // texts, perhaps
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	texts := map[string]string{}
	if err := image(`{"a": 1.50, "b": "x", "c": true, "d": [1, 2]}`).Decode(&texts); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"a": "1.50", "b": "x", "c": "true", "d": "[1, 2]"}, texts); diff != "" {
		t.Error(diff)
	}
}

type mood string

type status int

func (s *status) Scan(src any) error {
	n, ok := src.(int64)
	if !ok {
		return fmt.Errorf("status from %T", src)
	}
	*s = status(n)
	return nil
}

type blob []byte

func (b *blob) Scan(src any) error {
	v, ok := src.([]byte)
	if !ok {
		return fmt.Errorf("blob from %T", src)
	}
	*b = append(blob{}, v...)
	return nil
}

// scanned decodes one JSON value into a T.
func scanned[T any](t *testing.T, value string) T {
	t.Helper()
	var dst T
	if err := image(`{"c": `+value+`}`).Scan("c", &dst); err != nil {
		t.Errorf("%s into %T: %v (%v)", value, dst, err, errors.Unwrap(err))
	}
	return dst
}

func same[T any](t *testing.T, value string, want T, options ...cmp.Option) {
	t.Helper()
	if diff := cmp.Diff(want, scanned[T](t, value), options...); diff != "" {
		t.Errorf("%s into %T: %s", value, want, diff)
	}
}

func TestDecodeValues(t *testing.T) {
	t.Parallel()
	ptr := func(s string) *string { return &s }
	same(t, `9223372036854775807`, int64(math.MaxInt64))
	same(t, `18446744073709551615`, uint64(math.MaxUint64))
	same(t, `5.00`, 5)
	same(t, `-128`, int8(-128))
	same(t, `"42"`, 42)
	same(t, `0.1`, 0.1)
	same(t, `"Infinity"`, math.Inf(1))
	same(t, `"-0"`, math.Copysign(0, -1))
	same(t, `123456789012345678901234567890.123456789`, json.Number("123456789012345678901234567890.123456789"))
	same(t, `123456789012345678901234567890.123456789`, "123456789012345678901234567890.123456789")
	same(t, `null`, (*string)(nil))
	same(t, `"x"`, ptr("x"))
	same(t, `"sad"`, mood("sad"))
	same(t, `"t"`, true)
	same(t, `3`, status(3))
	same(t, `"\\x00ff10"`, []byte{0, 255, 16})
	same(t, `"\\x00ff10"`, blob{0, 255, 16})
	same(t, `"plain"`, []byte("plain"))
	same(t, `null`, []byte(nil))
	same(t, `[1, 2, null]`, []*int{pointer(1), pointer(2), nil})
	same(t, `"{1,2}"`, []int{1, 2})
	same(t, `"[0:1]={1,2}"`, [2]int{1, 2})
	same(t, `"{{a,NULL},{\"b \\\"c\",\"\\\\d\"}}"`, [][]*string{{ptr("a"), nil}, {ptr(`b "c`), ptr(`\d`)}})
	same(t, `["\\x01", "\\x02"]`, [][]byte{{1}, {2}})
	same(t, `"2024-01-02"`, time.Date(2024, 1, 2, 0, 0, 0, 0, time.UTC))
	same(t, `"2024-01-02 03:04:05.5+05:30"`, time.Date(2024, 1, 1, 21, 34, 5, 5e8, time.UTC))
	same(t, `"12345-06-07 00:00:00"`, time.Date(12345, 6, 7, 0, 0, 0, 0, time.UTC))
	same(t, `"0044-03-15 BC"`, time.Date(-43, 3, 15, 0, 0, 0, 0, time.UTC))
	same(t, `"2024-01-02T03:04:05Z"`, time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC))
	same(t, `"1 day 02:03:04.5"`, 26*time.Hour+3*time.Minute+4500*time.Millisecond)
	same(t, `"-00:00:01"`, -time.Second)
	same(t, `{"a": [1]}`, json.RawMessage(`{"a": [1]}`))
	same(t, `"{\"a\": 1, \"a\": 2}"`, json.RawMessage(`"{\"a\": 1, \"a\": 2}"`))
	same(t, `"{\"a\": 1, \"a\": 2}"`, map[string]int{"a": 2})
	same(t, `"null"`, any("null"))
	same(t, `[1, 2, 3]`, []byte(`[1, 2, 3]`))
	same(t, `"\\x0102"`, sql.Null[[]byte]{V: []byte{1, 2}, Valid: true})
	same(t, `"1 mon"`, 30*24*time.Hour) // as in pgx
	same(t, `"123e4567-e89b-12d3-a456-426614174000"`, [16]byte{0x12, 0x3e, 0x45, 0x67, 0xe8, 0x9b, 0x12, 0xd3, 0xa4, 0x56, 0x42, 0x66, 0x14, 0x17, 0x40, 0x00})
	same(t, `{"a": {"b": 1}}`, map[string]map[string]int{"a": {"b": 1}})
	same(t, `[{"X": 1}]`, []struct{ X int }{{1}})
	same(t, `"6ba7b810-9dad-11d1-80b4-00c04fd430c8"`, uuid.MustParse("6ba7b810-9dad-11d1-80b4-00c04fd430c8"))
	same(t, `"10.0.0.1"`, netip.MustParseAddr("10.0.0.1"), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }))
	if got := scanned[big.Int](t, `123456789012345678901234567890`); got.String() != "123456789012345678901234567890" {
		t.Errorf("big.Int: %s", &got)
	}
}

func TestDecodeIntoTypesOfDrivers(t *testing.T) {
	t.Parallel()
	at := time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)
	same(t, `5`, pgtype.Int8{Int64: 5, Valid: true})
	same(t, `null`, pgtype.Int8{})
	same(t, `"x"`, pgtype.Text{String: "x", Valid: true})
	same(t, `true`, pgtype.Bool{Bool: true, Valid: true})
	same(t, `1.5`, pgtype.Float8{Float64: 1.5, Valid: true})
	same(t, `"infinity"`, pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true})
	same(t, `"2024-01-02"`, pgtype.Date{Time: time.Date(2024, 1, 2, 0, 0, 0, 0, time.UTC), Valid: true})
	same(t, `"6ba7b810-9dad-11d1-80b4-00c04fd430c8"`, pgtype.UUID{Bytes: uuid.MustParse("6ba7b810-9dad-11d1-80b4-00c04fd430c8"), Valid: true})
	same(t, `"1 mon 2 days"`, pgtype.Interval{Months: 1, Days: 2, Valid: true})
	same(t, `"\"a\"=>\"1\", \"b\"=>NULL"`, pgtype.Hstore{"a": pointer("1"), "b": nil})
	same(t, `5`, sql.NullInt64{Int64: 5, Valid: true})
	same(t, `null`, sql.NullString{})
	same(t, `5`, sql.NullString{String: "5", Valid: true})
	same(t, `"2024-01-02 03:04:05+00"`, sql.NullTime{Time: at, Valid: true})
	same(t, `"2024-01-02 03:04:05+00"`, sql.Null[time.Time]{V: at, Valid: true})
	for _, text := range []string{"12345678901234567890.5", "7", `"NaN"`} {
		var n pgtype.Numeric
		if err := image(`{"c": `+text+`}`).Scan("c", &n); err != nil || !n.Valid {
			t.Errorf("pgtype.Numeric from %s: %v", text, err)
		}
	}
}

func TestDecodeRefusesWhatDoesNotFit(t *testing.T) {
	t.Parallel()
	try := func(value string, dst any, says string) {
		t.Helper()
		err := image(`{"c": `+value+`}`).Scan("c", dst)
		var decodeErr *audit.DecodeError
		if !errors.As(err, &decodeErr) || decodeErr.Column != "c" || !strings.Contains(err.Error(), says) {
			t.Errorf("%s into %T: %v, want it to say %q", value, dst, err, says)
			return
		}
		if secret := strings.Trim(value, `"{}`); len(secret) > 4 && value != "null" && strings.Contains(err.Error(), secret) && secret != "infinity" {
			t.Errorf("the error shows the value: %v", err)
		}
	}
	try(`300`, new(int8), "does not fit")
	try(`-1`, new(uint), "does not fit")
	try(`1.5`, new(int), "does not fit")
	try(`1e400`, new(float64), "does not fit")
	try(`"secret"`, new(int), "no number")
	try(`"secret"`, new(json.Number), "no number")
	try(`"secret"`, new(bool), "no boolean")
	try(`"secret"`, new(time.Time), "no date")
	try(`"2024-02-30"`, new(time.Time), "no date")
	try(`"infinity"`, new(time.Time), "infinity is no moment")
	try(`"soon"`, new(time.Duration), "no interval")
	try(`"secret"`, new([]int), "no array")
	try(`"{1,2"`, new([]int), "no array")
	try(`[1, 2, 3]`, new([2]int), "3 elements")
	try(`"secret"`, new(uuid.UUID), "Scan refuses")
	try(`"(1,secret)"`, new(struct{ A int }), "the value is text")
	try(`{"a": "secret"}`, new(map[string]int), "JSON does not fit")
	try(`null`, new(string), "NULL does not fit")
	try(`null`, new(int), "NULL does not fit")
	try(`null`, new(time.Time), "NULL does not fit")
	try(`1`, new(chan int), "no value fits")
	try(`1`, (*int)(nil), "non-nil pointer")
	try(`1`, 1, "non-nil pointer")
	for _, dst := range []any{nil, 1, struct{}{}, new(int), (*struct{})(nil), new(map[int]string)} {
		var decodeErr *audit.DecodeError
		if err := image(`{"c": 1}`).Decode(dst); !errors.As(err, &decodeErr) {
			t.Errorf("Decode(%T): %v", dst, err)
		}
	}
}

func TestDecodeOfAMissingImage(t *testing.T) {
	t.Parallel()
	change := sampleChange()
	change.Operation, change.Before = audit.Create, image("{}")
	var dst map[string]any
	if err := change.DecodeBefore(&dst); !errors.Is(err, audit.ErrNoImage) {
		t.Errorf("DecodeBefore of a CREATE: %v", err)
	}
	if err := change.DecodeAfter(&dst); err != nil || dst["task"] != "sleep" {
		t.Errorf("DecodeAfter: %v, %v", dst, err)
	}
}

func TestImage(t *testing.T) {
	t.Parallel()
	im := image(`{"b": null, "a": "x\ny", "é": 1.50}`)
	if diff := cmp.Diff([]string{"a", "b", "é"}, im.Columns()); diff != "" {
		t.Error(diff)
	}
	if text, ok := im.Text("a"); text != "x\ny" || !ok {
		t.Errorf("Text(a) = %q, %t", text, ok)
	}
	if _, ok := im.Text("b"); ok || !im.Has("b") || im.Has("c") {
		t.Error("NULL and unknown are mixed up")
	}
	if raw, ok := im.Get("é"); string(raw) != "1.50" || !ok {
		t.Errorf("Get = %s, %t", raw, ok)
	}
	if image("{}").IsEmpty() != true || image("").IsEmpty() != true || image(" { } ").IsEmpty() != true || im.IsEmpty() {
		t.Error("IsEmpty")
	}
	for _, nonsense := range []string{"", "null", "[1]", `{"a"`, `"x"`} {
		if got := image(nonsense).Columns(); len(got) != 0 {
			t.Errorf("Columns of %q: %v", nonsense, got)
		}
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	c := audit.Change{PrimaryKey: `["7","a\"b"]`, HasKey: true}
	var id int64
	var name string
	if err := c.Key(&id, &name); err != nil || id != 7 || name != `a"b` {
		t.Errorf("Key = %d, %q, %v", id, name, err)
	}
	if err := c.Key(&id, &name, &name); err == nil {
		t.Error("three destinations for two columns")
	}
	c.PrimaryKey = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
	var u uuid.UUID
	if err := c.Key(&u); err != nil || u.String() != c.PrimaryKey {
		t.Errorf("Key = %v, %v", u, err)
	}
	for key, want := range map[string][]string{
		"":            {""},
		`["a"]`:       {`["a"]`},
		`["a", "b"]`:  {`["a", "b"]`}, // not as the store writes it
		`["a","b"]`:   {"a", "b"},
		`["a",1]`:     {`["a",1]`},
		`["a","b"] x`: {`["a","b"] x`},
	} {
		c.PrimaryKey = key
		if diff := cmp.Diff(want, c.KeyParts()); diff != "" {
			t.Errorf("KeyParts of %s: %s", key, diff)
		}
	}
	if (audit.Change{}).KeyParts() != nil {
		t.Error("a change without a key has parts")
	}
}

func TestDiff(t *testing.T) {
	t.Parallel()
	c := audit.Change{
		Operation: audit.Update,
		Before:    image(`{"same": 1.0, "json": {"a": 1, "b": [1]}, "n": 1, "null": null, "gone": "x", "zero": 0}`),
		After:     image(`{"same": 1.00, "json": {"b": [1.0], "a": 1}, "n": 2, "null": "", "new": true, "zero": "0"}`),
	}
	raw := func(s string) json.RawMessage { return json.RawMessage(s) }
	want := []audit.ColumnChange{
		{Column: "n", Old: raw("1"), New: raw("2")},
		{Column: "new", New: raw("true")},
		{Column: "null", Old: raw("null"), New: raw(`""`)},
		{Column: "zero", Old: raw("0"), New: raw(`"0"`)},
	}
	if diff := cmp.Diff(want, c.Diff()); diff != "" {
		t.Error(diff)
	}
	if !c.Changed("x", "n") || c.Changed("same") || c.Changed() {
		t.Error("Changed disagrees with Diff")
	}
	c.Operation, c.Before = audit.Create, image("{}")
	if got := len(c.Diff()); got != 6 {
		t.Errorf("a CREATE changed %d columns", got)
	}
	c.Operation, c.Before, c.After = audit.Delete, c.After, image("{}")
	if got := c.Diff(); len(got) != 6 || got[0].New != nil {
		t.Errorf("a DELETE: %v", got)
	}
	c.Operation, c.Before = audit.Truncate, image("{}")
	if got := c.Diff(); len(got) != 0 {
		t.Errorf("a TRUNCATE: %v", got)
	}
}

func ExampleChange_String() {
	change := sampleChange()
	fmt.Println(change)
	fmt.Printf("%+v\n", change)
	// Output:
	// 16/B374D848#3 2024-01-02T03:04:05.123456Z UPDATE public.todo[26] completed: false -> true by 187234 at PUT /todo/26 in request 5f1c
	// 16/B374D848#3 2024-01-02T03:04:05.123456Z UPDATE public.todo[26] by 187234 at PUT /todo/26 in request 5f1c
	//     completed: false -> true
	//     transaction 770 of database shop
	//     context {"userId": 187234, "endpoint": "PUT /todo/26", "requestId": "5f1c"}
}

func ExampleChange_MarshalJSON() {
	text, _ := json.Marshal(sampleChange())
	fmt.Println(string(text))
	// Output:
	// {"position":"16/B374D848","sequence":3,"committedAt":"2024-01-02T03:04:05.123456Z","transactionId":770,"database":"shop","schema":"public","table":"todo","primaryKey":"26","operation":"UPDATE","before":{"id":26,"task":"sleep","completed":false},"after":{"id":26,"task":"sleep","completed":true},"context":{"userId":187234,"endpoint":"PUT /todo/26","requestId":"5f1c"},"queuedAt":"2024-01-02T03:04:05.125Z","createdAt":"2024-01-02T03:04:05.126Z"}
}

func ExampleChange_Diff() {
	for _, column := range sampleChange().Diff() {
		fmt.Println(column)
	}
	// Output: completed: false -> true
}

func ExampleChange_DecodeAfter() {
	var todo struct {
		ID        int64
		Title     string `db:"task"`
		Completed bool
	}
	if err := sampleChange().DecodeAfter(&todo); err != nil {
		fmt.Println(err)
	}
	fmt.Printf("%+v\n", todo)
	// Output: {ID:26 Title:sleep Completed:true}
}

func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		`{"a": 1, "b": "{1,2}"}`, `{"a": "2024-01-02 03:04:05+00 BC"}`, `{"a": "[0:1]={{1},{2}}"}`, `{"a": "1 day 00:00:01"}`,
		`{"a": "{\"x\":1,\"x\":2}"}`, `{"a": "\\x00"}`, `{"a": null}`, `{"a": [[1], "x"]}`, `{"a": -0.0e-7}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(_ *testing.T, text string) {
		im := audit.Image(text)
		for _, dst := range []any{
			new(int64), new(uint8), new(float32), new(string), new(bool), new(time.Time), new(time.Duration), new([]byte),
			new([]string), new([][]int), new([2]int), new(json.RawMessage), new(any), new(map[string]any), new(struct{ A []*time.Time }),
			new(pgtype.Numeric), new(sql.NullTime), new(uuid.UUID), new(json.Number),
		} {
			_ = im.Scan("a", dst)
		}
		c := audit.Change{Operation: audit.Update, Before: im, After: audit.Image(`{"a": 1.0}`), PrimaryKey: text, HasKey: true}
		_ = c.String()
		_ = fmt.Sprintf("%+v", c)
	})
}
