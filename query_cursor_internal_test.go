package audit

import (
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"reflect"
	"testing"

	"github.com/jackc/pglogrepl"
)

// FuzzCursorRoundTrip encodes places and reads them back.
func FuzzCursorRoundTrip(f *testing.F) {
	f.Add(byte('C'), uint64(0x16_B374D848), uint32(3), "shop")
	f.Add(byte('w'), uint64(1<<64-1), uint32(1<<31-1), "\x00\xff")
	f.Add(byte('R'), uint64(0), uint32(0), "")
	f.Fuzz(func(t *testing.T, kind byte, lsn uint64, sequence uint32, database string) {
		if cursorKind(kind).String() == "" || len(database) > 1000 {
			return
		}
		want := &cursor{cursorKind(kind), []mark{{Position{pglogrepl.LSN(lsn), int(sequence >> 1)}, database}}}
		if want.kind == newestRequests || want.kind == newestRequestsBack || want.kind == watchEvents {
			want.marks = append(want.marks, mark{Position{LSN: 1}, "other"})
		}
		got, err := parseCursor(want.encode())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v became %+v, %v", want, got, err)
		}
	})
}

// FuzzParseCursor feeds it anything, with a good checksum half of the time.
func FuzzParseCursor(f *testing.F) {
	f.Add([]byte("AAAA"), true)
	f.Add([]byte{1, 'w', 3, 1, 1, 1, 'x'}, true)
	f.Add([]byte{1, 'C', 255, 255, 255, 255, 255, 255, 255, 255, 255, 1}, true)
	f.Add([]byte{2, 'C', 0}, true)
	f.Fuzz(func(t *testing.T, b []byte, sign bool) {
		text := string(b)
		if sign {
			b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
			text = base64.RawURLEncoding.EncodeToString(b)
		}
		c, err := parseCursor(Cursor(text))
		if err != nil {
			return
		}
		again, err := parseCursor(c.encode())
		if err != nil || !reflect.DeepEqual(again, c) {
			t.Fatalf("%q: %+v became %+v, %v", text, c, again, err)
		}
	})
}
