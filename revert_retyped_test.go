package audit_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
)

// retyped are columns that got another type behind a request that had changed and
// deleted a value. If the new type cannot hold just that value, the request cannot be
// undone; else holds is what the column prints then.
var retyped = map[string]struct {
	from, value, left, to string
	holds                 string // empty: refused
}{
	"ShorterVarchar":     {from: "varchar(20)", value: "a long value here", left: "ab", to: "varchar(5)"},
	"ShortEnough":        {from: "varchar(20)", value: "short", left: "ab", to: "varchar(5)", holds: "short"},
	"TextToVarchar":      {from: "text", value: "a long value here", left: "ab", to: "varchar(5)"},
	"SmallerScale":       {from: "numeric(10,4)", value: "1.2345", left: "2", to: "numeric(10,2)"},
	"ScaleLarge":         {from: "numeric(10,4)", value: "1.2300", left: "2", to: "numeric(10,2)", holds: "1.23"},
	"NumericToInteger":   {from: "numeric", value: "1.5", left: "2", to: "int"},
	"WholeNumeric":       {from: "numeric", value: "5.00", left: "2", to: "int", holds: "5"},
	"TooLargeForInteger": {from: "bigint", value: "5000000000", left: "2", to: "int"},
	"IntegerToBigint":    {from: "int", value: "7", left: "2", to: "bigint", holds: "7"},
	"IntegerToText":      {from: "int", value: "7", left: "2", to: "text", holds: "7"},
	"IntegerToReal":      {from: "int", value: "16777217", left: "2", to: "real"},
	"TimestampToDate":    {from: "timestamp", value: "2024-05-01 12:34:56", left: "2024-01-01 00:00:00", to: "date"},
	"MidnightToDate":     {from: "timestamp", value: "2024-05-01 00:00:00", left: "2024-01-01 00:00:00", to: "date", holds: "2024-05-01"},
	"DateToTimestamp":    {from: "date", value: "2024-05-01", left: "2024-01-01", to: "timestamp", holds: "2024-05-01 00:00:00"},
	"DoubleToReal":       {from: "float8", value: "1.23456789012", left: "2", to: "real"},
	"DoubleThatIsReal":   {from: "float8", value: "0.5", left: "2", to: "real", holds: "0.5"},
	"ShorterChar":        {from: "char(8)", value: "abcdefgh", left: "ab", to: "char(4)"},
	"CharOfBlanks":       {from: "char(8)", value: "abc", left: "ab", to: "char(4)", holds: "abc "},
	"CharToText":         {from: "char(8)", value: "abc", left: "ab", to: "text", holds: "abc"},
	"ShorterVarbit":      {from: "varbit(8)", value: "10110011", left: "1", to: "varbit(4)"},
	"BitOfZeros":         {from: "bit(8)", value: "10110000", left: "00000001", to: "varbit(4)"},
	"TimeOfSeconds":      {from: "time", value: "10:11:12.5", left: "10:00:00", to: "time(0)"},
	"TimestampOfSeconds": {from: "timestamptz", value: "2024-05-01 10:11:12.345+00", left: "2024-05-01 10:11:12+00", to: "timestamptz(0)"},
	"IntervalOfSeconds":  {from: "interval", value: "00:00:01.5", left: "00:00:01", to: "interval(0)"},
	"ArrayOfVarchar":     {from: "varchar(9)[]", value: "{abc,NULL}", left: "{a}", to: "varchar(2)[]"},
	"ArrayThatFits":      {from: "varchar(9)[]", value: "{ab,NULL}", left: "{a}", to: "varchar(2)[]", holds: "{ab,NULL}"},
	"ArrayOfBigints":     {from: "int[]", value: "{1,2}", left: "{1}", to: "bigint[]", holds: "{1,2}"},
	"ArrayOfDates":       {from: "timestamp[]", value: `{"2024-05-01 12:00:00"}`, left: "{}", to: "date[]"},
	"TimestampWithZone":  {from: "timestamp", value: "2024-05-01 12:00:00", left: "2024-01-01 00:00:00", to: "timestamptz USING v AT TIME ZONE 'Europe/Berlin'"},
	"TimestampsWithZone": {from: "timestamp[]", value: `{"2024-05-01 12:00:00"}`, left: "{}", to: "timestamptz[]"},
	"TimestampNoZone":    {from: "timestamptz", value: "2024-05-01 12:00:00+00", left: "2024-01-01 00:00:00+00", to: "timestamp USING v AT TIME ZONE 'Europe/Berlin'"},
	"DateWithZone":       {from: "date", value: "2024-05-01", left: "2024-01-01", to: "timestamptz"},
	"RangeWithZone":      {from: "tsrange", value: `["2024-05-01 12:00:00","2024-05-02 12:00:00")`, left: "empty", to: "tstzrange USING tstzrange(lower(v), upper(v))"},
	"DomainOverVarchar":  {from: "text", value: "a long value here", left: "ab", to: "short"},
	"DomainThatFits":     {from: "short", value: "abc", left: "ab", to: "text", holds: "abc"},
	"NumberForYes":       {from: "int", value: "77777", left: "1", to: "boolean USING v <> 0"},
	"BooleanToText":      {from: "boolean", value: "t", left: "f", to: "text", holds: "true"},
	"EnumOfOthers":       {from: "mood", value: "sad", left: "ok", to: "text", holds: "sad"},
	"ComputedAnew":       {from: "int", value: "77777", left: "1", to: "int USING v * 100"},
	"LongerAndAnew":      {from: "int", value: "77777", left: "1", to: "bigint USING v * 100"},
	"AttributeReplaced":  {from: "pair", value: "(1,x)", left: "(2,y)", to: "pair; ALTER TYPE pair DROP ATTRIBUTE b; ALTER TYPE pair ADD ATTRIBUTE c text"},
	"ArrayOfPairs":       {from: "pair[]", value: `{"(1,x)"}`, left: "{}", to: "pair[]; ALTER TYPE pair DROP ATTRIBUTE b; ALTER TYPE pair ADD ATTRIBUTE c text"},
	"AttributeOnlyNamed": {from: "pair", value: "(1,x)", left: "(2,y)", to: "pair; ALTER TYPE pair RENAME ATTRIBUTE b TO c", holds: "(1,x)"},
}

