package main

import (
	"testing"
	"time"
)

func TestTime(t *testing.T) {
	t.Parallel()
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 3, 29, 12, 0, 0, 0, zone) // the day on which summer time begins
	a := &app{zone: zone, now: func() time.Time { return now }}
	for text, want := range map[string]string{
		"now":                       "2026-03-29T12:00:00+02:00",
		"2h":                        "2026-03-29T10:00:00+02:00",
		"2h ago":                    "2026-03-29T10:00:00+02:00",
		"1d12h":                     "2026-03-27T23:00:00+01:00",
		"1.5h":                      "2026-03-29T10:30:00+02:00",
		"90 min":                    "2026-03-29T10:30:00+02:00",
		"1w":                        "2026-03-22T11:00:00+01:00",
		"14:00":                     "2026-03-29T14:00:00+02:00",
		"today":                     "2026-03-29T00:00:00+01:00",
		"today 03:30":               "2026-03-29T03:30:00+02:00",
		"yesterday":                 "2026-03-28T00:00:00+01:00",
		"yesterday 14:00":           "2026-03-28T14:00:00+01:00",
		"yesterday 14:00:05.5":      "2026-03-28T14:00:05.5+01:00",
		"2026-01-02":                "2026-01-02T00:00:00+01:00",
		"2026-01-02 03:04":          "2026-01-02T03:04:00+01:00",
		"2026-01-02T03:04:05":       "2026-01-02T03:04:05+01:00",
		"2026-01-02T03:04:05Z":      "2026-01-02T03:04:05Z",
		"2026-01-02 03:04:05+00":    "2026-01-02T03:04:05Z",
		"2026-01-02 03:04:05+05:30": "2026-01-02T03:04:05+05:30",
		"":                          "",
		"soon":                      "",
		"2":                         "",
		"-2h":                       "",
		"2026-13-01":                "",
		"tomorrow":                  "",
		"9999999999999999d":         "",
	} {
		got, err := a.time(text)
		switch {
		case want == "" && err == nil:
			t.Errorf("%q: %v, want an error", text, got)
		case want == "":
		case err != nil:
			t.Errorf("%q: %v", text, err)
		default:
			wanted, err := time.Parse(time.RFC3339Nano, want)
			if err != nil {
				t.Fatal(err)
			}
			if !got.Equal(wanted) {
				t.Errorf("%q: %v, want %v", text, got, wanted)
			}
		}
	}
}

func TestWordIsOneArgumentOfAShell(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"11": "11", "": "''", "a b": "'a b'", "it's": `"it's"`, `say "hi"`: `'say "hi"'`, "$HOME": "'$HOME'", `it's $5`: `'it'\''s $5'`, "two\nlines": `"two\nlines"`,
	} {
		if got := word(text); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestPasswordsAreHidden(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"postgres://u:geheim@host/db":                   "postgres://u:xxxxx@host/db",
		"unknown command \"postgres://u:ge@heim@h/db\"": "unknown command \"postgres://u:xxxxx@h/db\"",
		"postgres://u:ge/heim@h/db":                     "postgres://u:xxxxx@h/db",
		"host=h password=geheim dbname=x":               "host=h password=xxxxx dbname=x",
		"host=h password = 'ge heim' dbname=x":          "host=h password = xxxxx dbname=x",
		"postgres://h/db?user=u&password=geheim&x=y":    "postgres://h/db?user=u&password=xxxxx&x=y",
		"postgres://u@h/db":                             "postgres://u@h/db",
		"the secret is geheim.":                         "the secret is geheim.",
	} {
		if got := withoutPasswords(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	if got := withoutPasswords("the secret is geheim.", "geheim"); got != "the secret is xxxxx." {
		t.Error(got)
	}
}
