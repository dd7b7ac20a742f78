package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/wal"
)

// message builds a pgoutput message as the documentation of the protocol lays
// it out: numbers big-endian, strings ended by a NUL.
type message []byte

func (m message) u8(v byte) message     { return append(m, v) }
func (m message) u16(v uint16) message  { return binary.BigEndian.AppendUint16(m, v) }
func (m message) u32(v uint32) message  { return binary.BigEndian.AppendUint32(m, v) }
func (m message) u64(v uint64) message  { return binary.BigEndian.AppendUint64(m, v) }
func (m message) str(v string) message  { return append(append(m, v...), 0) }
func (m message) raw(v string) message  { return append(m, v...) }
func (m message) text(v string) message { return m.u8('t').u32(uint32(len(v))).raw(v) }

// The messages of a transaction that does a bit of everything, with the lines in
// which a recorder notes what the sink is told.
var script = []struct {
	name string
	body message
	want []string
}{
	{"begin", message("B").u64(0x1000).u64(77).u32(9), []string{"begin xid 9 at 0/1000 time 77"}},
	{"origin", message("O").u64(1).str("elsewhere"), nil},
	{"type", message("Y").u32(90000).str("public").str("mood"), nil},
	{
		"relation", message("R").u32(7).str("public").str("todo").u8('f').u16(2).
			u8(1).str("id").u32(23).u32(^uint32(0)).
			u8(1).str("title").u32(25).u32(^uint32(0)), nil,
	},
	{"relation of pg_catalog", message("R").u32(8).str("").str("pg_odd").u8('d').u16(0), nil},
	{"stray stream abort", message("A").u32(9).u32(9), nil},
	{"message", message("M").u8(1).u64(5).str("audit").u32(2).raw("{}"), []string{"stamp {}"}},
	{"message of others", message("M").u8(1).u64(5).str("auditor").u32(2).raw("{}"), nil},
	{"message of Bemi", message("M").u8(1).u64(5).str("_bemi").u32(3).raw("[1]"), []string{"stamp [1]"}},
	{"message outside the transaction", message("M").u8(0).u64(5).str("audit").u32(2).raw("{}"), nil},
	{"barrier", message("M").u8(1).u64(5).str("audit_sync").u32(0), []string{"barrier"}},
	{"refresh", message("M").u8(0).u64(5).str("audit_refresh").u32(0), []string{"refresh"}},
	{"insert", message("I").u32(7).u8('N').u16(2).text("1").text("it's"), []string{"relation public.todo f [id title]", "I todo nil [1 it's]"}},
	{"insert of nothing", message("I").u32(7).u8('N').u16(2).text("").u8('n'), []string{"I todo nil [ NULL]"}},
	{"update with the old row", message("U").u32(7).u8('O').u16(2).text("1").text("long").u8('N').u16(2).text("2").u8('u'), []string{"U todo [1 long] [2 UNCHANGED]"}},
	{"update with the old key", message("U").u32(7).u8('K').u16(2).text("1").u8('n').u8('N').u16(2).text("2").text("x"), []string{"U todo key [1 NULL] [2 x]"}},
	{"update alone", message("U").u32(7).u8('N').u16(2).text("2").text("x"), []string{"U todo nil [2 x]"}},
	{"delete", message("D").u32(7).u8('O').u16(2).text("2").text("x"), []string{"D todo [2 x] nil"}},
	{"delete by key", message("D").u32(7).u8('K').u16(2).text("2").u8('n'), []string{"D todo key [2 NULL] nil"}},
	{
		"truncate", message("T").u32(2).u8(3).u32(7).u32(8),
		[]string{"relation pg_catalog.pg_odd d []", "T todo nil nil", "T pg_odd nil nil"},
	},
	{"commit", message("C").u8(0).u64(0x1000).u64(0x1030).u64(77), []string{"commit 0/1030"}},
}

// recorder is a sink that notes what it is told.
type recorder struct {
	Sink
	lines []string
	quiet bool
}

func (r *recorder) note(format string, args ...any) {
	if !r.quiet {
		r.lines = append(r.lines, fmt.Sprintf(format, args...))
	}
}

