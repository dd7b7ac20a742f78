package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/hindsight-go/audit/internal/wal"
)

// copyColumns is the order of the fields in the binary COPY stream: what is
// constant in a transaction first, then what is constant in a table, so that
// both are single appends.
const copyColumns = `position, committed_at, transaction_id, queued_at, database, environment, schema, "table", sequence, operation, primary_key, previous_key, before, after, context, defect`

const copyFields = 16

// copyHeader and copyTrailer frame a binary COPY.
//
// Source: PostgreSQL documentation, COPY, "Binary Format".
const (
	copyHeader  = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	copyTrailer = "\xff\xff"
)

const (
	// MaxImage is the most that one image can hold, in bytes of text: jsonb's own
	// bound is 256 MiB less one, and the offsets of many members need some of it.
	MaxImage = 200 << 20
	// maxEncoded is what an image of MaxImage may take on its way to the store, where
	// quoting can make six bytes of one: a row with both images has to stay under the
	// 1 GiB that the server allocates at once. A lower bound of images lowers it too.
	maxEncoded = 450 << 20
	// maxKey keeps a key's index entry under a third of a page.
	maxKey = 2000
)

func appendField(dst []byte, value string) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(value)))
	return append(dst, value...)
}

func appendNull(dst []byte) []byte { return append(dst, 0xff, 0xff, 0xff, 0xff) }

func appendInt64Field(dst []byte, v uint64) []byte {
	dst = append(dst, 0, 0, 0, 8)
	return binary.BigEndian.AppendUint64(dst, v)
}

// appendJSONBField writes a jsonb field from its text: version 1, then the text.
func appendJSONBField(dst, text []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(text)+1))
	dst = append(dst, 1)
	return append(dst, text...)
}

// relationPlan is what encoding a row of a relation needs, computed once.
type relationPlan struct {
	relation *wal.Relation
	prefix   []byte   // the schema and table fields
	names    [][]byte // "name": for each column, quoted and escaped
	kinds    []wal.Kind
	policies []wal.Policy // nil if all values are stored
	key      []int
}

func newRelationPlan(rel *wal.Relation, key []int, caution Caution) *relationPlan {
	p := &relationPlan{relation: rel, key: key}
	p.prefix = appendField(nil, rel.Schema)
	p.prefix = appendField(p.prefix, rel.Table)
	for _, c := range rel.Columns {
		name, _ := appendString(nil, []byte(c.Name))
		p.names = append(p.names, append(name, ':'))
		kind := c.Kind
		if caution == CautionText && kind.Base != wal.Bool && kind.Base != wal.Number {
			kind = wal.Kind{}
		}
		p.kinds = append(p.kinds, kind)
	}
	if slices.ContainsFunc(rel.Columns, func(c wal.Column) bool { return c.Policy != "" }) {
		for _, c := range rel.Columns {
			p.policies = append(p.policies, c.Policy)
		}
		if slices.ContainsFunc(key, func(i int) bool { return rel.Columns[i].Policy != "" }) {
			p.key = nil // it would be the value
		}
	}
	return p
}

// encoder writes rows as binary COPY tuples. It belongs to one goroutine.
type encoder struct {
	caution Caution
	limit   int      // bytes of text in an image
	secret  []byte   // the key of digests
	literal bool     // the store's jsonb knows no escapes beyond ASCII, only the characters
	defects []string // scratch: the defects of the row at hand
	keyA    []byte   // scratch
	keyB    []byte
}

// defect notes what could not be recorded faithfully. It names columns and
// sizes, never a value.
func (e *encoder) defect(format string, args ...any) {
	e.defects = append(e.defects, fmt.Sprintf(format, args...))
}

// image appends a jsonb field with the tuple as a JSON object. A value that the
// stream left out is taken from fill; where fill has none, the column is left
// out. It reports which columns are unknown.
func (e *encoder) image(dst []byte, p *relationPlan, label string, tuple, fill wal.Tuple, keyOnly bool) []byte {
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0, 1, '{')
	if size := tupleSize(tuple, fill); size > e.limit {
		tuple = e.shrink(p, label, tuple, fill, size)
	}
	separate := false
	for i := range tuple {
		datum := tuple[i]
		if p.policies != nil && p.policies[i] == wal.Exclude && datum.State != wal.Absent && (!keyOnly || p.relation.Columns[i].Identity) {
			datum = wal.Datum{State: wal.Text}
		}
		if datum.State == wal.Unchanged {
			if fill == nil || fill[i].State == wal.Absent || fill[i].State == wal.Unchanged {
				continue
			}
			datum = fill[i]
		}
		if datum.State == wal.Omitted {
			e.omit(p, label, i, int(datum.Size))
			continue
		}
		if datum.State == wal.Absent || keyOnly && !p.relation.Columns[i].Identity {
			continue
		}
		if separate {
			dst = append(dst, ',')
		}
		separate = true
		dst = append(dst, p.names[i]...)
		if datum.State == wal.Null {
			dst = append(dst, "null"...)
			continue
		}
		if p.policies != nil && p.policies[i] != "" {
			dst = e.withheld(dst, p.policies[i], datum.Text)
			continue
		}
		if e.literal && p.kinds[i].Base == wal.JSON {
			datum.Text = withoutEscapes(datum.Text)
		}
		if p.kinds[i].Base == wal.JSONB && string(datum.Text) == "null" {
			e.defect("%s: column %q is the null of JSON, not NULL", label, p.relation.Columns[i].Name)
		}
		valid := false
		if datum.Raw {
			dst = appendHex(dst, datum.Text)
		} else {
			dst, valid = appendValue(dst, p.kinds[i], datum.Text)
		}
		if !valid {
			e.defect("%s: column %q is not valid UTF-8 and is kept as the hexadecimal digits of its bytes", label, p.relation.Columns[i].Name)
		}
	}
	dst = append(dst, '}')
	binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-at-4))
	return dst
}

