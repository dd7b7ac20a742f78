package audit

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/jackc/pglogrepl"
)

// Position is the place of a change in history: the commit LSN of its
// transaction and the ordinal of the change inside it, from 1. Positions of one
// source are the total order of its history; nothing else is, since commit
// times and transaction ids both run backwards under concurrency.
//
// Sequence 0 stands before the first change of the transaction. The zero
// Position stands before all of history.
//
// LSNs of different database clusters have nothing to do with each other.
// Where one store holds several sources, only positions of the same database
// may be compared.
type Position struct {
	LSN      pglogrepl.LSN
	Sequence int
}

// String returns the position as the LSN in PostgreSQL's notation, a number
// sign and the sequence: "16/B374D848#3". [ParsePosition] reads it back.
func (p Position) String() string {
	return string(p.append(make([]byte, 0, 24)))
}

func (p Position) append(dst []byte) []byte {
	dst = appendLSN(dst, p.LSN)
	dst = append(dst, '#')
	return strconv.AppendInt(dst, int64(p.Sequence), 10)
}

// Compare returns -1 if p comes before other, 0 if they are the same place and
// +1 if p comes after other.
func (p Position) Compare(other Position) int {
	return cmp.Or(cmp.Compare(p.LSN, other.LSN), cmp.Compare(p.Sequence, other.Sequence))
}

// IsZero reports whether p is the zero Position, the place before all history.
func (p Position) IsZero() bool { return p == Position{} }

// MarshalText returns the form of [Position.String].
func (p Position) MarshalText() ([]byte, error) {
	return p.append(make([]byte, 0, 24)), nil
}

// UnmarshalText reads what [ParsePosition] accepts.
func (p *Position) UnmarshalText(text []byte) error {
	parsed, err := ParsePosition(string(text))
	if err != nil {
		return err
	}
	*p = parsed
	return nil
}

// ParsePosition reads the form that [Position.String] writes. The hexadecimal
// digits may be of either case. A bare LSN such as "16/B374D848" is taken as
// the place before the first change of the transaction (Sequence 0).
func ParsePosition(text string) (Position, error) {
	lsnText, sequenceText, hasSequence := strings.Cut(text, "#")
	lsn, err := parseLSN(lsnText)
	if err != nil {
		return Position{}, fmt.Errorf("audit: parse position %q: %w", clip(text, 40), err)
	}
	if !hasSequence {
		return Position{LSN: lsn}, nil
	}
	sequence, err := strconv.ParseUint(sequenceText, 10, 31)
	if err != nil {
		return Position{}, fmt.Errorf("audit: parse position %q: the sequence after # is not a number from 0 to %d", clip(text, 40), math.MaxInt32)
	}
	return Position{LSN: lsn, Sequence: int(sequence)}, nil
}

var errNotLSN = errors.New("not two hexadecimal numbers of up to 8 digits with a slash between them, as in 16/B374D848")

// parseLSN is strict where pglogrepl.ParseLSN, by way of Sscanf, ignores
// whatever follows.
func parseLSN(text string) (pglogrepl.LSN, error) {
	high, low, found := strings.Cut(text, "/")
	if !found || len(high) > 8 || len(low) > 8 {
		return 0, errNotLSN
	}
	h, err := strconv.ParseUint(high, 16, 32)
	if err != nil {
		return 0, errNotLSN
	}
	l, err := strconv.ParseUint(low, 16, 32)
	if err != nil {
		return 0, errNotLSN
	}
	return pglogrepl.LSN(h<<32 | l), nil
}

func appendLSN(dst []byte, lsn pglogrepl.LSN) []byte {
	const digits = "0123456789ABCDEF"
	appendHex := func(v uint32) {
		shift := 28
		for shift > 0 && v>>shift == 0 {
			shift -= 4
		}
		for ; shift >= 0; shift -= 4 {
			dst = append(dst, digits[v>>shift&15])
		}
	}
	appendHex(uint32(lsn >> 32))
	dst = append(dst, '/')
	appendHex(uint32(lsn))
	return dst
}

// clip shortens text to at most size bytes, at a rune's edge, for messages.
func clip(text string, size int) string {
	if len(text) <= size {
		return text
	}
	end := 0
	for i := range text {
		if i > size {
			break
		}
		end = i
	}
	return text[:end] + "…"
}
