package shop_test

import (
	"fmt"
	"math/rand/v2"
)

// story makes up what people do in the shop.
type story struct {
	r      *rand.Rand
	serial int
}

func (s *story) next() int {
	s.serial++
	return 1000 + s.serial
}

// pick is the SQL of some row's value.
func (s *story) pick(table, column string) string {
	n := s.r.IntN(1000)
	return fmt.Sprintf("(SELECT %[2]s FROM ONLY %[1]s ORDER BY uid LIMIT 1 OFFSET (SELECT %[3]d %% greatest(count(*), 1) FROM ONLY %[1]s))", table, column, n)
}

// some is a small number.
func (s *story) some(n int) int { return 1 + s.r.IntN(n) }

// request is what one request does, in a transaction.
func (s *story) request() (statements []string) {
	for range 1 + s.r.IntN(3) {
		kinds := [...]func() []string{s.people, s.people, s.catalog, s.catalog, s.halls, s.sales, s.sales, s.sales, s.money, s.desk}
		statements = append(statements, kinds[s.r.IntN(len(kinds))]()...)
	}
	return statements
}

func (s *story) one(choices ...string) []string { return []string{choices[s.r.IntN(len(choices))]} }

func (s *story) people() []string {
	n, customer, clerk := s.next(), s.pick("customer", "id"), s.pick("employee", "id")
	return s.one(
		fmt.Sprintf("INSERT INTO customer (id, name, mail, home, seller, extra) VALUES (%d, 'new %[1]d', 'N%[1]d@example.com', ROW('a', NULL, '%[2]d'), %[3]s, '{\"a\": [1, null]}')", n, s.some(9), clerk),
		fmt.Sprintf("INSERT INTO customer (name, tags) VALUES ('by number %d', '{x,\"y z\"}')", n),
		fmt.Sprintf("UPDATE customer SET name = 'name %d', points = points + %d WHERE id = %s", n, s.some(5), customer),
		fmt.Sprintf("UPDATE customer SET tags = array_append(tags, 't%d') WHERE id = %s", n, customer),
		fmt.Sprintf("UPDATE customer SET home.city = 'city %d', extra = jsonb_set(coalesce(extra, '{}'), '{n}', '%d') WHERE id = %s", n, s.some(3), customer),
		fmt.Sprintf("UPDATE customer SET mail = 'C%d@EXAMPLE.com' WHERE id = %s", s.some(9), customer),
		fmt.Sprintf("UPDATE customer SET id = id + %d WHERE id = %s", 10000+n, customer),
		fmt.Sprintf("UPDATE wallet SET credit = credit + %d WHERE customer = %s", s.some(9), customer),
		"DELETE FROM customer WHERE id = "+customer,
		"UPDATE person SET born = '1990-01-01'::date + "+fmt.Sprint(s.some(99))+" WHERE id = "+customer,
		fmt.Sprintf("INSERT INTO person (id, name) VALUES (%d, 'guest')", n),
		fmt.Sprintf("INSERT INTO employee (id, name, boss, salary, room) VALUES (%d, 'clerk', %s, 99.90, %[1]d)", n, clerk),
		fmt.Sprintf("UPDATE employee SET boss = %s, salary = salary + 1 WHERE id = %s", clerk, s.pick("employee", "id")),
		"DELETE FROM employee WHERE id = "+clerk,
		"UPDATE employee SET room = 7 - room WHERE room BETWEEN 1 AND 6",
		fmt.Sprintf("UPDATE employee SET id = id + %d WHERE id = %s", 10000+n, clerk),
	)
}

