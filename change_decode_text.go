package audit

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hindsight-go/audit/store"
)

func assignTime(raw json.RawMessage, dst *time.Time, column string) error {
	if isNull(raw) {
		return misfit(column, reflect.TypeFor[time.Time](), "NULL does not fit; use a pointer")
	}
	t, err := parseTime(rawText(raw))
	if err != nil {
		return misfit(column, reflect.TypeFor[time.Time](), "%s", err)
	}
	*dst = t
	return nil
}

var (
	errInfiniteTime = errors.New("infinity is no moment; use pgtype.Timestamptz, pgtype.Date or string")
	errNoTime       = errors.New("the value is no date with an optional time in ISO style")
)

// parseTime reads a date, timestamp or timestamptz as PostgreSQL writes them
// with DateStyle ISO, years beyond 9999 and before Christ included, and RFC 3339
// for what stands in json. Without a zone it is UTC.
func parseTime(text string) (time.Time, error) {
	if text == "infinity" || text == "-infinity" {
		return time.Time{}, errInfiniteTime
	}
	text, beforeChrist := strings.CutSuffix(text, " BC")
	date, clock := text, ""
	if i := strings.IndexAny(text, " T"); i >= 0 {
		date, clock = text[:i], text[i+1:]
		if clock == "" {
			return time.Time{}, errNoTime
		}
	}
	year, month, day, ok := parseDate(date)
	if !ok {
		return time.Time{}, errNoTime
	}
	if beforeChrist {
		year = 1 - year
	}
	offset := 0
	if i := strings.IndexAny(clock, "+-Z"); i >= 0 {
		if offset, ok = parseOffset(clock[i:]); !ok {
			return time.Time{}, errNoTime
		}
		clock = clock[:i]
	}
	since, ok := parseClock(clock)
	if !ok {
		return time.Time{}, errNoTime
	}
	t := time.Date(year, time.Month(month), day, 0, 0, 0, 0, time.UTC)
	if t.Day() != day || t.Month() != time.Month(month) {
		return time.Time{}, errNoTime
	}
	return t.Add(since - time.Duration(offset)*time.Second), nil
}

func parseDate(text string) (year, month, day int, ok bool) {
	parts := strings.Split(text, "-")
	if len(parts) != 3 || len(parts[0]) < 4 || len(parts[0]) > 7 || len(parts[1]) != 2 || len(parts[2]) != 2 {
		return 0, 0, 0, false
	}
	year, okYear := digitsOf(parts[0])
	month, okMonth := digitsOf(parts[1])
	day, okDay := digitsOf(parts[2])
	return year, month, day, okYear && okMonth && okDay && month >= 1 && month <= 12
}

// parseClock reads hh:mm:ss with an optional fraction; empty is midnight.
func parseClock(text string) (time.Duration, bool) {
	if text == "" {
		return 0, true
	}
	whole, fraction, _ := strings.Cut(text, ".")
	parts := strings.Split(whole, ":")
	if len(parts) != 3 || len(fraction) > 9 {
		return 0, false
	}
	var total time.Duration
	for i, unit := range []time.Duration{time.Hour, time.Minute, time.Second} {
		n, ok := digitsOf(parts[i])
		if !ok || len(parts[i]) < 2 || len(parts[i]) > 9 {
			return 0, false
		}
		total += time.Duration(n) * unit
	}
	if fraction != "" {
		n, ok := digitsOf(fraction + strings.Repeat("0", 9-len(fraction)))
		if !ok {
			return 0, false
		}
		total += time.Duration(n)
	}
	return total, true
}

// parseOffset reads Z, +hh, +hh:mm or +hh:mm:ss as seconds east of UTC.
func parseOffset(text string) (int, bool) {
	if text == "Z" {
		return 0, true
	}
	if text == "" || text[0] == 'Z' {
		return 0, false
	}
	seconds := 0
	unit := 3600
	for _, part := range strings.Split(text[1:], ":") {
		n, ok := digitsOf(part)
		if !ok || unit == 0 || len(part) != 2 {
			return 0, false
		}
		seconds += n * unit
		unit /= 60
	}
	if text[0] == '-' {
		seconds = -seconds
	}
	return seconds, true
}