func (r *recorder) Begin(t Transaction) {
	if !r.quiet {
		r.note("begin xid %d at %s time %d", t.XID, t.CommitLSN, t.CommitTime)
	}
}
func (r *recorder) Commit(end LSN) { r.note("commit %s", end) }
func (r *recorder) Stamp(content []byte, size int) {
	if size > len(content) {
		r.note("stamp of %d: %s", size, content)
		return
	}
	r.note("stamp %s", content)
}
func (r *recorder) Barrier(string) { r.note("barrier") }
func (r *recorder) Finish()        { r.note("finish") }
func (r *recorder) Relation(rel *Relation) {
	var names []string
	for _, c := range rel.Columns {
		names = append(names, c.Name)
	}
	r.note("relation %s.%s %c %s", rel.Schema, rel.Table, rel.ReplicaIdentity, names)
}

func (r *recorder) Structure(*Structure) {}

func (r *recorder) Row(row *Row) {
	if r.quiet {
		return
	}
	show := func(t wal.Tuple) string {
		if t == nil {
			return "nil"
		}
		var values []string
		for _, d := range t {
			switch d.State {
			case wal.Null:
				values = append(values, "NULL")
			case wal.Unchanged:
				values = append(values, "UNCHANGED")
			case wal.Omitted:
				values = append(values, fmt.Sprintf("OMITTED %d", d.Size))
			default:
				values = append(values, string(d.Text))
			}
		}
		return "[" + strings.Join(values, " ") + "]"
	}
	before := show(row.Old)
	if row.OldIsKey {
		before = "key " + before
	}
	r.note("%c %s %s %s", row.Operation, row.Relation.Table, before, show(row.New))
}

// noCatalog is a source whose catalog knows nothing any more.
type noCatalog struct{}

func (noCatalog) Query(context.Context, string, ...any) (pgx.Rows, error) {
	return nil, errors.New("no catalog")
}
func (noCatalog) QueryRow(context.Context, string, ...any) pgx.Row { return noRow{} }

type noRow struct{}

func (noRow) Scan(...any) error { return pgx.ErrNoRows }

func newTestSession(r *recorder) *session {
	return &session{
		cfg:       &Config{Catalog: noCatalog{}, Prefix: "audit", OnRefresh: func() { r.note("refresh") }},
		sink:      r,
		relations: make(map[uint32]*relationState), structures: make(map[uint32]*wal.Structure), kinds: NewKinds(noCatalog{}),
	}
}

func TestEveryMessageOfATransaction(t *testing.T) {
	t.Parallel()
	r := &recorder{}
	s := newTestSession(r)
	for _, step := range script {
		r.lines = nil
		if err := s.change(t.Context(), step.body[0], step.body[1:]); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if diff := cmp.Diff(step.want, r.lines); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, diff)
		}
	}
}

// A message that ends early is an error, wherever it ends: half a change must
// not be taken for a whole one.
func TestMessagesThatEndEarly(t *testing.T) {
	t.Parallel()
	for at, step := range script {
		switch step.body[0] {
		case msgOrigin, msgType, msgStreamAbort: // not looked at
			continue
		}
		for n := 1; n < len(step.body); n++ {
			r := &recorder{}
			s := newTestSession(r)
			for _, before := range script[:at] {
				if err := s.change(t.Context(), before.body[0], before.body[1:]); err != nil {
					t.Fatal(err)
				}
			}
			// What follows in the buffer must not be read.
			r.lines = nil
			err := s.change(t.Context(), step.body[0], step.body[1:n])
			var decode *DecodeError
			if !errors.As(err, &decode) || decode.Message != step.body[0] {
				t.Errorf("%s, first %d bytes of %d: error %v, sink %q", step.name, n, len(step.body), err, r.lines)
			}
		}
	}
}

