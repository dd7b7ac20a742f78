package audit

import (
	"bytes"
	"database/sql/driver"
	"encoding"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/hindsight-go/audit/internal/rowimage"
)

// forms are how a value of Go may stand in an image: as one of the JSON documents, or
// as the string of one of the texts.
type forms struct {
	documents []string
	texts     []string
}

var (
	errNoDecimal = errors.New("the number has no finite decimal form, which PostgreSQL's numbers do")
	errNoNumber  = errors.New("a json.Number that is no number")
)

// maxUnwrapped bounds how often a value may hide another.
const maxUnwrapped = 8

// plainValue takes a value out of pointers and of what has a Value method, as a driver
// would: nil is NULL.
func plainValue(value any) (any, error) {
	for range maxUnwrapped {
		v := reflect.ValueOf(value)
		if value == nil || v.Kind() == reflect.Pointer && v.IsNil() {
			return nil, nil
		}
		switch known := value.(type) {
		case *pgtype.Time, *pgtype.Interval, *pgtype.Timestamp, *pgtype.Date:
			value = v.Elem().Interface()
			continue
		case pgtype.Time: // their Value methods write another text than the server
			return knownIf(known.Valid, known), nil
		case pgtype.Interval:
			return knownIf(known.Valid, known), nil
		case pgtype.Timestamp:
			return knownIf(known.Valid, known), nil
		case pgtype.Date:
			return knownIf(known.Valid, known), nil
		case *big.Int, *big.Rat, *big.Float:
			return known, nil
		case driver.Valuer:
			plain, err := known.Value()
			if err != nil {
				return nil, fmt.Errorf("the Value method of %T fails", value)
			}
			value = plain
			continue
		}
		if _, isText := value.(encoding.TextMarshaler); isText || v.Kind() != reflect.Pointer {
			return value, nil
		}
		value = v.Elem().Interface()
	}
	return nil, fmt.Errorf("the Value method of %T gives no plain value", value)
}

func knownIf(valid bool, value any) any {
	if !valid {
		return nil
	}
	return value
}

// columnTexts returns the texts under which PostgreSQL may print a value of Go: one, or
// several where that depends on the type of the column.
func columnTexts(value any) ([]string, error) {
	plain, err := plainValue(value)
	if err != nil {
		return nil, err
	}
	if plain == nil {
		return nil, errNilValue
	}
	texts, err := textsOf(plain)
	if text, ok := plain.([]byte); ok && utf8.Valid(text) && bytes.IndexByte(text, 0) < 0 {
		if _, isValuer := value.(driver.Valuer); isValuer { // of any column, then
			texts = append(texts, string(text))
		}
	}
	for _, text := range texts {
		if err == nil && strings.IndexByte(text, 0) >= 0 {
			err = errNUL
		}
	}
	return texts, err
}

// textsOf is columnTexts of a plain value.
func textsOf(plain any) ([]string, error) {
	switch value := plain.(type) {
	case time.Time:
		return timeTexts(value), nil
	case time.Duration:
		return []string{intervalText(0, 0, value.Microseconds()), strconv.FormatInt(int64(value), 10)}, nil
	case pgtype.Interval:
		return []string{intervalText(value.Months, value.Days, value.Microseconds)}, nil
	case pgtype.Time:
		return []string{clockText(value.Microseconds)}, nil
	case pgtype.Timestamp:
		if value.InfinityModifier != pgtype.Finite {
			return []string{value.InfinityModifier.String()}, nil
		}
		return []string{wallText(value.Time, "")}, nil
	case pgtype.Date:
		if value.InfinityModifier != pgtype.Finite {
			return []string{value.InfinityModifier.String()}, nil
		}
		return []string{dateText(value.Time)}, nil
	case pgtype.RangeValuer:
		text, err := rangeText(value)
		return []string{text}, err
	case []byte:
		return []string{`\x` + hex.EncodeToString(value)}, nil
	case *big.Rat, *big.Float:
		text, err := decimalText(value)
		return []string{text}, err
	case netip.Prefix: // inet leaves out the length of a host's address, cidr does not
		if value.IsSingleIP() {
			return []string{value.String(), value.Addr().String()}, nil
		}
	}
	if marshaler, ok := plain.(encoding.TextMarshaler); ok {
		text, err := marshaler.MarshalText()
		return []string{string(text)}, err
	}
	switch v := indirect(reflect.ValueOf(plain)); v.Kind() {
	case reflect.Bool:
		return []string{map[bool]string{true: "t", false: "f"}[v.Bool()]}, nil
	case reflect.Float32, reflect.Float64:
		return floatTexts(v.Float(), v.Type().Bits()), nil
	}
	text, err := idText(plain)
	if err != nil {
		if text, ok := pgtypeText(plain); ok {
			return []string{text}, nil
		}
		if v := reflect.ValueOf(plain); isBytes(v.Type()) && !v.Type().Implements(reflect.TypeFor[json.Marshaler]()) {
			return []string{`\x` + hex.EncodeToString(v.Bytes())}, nil
		}
	}
	return []string{text}, err
}