func tupleSize(tuple, fill wal.Tuple) (size int) {
	for i := range tuple {
		size += textSize(tuple[i].Text)
		if tuple[i].State == wal.Unchanged && fill != nil {
			size += textSize(fill[i].Text)
		}
	}
	return size
}

// textSize is what a value counts against the bound of an image: its length, or more if
// maxEncoded is the tighter bound.
func textSize(text []byte) int {
	if len(text) < 1<<20 {
		return len(text)
	}
	encoded := len(text)
	for _, c := range text {
		switch {
		case c < 0x20:
			encoded += 5
		case c == '"' || c == '\\':
			encoded++
		}
	}
	return max(len(text), encoded*(MaxImage>>20)/(maxEncoded>>20))
}

// omit notes that a value is left out of an image for its size.
func (e *encoder) omit(p *relationPlan, label string, column, size int) {
	e.defect("%s: column %q left out: with its %d bytes the row is larger than what is kept of one", label, p.relation.Columns[column].Name, size)
}

// shrink drops the largest values until the rest fits.
func (e *encoder) shrink(p *relationPlan, label string, tuple, fill wal.Tuple, size int) wal.Tuple {
	small := make(wal.Tuple, len(tuple))
	for i := range tuple {
		small[i] = tuple[i]
		if tuple[i].State == wal.Unchanged && fill != nil {
			small[i] = fill[i]
		}
	}
	for size > e.limit {
		largest := 0
		for i := range small {
			if textSize(small[i].Text) > textSize(small[largest].Text) {
				largest = i
			}
		}
		text := small[largest].Text
		e.omit(p, label, largest, len(text))
		small[largest] = wal.Datum{State: wal.Absent}
		size -= textSize(text)
	}
	return small
}

// key writes the text of the primary key, or reports false if the table has
// none or the tuple does not hold it.
func (e *encoder) key(dst []byte, p *relationPlan, tuple, fill wal.Tuple) ([]byte, bool) {
	dst = dst[:0]
	if len(p.key) == 0 || tuple == nil {
		return dst, false
	}
	if len(p.key) > 1 {
		dst = append(dst, '[')
	}
	for n, i := range p.key {
		datum := tuple[i]
		if datum.State == wal.Unchanged && fill != nil {
			datum = fill[i]
		}
		if datum.State != wal.Text {
			return dst, false
		}
		if len(p.key) == 1 {
			if datum.Raw || !utf8.Valid(datum.Text) { // as in an image
				dst = append(dst, `\x`...)
				dst = hex.AppendEncode(dst, datum.Text)
				break
			}
			dst = append(dst, datum.Text...)
			break
		}
		if n > 0 {
			dst = append(dst, ',')
		}
		if datum.Raw {
			dst = appendHex(dst, datum.Text)
		} else {
			dst, _ = appendString(dst, datum.Text)
		}
	}
	if len(p.key) > 1 {
		dst = append(dst, ']')
	}
	if len(dst) > maxKey {
		sum := sha256.Sum256(dst)
		dst = append(dst[:0], "sha256:"...)
		dst = hex.AppendEncode(dst, sum[:])
	}
	return dst, true
}

// KeyText returns the text under which a row's key is stored in primary_key:
// the text itself for one part, a JSON array of texts for several, and a
// sha256: digest where that is longer than 2,000 bytes (an index entry must fit
// into a third of a page).
func KeyText(parts ...string) string {
	p := relationPlan{}
	t := make(wal.Tuple, len(parts))
	for i, part := range parts {
		p.key = append(p.key, i)
		t[i] = wal.Datum{State: wal.Text, Text: []byte(part)}
	}
	text, _ := (&encoder{}).key(nil, &p, t, nil)
	return string(text)
}

