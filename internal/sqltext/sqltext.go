// Package sqltext tells from the words of SQL what a statement means for a
// stamp, for the drivers that stamp.
package sqltext

import "strings"

// Class says what a statement means for stamping.
type Class int8

const (
	// Control changes no row, whatever functions there are: what begins or sets up
	// transactions and sessions, and an empty text. It may have to come before
	// everything else in its transaction.
	Control Class = iota
	// Read changes no row that capture would see, so it needs no stamp: queries,
	// cursors, definitions.
	Read
	// Ends ends a transaction or goes back to a savepoint, and so may take the
	// stamp with it.
	Ends
	// Write may change rows and may share a transaction with a stamp.
	Write
	// Procedure may change rows, and may commit in its middle if it is alone: it
	// can share an explicit transaction with a stamp, but not an implicit one.
	Procedure
	// Unknown is no SQL that we recognise: the name of a prepared statement, or
	// an error.
	Unknown
)

// Text is what the words of one or more statements say. It is small, since a batch
// has one for each of its statements.
type Text struct {
	// Class is that of the statement that matters most.
	Class Class
	// Ends says that a statement ends a transaction or goes back to a savepoint.
	Ends bool
	// Leaves is what the last statement that begins or ends a transaction
	// leaves behind.
	Leaves Session
	// Copies says that a statement is a COPY that writes, and which.
	Copies Copy
	// Acts says that a statement is more than Control and Ends.
	Acts bool
	// Late says that an end comes before First.
	Late bool
	// Behind is the Class of what comes behind an end, Control if nothing does.
	Behind Class
	// Prepares says that a statement prepares others, or deallocates them.
	Prepares bool
	// First is where a stamp can go before all statements that act: behind those
	// that begin, end or set up the transaction, or lock tables before its first
	// snapshot.
	First int
	// Executes is the name of the prepared statement if the text is one EXECUTE.
	Executes string
}

// Session is whether a session is in a transaction.
type Session int8

const (
	// AsItWas says that nothing begins or ends a transaction.
	AsItWas Session = iota
	// InTransaction is after BEGIN.
	InTransaction
	// Idle is after COMMIT or ROLLBACK.
	Idle
)

// Copy is a COPY that writes.
type Copy int8

const (
	// NoCopy says that there is none, or that it is a statement like others: COPY of what
	// a statement returns to a file of the server.
	NoCopy Copy = iota
	// CopyOut copies to the client what a statement that writes returns. The server's
	// answer is one that has no place in a pipeline.
	CopyOut
	// CopyFrom copies into a table.
	CopyFrom
)

// Parse looks at every statement of a text. It goes by the words: a SELECT that
// calls a function that writes is a read to it. Where the words leave it open, it
// says Write: a stamp too many does no harm.
func Parse(sql string) Text {
	var t Text
	w := words{text: sql}
	for {
		var s sentence
		more := s.read(&w)
		c := s.class()
		acts := c != Control && c != Ends
		if acts && t.Ends {
			t.Behind = max(t.Behind, c)
		}
		switch {
		case acts && s.verb == "EXECUTE" && !t.Acts:
			t.Executes = s.name
		case acts:
			t.Executes = ""
		case !t.Acts && (c == Ends || s.settles):
			t.First = w.at
			t.Late = t.Late || c == Ends
		}
		t.Acts = t.Acts || acts
		if t.Class != Unknown {
			// The constants are in the order of what matters more.
			t.Class = max(t.Class, c)
		}
		t.Ends = t.Ends || c == Ends
		t.Prepares = t.Prepares || c != Ends && (s.verb == "PREPARE" || s.verb == "DEALLOCATE" || s.verb == "DISCARD")
		t.Copies = max(t.Copies, s.copies(c))
		if leaves := s.leaves(c); leaves != AsItWas {
			t.Leaves = leaves
		}
		if !more {
			return t
		}
	}
}

// Classify returns the Class of a text.
func Classify(sql string) Class { return Parse(sql).Class }

