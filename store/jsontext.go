package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"unicode/utf8"
)

// jsonFacts is what has to be known of a JSON text before it may be embedded in
// a jsonb image: jsonb refuses some valid JSON, and silently normalises other.
type jsonFacts struct {
	top       byte // the first byte: { [ " t f n or of a number
	duplicate bool // an object names a key twice: jsonb keeps only the last
	refused   bool // \u0000, a lone surrogate, a number out of numeric's range
	longID    bool // an id at the top level too long to be indexed
}

// embeds reports whether the text survives as part of a jsonb value.
func (f jsonFacts) embeds() bool { return !f.duplicate && !f.refused }

const (
	// maxDepth keeps embedded JSON far from max_stack_depth of the store, which
	// jsonb's recursive parser would hit at several thousand levels.
	maxDepth = 256
	// maxNumber bounds the digits of a number and, separately, its exponent. It
	// keeps both together inside numeric: 131,072 digits before the point, 16,383
	// behind it.
	maxNumber = 8_000
	// maxID keeps the index entry of a user or a request under a third of a page.
	maxID = 1024
)

var errNotJSON = errors.New("not JSON")

// scanJSON validates text as one JSON value by RFC 8259 and gathers its facts.
func scanJSON(text []byte) (jsonFacts, error) {
	if !utf8.Valid(text) {
		return jsonFacts{}, errNotJSON
	}
	s := jsonScanner{b: text}
	s.space()
	if s.i < len(s.b) {
		s.facts.top = s.b[s.i]
	}
	if !s.value(0) {
		if s.deep && json.Valid(text) {
			s.facts.refused = true
			return s.facts, nil
		}
		return s.facts, errNotJSON
	}
	s.space()
	if s.i != len(s.b) {
		return s.facts, errNotJSON
	}
	return s.facts, nil
}

type jsonScanner struct {
	b     []byte
	i     int
	deep  bool // gave up at maxDepth
	facts jsonFacts
}

func (s *jsonScanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\n', '\r':
			s.i++
		default:
			return
		}
	}
}

func (s *jsonScanner) literal(word string) bool {
	if len(s.b)-s.i < len(word) || string(s.b[s.i:s.i+len(word)]) != word {
		return false
	}
	s.i += len(word)
	return true
}

func (s *jsonScanner) value(depth int) bool {
	if s.i >= len(s.b) {
		return false
	}
	if depth > maxDepth {
		s.deep = true
		return false
	}
	switch c := s.b[s.i]; {
	case c == '{':
		return s.object(depth)
	case c == '[':
		return s.array(depth)
	case c == '"':
		_, ok := s.str()
		return ok
	case c == '-' || c >= '0' && c <= '9':
		return s.number()
	case c == 't':
		return s.literal("true")
	case c == 'f':
		return s.literal("false")
	case c == 'n':
		return s.literal("null")
	}
	return false
}

func (s *jsonScanner) object(depth int) bool {
	s.i++
	var few [16][]byte // most objects: no allocation for the slice
	keys := few[:0]
	for first := true; ; first = false {
		s.space()
		if s.i >= len(s.b) {
			return false
		}
		if s.b[s.i] == '}' && first {
			s.i++
			return true
		}
		raw, ok := s.str()
		if !ok {
			return false
		}
		key := raw
		if slices.Contains(raw, '\\') {
			var plain string
			if json.Unmarshal(s.b[s.i-len(raw)-2:s.i], &plain) == nil {
				key = []byte(plain)
			}
		}
		keys = append(keys, key)
		s.space()
		if s.i >= len(s.b) || s.b[s.i] != ':' {
			return false
		}
		s.i++
		s.space()
		start := s.i
		if !s.value(depth + 1) {
			return false
		}
		if depth == 0 && s.i-start > maxID && isIndexed(key) {
			s.facts.longID = true
		}
		s.space()
		if s.i >= len(s.b) {
			return false
		}
		switch s.b[s.i] {
		case ',':
			s.i++
		case '}':
			s.i++
			slices.SortFunc(keys, bytes.Compare)
			if len(slices.CompactFunc(keys, bytes.Equal)) != len(keys) {
				s.facts.duplicate = true
			}
			return true
		default:
			return false
		}
	}
}

// isIndexed reports whether a member of a context has an index of its own.
func isIndexed(name []byte) bool {
	switch string(name) {
	case "userId", "user_id", "requestId", "request_id":
		return true
	}
	return false
}

func (s *jsonScanner) array(depth int) bool {
	s.i++
	for first := true; ; first = false {
		s.space()
		if s.i >= len(s.b) {
			return false
		}
		if s.b[s.i] == ']' && first {
			s.i++
			return true
		}
		if !s.value(depth + 1) {
			return false
		}
		s.space()
		if s.i >= len(s.b) {
			return false
		}
		switch s.b[s.i] {
		case ',':
			s.i++
		case ']':
			s.i++
			return true
		default:
			return false
		}
	}
}