func digitsOf(text string) (int, bool) {
	if text == "" || text[0] < '0' || text[0] > '9' {
		return 0, false
	}
	n, err := strconv.Atoi(text)
	return n, err == nil
}

func assignDuration(raw json.RawMessage, dst *time.Duration, column string) error {
	t := reflect.TypeFor[time.Duration]()
	if isNull(raw) {
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
	d, ok := parseInterval(rawText(raw))
	if !ok {
		return misfit(column, t, "the value is no interval of days, hours, minutes and seconds that fits; use pgtype.Interval")
	}
	*dst = d
	return nil
}

// parseInterval reads IntervalStyle postgres. Years and months have no length,
// so they are refused; a day counts 24 hours, as in pgx.
func parseInterval(text string) (time.Duration, bool) {
	fields := strings.Fields(text)
	var total time.Duration
	if len(fields) >= 2 && strings.HasPrefix(fields[1], "day") {
		days, err := strconv.ParseInt(fields[0], 10, 32)
		if err != nil || days > 100_000 || days < -100_000 {
			return 0, false
		}
		total = time.Duration(days) * 24 * time.Hour
		fields = fields[2:]
	}
	if len(fields) == 0 {
		return total, text != ""
	}
	if len(fields) != 1 {
		return 0, false
	}
	clock, negative := strings.CutPrefix(strings.TrimPrefix(fields[0], "+"), "-")
	since, ok := parseClock(clock)
	if !ok || since < 0 || since > 1<<62 || len(clock) < 8 || strings.IndexByte(clock, ':') > 6 {
		return 0, false
	}
	if negative {
		since = -since
	}
	return total + since, true
}

var (
	errNoArray  = errors.New("the value is no array")
	errBadArray = errors.New("the value is no well-formed array literal")
)

// parseArray takes a PostgreSQL array literal apart into JSON values: strings,
// nulls, and arrays of them for further dimensions. Explicit subscripts are
// skipped.
func parseArray(text string) ([]json.RawMessage, error) {
	if strings.HasPrefix(text, "[") {
		_, literal, found := strings.Cut(text, "=")
		if !found {
			return nil, errNoArray
		}
		text = literal
	}
	if !strings.HasPrefix(text, "{") {
		return nil, errNoArray
	}
	p := arrayParser{text: text}
	elements, err := p.list(0)
	if err == nil && p.at != len(text) {
		err = errBadArray
	}
	return elements, err
}

type arrayParser struct {
	text string
	at   int
}

// list reads from an opening brace to behind the closing one. PostgreSQL has at
// most six dimensions.
func (p *arrayParser) list(depth int) ([]json.RawMessage, error) {
	if depth > 6 {
		return nil, errBadArray
	}
	p.at++
	elements := []json.RawMessage{}
	for p.at < len(p.text) {
		switch c := p.text[p.at]; c {
		case '}':
			p.at++
			return elements, nil
		case ',', ';': // the delimiter of box is a semicolon
			p.at++
		case '{':
			inner, err := p.list(depth + 1)
			if err != nil {
				return nil, err
			}
			text, err := json.Marshal(inner)
			if err != nil {
				return nil, err
			}
			elements = append(elements, text)
		default:
			element, ok := p.element(c == '"')
			if !ok {
				return nil, errBadArray
			}
			elements = append(elements, element)
		}
	}
	return nil, errBadArray
}

func (p *arrayParser) element(quoted bool) (json.RawMessage, bool) {
	var value strings.Builder
	if quoted {
		p.at++
	}
	for p.at < len(p.text) {
		c := p.text[p.at]
		switch {
		case c == '\\' && p.at+1 < len(p.text):
			p.at++
			value.WriteByte(p.text[p.at])
		case quoted && c == '"':
			p.at++
			return jsonString(value.String()), true
		case !quoted && (c == ',' || c == '}' || c == ';'):
			if value.String() == "NULL" {
				return json.RawMessage("null"), true
			}
			return jsonString(value.String()), true
		default:
			value.WriteByte(c)
		}
		p.at++
	}
	return nil, false
}

func jsonString(text string) json.RawMessage {
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
	if text := []byte(rawText(raw)); store.IsExactText(text) {
		return slices.Clip(text)
	}
	return raw
}