// EndsTransaction reports whether a statement of the text ends a transaction or
// goes back to a savepoint.
func EndsTransaction(sql string) bool { return Parse(sql).Ends }

// sentence is what matters of one statement.
type sentence struct {
	verb  string // the first word, upper case
	next  string // the second
	name  string // the second as it is, without quotes
	words int
	// modifies says that there is a word that changes rows, other than in
	// FOR UPDATE.
	modifies bool
	into     bool // INTO, other than in INSERT INTO and MERGE INTO
	analyze  bool // ANALYZE right after EXPLAIN, or in its options
	from, to bool // FROM and TO outside parentheses
	std      bool // STDIN or STDOUT outside parentheses; COPY takes them for one another
	chains   bool // AND CHAIN
	body     int  // how deep inside BEGIN ATOMIC ... END, the body of a function
	other    bool // holds something besides words at its beginning
	settles  bool // has to come before other statements of its transaction
	creating bool // behind CREATE and words that may stand before TABLE
	table    bool // behind CREATE TABLE
	fills    bool // CREATE TABLE AS
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
				if depth <= 0 && s.body == 0 {
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
			if s.words == 2 {
				s.name = strings.ReplaceAll(strings.Trim(text, `"`), `""`, `"`)
			}
			s.creating = false
			previous = ""
			continue
		}
		word := keyword(text)
		s.words++
		switch s.words {
		case 1:
			s.verb = word
			s.settles = word == "BEGIN" || word == "START" || word == "LOCK"
		case 2:
			s.next, s.name = word, strings.ToLower(text)
			s.settles = s.settles || s.verb == "SET" && (word == "TRANSACTION" || isTransactionSetting(text))
		case 3:
			s.settles = s.settles || s.verb == "SET" && isTransactionSetting(text) // SET LOCAL
		}
		s.create(word, depth)
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
		case "STDIN", "STDOUT":
			s.std = s.std || depth <= 0
		case "CHAIN":
			s.chains = s.chains || previous == "AND"
		case "ATOMIC":
			if s.verb == "CREATE" && previous == "BEGIN" {
				s.body++
			}
		case "CASE":
			if s.body > 0 {
				s.body++
			}
		case "END":
			if s.body > 0 {
				s.body--
			}
		}
		previous = word
	}
}

// create follows the words of CREATE TABLE AS.
func (s *sentence) create(word string, depth int) {
	switch word {
	case "CREATE":
		s.creating = s.words == 1 || s.verb == "EXPLAIN"
	case "TABLE":
		s.table, s.creating = s.table || s.creating, false
	case "AS":
		s.fills = s.fills || s.table && depth <= 0
	case "GLOBAL", "LOCAL", "TEMP", "TEMPORARY", "UNLOGGED":
	default:
		s.creating = false
	}
}

// isTransactionSetting reports whether a setting has to be made before the first
// query of a transaction: transaction_isolation and the like.
func isTransactionSetting(name string) bool {
	const prefix = "transaction_"
	return len(name) > len(prefix) && strings.EqualFold(name[:len(prefix)], prefix)
}

