package store

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"unicode/utf8"

	"github.com/hindsight-go/audit/internal/wal"
)

// maskedFrom is from how many characters on the last four of a masked value are shown.
const maskedFrom = 12

// withheld writes what an image holds in the place of a value, as a JSON string.
func (e *encoder) withheld(dst []byte, policy wal.Policy, text []byte) []byte {
	dst = append(dst, '"')
	switch policy {
	case wal.Digest:
		mac := hmac.New(sha256.New, e.secret)
		mac.Write(text)
		dst = append(dst, "digest:"...)
		dst = hex.AppendEncode(dst, mac.Sum(nil)[:16])
	case wal.Mask:
		dst = append(dst, "***"...)
		dst = append(dst, lastFour(text)...)
	default:
		dst = append(dst, wal.Excluded...)
	}
	return append(dst, '"')
}

// lastFour returns the last characters of a long text, if they are letters, digits or
// points, as they stand in the numbers of cards and accounts.
func lastFour(text []byte) []byte {
	if utf8.RuneCount(text) < maskedFrom {
		return nil
	}
	last := text[len(text)-4:]
	for _, c := range last {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '.') {
			return nil
		}
	}
	return last
}