const retypedTypes = "CREATE DOMAIN short AS varchar(5); CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (a int, b text);"

// What is put back into a column of another type is what the column held, or nothing
// is written.
func TestRevert_RetypedColumn(t *testing.T) {
	t.Parallel()
	for name, h := range retyped {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUnchecked(t, retypedTypes+fmt.Sprintf(
				"CREATE TABLE a (id int PRIMARY KEY, v %[1]s, w int); INSERT INTO a VALUES (1, '%[2]s', 0), (2, '%[2]s', 0)", h.from, h.value))
			u.request(t, "updated", fmt.Sprintf("UPDATE a SET v = '%s' WHERE id = 1", h.left))
			u.request(t, "deleted", "DELETE FROM a WHERE id = 2")
			u.Sync(t)
			to, more, _ := strings.Cut(h.to, ";")
			if !strings.Contains(to, "USING") {
				to += fmt.Sprintf(" USING v::%s", to)
			}
			u.Exec(t, "ALTER TABLE a ALTER v TYPE "+to)
			if more != "" {
				u.Exec(t, more)
			}
			before := u.state(t)
			for _, request := range []string{"updated", "deleted"} {
				r := u.Client.RevertRequest(request)
				if h.holds != "" {
					apply(t, r)
					continue
				}
				var refused *audit.UnrevertableError
				if _, err := r.Plan(t.Context()); !errors.As(err, &refused) {
					t.Errorf("%s: the plan gives %v", request, err)
				}
				if _, err := r.OnConflict(audit.Overwrite).Apply(t.Context()); !errors.As(err, &refused) || !strings.Contains(err.Error(), `"v"`) {
					t.Errorf("%s: the revert gives %v", request, err)
				}
				if refused != nil && strings.Contains(refused.Error(), h.value) {
					t.Errorf("the error shows the value: %v", refused)
				}
			}
			if h.holds != "" {
				u.holds(t, fmt.Sprintf("(SELECT array_agg(concat(v) ORDER BY id) = ARRAY['%[1]s', '%[1]s'] FROM a)", h.holds))
				return
			}
			u.want(t, "after the refusals", before)
		})
	}
}

