package auditpgx

import "strings"

// class says what a statement means for stamping.
type class int

const (
	// read changes no row that capture would see, so it needs no stamp: queries,
	// settings, cursors, locks, savepoints, definitions.
	read class = iota
	// ends ends a transaction or goes back to a savepoint, and so may take the
	// stamp with it.
	ends
	// write may change rows and may share a transaction with a stamp.
	write
	// procedure may change rows, and may commit in its middle if it is alone: it
	// can share an explicit transaction with a stamp, but not an implicit one.
	procedure
	// unknown is no SQL that we recognise: the name of a prepared statement, or
	// an error.
	unknown
)

// classify looks at every statement of a text. It goes by the words: a SELECT
// that calls a function that writes is a read to it. Where the words leave it
// open, it says write: a stamp too many does no harm.
func classify(sql string) class {
	all := read
	w := words{text: sql}
	for {
		var s sentence
		more := s.read(&w)
		switch c := s.class(); {
		case c == unknown, all == unknown:
			all = unknown
		default:
			// The constants are in the order of what matters more.
			all = max(all, c)
		}
		if !more {
			return all
		}
	}
}

// endsTransaction reports whether a statement of the text ends a transaction or
// goes back to a savepoint.
func endsTransaction(sql string) bool {
	w := words{text: sql}
	for {
		var s sentence
		more := s.read(&w)
		if s.class() == ends {
			return true
		}
		if !more {
			return false
		}
	}
}

// sentence is what matters of one statement.
type sentence struct {
	verb  string // the first word, upper case
	next  string // the second
	words int
	// modifies says that there is a word that changes rows, other than in
	// FOR UPDATE.
	modifies bool
	into     bool // INTO, other than in INSERT INTO and MERGE INTO
	analyze  bool // ANALYZE right after EXPLAIN, or in its options
	from, to bool // FROM and TO outside parentheses
	other    bool // holds something besides words at its beginning
}

// read reads up to the end of a statement and reports whether more may follow.
func (s *sentence) read(w *words) bool {
	previous, depth := "", 0
	for {
		kind, text := w.next()
		switch kind {
		case endOfText:
			return false
		case mark:
			switch text {
			case ";":
				// Inside parentheses it parts the actions of a rule.
				if depth <= 0 {
					return true
				}
			case "(":
				if s.words > 0 {
					depth++
				}
			case ")":
				depth--
			default:
				s.other = s.other || s.words == 0
			}
			continue
		case literal:
			s.other = s.other || s.words == 0
			s.words++
			previous = ""
			continue
		}
		word := keyword(text)
		s.words++
		switch s.words {
		case 1:
			s.verb = word
		case 2:
			s.next = word
		}
		switch word {
		case "INSERT", "DELETE", "MERGE", "EXECUTE", "CALL":
			s.modifies = true
		case "UPDATE":
			s.modifies = s.modifies || previous != "FOR" && previous != "KEY"
		case "INTO":
			s.into = s.into || previous != "INSERT" && previous != "MERGE"
		case "ANALYZE", "ANALYSE":
			s.analyze = true
		case "FROM":
			s.from = s.from || depth <= 0
		case "TO":
			s.to = s.to || depth <= 0
		}
		previous = word
	}
}

func (s *sentence) class() class {
	if s.words == 0 && !s.other {
		return read // nothing but space and comments
	}
	if s.other {
		return unknown
	}
	if s.words == 1 {
		// BEGIN and the like. Any other lone word is the name of a prepared
		// statement.
		switch s.verb {
		case "COMMIT", "END", "ROLLBACK", "ABORT":
			return ends
		case "BEGIN", "VACUUM", "ANALYZE", "ANALYSE", "CHECKPOINT", "CLUSTER", "VALUES", "SELECT":
			return read
		}
		return unknown
	}
	switch s.verb {
	case "INSERT", "UPDATE", "DELETE", "MERGE", "TRUNCATE", "EXECUTE":
		return write
	case "CALL", "DO":
		return procedure
	case "WITH":
		if s.modifies || s.into {
			return write
		}
		return read
	case "SELECT", "VALUES", "TABLE":
		if s.into {
			return write
		}
		return read
	case "EXPLAIN":
		if s.analyze && s.modifies {
			return write
		}
		return read
	case "COPY":
		if s.from && !s.to {
			return write
		}
		return read
	case "COMMIT", "END", "ROLLBACK", "ABORT":
		return ends
	case "PREPARE":
		if s.next == "TRANSACTION" {
			return ends
		}
		return read
	case "BEGIN", "START", "SAVEPOINT", "RELEASE", "SET", "RESET", "SHOW", "DISCARD",
		"DECLARE", "FETCH", "MOVE", "CLOSE", "LISTEN", "UNLISTEN", "NOTIFY", "LOCK", "DEALLOCATE",
		"CREATE", "ALTER", "DROP", "COMMENT", "GRANT", "REVOKE", "SECURITY", "IMPORT", "REASSIGN",
		"VACUUM", "ANALYZE", "ANALYSE", "CHECKPOINT", "CLUSTER", "REINDEX", "REFRESH", "LOAD":
		return read
	}
	return unknown
}

