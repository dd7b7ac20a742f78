package main

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/hindsight-go/audit"
)

// point reads a moment of the past.
func (a *app) point(client *audit.Client, text string) (audit.Point, error) {
	given := text
	after := false
	if rest, ok := strings.CutPrefix(text, "after:"); ok {
		text, after = rest, true
	}
	switch kind, id, _ := strings.Cut(text, ":"); {
	case text == "now" && !after:
		return client.Now(), nil
	case kind == "req" && id != "":
		if after {
			return client.AfterRequest(id), nil
		}
		return client.BeforeRequest(id), nil
	case kind == "tx" && id != "":
		number, err := strconv.ParseUint(id, 10, 64)
		if err != nil {
			return audit.Point{}, usagef("%q: the id of a transaction is a number", given)
		}
		if after {
			return client.AfterTransaction(number), nil
		}
		return client.BeforeTransaction(number), nil
	case kind == "mark" && id != "" && !after:
		return client.AtMark(id), nil
	case after:
		return audit.Point{}, usagef("%q: after: goes with req:ID and tx:ID", given)
	}
	if isPosition(text) {
		position, err := audit.ParsePosition(text)
		if err != nil {
			return audit.Point{}, usagef("%q is no position", given)
		}
		return client.AtPosition(position), nil
	}
	t, err := a.time(text)
	if err != nil {
		return audit.Point{}, err
	}
	return client.AsOf(t), nil
}

// position is the form of a position, such as 0/1A2B3C8#1.
var position = regexp.MustCompile(`^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}(#\d+)?$`)

func isPosition(text string) bool { return position.MatchString(text) }

// dates are the forms of a day, and of a day with a time, in the zone of the user.
var dates = []string{
	"2006-01-02 15:04:05.999999999", "2006-01-02T15:04:05.999999999", "2006-01-02 15:04", "2006-01-02T15:04", "2006-01-02",
}

// clocks are the forms of a time of the day.
var clocks = []string{"15:04:05.999999999", "15:04"}

// time reads a time: a duration ago, a time of today, a day with or without one, or
// RFC 3339.
func (a *app) time(text string) (time.Time, error) {
	now := a.now().In(a.zone)
	if text == "now" {
		return now, nil
	}
	ago := strings.TrimSpace(strings.TrimSuffix(text, "ago"))
	if d, err := parseDuration(ago); err == nil {
		return now.Add(-d), nil
	} else if errors.Is(err, errTooLong) {
		return time.Time{}, usagef("%q: %v", text, err)
	}
	for _, form := range []string{time.RFC3339Nano, "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999Z07"} {
		if t, err := time.Parse(form, text); err == nil {
			return t, nil
		}
	}
	for _, form := range dates {
		if t, err := time.ParseInLocation(form, text, a.zone); err == nil {
			return t, nil
		}
	}
	day, clock, _ := strings.Cut(text, " ")
	from := now
	switch day {
	case "today":
	case "yesterday":
		from = now.AddDate(0, 0, -1)
	default:
		clock = text
		if text == "" {
			clock = "nothing"
		}
	}
	midnight := time.Date(from.Year(), from.Month(), from.Day(), 0, 0, 0, 0, a.zone)
	if clock == "" {
		return midnight, nil
	}
	for _, form := range clocks {
		if t, err := time.Parse(form, clock); err == nil {
			return time.Date(from.Year(), from.Month(), from.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), a.zone), nil
		}
	}
	return time.Time{}, usagef(`%q is no moment: give 2h, 14:00, "yesterday 14:00", 2026-11-26, RFC 3339, a position, req:ID, tx:ID or mark:NAME`, text)
}

var (
	durationPart = regexp.MustCompile(`(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d|w)`)
	durationForm = regexp.MustCompile(`^(?:\d+(?:\.\d+)?\s*(?:ms|s|min|m|h|d|w)\s*)+$`)
	errTooLong   = errors.New("that is longer than history can be")
)

// parseDuration reads a duration with days and weeks: 3d12h.
func parseDuration(text string) (time.Duration, error) {
	if !durationForm.MatchString(text) {
		return 0, fmt.Errorf("%q is no duration: give 90s, 15m, 2h, 3d or 1w", text)
	}
	units := map[string]time.Duration{
		"ms": time.Millisecond, "s": time.Second, "m": time.Minute, "min": time.Minute, "h": time.Hour, "d": 24 * time.Hour, "w": 7 * 24 * time.Hour,
	}
	var sum float64
	for _, part := range durationPart.FindAllStringSubmatch(text, -1) {
		n, err := strconv.ParseFloat(part[1], 64)
		if err != nil {
			return 0, err
		}
		sum += n * float64(units[part[2]])
	}
	if sum > math.MaxInt64/2 {
		return 0, errTooLong
	}
	return time.Duration(sum), nil
}

// shortTime is a time for a line: the year only where it is another one.
func (a *app) shortTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	t = t.In(a.zone)
	if t.Year() != a.now().In(a.zone).Year() {
		return t.Format("2006-01-02 15:04:05")
	}
	return t.Format("01-02 15:04:05")
}

// longTime is a time with everything that is known of it.
func (a *app) longTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.In(a.zone).Format("2006-01-02 15:04:05.000000 -07:00")
}

// shortBytes is a size for people.
func shortBytes(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB"}
	size, at := float64(n), 0
	for math.Abs(size) >= 1024 && at < len(units)-1 {
		size, at = size/1024, at+1
	}
	if at == 0 || size == math.Trunc(size) || size >= 100 {
		return fmt.Sprintf("%.0f %s", size, units[at])
	}
	return fmt.Sprintf("%.1f %s", size, units[at])
}

// shortDuration is a duration for people: 72 s, 3 h, 5 d.
func shortDuration(d time.Duration) string {
	switch {
	case d < time.Second:
		return strconv.FormatInt(d.Milliseconds(), 10) + " ms"
	case d < 2*time.Minute:
		return strconv.Itoa(int(d.Seconds())) + " s"
	case d < 2*time.Hour:
		return strconv.Itoa(int(d.Minutes())) + " min"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d.Hours())) + " h"
	}
	return strconv.Itoa(int(d.Hours()/24)) + " d"
}
