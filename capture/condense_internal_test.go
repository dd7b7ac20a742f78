package capture

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// through sends messages through a buffer of the given size, a few bytes at a time,
// and returns what the sink is told.
func through(t *testing.T, buffer, piece int, l limits, messages ...message) ([]string, error) {
	t.Helper()
	r := &recorder{}
	s := newTestSession(r)
	in := &stream{buf: make([]byte, buffer), limits: l}
	var data message
	for _, m := range messages {
		body := message("w").u64(0).u64(0).u64(0).raw(string(m))
		data = data.u8('d').u32(uint32(len(body) + 4)).raw(string(body))
	}
	for len(data) > 0 {
		in.to = copy(in.buf, in.buf[in.from:in.to])
		in.from = 0
		n := copy(in.buf[in.to:], data[:min(len(data), piece)])
		if n == 0 {
			t.Fatal("the buffer is full, and nothing comes out of it")
		}
		in.to, data = in.to+n, data[n:]
		for {
			kind, body, ok, err := in.next()
			if err == nil && ok {
				err = s.message(t.Context(), kind, body)
			}
			if err != nil {
				return r.lines, err
			}
			if !ok {
				break
			}
		}
	}
	return r.lines, nil
}

var ofTodo = []message{
	message("B").u64(0x1000).u64(77).u32(9),
	message("R").u32(7).str("public").str("todo").u8('f').u16(3).
		u8(1).str("body").u32(25).u32(^uint32(0)).u8(1).str("id").u32(23).u32(^uint32(0)).u8(1).str("note").u32(25).u32(^uint32(0)),
}

// Whether a message fits into the buffer changes nothing, as long as the limits
// take it, and however it arrives.
func TestCondense_WithinTheLimits(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("y", 3000)
	messages := append([]message{}, ofTodo...)
	messages = append(messages,
		message("M").u8(1).u64(5).str("audit").u32(3002).raw(`"`+long+`"`),
		message("M").u8(1).u64(5).str("other").u32(3000).raw(long),
		message("I").u32(7).u8('N').u16(3).text(long).text("1").u8('n'),
		message("U").u32(7).u8('O').u16(3).text(long).text("1").u8('n').u8('N').u16(3).u8('u').text("1").text(long),
		message("U").u32(7).u8('K').u16(3).u8('n').text("1").u8('n').u8('N').u16(3).text(long).text("2").text(long),
		message("D").u32(7).u8('O').u16(3).text(long).text("2").text(long),
		message("T").u32(1).u8(0).u32(7),
	)
	l := limits{row: 6000, context: 4000, prefixes: []string{"audit"}}
	want, err := through(t, 1<<20, 1<<20, l, messages...)
	if err != nil {
		t.Fatal(err)
	}
	for _, piece := range []int{1, 7, 300} {
		got, err := through(t, 512, piece, l, messages...)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("in pieces of %d (-want +got):\n%.2000s", piece, diff)
		}
	}
}

// What is over the limits is left out, and the rest is not.
func TestCondense_OverTheLimits(t *testing.T) {
	t.Parallel()
	huge := strings.Repeat("z", 100_000)
	some := strings.Repeat("y", 9000)
	for name, c := range map[string]struct {
		message message
		want    string
	}{
		"context":                {message("M").u8(1).u64(5).str("audit").u32(100_000).raw(huge), "stamp of 100000: " + huge[:10]},
		"message of others":      {message("M").u8(1).u64(5).str("other").u32(100_000).raw(huge), ""},
		"outside transactions":   {message("M").u8(0).u64(5).str("audit").u32(100_000).raw(huge), ""},
		"refresh":                {message("M").u8(0).u64(5).str("audit_refresh").u32(100_000).raw(huge), "refresh"},
		"barrier":                {message("M").u8(1).u64(5).str("audit_sync").u32(100_000).raw(huge), "barrier"},
		"prefix":                 {message("M").u8(1).u64(5).str(huge).u32(0), ""},
		"prefix that begins so":  {message("M").u8(1).u64(5).str("audit" + huge).u32(2).raw("{}"), ""},
		"value":                  {message("I").u32(7).u8('N').u16(3).text(huge).text("1").text("x"), "I todo nil [OMITTED 100000 1 x]"},
		"second of two":          {message("I").u32(7).u8('N').u16(3).text(some).text("1").text(huge), "I todo nil [" + some + " 1 OMITTED 100000]"},
		"small ones behind":      {message("I").u32(7).u8('N').u16(3).text(some).text(some[:8000]).text(some[:8000]), "I todo nil [" + some + " " + some[:8000] + " " + some[:8000] + "]"},
		"each version by itself": {message("U").u32(7).u8('O').u16(3).text(some).text("1").u8('n').u8('N').u16(3).text(some).text("1").text(huge), "U todo [" + some + " 1 NULL] [" + some + " 1 OMITTED 100000]"},
		"unchanged":              {message("U").u32(7).u8('O').u16(3).text(huge).text("1").u8('n').u8('N').u16(3).u8('u').text("1").u8('n'), "U todo [OMITTED 100000 1 NULL] [UNCHANGED 1 NULL]"},
		"of a row that went":     {message("D").u32(7).u8('O').u16(3).text(huge).text("1").u8('n'), "D todo [OMITTED 100000 1 NULL] nil"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := limits{row: 10_000, context: 10, prefixes: []string{"audit"}}
			got, err := through(t, 512, 100, l, append(append([]message{}, ofTodo...), c.message, message("I").u32(7).u8('N').u16(3).text("a").text("2").u8('n'))...)
			if err != nil {
				t.Fatal(err)
			}
			all := strings.Join(got, "\n")
			if !strings.Contains(all, "I todo nil [a 2 NULL]") {
				t.Errorf("what follows is lost: %.300s", all)
			}
			if c.want == "" && len(got) != 3 || !strings.Contains(all+"\n", c.want+"\n") {
				t.Errorf("the sink is told %.300s, want %.100s", all, c.want)
			}
		})
	}
}

// A large message that makes no sense is an error, like a small one.
func TestCondense_Nonsense(t *testing.T) {
	t.Parallel()
	huge := strings.Repeat("z", 10_000)
	for name, m := range map[string]message{
		"a value longer than the message":   message("I").u32(7).u8('N').u16(1).u8('t').u32(20_000).raw(huge),
		"bytes behind the row":              message("I").u32(7).u8('N').u16(1).text("1").raw(huge),
		"columns that do not come":          message("I").u32(7).u8('N').u16(2).text(huge),
		"an unknown column":                 message("I").u32(7).u8('N').u16(2).u8('b').u32(10_000).raw(huge),
		"an unknown tuple":                  message("I").u32(7).u8('Z').u16(2).text(huge),
		"an update with an old row alone":   message("U").u32(7).u8('O').u16(1).text(huge),
		"content longer than the message":   message("M").u8(1).u64(5).str("audit").u32(20_000).raw(huge),
		"content shorter than the message":  message("M").u8(1).u64(5).str("audit").u32(1).raw(huge),
		"a truncate of more than is there":  message("T").u32(1 << 30).u8(0).raw(huge),
		"a relation that ends in its names": message("R").u32(7).raw(huge),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := through(t, 512, 100, limits{row: 1000, context: 10, prefixes: []string{"audit"}}, append(append([]message{}, ofTodo...), m)...)
			var decode *DecodeError
			if !errors.As(err, &decode) || decode.Message != m[0] {
				t.Errorf("error %v, want a *DecodeError of %q", err, m[0])
			}
		})
	}
}