// keywords are the words that are looked for.
var keywords = func() map[string]string {
	known := map[string]string{}
	for _, word := range strings.Fields(`
		ABORT ALTER ANALYSE ANALYZE BEGIN CALL CHECKPOINT CLOSE CLUSTER COMMENT COMMIT COPY CREATE DEALLOCATE DECLARE
		DELETE DISCARD DO DROP END EXECUTE EXPLAIN FETCH FOR FROM GRANT IMPORT INSERT INTO KEY LISTEN LOAD LOCK MERGE MOVE
		NOTIFY PREPARE REASSIGN REFRESH REINDEX RELEASE RESET REVOKE ROLLBACK SAVEPOINT SECURITY SELECT SET SHOW START
		TABLE TO TRANSACTION TRUNCATE UNLISTEN UPDATE VACUUM VALUES WITH`) {
		known[word] = word
	}
	return known
}()

// keyword gives a word in upper case if it is one of those that are looked for,
// and "" for others.
func keyword(text string) string {
	var upper [11]byte // TRANSACTION
	if len(text) > len(upper) {
		return ""
	}
	for i := range len(text) {
		c := text[i]
		if c >= 'a' && c <= 'z' {
			c -= 'a' - 'A'
		}
		upper[i] = c
	}
	return keywords[string(upper[:len(text)])]
}

// words cuts a text into words, by the lexical rules of PostgreSQL. Comments and
// the insides of literals are never looked at.
type words struct {
	text string
	at   int
}

type tokenKind int

const (
	endOfText tokenKind = iota
	word
	literal // a string, a quoted name, a number, a parameter
	mark    // any other character
)

func (w *words) next() (tokenKind, string) {
	w.skip()
	if w.at >= len(w.text) {
		return endOfText, ""
	}
	begin := w.at
	c := w.text[w.at]
	switch {
	case c == '\'':
		// Whether a backslash escapes depends on a setting that is on by default
		// for 15 years. E strings are below.
		w.quoted('\'', false)
		return literal, ""
	case c == '"':
		w.quoted('"', false)
		return literal, ""
	case c == '$':
		w.dollar()
		return literal, ""
	case c >= '0' && c <= '9':
		w.letters()
		return literal, ""
	case isLetter(c):
		w.letters()
		text := w.text[begin:w.at]
		if w.at < len(w.text) && w.text[w.at] == '\'' && len(text) == 1 && (text == "E" || text == "e") {
			w.quoted('\'', true)
			return literal, ""
		}
		return word, text
	}
	w.at++
	return mark, w.text[begin:w.at]
}

// skip skips space and comments. Block comments nest.
func (w *words) skip() {
	for w.at < len(w.text) {
		rest := w.text[w.at:]
		switch {
		case strings.IndexByte(" \t\n\r\f\v", rest[0]) >= 0:
			w.at++
		case strings.HasPrefix(rest, "--"):
			end := strings.IndexAny(rest, "\n\r")
			if end < 0 {
				end = len(rest)
			}
			w.at += end
		case strings.HasPrefix(rest, "/*"):
			w.comment()
		default:
			return
		}
	}
}

func (w *words) comment() {
	depth := 0
	for w.at < len(w.text) {
		rest := w.text[w.at:]
		switch {
		case strings.HasPrefix(rest, "/*"):
			depth++
			w.at += 2
		case strings.HasPrefix(rest, "*/"):
			depth--
			w.at += 2
			if depth == 0 {
				return
			}
		default:
			w.at++
		}
	}
}

// quoted skips what stands in quotes. A doubled quote is two literals to it,
// which makes no difference.
func (w *words) quoted(quote byte, escapes bool) {
	for w.at++; w.at < len(w.text); w.at++ {
		switch {
		case escapes && w.text[w.at] == '\\':
			w.at++
		case w.text[w.at] == quote:
			w.at++
			return
		}
	}
	w.at = len(w.text)
}

// dollar skips a string in dollar quotes, or a parameter.
func (w *words) dollar() {
	begin := w.at
	w.at++
	for w.at < len(w.text) && isLetter(w.text[w.at]) || w.at > begin+1 && w.at < len(w.text) && isDigit(w.text[w.at]) {
		w.at++
	}
	if w.at < len(w.text) && w.text[w.at] == '$' {
		w.at++
		tag := w.text[begin:w.at]
		end := strings.Index(w.text[w.at:], tag)
		if end < 0 {
			w.at = len(w.text)
			return
		}
		w.at += end + len(tag)
		return
	}
	w.at = begin + 1
	w.letters()
}

func (w *words) letters() {
	for w.at < len(w.text) && (isLetter(w.text[w.at]) || isDigit(w.text[w.at]) || w.text[w.at] == '$') {
		w.at++
	}
}

func isLetter(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c >= 0x80
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }
