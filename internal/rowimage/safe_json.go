package rowimage

import (
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	// maxDepth keeps JSON far away from max_stack_depth of the server, and from
	// the depth at which the store refuses to embed it.
	maxDepth = 64
	// MaxNumberDigits keeps numbers inside the range of numeric, and short when
	// written out: beyond a float64 only a mistake or an attack is that long.
	MaxNumberDigits = 400
)

// AppendSafeJSON copies valid JSON so that jsonb accepts it on a server of any
// encoding: ASCII only, no \u0000, no half of a surrogate pair, no number out of
// numeric's range, no nesting that exhausts a stack.
func AppendSafeJSON(dst, src []byte) []byte {
	s := safeWriter{dst: dst, src: src}
	s.value(0)
	return s.dst
}

type safeWriter struct {
	dst, src []byte
	i        int
}

func (s *safeWriter) space() {
	for s.i < len(s.src) && strings.IndexByte(" \t\r\n", s.src[s.i]) >= 0 {
		s.i++
	}
}

func (s *safeWriter) value(depth int) {
	s.space()
	if s.i >= len(s.src) {
		return
	}
	switch c := s.src[s.i]; {
	case (c == '{' || c == '[') && depth >= maxDepth:
		s.skip()
		s.dst = append(s.dst, `"(nested too deep)"`...)
	case c == '{', c == '[':
		s.composite(depth)
	case c == '"':
		s.str()
	case c == '-' || c >= '0' && c <= '9':
		s.number()
	default: // true, false, null
		for s.i < len(s.src) && s.src[s.i] >= 'a' && s.src[s.i] <= 'z' {
			s.dst = append(s.dst, s.src[s.i])
			s.i++
		}
	}
}

func (s *safeWriter) composite(depth int) {
	for s.i < len(s.src) {
		s.space()
		switch c := s.src[s.i]; c {
		case '{', '[', ',', ':':
			s.dst = append(s.dst, c)
			s.i++
			s.space()
			if s.src[s.i] != '}' && s.src[s.i] != ']' {
				s.value(depth + 1)
			}
		case '}', ']':
			s.dst = append(s.dst, c)
			s.i++
			return
		}
	}
}

// skip passes over an object or array without recursion.
func (s *safeWriter) skip() {
	depth, quoted := 0, false
	for ; s.i < len(s.src); s.i++ {
		switch c := s.src[s.i]; {
		case quoted && c == '\\':
			s.i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			if depth--; depth == 0 {
				s.i++
				return
			}
		}
	}
}

func (s *safeWriter) str() {
	s.dst = append(s.dst, '"')
	s.i++
	for s.i < len(s.src) {
		c := s.src[s.i]
		switch {
		case c == '"':
			s.dst = append(s.dst, '"')
			s.i++
			return
		case c == '\\' && s.i+1 < len(s.src) && s.src[s.i+1] == 'u':
			s.unicode()
		case c == '\\':
			s.dst = append(s.dst, s.src[s.i:min(s.i+2, len(s.src))]...)
			s.i += 2
		case c < utf8.RuneSelf:
			s.dst = append(s.dst, c)
			s.i++
		default:
			r, size := utf8.DecodeRune(s.src[s.i:])
			s.rune(r)
			s.i += size
		}
	}
}

// unicode reads a \u escape, or two of them that make a pair.
func (s *safeWriter) unicode() {
	r := s.unit()
	s.i += 6
	if utf16.IsSurrogate(r) {
		second := rune(-1)
		if s.i+6 <= len(s.src) && s.src[s.i] == '\\' && s.src[s.i+1] == 'u' {
			second = s.unit()
		}
		if r = utf16.DecodeRune(r, second); r != utf8.RuneError {
			s.i += 6
		}
	}
	s.rune(r)
}

func (s *safeWriter) unit() rune {
	n, err := strconv.ParseUint(string(s.src[s.i+2:min(s.i+6, len(s.src))]), 16, 16)
	if err != nil {
		return utf8.RuneError
	}
	return rune(n)
}

func (s *safeWriter) rune(r rune) {
	const digits = "0123456789abcdef"
	if r == 0 {
		r = utf8.RuneError
	}
	unit := func(u rune) {
		s.dst = append(s.dst, '\\', 'u', digits[u>>12&15], digits[u>>8&15], digits[u>>4&15], digits[u&15])
	}
	if r1, r2 := utf16.EncodeRune(r); r1 != utf8.RuneError {
		unit(r1)
		unit(r2)
		return
	}
	unit(r)
}

func (s *safeWriter) number() {
	start := s.i
	for s.i < len(s.src) && strings.IndexByte("+-.eE0123456789", s.src[s.i]) >= 0 {
		s.i++
	}
	text := string(s.src[start:s.i])
	d := parseDecimal(text)
	if len(text) > MaxNumberDigits || d.exponent > MaxNumberDigits || d.exponent < -MaxNumberDigits {
		s.dst = append(s.dst, '"')
		s.dst = append(s.dst, text...)
		s.dst = append(s.dst, '"')
		return
	}
	s.dst = append(s.dst, text...)
}

// HasBadEscape finds \u0000 and halves of surrogate pairs.
func HasBadEscape(text []byte) bool {
	unit := func(i int) rune {
		if i+6 > len(text) || text[i] != '\\' || text[i+1] != 'u' {
			return -1
		}
		n, err := strconv.ParseUint(string(text[i+2:i+6]), 16, 16)
		if err != nil {
			return -1
		}
		return rune(n)
	}
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		r := unit(i)
		switch {
		case r == 0:
			return true
		case r > 0 && utf16.IsSurrogate(r):
			if utf16.DecodeRune(r, unit(i+6)) == utf8.RuneError {
				return true
			}
			i += 11
		default:
			i++
		}
	}
	return false
}