func TestMessagesThatMakeNoSense(t *testing.T) {
	t.Parallel()
	begin := message("B").u64(0x1000).u64(77).u32(9)
	relation := message("R").u32(7).str("public").str("todo").u8('f').u16(1).u8(1).str("id").u32(23).u32(0)
	for name, messages := range map[string][]message{
		"an unknown message":              {begin, message("Z")},
		"a message of protocol 2":         {message("S").u32(9).u8(1)},
		"a transaction in a transaction":  {begin, begin},
		"a commit outside of one":         {message("C").u8(0).u64(1).u64(2).u64(3)},
		"a change outside of one":         {relation, message("I").u32(7).u8('N').u16(1).text("1")},
		"a truncate outside of one":       {relation, message("T").u32(1).u8(0).u32(7)},
		"a context outside of one":        {message("M").u8(1).u64(5).str("audit").u32(0)},
		"a table never described":         {begin, message("I").u32(7).u8('N').u16(1).text("1")},
		"a truncate of one":               {begin, message("T").u32(1).u8(0).u32(7)},
		"a value too few":                 {begin, relation, message("I").u32(7).u8('N').u16(0)},
		"a value too many":                {begin, relation, message("I").u32(7).u8('N').u16(2).text("1").text("2")},
		"an old value too many":           {begin, relation, message("D").u32(7).u8('O').u16(2).text("1").text("2")},
		"a binary value":                  {begin, relation, message("I").u32(7).u8('N').u16(1).u8('b').u32(1).raw("1")},
		"an insert with an old row":       {begin, relation, message("I").u32(7).u8('O').u16(1).text("1").u8('N').u16(1).text("1")},
		"an update with an old row alone": {begin, relation, message("U").u32(7).u8('O').u16(1).text("1")},
		"a delete with a new row":         {begin, relation, message("D").u32(7).u8('N').u16(1).text("1")},
		"a value longer than the message": {begin, relation, message("I").u32(7).u8('N').u16(1).u8('t').u32(1 << 31).raw("1")},
		"a truncate of four billion":      {begin, relation, message("T").u32(^uint32(0)).u8(0).u32(7)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTestSession(&recorder{})
			last := len(messages) - 1
			for _, m := range messages[:last] {
				if err := s.change(t.Context(), m[0], m[1:]); err != nil {
					t.Fatal(err)
				}
			}
			var decode *DecodeError
			if err := s.change(t.Context(), messages[last][0], messages[last][1:]); !errors.As(err, &decode) {
				t.Errorf("error %v, want a *DecodeError", err)
			}
		})
	}
}

// A table may have no columns, and still rows.
func TestRowsWithoutColumns(t *testing.T) {
	t.Parallel()
	r := &recorder{}
	s := newTestSession(r)
	for _, m := range []message{
		message("B").u64(0x1000).u64(77).u32(9),
		message("R").u32(7).str("public").str("empty").u8('f').u16(0),
		message("D").u32(7).u8('O').u16(0),
		message("I").u32(7).u8('N').u16(0),
		message("U").u32(7).u8('O').u16(0).u8('N').u16(0),
	} {
		if err := s.change(t.Context(), m[0], m[1:]); err != nil {
			t.Fatalf("%q: %v", m, err)
		}
	}
	want := []string{"begin xid 9 at 0/1000 time 77", "relation public.empty f []", "D empty [] nil", "I empty nil []", "U empty [] []"}
	if diff := cmp.Diff(want, r.lines); diff != "" {
		t.Errorf("sink (-want +got):\n%s", diff)
	}
}

// A transaction that committed before the checkpoint is stored already.
func TestTransactionsBeforeTheCheckpointAreSkipped(t *testing.T) {
	t.Parallel()
	for start, want := range map[LSN]int{0xfff: 1, 0x1000: 1, 0x1001: 0} {
		r := &recorder{}
		s := newTestSession(r)
		s.start = start
		for _, step := range script {
			if err := s.change(t.Context(), step.body[0], step.body[1:]); err != nil {
				t.Fatal(err)
			}
		}
		told := strings.Count(strings.Join(r.lines, "\n"), "commit 0/1030")
		if told != want || want == 0 && len(r.lines) > 1 { // the refresh is nobody's
			t.Errorf("from %s: the sink was told %q", start, r.lines)
		}
	}
}

// The wire has 32 bits of a transaction id; history has 64.
func TestTransactionIDsAreWidened(t *testing.T) {
	t.Parallel()
	const epoch = uint64(1) << 32
	for _, c := range []struct {
		known uint64
		wire  uint32
		want  uint64
	}{
		{1000, 999, 999},
		{1000, 1001, 1001},
		{epoch - 5, 3, epoch + 3},
		{epoch + 3, uint32(epoch - 5), epoch - 5},
		{5*epoch + 7, 7, 5*epoch + 7},
		{5*epoch - 1, 0, 5 * epoch},
		{5 * epoch, ^uint32(0), 5*epoch - 1},
	} {
		s := &session{xid: c.known}
		if got := s.widen(c.wire); got != c.want {
			t.Errorf("%d seen from %d is %d, want %d", c.wire, c.known, got, c.want)
		}
	}
}