// pgtypeText is the text of those types of pgtype that have no Value method: ranges.
func pgtypeText(value any) (string, bool) {
	types := pgtype.NewMap()
	t, known := types.TypeForValue(value)
	if !known || reflect.TypeOf(value).Kind() != reflect.Struct {
		return "", false
	}
	text, err := types.Encode(t.OID, pgtype.TextFormatCode, value, nil)
	return string(text), err == nil && text != nil
}

// decimalText is the exact decimal of a number that has one.
func decimalText(number any) (string, error) {
	switch n := number.(type) {
	case *big.Rat:
		digits, exact := n.FloatPrec()
		if !exact {
			return "", errNoDecimal
		}
		return n.FloatString(digits), nil
	case *big.Float:
		if n.IsInf() {
			return map[bool]string{true: "-Infinity", false: "Infinity"}[n.Signbit()], nil
		}
		return n.Text('f', -1), nil
	}
	return "", errNoDecimal
}

// timeTexts gives the text of a timestamptz, in UTC as capture reads them, and of a
// timestamp and, at midnight, a date, for which drivers leave out the zone.
func timeTexts(t time.Time) []string {
	texts := []string{wallText(t.UTC(), "+00"), wallText(t, "")}
	if t.Hour() == 0 && t.Minute() == 0 && t.Second() == 0 && t.Nanosecond() < 1000 {
		texts = append(texts, dateText(t))
	}
	return texts
}

// wallText is the text of a date and a time of day, as they are in the zone of t.
func wallText(t time.Time, offset string) string {
	date, isBC := strings.CutSuffix(dateText(t), " BC")
	text := date + t.Truncate(time.Microsecond).Format(" 15:04:05.999999") + offset
	if isBC {
		text += " BC"
	}
	return text
}

// dateText is the text of the date that it is in the zone of t.
func dateText(t time.Time) string {
	era, year := "", t.Year()
	if year <= 0 {
		era, year = " BC", 1-year
	}
	return fmt.Sprintf("%04d-%02d-%02d%s", year, int(t.Month()), t.Day(), era)
}

// clockText is the text of a time of day.
func clockText(microseconds int64) string {
	seconds, fraction := microseconds/1e6, microseconds%1e6
	text := fmt.Sprintf("%02d:%02d:%02d", seconds/3600, seconds/60%60, seconds%60)
	if fraction > 0 {
		text += "." + strings.TrimRight(fmt.Sprintf("%06d", fraction), "0")
	}
	return text
}