func (s *story) catalog() []string {
	n, product, category := s.next(), s.pick("product", "id"), s.pick("category", "code")
	return s.one(
		fmt.Sprintf("INSERT INTO product (sku, name, about, category, net, sizes) VALUES ('N%d', 'Article %[1]d', NULL, %[2]s, %[3]d.25, '{1,2.50,NULL}')", n, category, s.some(90)),
		fmt.Sprintf("INSERT INTO product (id, sku, name, net) OVERRIDING SYSTEM VALUE VALUES (%d, 'O%[1]d', 'Thing %[2]d', 1)", n, s.some(12)),
		fmt.Sprintf("UPDATE product SET net = net + %d WHERE category = %s", s.some(3), category),
		fmt.Sprintf("UPDATE product SET name = 'Thing %d', about = about || ' more' WHERE id = %s", s.some(12), product),
		"UPDATE product SET gone = NOT gone WHERE id = "+product,
		fmt.Sprintf("UPDATE product SET sku = 'U%d', sizes[1] = %[2]d WHERE id = %[3]s", n, s.some(5), product),
		"DELETE FROM product WHERE id = "+product,
		fmt.Sprintf("UPDATE product SET category = %s WHERE id = %s", category, product),
		fmt.Sprintf("INSERT INTO category VALUES ('c%d', %s, 'new', %[1]d)", n, category),
		fmt.Sprintf("UPDATE category SET code = 'r%d' WHERE code = %s AND code <> 'misc'", n, category),
		fmt.Sprintf("DELETE FROM category WHERE code = %s AND code <> 'misc'", category),
		"UPDATE category SET place = place + 1",
		fmt.Sprintf("UPDATE category SET title = 'title %d', parent = %s WHERE code = %s", n, s.pick("category", "code"), category),
		fmt.Sprintf("INSERT INTO for_sale (sku, name, net) VALUES ('V%d', 'Viewed %[1]d', 3)", n),
		fmt.Sprintf("UPDATE for_sale SET net = %d.99, about = 'from the view' WHERE id = %s", s.some(50), product),
		"DELETE FROM for_sale WHERE id = "+product,
		fmt.Sprintf("INSERT INTO manual (product, body, pages) VALUES (%s, 'text %d', '\\x%02x') ON CONFLICT (product) DO UPDATE SET body = manual.body || ' ' || excluded.body", product, n, s.some(200)),
		"DELETE FROM manual WHERE product = "+s.pick("manual", "product"),
	)
}

func (s *story) halls() []string {
	n := s.next()
	shelf := fmt.Sprintf("(hall, slot) = (SELECT hall, slot FROM shelf ORDER BY uid LIMIT 1 OFFSET (SELECT %d %% greatest(count(*), 1) FROM shelf))", n)
	return s.one(
		fmt.Sprintf("INSERT INTO shelf VALUES (%d, %d, 'new')", s.some(3), n),
		fmt.Sprintf("UPDATE shelf SET slot = slot + %d WHERE %s", 10000+n, shelf),
		"DELETE FROM shelf WHERE "+shelf,
		fmt.Sprintf("UPDATE shelf SET label = 'label %d' WHERE %s", n, shelf),
		fmt.Sprintf("INSERT INTO stock SELECT hall, slot, %s, %d FROM shelf WHERE %s ON CONFLICT (hall, slot, product) DO UPDATE SET quantity = stock.quantity + excluded.quantity", s.pick("product", "id"), s.some(9), shelf),
		fmt.Sprintf("UPDATE stock SET quantity = quantity - %d WHERE uid = %s", s.some(4), s.pick("stock", "uid")),
		fmt.Sprintf("UPDATE stock SET (hall, slot) = (SELECT hall, slot FROM shelf WHERE %s) WHERE uid = %s", shelf, s.pick("stock", "uid")),
		"DELETE FROM stock WHERE uid = "+s.pick("stock", "uid"),
	)
}

