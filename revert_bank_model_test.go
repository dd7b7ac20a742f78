package audit_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
)

// bankModel says what every cell of the bank has to hold after each transaction. It goes
// by who has written what: a cell holds the writings that are in force, each above the one
// that it replaced. A request adds some, undoing takes those of the unit away, and undoing
// an undo puts them back. It knows nothing of rows, conflicts and plans.
type bankModel struct {
	*busyBank
	cells map[string][]*bankEntry // by table, key and column
	// taken is what the transactions of reverts did to the cells, oldest first.
	taken    map[string][]bankTaken
	made     map[string]string // the transactions of reverts, by the reverts
	versions map[string]int64  // by the accounts
	done     []*bankTransaction
}

// bankEntry is a writing that is in force. Its owners are the request and the transaction
// that made it.
type bankEntry struct {
	value  string
	owners []string
}

// bankTaken is what was in force in a cell before and after the transaction of a revert.
type bankTaken struct {
	by            string
	before, after []*bankEntry
}

// bankTransaction is what one transaction did.
type bankTransaction struct {
	id              uint64
	request, revert string
	wrote           map[string][2]string // by the cells: before, after
	sum             int64                // by how much it changed the sum of the balances
}

func newBankModel(b *busyBank) *bankModel {
	return &bankModel{
		busyBank: b, cells: make(map[string][]*bankEntry), taken: make(map[string][]bankTaken), made: make(map[string]string),
		versions: make(map[string]int64),
	}
}

// check goes through the history, and compares where it ends with the live rows.
func (m *bankModel) check(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	transactions := m.transactions(t)
	for _, tx := range transactions {
		if t.Failed() {
			return
		}
		m.done = append(m.done, tx)
		m.apply(t, tx)
	}
	var sum, excess int64
	if err := conn.QueryRow(t.Context(), "SELECT sum(balance)::bigint - count(*) * 1000000000 FROM account").Scan(&sum); err != nil {
		t.Fatal(err)
	}
	for _, tx := range transactions {
		excess += tx.sum
	}
	if sum != excess {
		t.Errorf("the sum of the balances is off by %d, of which %d are known", sum, excess)
	}
	var wrong int
	err := conn.QueryRow(t.Context(), "SELECT count(*) FROM product p WHERE stock <> (SELECT coalesce(sum(quantity), 0) FROM movement WHERE product = p.id)").Scan(&wrong)
	if err != nil || wrong > 0 {
		t.Errorf("the stock of %d products is not what their movements say, %v", wrong, err)
	}
	m.checkLive(t, conn)
}

// transactions reads the history.
func (m *bankModel) transactions(t *testing.T) (list []*bankTransaction) {
	t.Helper()
	var last *bankTransaction
	for c, err := range m.Client.Changes().OldestFirst().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if last == nil || last.id != c.TransactionID {
			last = &bankTransaction{id: c.TransactionID, wrote: make(map[string][2]string)}
			list = append(list, last)
		}
		last.request = c.Context.RequestID
		if past, ok := c.Revert(); ok {
			last.revert = past.ID
		}
		m.read(t, last, &c)
	}
	return list
}

// read takes the cells out of a change.
func (m *bankModel) read(t *testing.T, tx *bankTransaction, c *audit.Change) {
	t.Helper()
	cell := c.Table + " " + c.PrimaryKey
	write := func(cell, before, after string) {
		if earlier, ok := tx.wrote[cell]; ok {
			before = earlier[0]
		}
		tx.wrote[cell] = [2]string{before, after}
	}
	switch c.Table {
	case "transfer", "movement":
		write(cell, bankRow(c.Before), bankRow(c.After))
	case "account":
		before, after := columnsOf(t, c.Before), columnsOf(t, c.After)
		for _, column := range []string{"balance", "note"} {
			if before[column] != after[column] {
				write(cell+" "+column, fmt.Sprint(before[column]), fmt.Sprint(after[column]))
			}
		}
		tx.sum += number(t, after["balance"]) - number(t, before["balance"])
		if version := number(t, after["lock_version"]); version <= m.versions[cell] {
			t.Errorf("%s: version %v after %v, by %s", cell, version, m.versions[cell], c)
		} else {
			m.versions[cell] = version
		}
	}
}