// intervalText is the text of an interval in IntervalStyle postgres.
//
// Source: EncodeInterval of PostgreSQL, src/backend/utils/adt/datetime.c.
func intervalText(months, days int32, microseconds int64) string {
	var b strings.Builder
	negative := false // what stands to the left is
	part := func(n int32, unit string) {
		if n == 0 {
			return
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		if negative && n > 0 {
			b.WriteByte('+')
		}
		fmt.Fprintf(&b, "%d %s", n, unit)
		if n != 1 {
			b.WriteByte('s')
		}
		negative = n < 0
	}
	part(months/12, "year")
	part(months%12, "mon")
	part(days, "day")
	if microseconds == 0 && b.Len() > 0 {
		return b.String()
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	switch {
	case microseconds < 0:
		b.WriteByte('-')
		microseconds = -microseconds
	case negative:
		b.WriteByte('+')
	}
	return b.String() + clockText(microseconds)
}

// floatTexts are the texts of a float in a column of double precision and, of what a
// float32 gives (Value methods make a float64 of it), in one of real.
func floatTexts(f float64, bits int) []string {
	texts := []string{rowimage.FloatText(f, bits)}
	if bits == 64 && float64(float32(f)) == f {
		if short := rowimage.FloatText(f, 32); short != texts[0] {
			texts = append(texts, short)
		}
	}
	return texts
}

// imageForms returns the forms in which a value of Go may stand in an image.
func imageForms(value any) (forms, error) {
	if raw, ok := value.(json.RawMessage); ok && raw != nil {
		document, err := filterJSON(raw)
		return forms{documents: []string{document}, texts: exactTexts(raw)}, err
	}
	plain, err := plainValue(value)
	if err != nil {
		return forms{}, err
	}
	if plain == nil {
		return forms{documents: []string{"null"}}, nil
	}
	if number, ok := plain.(json.Number); ok {
		if !isPlainNumber(number.String()) {
			return forms{}, errNoNumber
		}
		return forms{documents: []string{number.String()}, texts: []string{number.String()}}, nil
	}
	switch v := indirect(reflect.ValueOf(plain)); v.Kind() {
	case reflect.Bool:
		return forms{documents: []string{strconv.FormatBool(v.Bool())}}, nil
	case reflect.Slice, reflect.Array:
		if text, ok := multirangeText(plain); ok {
			return forms{texts: []string{text}}, nil
		}
		if lists, ok := listForms(v); ok {
			return lists, nil
		}
	case reflect.Struct:
		if array, ok := plain.(pgtype.ArrayGetter); ok {
			return imageForms(nestedList(array))
		}
	}
	texts, err := columnTexts(value)
	switch {
	case err == nil:
	case errors.Is(err, errNUL), errors.Is(err, errNoDecimal):
		return forms{}, err
	default:
		document, err := filterJSON(value)
		f := forms{documents: []string{document}}
		if printed, ok := value.(fmt.Stringer); ok && err == nil && strings.IndexByte(printed.String(), 0) < 0 {
			f.texts = []string{printed.String()} // which drivers write into a text
		}
		return f, err
	}
	f := forms{texts: texts}
	for _, text := range texts {
		if isPlainNumber(text) {
			f.documents = append(f.documents, text)
		}
	}
	if _, isValuer := value.(driver.Valuer); isValuer {
		f.addDriverForms(plain)
	}
	return f, nil
}

// addDriverForms adds what else a column may hold that was given this by a Value
// method: the document of a json column, the list of an array's.
func (f *forms) addDriverForms(plain any) {
	var text []byte
	switch plain := plain.(type) {
	case string:
		text = []byte(plain)
	case []byte:
		text = plain
	}
	trimmed := bytes.TrimSpace(text)
	if len(trimmed) == 0 {
		return
	}
	// A string in quotes that is given as a string is a text.
	_, isBytes := plain.([]byte)
	isDocument := trimmed[0] == '{' || trimmed[0] == '[' || isBytes && !isPlainNumber(string(trimmed))
	if isDocument && json.Valid(text) && !rowimage.HasBadEscape(text) {
		f.documents = append(f.documents, string(text))
	}
	if trimmed[0] == '{' {
		f.documents = append(f.documents, arrayForms(string(trimmed))...)
	}
}

// documentsOf lists all forms as JSON, the likelier first.
func (f forms) documentsOf(value any) []string {
	var texts []string
	for _, text := range f.texts {
		texts = append(texts, string(rowimage.Quote(text)))
	}
	if reflect.ValueOf(value).Kind() == reflect.String {
		return append(texts, f.documents...)
	}
	return append(slices.Clip(f.documents), texts...)
}

// listForms are the arrays of the elements' forms: of all their first ones, of all
// their second ones and so on. It reports false for bytes, and for what has an element
// without a form.
func listForms(v reflect.Value) (forms, bool) {
	if v.Type().Elem().Kind() == reflect.Uint8 || v.Type().Implements(reflect.TypeFor[encoding.TextMarshaler]()) {
		return forms{}, false
	}
	elements, most := make([][]string, v.Len()), 1
	for i := range elements {
		element := v.Index(i).Interface()
		f, err := imageForms(element)
		if err != nil {
			return forms{}, false
		}
		elements[i] = f.documentsOf(element)
		most = max(most, len(elements[i]))
	}
	var lists forms
	for n := range most {
		list := make([]string, len(elements))
		for i, of := range elements {
			list[i] = of[min(n, len(of)-1)]
		}
		lists.documents = append(lists.documents, "["+strings.Join(list, ",")+"]")
	}
	return lists, true
}

// isPlainNumber reports whether text is a number of JSON that every jsonb takes.
func isPlainNumber(text string) bool {
	if len(text) > rowimage.MaxNumberDigits || text == "" || text[0] != '-' && (text[0] < '0' || text[0] > '9') || !json.Valid([]byte(text)) {
		return false
	}
	_, exponent, found := strings.Cut(strings.ToLower(text), "e")
	n := rowimage.ParseExponent(exponent)
	return !found || n < rowimage.MaxNumberDigits && n > -rowimage.MaxNumberDigits
}
