package rowimage

import (
	"math"
	"strconv"
	"strings"
)

// FloatText is the shortest text that reads back as the same float, with an
// exponent where PostgreSQL writes one.
func FloatText(f float64, bits int) string {
	switch {
	case math.IsNaN(f):
		return "NaN"
	case math.IsInf(f, 1):
		return "Infinity"
	case math.IsInf(f, -1):
		return "-Infinity"
	}
	text := strconv.FormatFloat(f, 'e', -1, bits)
	digits := map[int]int{32: 6, 64: 15}[bits]
	if exponent, err := strconv.Atoi(text[strings.IndexByte(text, 'e')+1:]); err == nil && (exponent < -4 || exponent >= digits) {
		return text
	}
	return strconv.FormatFloat(f, 'f', -1, bits)
}