func bankRow(image audit.Image) string {
	if string(image) == "{}" || len(image) == 0 {
		return ""
	}
	return string(image)
}

func columnsOf(t *testing.T, image audit.Image) (columns map[string]any) {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(image))
	decoder.UseNumber()
	if err := decoder.Decode(&columns); err != nil {
		t.Fatal(err)
	}
	return columns
}

func number(t *testing.T, value any) int64 {
	t.Helper()
	n, err := value.(json.Number).Int64()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (m *bankModel) top(cell string) string {
	entries := m.cells[cell]
	return entries[len(entries)-1].value
}

// apply checks one transaction against the model, and moves the model on.
func (m *bankModel) apply(t *testing.T, tx *bankTransaction) {
	t.Helper()
	for cell, wrote := range tx.wrote {
		if m.cells[cell] == nil {
			m.cells[cell] = []*bankEntry{{value: wrote[0]}}
		}
		if m.top(cell) != wrote[0] {
			t.Errorf("transaction %d finds %s in %s, where the model has %s", tx.id, wrote[0], cell, m.top(cell))
		}
	}
	if tx.revert == "" {
		if tx.sum != 0 {
			t.Errorf("transaction %d changes the sum by %d", tx.id, tx.sum)
		}
		for cell, wrote := range tx.wrote {
			m.cells[cell] = append(m.cells[cell], &bankEntry{wrote[1], []string{"request " + tx.request, fmt.Sprintf("transaction %d", tx.id)}})
		}
		return
	}
	m.applyRevert(t, tx, m.reverts[tx.revert])
}

// applyRevert checks what a revert wrote against what it has to be: with the writings of
// the unit taken away, and of what was cascaded to, nothing of anybody else is touched, and
// all of it is done but for the rows that were skipped.
func (m *bankModel) applyRevert(t *testing.T, tx *bankTransaction, r bankRevert) {
	t.Helper()
	if r.result == nil {
		t.Fatalf("nobody knows of revert %s", tx.revert)
	}
	who := fmt.Sprintf("the revert of %s in transaction %d (%v)", r.unit, tx.id, r.policy)
	self := fmt.Sprintf("transaction %d", tx.id)
	m.made["revert "+tx.revert] = self
	units := map[string]bool{r.unit: true, m.made[r.unit]: true}
	for _, c := range r.result.Plan.Cascaded {
		units[fmt.Sprintf("transaction %d", c.TransactionID)] = true
	}
	mayLeave := r.policy == audit.Skip || r.policy == audit.Overwrite
	named := len(r.result.Plan.Conflicts) > 0
	defer func() {
		if t.Failed() {
			t.Logf("its plan: %.4000s", r.result.Plan)
		}
	}()
	if tx.sum != 0 && !slices.Contains(m.policies, audit.Policy(audit.Skip)) {
		t.Errorf("%s changes the sum by %d", who, tx.sum)
	}
	left := make(map[string]bool) // cells of rows that the plan leaves alone
	for row := range r.result.Plan.Rows() {
		if row.Outcome == audit.Skipped {
			left[strings.TrimPrefix(row.Table, "public.")+" "+row.Key[0]] = true
		}
	}
	for _, cell := range slices.Sorted(maps.Keys(m.cells)) {
		wrote, did := tx.wrote[cell]
		entries, gone := m.without(cell, units)
		switch {
		case did && entries[len(entries)-1].value == wrote[1]:
		case did && r.policy == audit.Overwrite && named:
			entries = m.below(cell, wrote[1])
			for _, taken := range m.taken[cell] {
				if before := taken.before[len(taken.before)-1]; entries == nil && taken.by == m.made[r.unit] && before.value == wrote[1] {
					entries = append(slices.Clone(m.cells[cell]), before) // done again over others' work
				}
			}
			if entries == nil {
				t.Errorf("%s writes %s to %s, which was not there before it: %s", who, wrote[1], cell, m.story(cell))
				return
			}
		case did:
			t.Errorf("%s writes %s to %s, where others' work makes it %s: %s", who, wrote[1], cell, entries[len(entries)-1].value, m.story(cell))
		case slices.Equal(entries, m.cells[cell]):
			continue
		case entries[len(entries)-1].value == m.top(cell): // nothing to write
			if len(gone) > 0 && !named {
				t.Errorf("%s leaves writings under those of others in %s, without a conflict: %s", who, cell, m.story(cell))
			}
			continue
		case mayLeave && (left[rowOfCell(cell)] || r.policy == audit.Overwrite && named):
			continue
		default:
			t.Errorf("%s is half done: it leaves %s in %s, and others' work makes it %s: %s", who, m.top(cell), cell, entries[len(entries)-1].value, m.story(cell))
			continue
		}
		m.taken[cell] = append(m.taken[cell], bankTaken{self, m.cells[cell], entries})
		m.cells[cell] = entries
	}
}

func rowOfCell(cell string) string {
	parts := strings.Split(cell, " ")
	return parts[0] + " " + parts[1]
}

// without is a cell without the writings of units, and as it was before those of them that
// are reverts, if nobody has written there since.
func (m *bankModel) without(cell string, units map[string]bool) (entries, gone []*bankEntry) {
	ofUnits := func(e *bankEntry) bool {
		return slices.ContainsFunc(e.owners, func(owner string) bool { return units[owner] })
	}
	now := slices.Clone(m.cells[cell])
	for _, taken := range slices.Backward(m.taken[cell]) {
		if !units[taken.by] {
			continue
		}
		for len(now) > len(taken.after) && ofUnits(now[len(now)-1]) {
			now = now[:len(now)-1]
		}
		if slices.Equal(now, taken.after) {
			now = slices.Clone(taken.before)
		}
	}
	for _, e := range now {
		if ofUnits(e) {
			gone = append(gone, e)
		} else {
			entries = append(entries, e)
		}
	}
	return entries, gone
}

// story is what is in force in a cell, and what the transactions did to it.
func (m *bankModel) story(cell string) string {
	var b strings.Builder
	b.WriteString("in force are")
	for _, e := range m.cells[cell] {
		fmt.Fprintf(&b, " %s%v", e.value, e.owners)
	}
	for _, tx := range m.done {
		if wrote, ok := tx.wrote[cell]; ok {
			fmt.Fprintf(&b, "\n  transaction %d: %s -> %s by %s", tx.id, wrote[0], wrote[1], tx.request)
			if r := m.reverts[tx.revert]; r.result != nil {
				fmt.Fprintf(&b, ", revert %s of %s (%v, %d cascaded)", tx.revert, r.unit, r.policy, len(r.result.Plan.Cascaded))
			}
		}
	}
	return b.String()
}

// below is a cell down to where it held a value before.
func (m *bankModel) below(cell, value string) []*bankEntry {
	all := m.cells[cell]
	for i := len(all) - 2; i >= 0; i-- {
		if all[i].value == value {
			return slices.Clone(all[:i+1])
		}
	}
	return nil
}

// checkLive compares the last that the model knows with the rows.
func (m *bankModel) checkLive(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	rows, err := conn.Query(t.Context(), `
		SELECT 'account ' || id || ' balance', balance::text FROM account
		UNION ALL SELECT 'transfer ' || id, 'there' FROM transfer
		UNION ALL SELECT 'movement ' || id, 'there' FROM movement`)
	if err != nil {
		t.Fatal(err)
	}
	live := make(map[string]string)
	var cell, value string
	if _, err := pgx.ForEachRow(rows, []any{&cell, &value}, func() error { live[cell] = value; return nil }); err != nil {
		t.Fatal(err)
	}
	for cell := range m.cells {
		there := m.top(cell) != ""
		if !strings.HasPrefix(cell, "account") && there != (live[cell] != "") {
			t.Errorf("%s is %q, where the model has %s", cell, live[cell], m.top(cell))
		}
	}
}
