package audit_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// stays are rooms with their prices over time, and bookings whose days the prices have
// to cover together.
const stays = `
	CREATE TABLE price (room int4range, valid daterange, amount int, PRIMARY KEY (room, valid WITHOUT OVERLAPS));
	CREATE TABLE booking (id int PRIMARY KEY, room int4range, days daterange, FOREIGN KEY (room, PERIOD days) REFERENCES price (room, PERIOD valid));
	INSERT INTO price VALUES ('[1,2)', '[2024-01-01,2024-02-01)', 10), ('[1,2)', '[2024-02-01,2024-03-01)', 20), ('[2,3)', '[2024-01-01,2024-03-01)', 30);
	INSERT INTO booking VALUES (1, '[1,2)', '[2024-01-20,2024-02-10)'), (2, '[2,3)', '[2024-01-05,2024-01-06)'), (3, NULL, '[2024-01-05,2024-01-06)')`

// hasPeriods reports whether the server knows foreign keys with a PERIOD.
func hasPeriods(t *testing.T) bool {
	t.Helper()
	return audittest.NewDatabase(t).Server().Version() >= 180000
}

func TestRevert_ForeignKeyWithPeriod(t *testing.T) {
	t.Parallel()
	if !hasPeriods(t) {
		return
	}
	for name, statements := range map[string][]string{
		"All":           {"DELETE FROM booking", "DELETE FROM price"},
		"OnePrice":      {"DELETE FROM booking WHERE id = 1", "DELETE FROM price WHERE amount = 20"},
		"OnlyBookings":  {"DELETE FROM booking"},
		"PeriodShrinks": {"UPDATE booking SET days = '[2024-01-20,2024-01-25)' WHERE id = 1", "DELETE FROM price WHERE amount = 20"},
		"PriceMoves":    {"UPDATE booking SET days = '[2024-01-20,2024-01-25)' WHERE id = 1", "UPDATE price SET valid = '[2024-02-15,2024-03-01)' WHERE amount = 20"},
		"PriceShrinks":  {"UPDATE price SET valid = '[2024-02-01,2024-02-20)' WHERE amount = 20", "INSERT INTO price VALUES ('[1,2)', '[2024-02-20,2024-03-01)', 25)"},
		"Inserted":      {"INSERT INTO price VALUES ('[3,4)', '[2024-01-01,2024-02-01)', 1), ('[3,4)', '[2024-02-01,2024-03-01)', 2)", "INSERT INTO booking VALUES (9, '[3,4)', '[2024-01-30,2024-02-02)')"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, stays)
			u.roundTrip(t, statements...)
			result := apply(t, u.Client.RevertRequest("round trip").WithoutTriggers())
			if result.Already == nil {
				t.Error("it is undone already")
			}
		})
	}
}

// What others have booked, or priced otherwise, is in the way by its days.
func TestRevert_PeriodOfOthers(t *testing.T) {
	t.Parallel()
	if !hasPeriods(t) {
		return
	}
	bob := audit.Context{UserID: "bob", RequestID: "later"}
	for name, h := range map[string]struct {
		request, later string
		conflicts      []string
	}{
		"BookedMeanwhile":  {"INSERT INTO price VALUES ('[3,4)', '[2024-01-01,2024-02-01)', 1)", "INSERT INTO booking VALUES (9, '[3,4)', '[2024-01-03,2024-01-04)')", []string{"row referenced public.price[[3,4),[2024-01-01,2024-02-01)]"}},
		"PriceGone":        {"DELETE FROM booking WHERE id = 1", "DELETE FROM price WHERE amount = 20", []string{"parent missing public.booking[1]"}},
		"PriceReplaced":    {"DELETE FROM booking WHERE id = 1", "UPDATE price SET valid = '[2024-02-01,2024-02-15)' WHERE amount = 20", nil},
		"PriceTooShort":    {"DELETE FROM booking WHERE id = 1", "UPDATE price SET valid = '[2024-02-01,2024-02-05)' WHERE amount = 20", []string{"parent missing public.booking[1]"}},
		"OtherDaysAreFree": {"INSERT INTO price VALUES ('[2,3)', '[2024-03-01,2024-04-01)', 1)", "INSERT INTO booking VALUES (9, '[2,3)', '[2024-02-03,2024-02-04)')", nil},
		"AcrossTheNewOne":  {"INSERT INTO price VALUES ('[2,3)', '[2024-03-01,2024-04-01)', 1)", "INSERT INTO booking VALUES (9, '[2,3)', '[2024-02-20,2024-03-04)')", []string{"row referenced public.price[[2,3),[2024-03-01,2024-04-01)]"}},
		"Extended":         {"UPDATE price SET valid = '[2024-01-01,2024-05-01)' WHERE amount = 30", "INSERT INTO booking VALUES (9, '[2,3)', '[2024-02-20,2024-02-24)')", nil},
		"ExtendedAndUsed":  {"UPDATE price SET valid = '[2024-01-01,2024-05-01)' WHERE amount = 30", "INSERT INTO booking VALUES (9, '[2,3)', '[2024-03-20,2024-03-24)')", []string{"row referenced public.price[[2,3),[2024-01-01,2024-05-01)]"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, stays)
			u.request(t, "first", h.request)
			u.as(t, bob, h.later)
			wantConflicts(t, u.Client.RevertRequest("first"), h.conflicts...)
			if h.conflicts == nil {
				apply(t, u.Client.RevertRequest("first"))
				return
			}
			now := u.state(t)
			apply(t, u.Client.RevertRequest("first").OnConflict(audit.Skip))
			u.want(t, "after a revert that skips", now)
			var blocked *audit.ConflictError
			var refused *audit.ApplyError
			if _, err := u.Client.RevertRequest("first").WithoutTriggers().OnConflict(audit.Overwrite).Apply(t.Context()); !errors.As(err, &blocked) && !errors.As(err, &refused) {
				t.Errorf("without triggers: %v", err)
			}
			u.want(t, "after that", now)
		})
	}
}

// A fork has the foreign keys of the database, also those with a PERIOD and those that
// are not enforced.
func TestInto_ForeignKeyWithPeriod(t *testing.T) {
	t.Parallel()
	if !hasPeriods(t) {
		return
	}
	u := newUndo(t, stays+"; ALTER TABLE price ADD COLUMN kind int4range NOT NULL DEFAULT '[1,2)', ADD UNIQUE (room, kind, valid WITHOUT OVERLAPS); ALTER TABLE booking ADD CONSTRAINT loose FOREIGN KEY (id) REFERENCES booking (id) NOT ENFORCED")
	begin := u.position(t)
	u.request(t, "first", "DELETE FROM booking", "DELETE FROM price")
	u.Sync(t)
	result, err := u.Client.AtPosition(begin).Into("past").Tables("booking", "price").Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Skipped) > 0 {
		t.Errorf("skipped: %s", strings.Join(result.Skipped, "; "))
	}
	u.holds(t, "(SELECT count(*) = 2 FROM pg_constraint WHERE conrelid = 'past.booking'::regclass AND contype = 'f') AND (SELECT count(*) = 3 FROM past.booking)")
}