// A column that the selection did not change is nobody's business, whatever became of
// its type; and a revert that was made before its column changed stays made.
func TestRevert_RetypedColumnOfOthers(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE a (id int PRIMARY KEY, v varchar(20), w int); INSERT INTO a VALUES (1, 'a long value here', 0)")
	u.request(t, "short", "UPDATE a SET v = 'ab'")
	apply(t, u.Client.RevertRequest("short"))
	u.request(t, "w", "UPDATE a SET w = 7")
	u.Exec(t, "ALTER TABLE a ALTER v TYPE varchar(5) USING left(v, 5)")
	apply(t, u.Client.RevertRequest("w"))
	u.holds(t, "(SELECT v = 'a lon' AND w = 0 FROM a)")
	if again := apply(t, u.Client.RevertRequest("short")); again.Already == nil {
		t.Error("what was undone is to be undone once more")
	}
}

// Many rows are restored by one statement that compares and writes at once: not those
// that the type cannot hold.
func TestRevert_RetypedColumnOfManyRows(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE a (id int PRIMARY KEY, v numeric(10,4)); INSERT INTO a SELECT n, n + 0.5 FROM generate_series(1, 700) n; INSERT INTO a VALUES (0, 0.1234)").direct(0)
	u.request(t, "all", "UPDATE a SET v = 0 WHERE id > 0")
	u.request(t, "one", "UPDATE a SET v = 1 WHERE id = 0")
	u.Exec(t, "ALTER TABLE a ALTER v TYPE numeric(10,2)")
	apply(t, u.Client.RevertRequest("all"))
	u.holds(t, "(SELECT bool_and(v = id + 0.5) FROM a WHERE id > 0)")
	var refused *audit.UnrevertableError
	if _, err := u.Client.RevertRequest("one").Apply(t.Context()); !errors.As(err, &refused) {
		t.Errorf("the revert gives %v", err)
	}
	u.holds(t, "(SELECT v = 1 FROM a WHERE id = 0)")
}

// A plan knows the types that it was made for.
func TestRevert_RetypedColumnBehindThePlan(t *testing.T) {
	t.Parallel()
	for name, alter := range map[string]string{
		"Scale":   "ALTER TABLE a ALTER v TYPE numeric(10,1)",
		"Renamed": "ALTER TABLE a RENAME v TO x; ALTER TABLE a RENAME w TO v; ALTER TABLE a RENAME x TO w",
		"Dropped": "ALTER TABLE a DROP v",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUnchecked(t, "CREATE TABLE a (id int PRIMARY KEY, v numeric(10,4), w numeric(10,4)); INSERT INTO a VALUES (1, 1.2345, 7), (2, 1.2345, 8)").direct(uint64(len(alter)))
			u.request(t, "first", "UPDATE a SET v = 2 WHERE id = 1", "UPDATE a SET v = 2 WHERE id = 2")
			plan, err := u.Client.RevertRequest("first").Plan(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			u.Exec(t, alter)
			now := u.state(t)
			var stale *audit.StaleError
			if _, err := plan.Apply(t.Context()); !errors.As(err, &stale) || stale.Table != "public.a" {
				t.Errorf("the plan gives %v", err)
			}
			u.want(t, "after that", now)
		})
	}
}