// str reads a string and returns what stands between its quotes.
func (s *jsonScanner) str() ([]byte, bool) {
	if s.i >= len(s.b) || s.b[s.i] != '"' {
		return nil, false
	}
	s.i++
	start := s.i
	for s.i < len(s.b) {
		switch c := s.b[s.i]; {
		case c == '"':
			s.i++
			return s.b[start : s.i-1], true
		case c < 0x20:
			return nil, false
		case c == '\\':
			if !s.escape() {
				return nil, false
			}
		default:
			s.i++
		}
	}
	return nil, false
}

func (s *jsonScanner) escape() bool {
	if s.i+1 >= len(s.b) {
		return false
	}
	switch s.b[s.i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.i += 2
		return true
	case 'u':
	default:
		return false
	}
	unit, ok := s.hex(s.i + 2)
	if !ok {
		return false
	}
	s.i += 6
	switch {
	case unit == 0:
		s.facts.refused = true
	case unit >= 0xDC00 && unit <= 0xDFFF:
		s.facts.refused = true
	case unit >= 0xD800 && unit <= 0xDBFF:
		low := uint(0)
		if s.i+1 < len(s.b) && s.b[s.i] == '\\' && s.b[s.i+1] == 'u' {
			low, _ = s.hex(s.i + 2)
		}
		if low < 0xDC00 || low > 0xDFFF {
			s.facts.refused = true
			return true
		}
		s.i += 6
	}
	return true
}

func (s *jsonScanner) hex(at int) (uint, bool) {
	if at+4 > len(s.b) {
		return 0, false
	}
	var v uint
	for _, c := range s.b[at : at+4] {
		switch {
		case c >= '0' && c <= '9':
			v = v<<4 | uint(c-'0')
		case c >= 'a' && c <= 'f':
			v = v<<4 | uint(c-'a'+10)
		case c >= 'A' && c <= 'F':
			v = v<<4 | uint(c-'A'+10)
		default:
			return 0, false
		}
	}
	return v, true
}

func (s *jsonScanner) digits() int {
	start := s.i
	for s.i < len(s.b) && s.b[s.i] >= '0' && s.b[s.i] <= '9' {
		s.i++
	}
	return s.i - start
}

func (s *jsonScanner) number() bool {
	start := s.i
	if s.b[s.i] == '-' {
		s.i++
	}
	zero := s.i < len(s.b) && s.b[s.i] == '0'
	n := s.digits()
	if n == 0 || zero && n > 1 {
		return false
	}
	if s.i < len(s.b) && s.b[s.i] == '.' {
		s.i++
		if s.digits() == 0 {
			return false
		}
	}
	if s.i < len(s.b) && (s.b[s.i] == 'e' || s.b[s.i] == 'E') {
		s.i++
		if s.i < len(s.b) && (s.b[s.i] == '+' || s.b[s.i] == '-') {
			s.i++
		}
		at := s.i
		if s.digits() == 0 {
			return false
		}
		exponent := 0
		for _, c := range s.b[at:s.i] {
			exponent = min(exponent*10+int(c-'0'), maxNumber+1)
		}
		if exponent > maxNumber {
			s.facts.refused = true
		}
	}
	if s.i-start > maxNumber {
		s.facts.refused = true
	}
	return true
}

// replaceLacking replaces characters beyond ASCII that the store cannot hold by
// question marks, and counts them.
func replaceLacking(text []byte, known map[rune]bool) (out []byte, lacking int) {
	if !utf8.Valid(text) {
		return text, 0 // which will be refused
	}
	out = bytes.Map(func(r rune) rune {
		if r < utf8.RuneSelf || known[r] {
			return r
		}
		lacking++
		return '?'
	}, text)
	return out, lacking
}

// withoutEscapes returns the JSON text with the characters themselves in place
// of \u escapes beyond ASCII, which jsonb refuses in a SQL_ASCII database. What it
// refuses everywhere stays as it is.
func withoutEscapes(text []byte) []byte {
	if !bytes.Contains(text, []byte(`\u`)) {
		return text
	}
	s := jsonScanner{b: text}
	var out []byte
	for s.i < len(text) {
		start := s.i
		if text[s.i] != '\\' || !s.escape() {
			s.i = start + 1
		} else if text[start+1] == 'u' {
			var c string
			err := json.Unmarshal(slices.Concat([]byte{'"'}, text[start:s.i], []byte{'"'}), &c)
			if r, _ := utf8.DecodeRuneInString(c); err == nil && r >= utf8.RuneSelf && r != utf8.RuneError {
				out = append(out, c...)
				continue
			}
		}
		out = append(out, text[start:s.i]...)
	}
	return out
}