// row appends one tuple of the COPY. txPrefix holds the transaction's fields,
// stamp the context field and its defect.
func (e *encoder) row(dst []byte, txPrefix []byte, p *relationPlan, r *wal.Row, sequence int32, stamp *stampField) []byte {
	e.defects = e.defects[:0]
	if stamp.defect != "" {
		e.defects = append(e.defects, stamp.defect)
	}
	dst = append(dst, txPrefix...)
	dst = append(dst, p.prefix...)
	dst = append(dst, 0, 0, 0, 4)
	dst = binary.BigEndian.AppendUint32(dst, uint32(sequence))
	switch r.Operation {
	case wal.Insert:
		dst = append(dst, "\x00\x00\x00\x06CREATE"...)
	case wal.Update:
		dst = append(dst, "\x00\x00\x00\x06UPDATE"...)
	case wal.Delete:
		dst = append(dst, "\x00\x00\x00\x06DELETE"...)
	default:
		dst = append(dst, "\x00\x00\x00\x08TRUNCATE"...)
		if r.Partition != "" {
			e.defect("only the partition %s was truncated", r.Partition)
		}
	}
	dst = e.keys(dst, p, r)

	switch {
	case e.caution >= CautionBare:
		e.defect("images left out: the store refused them")
		dst = append(dst, emptyImage...)
		dst = append(dst, emptyImage...)
	default:
		if r.Old != nil {
			dst = e.image(dst, p, "before", r.Old, nil, r.OldIsKey)
		} else {
			dst = append(dst, emptyImage...)
		}
		if r.New != nil {
			dst = e.image(dst, p, "after", r.New, r.Old, false)
		} else {
			dst = append(dst, emptyImage...)
		}
	}
	dst = append(dst, stamp.field...)
	if len(e.defects) == 0 {
		return appendNull(dst)
	}
	return appendField(dst, strings.Join(e.defects, "; "))
}

const emptyImage = "\x00\x00\x00\x03\x01{}"

// keys appends primary_key and previous_key.
func (e *encoder) keys(dst []byte, p *relationPlan, r *wal.Row) []byte {
	var has bool
	tuple, fill := r.New, r.Old
	if tuple == nil {
		tuple, fill = r.Old, nil
	}
	if e.keyA, has = e.key(e.keyA, p, tuple, fill); !has {
		return appendNull(appendNull(dst))
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(e.keyA)))
	dst = append(dst, e.keyA...)
	if r.Operation == wal.Update && r.Old != nil {
		if e.keyB, has = e.key(e.keyB, p, r.Old, nil); has && string(e.keyB) != string(e.keyA) {
			dst = binary.BigEndian.AppendUint32(dst, uint32(len(e.keyB)))
			return append(dst, e.keyB...)
		}
	}
	return appendNull(dst)
}

// missing lists the columns of the new version that are in neither version, and
// whether the old version as a whole is incomplete.
func missing(r *wal.Row) (columns []string, before bool) {
	before = r.Operation != wal.Insert && r.Operation != wal.Truncate && (r.Old == nil || r.OldIsKey)
	if !before {
		return nil, false
	}
	for i := range r.New {
		if r.New[i].State == wal.Unchanged && r.Relation.Columns[i].Policy != wal.Exclude && (r.Old == nil || r.Old[i].State != wal.Text) {
			columns = append(columns, r.Relation.Columns[i].Name)
		}
	}
	return columns, true
}

// stampField is a context as it goes into every row it covers.
type stampField struct {
	field  []byte
	defect string
}

// newStampField turns the content of a context message into a field. What is
// not acceptable as a context is left out and said in the defect.
//
// Of a context larger than the read buffer only the beginning is here: size says
// how large it was.
func newStampField(content []byte, size, limit int) stampField {
	if size > len(content) {
		return trimContext(content, size)
	}
	facts, err := scanJSON(content)
	switch {
	case err != nil:
		return stampField{field: appendNull(nil), defect: "context is not JSON (" + strconv.Itoa(len(content)) + " bytes)"}
	case facts.top != '{' && facts.top != '[':
		return stampField{field: appendNull(nil), defect: "context is neither a JSON object nor an array"}
	case facts.refused:
		return stampField{field: appendNull(nil), defect: `context holds what jsonb refuses (\u0000, a lone surrogate, a number out of range or too deep a nesting)`}
	case len(content) > limit || facts.longID:
		return trimContext(content, size)
	}
	return stampField{field: appendJSONBField(nil, content)}
}

// trimContext keeps the short scalars of a context that is too large: who, where
// and which request usually survive. content may end in the midst of it.
func trimContext(content []byte, size int) stampField {
	kept := make(map[string]json.RawMessage)
	decoder := json.NewDecoder(bytes.NewReader(content))
	if open, err := decoder.Token(); err == nil && open == json.Delim('{') {
		for decoder.More() && len(kept) < 32 {
			name, err := decoder.Token()
			var value json.RawMessage
			if err != nil || decoder.Decode(&value) != nil {
				break
			}
			if text, ok := name.(string); ok && len(text) <= 64 && len(value) <= 256 && value[0] != '{' && value[0] != '[' && acceptable(text, value) {
				kept[text] = value
			}
		}
	}
	text, err := json.Marshal(kept)
	if err != nil || len(kept) == 0 {
		return stampField{field: appendNull(nil), defect: "context of " + strconv.Itoa(size) + " bytes left out"}
	}
	return stampField{field: appendJSONBField(nil, text), defect: "context of " + strconv.Itoa(size) + " bytes cut down to its short members"}
}

// acceptable reports whether jsonb takes a member.
func acceptable(name string, value []byte) bool {
	facts, err := scanJSON(value)
	return err == nil && !facts.refused && !strings.ContainsRune(name, 0)
}
