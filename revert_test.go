package audit_test

import (
	"testing"
)

func TestRevertRestoresWhatARequestChanged(t *testing.T) {
	t.Parallel()
	for name, statements := range map[string][]string{
		"Update": {"UPDATE customer SET city = 'Bonn', name = 'Anne' WHERE id = 1", "UPDATE orders SET total = total + 1, note = NULL"},
		"Insert": {"INSERT INTO customer VALUES (4, 'Dan', '')", "INSERT INTO orders VALUES (13, 4, NULL, 'x'), (14, 1, 1, E'tab\t\\ \"quote\" ''')"},
		"Delete": {"DELETE FROM orders WHERE customer = 2", "DELETE FROM customer WHERE id IN (2, 3)"},
		"All": {
			"INSERT INTO customer VALUES (4, 'Dan', NULL)", "UPDATE orders SET customer = 4 WHERE id = 10", "DELETE FROM customer WHERE id = 1",
			"UPDATE customer SET name = 'Dane' WHERE id = 4", "INSERT INTO orders VALUES (20, 4, 1, '')", "DELETE FROM orders WHERE id = 11",
		},
		"ComingToNothing": {"INSERT INTO customer VALUES (9, 'x', 'y')", "UPDATE customer SET name = 'z' WHERE id = 9", "DELETE FROM customer WHERE id = 9", "UPDATE customer SET city = 'Rom' WHERE id = 1"},
		"KeyReused":       {"DELETE FROM customer WHERE id = 3", "INSERT INTO customer VALUES (3, 'Another', 'Paris')"},
		"KeyMoved":        {"UPDATE customer SET id = 30 WHERE id = 3", "UPDATE customer SET id = 31, name = 'moved' WHERE id = 30", "INSERT INTO customer VALUES (3, 'New', NULL)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newUndo(t, shop).roundTrip(t, statements...)
		})
	}
}