func (s *sentence) class() Class {
	if s.words == 0 && !s.other {
		return Control // nothing but space and comments
	}
	if s.other {
		return Unknown
	}
	if s.words == 1 {
		// BEGIN and the like. Any other lone word is the name of a prepared
		// statement.
		switch s.verb {
		case "COMMIT", "END", "ROLLBACK", "ABORT":
			return Ends
		case "BEGIN":
			return Control
		case "VACUUM", "ANALYZE", "ANALYSE", "CHECKPOINT", "CLUSTER", "VALUES", "SELECT":
			return Read
		}
		return Unknown
	}
	switch s.verb {
	case "INSERT", "UPDATE", "DELETE", "MERGE", "TRUNCATE", "EXECUTE":
		return Write
	case "CALL", "DO":
		return Procedure
	case "WITH":
		if s.modifies || s.into {
			return Write
		}
		return Read
	case "SELECT", "VALUES", "TABLE":
		if s.into {
			return Write
		}
		return Read
	case "EXPLAIN":
		if s.analyze && (s.modifies || s.into || s.fills) {
			return Write
		}
		return Read
	case "COPY":
		// COPY takes a query that modifies as well.
		if s.copiesFrom() || s.modifies {
			return Write
		}
		return Read
	case "CREATE":
		if s.fills {
			return Write
		}
		return Read
	case "COMMIT", "END", "ROLLBACK", "ABORT":
		return Ends
	case "PREPARE":
		if s.next == "TRANSACTION" {
			return Ends
		}
		return Control
	case "BEGIN", "START", "SAVEPOINT", "RELEASE", "SET", "RESET", "SHOW", "DISCARD", "LOCK",
		"LISTEN", "UNLISTEN", "DEALLOCATE":
		return Control
	case "DECLARE", "FETCH", "MOVE", "CLOSE", "NOTIFY", "ALTER", "DROP", "COMMENT", "GRANT", "REVOKE", "SECURITY", "IMPORT", "REASSIGN",
		"VACUUM", "ANALYZE", "ANALYSE", "CHECKPOINT", "CLUSTER", "REINDEX", "REFRESH", "LOAD":
		return Read
	}
	return Unknown
}

// copiesFrom reports whether a COPY is one into a table. FROM may be a word of the query
// that is copied, but then it stands in parentheses.
func (s *sentence) copiesFrom() bool { return s.from && !s.to }

func (s *sentence) copies(c Class) Copy {
	switch {
	case s.verb != "COPY" || c != Write:
		return NoCopy
	case s.copiesFrom():
		return CopyFrom
	case s.std:
		return CopyOut
	}
	return NoCopy
}

// leaves returns in what state a statement of a class leaves the session.
func (s *sentence) leaves(c Class) Session {
	switch {
	case c == Ends && s.chains:
		return InTransaction
	case c == Ends && !s.to && s.next != "PREPARED":
		return Idle
	case c == Control && (s.verb == "BEGIN" || s.verb == "START"):
		return InTransaction
	}
	return AsItWas
}

// keywords are the words that are looked for.
var keywords = func() map[string]string {
	known := map[string]string{}
	for _, word := range strings.Fields(`
		ABORT ALTER ANALYSE ANALYZE AND AS ATOMIC BEGIN CALL CASE CHAIN CHECKPOINT CLOSE CLUSTER COMMENT COMMIT COPY CREATE DEALLOCATE DECLARE
		DELETE DISCARD DO DROP END EXECUTE EXPLAIN FETCH FOR FROM GLOBAL GRANT IMPORT INSERT INTO KEY LISTEN LOAD LOCAL LOCK MERGE MOVE
		NOTIFY PREPARE PREPARED REASSIGN REFRESH REINDEX RELEASE RESET REVOKE ROLLBACK SAVEPOINT SECURITY SELECT SET SHOW START STDIN STDOUT
		TABLE TEMP TEMPORARY TO TRANSACTION TRUNCATE UNLISTEN UNLOGGED UPDATE VACUUM VALUES WITH`) {
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
		return literal, w.text[begin:w.at]
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

// IsQuery reports whether a statement is a query, which can follow a stamp.
func IsQuery(sql string) bool {
	w := words{text: sql}
	for {
		kind, text := w.next()
		switch {
		case kind == mark && text == "(":
		case kind == word:
			switch keyword(text) {
			case "SELECT", "VALUES", "TABLE", "WITH", "SHOW":
				return true
			}
			return false
		default:
			return false
		}
	}
}

// Prepared returns the statement behind PREPARE name AS, with what follows it in the
// text, and whether the text begins with that.
func Prepared(sql string) (string, bool) {
	w := words{text: sql}
	if kind, text := w.next(); kind != word || keyword(text) != "PREPARE" {
		return "", false
	}
	for {
		switch kind, text := w.next(); {
		case kind == endOfText, kind == mark && text == ";":
			return "", false
		case kind == word && keyword(text) == "AS":
			return w.text[w.at:], true
		}
	}
}
