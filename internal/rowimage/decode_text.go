package rowimage

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/hindsight-go/audit/store"
)

// Where the type of a column is not known, the text of its value is read as that of each
// type for which it could stand.

var (
	errInfiniteTime = errors.New("infinity is no moment; use pgtype.Timestamptz, pgtype.Date or string")
	errNoTime       = errors.New("the value is no date with an optional time in ISO style")
	errNoArray      = errors.New("the value is no array")
)

// scanAs reads a text as the value of any of the types.
func scanAs(text string, dst any, types ...uint32) error {
	m := TypeMaps.Get().(*pgtype.Map)
	defer TypeMaps.Put(m)
	var err error
	for _, oid := range types {
		if err = m.Scan(oid, pgtype.TextFormatCode, []byte(text), dst); err == nil {
			return nil
		}
	}
	return err
}

func assignTime(raw json.RawMessage, dst *time.Time, column string) error {
	if IsNull(raw) {
		return misfit(column, reflect.TypeFor[time.Time](), "NULL does not fit; use a pointer")
	}
	t, err := parseTime(RawText(raw))
	if err != nil {
		return misfit(column, reflect.TypeFor[time.Time](), "%s", err)
	}
	*dst = t
	return nil
}

// parseTime reads a date, timestamp or timestamptz with DateStyle ISO, and RFC 3339 for
// what stands in json. Without a zone it is UTC.
func parseTime(text string) (time.Time, error) {
	if text == "infinity" || text == "-infinity" {
		return time.Time{}, errInfiniteTime
	}
	var t time.Time
	if err := scanAs(text, &t, pgtype.TimestamptzOID, pgtype.TimestampOID, pgtype.DateOID); err == nil {
		return t, nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}, errNoTime
	}
	return t, nil
}

func assignDuration(raw json.RawMessage, dst *time.Duration, column string) error {
	t := reflect.TypeFor[time.Duration]()
	if IsNull(raw) {
		return misfit(column, t, "NULL does not fit; use a pointer")
	}
	if raw[0] != '"' {
		// A duration that the program itself stores as a number of nanoseconds.
		n, err := strconv.ParseInt(string(raw), 10, 64)
		if err != nil {
			return misfit(column, t, "the value is no interval")
		}
		*dst = time.Duration(n)
		return nil
	}
	if err := scanAs(RawText(raw), dst, pgtype.IntervalOID, pgtype.TimeOID); err != nil {
		return misfit(column, t, "the value is no interval that fits; use pgtype.Interval")
	}
	return nil
}

// ParseArray takes a PostgreSQL array literal apart into JSON values: strings, nulls, and
// arrays of them for further dimensions.
func ParseArray(text string) ([]json.RawMessage, error) {
	var array pgtype.Array[pgtype.Text]
	if err := scanAs(text, &array, pgtype.TextArrayOID); err != nil {
		return nil, errNoArray
	}
	elements := make([]json.RawMessage, len(array.Elements))
	for i, element := range array.Elements {
		elements[i] = json.RawMessage("null")
		if element.Valid {
			elements[i] = Quote(element.String)
		}
	}
	for i := len(array.Dims) - 1; i > 0; i-- {
		var rows []json.RawMessage
		for row := range slices.Chunk(elements, int(array.Dims[i].Length)) {
			inner, err := json.Marshal(row)
			if err != nil {
				return nil, err
			}
			rows = append(rows, inner)
		}
		elements = rows
	}
	return elements, nil
}

// Quote returns a text as a JSON string.
func Quote(text string) json.RawMessage {
	raw, _ := json.Marshal(text)
	return raw
}

// documentOf is the JSON that a value of a json column stands for: the value
// itself, or what it holds if it is the string of a json value's exact text. The
// store keeps exact text only where embedding would have lost something, and
// also where a string would otherwise be mistaken for such a text; so the two
// can be told apart.
func documentOf(raw json.RawMessage) json.RawMessage {
	if len(raw) == 0 || raw[0] != '"' {
		return raw
	}
	if text := []byte(RawText(raw)); store.IsExactText(text) {
		return slices.Clip(text)
	}
	return raw
}