func (s *story) sales() []string {
	n, purchase, line := s.next(), s.pick("purchase", "id"), s.pick("line", "uid")
	choices := []string{
		fmt.Sprintf("UPDATE line SET quantity = quantity + %d WHERE uid = %s", s.some(3), line),
		fmt.Sprintf("UPDATE line SET product = %s WHERE uid = %s", s.pick("product", "id"), line),
		"DELETE FROM line WHERE uid = " + line,
		fmt.Sprintf("UPDATE line SET n = n + 10 WHERE purchase = %s AND n < 1000", purchase),
		fmt.Sprintf("INSERT INTO line SELECT %s, coalesce(max(n), 0) + 1, %s, %d, 7.5 FROM line WHERE purchase = %[1]s", purchase, s.pick("product", "id"), s.some(4)),
		fmt.Sprintf("UPDATE purchase SET state = 'paid', clerk = %s WHERE id = %s", s.pick("employee", "id"), purchase),
		"UPDATE purchase SET send_to.street = 'elsewhere', state = 'sent' WHERE id = " + purchase,
		"UPDATE counter SET state = 'cancelled' WHERE id = " + purchase,
		"DELETE FROM purchase WHERE id = " + purchase,
	}
	if s.r.IntN(3) > 0 {
		return s.one(choices...)
	}
	return []string{
		fmt.Sprintf("INSERT INTO purchase (id, customer, clerk) VALUES (%d, %s, %s)", n, s.pick("customer", "id"), s.pick("employee", "id")),
		fmt.Sprintf("INSERT INTO line VALUES (%d, 1, %s, %d, 1.10), (%[1]d, 2, %[4]s, 2, 4)", n, s.pick("product", "id"), s.some(5), s.pick("product", "id")),
		fmt.Sprintf("INSERT INTO payment VALUES (%d, '2024-12-01'::date + %d, %[1]d, 5, NULL)", n, s.some(700)),
	}
}

func (s *story) money() []string {
	n, payment := s.next(), s.pick("payment_2024", "uid")
	if s.r.IntN(2) == 0 {
		payment = s.pick("payment_2025", "uid")
	}
	return s.one(
		fmt.Sprintf("INSERT INTO payment VALUES (%d, '2024-02-01'::date + %d, %s, %[2]d, 'card')", n, s.some(900), s.pick("purchase", "id")),
		fmt.Sprintf("UPDATE payment SET paid_on = paid_on + %d WHERE uid = %s", s.some(400), payment),
		fmt.Sprintf("UPDATE payment SET amount = amount + 1, note = 'note %d' WHERE uid = %s", n, payment),
		fmt.Sprintf("UPDATE payment SET purchase = %s WHERE uid = %s", s.pick("purchase", "id"), payment),
		"DELETE FROM payment WHERE uid = "+payment,
	)
}

func (s *story) desk() []string {
	n, booking, ticket := s.next(), s.pick("booking", "uid"), s.pick("ticket", "uid")
	from := s.some(20)
	return s.one(
		fmt.Sprintf("INSERT INTO booking VALUES (md5('%d')::uuid, %d, daterange('2024-01-01'::date + %d, '2024-01-01'::date + %d), %s)", n, s.some(3), from, from+s.some(4), s.pick("customer", "id")),
		fmt.Sprintf("UPDATE booking SET during = daterange(lower(during) + %d, upper(during) + %[1]d) WHERE uid = %s", s.some(3), booking),
		fmt.Sprintf("UPDATE booking SET room = %d WHERE uid = %s", s.some(3), booking),
		"DELETE FROM booking WHERE uid = "+booking,
		fmt.Sprintf("INSERT INTO visit VALUES ('page %d', %s, %d.50), ('page %[1]d', NULL, NULL)", s.some(3), s.pick("customer", "id"), s.some(3)),
		"DELETE FROM visit WHERE page = 'home' AND customer = "+fmt.Sprint(s.r.IntN(3)),
		fmt.Sprintf("UPDATE visit SET seconds = %d WHERE page = 'page %d'", s.some(4), s.some(3)),
		fmt.Sprintf("INSERT INTO ticket VALUES (%d, 'call', %s, 'ring')", n, s.pick("customer", "id")),
		fmt.Sprintf("INSERT INTO inbox VALUES (%d, 'letter')", n),
		fmt.Sprintf("UPDATE ticket SET body = body || '%d' WHERE uid = %s", n, ticket),
		fmt.Sprintf("DELETE FROM ticket WHERE uid IN (%s, %s)", ticket, s.pick("ticket", "uid")),
	)
}