// Whatever bytes come: no panic, and nothing behind the message is read.
func FuzzMessages(f *testing.F) {
	for _, step := range script {
		f.Add([]byte(step.body))
	}
	f.Add([]byte("I\x00\x00\x00\x07N\xff\xff"))
	f.Add([]byte("R\x00\x00\x00\x07\x00\x00f\xff\xff"))
	prepare := func(t *testing.T) (*session, *recorder) {
		t.Helper()
		r := &recorder{}
		s := newTestSession(r)
		for _, step := range script[:4] {
			if err := s.change(t.Context(), step.body[0], step.body[1:]); err != nil {
				t.Fatal(err)
			}
		}
		return s, r
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) == 0 {
			return
		}
		outcome := func(body []byte) string {
			s, r := prepare(t)
			err := s.change(t.Context(), body[0], body[1:])
			return fmt.Sprint(r.lines, err)
		}
		alone := outcome(append(make([]byte, 0, len(body)), body...))
		// The same, with another message behind it in the buffer.
		for _, tail := range []string{"\x00\x00\x00\x00\x00\x00\x00\x00\x00", "tttttttttttttttt", "\xff\xff\xff\xff\xff\xff\xff\xff"} {
			if got := outcome(append(append([]byte(nil), body...), tail...)[:len(body)]); got != alone {
				t.Errorf("%q is %s alone, %s with something behind it", body, alone, got)
			}
		}
	})
}

// The replication protocol around pgoutput: frames of any kind, cut anywhere.
func FuzzFrames(f *testing.F) {
	frame := func(kind byte, body message) message {
		return message{kind}.u32(uint32(len(body) + 4)).raw(string(body))
	}
	var all message
	for _, step := range script {
		all = append(all, frame('d', message("w").u64(0).u64(0).u64(0).raw(string(step.body)))...)
	}
	all = append(all, frame('d', message("k").u64(0x2000).u64(1).u8(1))...)
	f.Add([]byte(all), uint(7))
	f.Add([]byte(frame('E', message("SERROR").u8(0).raw("Mno").u8(0).u8(0))), uint(3))
	f.Add([]byte("d\xff\xff\xff\xff"), uint(1))
	f.Add([]byte("d\x00\x00\x00\x00"), uint(1))
	f.Fuzz(func(t *testing.T, data []byte, cut uint) {
		s := &stream{buf: make([]byte, 512), limits: limits{row: 100, context: 10, prefixes: []string{"audit"}}}
		session := newTestSession(&recorder{})
		session.sink = &keeper{session.sink.(*recorder)}
		// As fill does, but from data.
		for len(data) > 0 {
			n := min(len(data), int(cut%1000)+1, len(s.buf)-s.to)
			s.to += copy(s.buf[s.to:], data[:n])
			data = data[n:]
			for {
				kind, body, ok, err := s.next()
				if err != nil {
					return
				}
				if !ok {
					break
				}
				if session.message(t.Context(), kind, body) != nil {
					return
				}
			}
			s.to = copy(s.buf, s.buf[s.from:s.to])
			s.from = 0
			if s.to == len(s.buf) {
				t.Fatal("the buffer is full, and nothing comes out of it")
			}
		}
	})
}

// keeper is a recorder that takes keepalives.
type keeper struct{ *recorder }

func (keeper) Advance(LSN) {}

// A row costs no memory of its own.
func TestRowsAreDecodedWithoutAllocation(t *testing.T) {
	r := &recorder{quiet: true}
	s := newTestSession(r)
	for _, step := range script[:4] {
		if err := s.change(t.Context(), step.body[0], step.body[1:]); err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	for _, step := range script {
		switch step.body[0] {
		case msgInsert, msgUpdate, msgDelete:
			allocations := testing.AllocsPerRun(100, func() {
				if err := s.change(ctx, step.body[0], step.body[1:]); err != nil {
					t.Error(err)
				}
			})
			if allocations != 0 {
				t.Errorf("%s: %v allocations", step.name, allocations)
			}
		}
	}
}

func BenchmarkDecodeRow(b *testing.B) {
	s := newTestSession(&recorder{quiet: true})
	relation := message("R").u32(7).str("public").str("todo").u8('f').u16(12)
	row := message("U").u32(7)
	for _, kind := range []byte{'O', 'N'} {
		row = row.u8(kind).u16(12)
		for range 12 {
			row = row.text("twenty bytes of text")
		}
	}
	for i := range 12 {
		relation = relation.u8(1).str(fmt.Sprint("c", i)).u32(25).u32(0)
	}
	for _, m := range []message{message("B").u64(1).u64(1).u32(1), relation} {
		if err := s.change(b.Context(), m[0], m[1:]); err != nil {
			b.Fatal(err)
		}
	}
	ctx := b.Context()
	b.SetBytes(int64(len(row)))
	b.ReportAllocs()
	for b.Loop() {
		if err := s.change(ctx, row[0], row[1:]); err != nil {
			b.Fatal(err)
		}
	}
}
