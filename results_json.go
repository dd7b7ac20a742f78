package audit

import (
	"encoding/json"
	"errors"
	"time"
)

// What queries return has one form in JSON: members in camelCase, positions, tokens
// and errors as text, lists that are never null. What is written can be read back,
// errors as bare texts.

// jsonLSN is an LSN whose JSON is its text.
type jsonLSN LSN

func (l jsonLSN) MarshalText() ([]byte, error) { return appendLSN(nil, LSN(l)), nil }

func (l *jsonLSN) UnmarshalText(text []byte) error {
	lsn, err := parseLSN(string(text))
	*l = jsonLSN(lsn)
	return err
}

// list is a slice whose JSON is not null.
func list[T any](of []T) []T {
	if of == nil {
		return []T{}
	}
	return of
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func textError(text string) error {
	if text == "" {
		return nil
	}
	return errors.New(text)
}

type (
	plainPage            Page
	plainRequest         Request
	plainRequestPage     RequestPage
	plainTransactionPage TransactionPage
	plainTransaction     Transaction
	plainStatus          Status
	plainTableStatus     TableStatus
	plainCompleteness    Completeness
)

// pageJSON lays the members that need it over those of a Page. So do its neighbours.
type pageJSON struct {
	plainPage
	Changes  []Change `json:"changes"`
	Warnings []string `json:"warnings,omitempty"`
}

// MarshalJSON writes changes, next, more, and the texts of warnings where there are any.
func (p Page) MarshalJSON() ([]byte, error) {
	out := pageJSON{plainPage: plainPage(p), Changes: list(p.Changes)}
	for _, w := range p.Warnings {
		out.Warnings = append(out.Warnings, errorText(w))
	}
	return json.Marshal(out)
}

// UnmarshalJSON reads what [Page.MarshalJSON] writes. Of warnings it has the texts.
func (p *Page) UnmarshalJSON(text []byte) error {
	var in pageJSON
	if err := json.Unmarshal(text, &in); err != nil {
		return err
	}
	*p = Page(in.plainPage)
	p.Changes, p.Warnings = in.Changes, nil
	for _, w := range in.Warnings {
		p.Warnings = append(p.Warnings, textError(w))
	}
	return nil
}

// MarshalJSON writes the fields, and those of Counts beside them.
func (r Request) MarshalJSON() ([]byte, error) {
	r.Tables, r.Origins = list(r.Tables), list(r.Origins)
	return json.Marshal(plainRequest(r))
}

// MarshalJSON writes requests, next and more.
func (p RequestPage) MarshalJSON() ([]byte, error) {
	p.Requests = list(p.Requests)
	return json.Marshal(plainRequestPage(p))
}

// MarshalJSON writes transactions, next and more.
func (p TransactionPage) MarshalJSON() ([]byte, error) {
	p.Transactions = list(p.Transactions)
	return json.Marshal(plainTransactionPage(p))
}

type transactionJSON struct {
	plainTransaction
	Position jsonLSN `json:"position"`
}

// MarshalJSON writes the position as text.
func (t Transaction) MarshalJSON() ([]byte, error) {
	t.Tables = list(t.Tables)
	return json.Marshal(transactionJSON{plainTransaction(t), jsonLSN(t.Position)})
}

// UnmarshalJSON reads what [Transaction.MarshalJSON] writes.
func (t *Transaction) UnmarshalJSON(text []byte) error {
	var in transactionJSON
	if err := json.Unmarshal(text, &in); err != nil {
		return err
	}
	*t = Transaction(in.plainTransaction)
	t.Position = LSN(in.Position)
	return nil
}

type statusJSON struct {
	plainStatus
	Err            string        `json:"error,omitempty"`
	Position       jsonLSN       `json:"position"`
	SourcePosition jsonLSN       `json:"sourcePosition"`
	Warnings       []Warning     `json:"warnings"`
	Gaps           []Gap         `json:"gaps"`
	Tables         []TableStatus `json:"tables"`
}

// MarshalJSON writes positions and the error as texts.
func (s Status) MarshalJSON() ([]byte, error) {
	return json.Marshal(statusJSON{
		plainStatus: plainStatus(s), Err: errorText(s.Err),
		Position: jsonLSN(s.Position), SourcePosition: jsonLSN(s.SourcePosition),
		Warnings: list(s.Warnings), Gaps: list(s.Gaps), Tables: list(s.Tables),
	})
}

// UnmarshalJSON reads what [Status.MarshalJSON] writes. Of errors it has the texts.
func (s *Status) UnmarshalJSON(text []byte) error {
	var in statusJSON
	if err := json.Unmarshal(text, &in); err != nil {
		return err
	}
	*s = Status(in.plainStatus)
	s.Err, s.Position, s.SourcePosition = textError(in.Err), LSN(in.Position), LSN(in.SourcePosition)
	s.Warnings, s.Gaps, s.Tables = in.Warnings, in.Gaps, in.Tables
	return nil
}

type tableStatusJSON struct {
	plainTableStatus
	From    jsonLSN `json:"from,omitzero"`
	Until   jsonLSN `json:"until,omitzero"`
	Pending string  `json:"pending,omitempty"`
}

// MarshalJSON writes positions and the error as texts, and leaves out those that are
// not there.
func (t TableStatus) MarshalJSON() ([]byte, error) {
	return json.Marshal(tableStatusJSON{plainTableStatus(t), jsonLSN(t.From), jsonLSN(t.Until), errorText(t.Pending)})
}

// UnmarshalJSON reads what [TableStatus.MarshalJSON] writes. Of the error it has the text.
func (t *TableStatus) UnmarshalJSON(text []byte) error {
	var in tableStatusJSON
	if err := json.Unmarshal(text, &in); err != nil {
		return err
	}
	*t = TableStatus(in.plainTableStatus)
	t.From, t.Until, t.Pending = LSN(in.From), LSN(in.Until), textError(in.Pending)
	return nil
}

type completenessJSON struct {
	plainCompleteness
	Lag  string `json:"lag"`
	Gaps []Gap  `json:"gaps"`
}

// MarshalJSON writes positions as texts, and the lag as in [time.Duration.String].
func (c Completeness) MarshalJSON() ([]byte, error) {
	return json.Marshal(completenessJSON{plainCompleteness(c), c.Lag.String(), list(c.Gaps)})
}

// UnmarshalJSON reads what [Completeness.MarshalJSON] writes.
func (c *Completeness) UnmarshalJSON(text []byte) error {
	var in completenessJSON
	if err := json.Unmarshal(text, &in); err != nil {
		return err
	}
	lag, err := time.ParseDuration(in.Lag)
	if err != nil {
		return err
	}
	*c = Completeness(in.plainCompleteness)
	c.Lag, c.Gaps = lag, in.Gaps
	return nil
}

type eventJSON struct {
	changeJSON
	Cursor Cursor `json:"cursor"`
}

// MarshalJSON writes the members of [Change.MarshalJSON], and then cursor.
func (e Event) MarshalJSON() ([]byte, error) {
	return json.Marshal(eventJSON{e.document(), e.Cursor})
}

// UnmarshalJSON reads what [Event.MarshalJSON] writes.
func (e *Event) UnmarshalJSON(text []byte) error {
	var in struct {
		Cursor Cursor `json:"cursor"`
	}
	if err := json.Unmarshal(text, &in); err != nil {
		return err
	}
	e.Cursor = in.Cursor
	return e.Change.UnmarshalJSON(text)
}

// MarshalJSON writes the row as an [Image] of the columns that it has.
func (r PastRow) MarshalJSON() ([]byte, error) {
	if r.table == nil {
		return []byte("null"), nil
	}
	return imageOf(r.columns(), r.values), nil
}

// UnmarshalText reads the kind's name.
func (k *ConflictKind) UnmarshalText(text []byte) error {
	for kind, name := range conflictNames {
		if name == string(text) {
			*k = kind
			return nil
		}
	}
	return errors.New("audit: no kind of conflict has the name " + printable(clip(string(text), 40)))
}

// UnmarshalText reads the resolution's name.
func (r *Resolution) UnmarshalText(text []byte) error {
	for known := Abort; known <= Overwrite; known++ {
		if known.String() == string(text) {
			*r = known
			return nil
		}
	}
	return errors.New("audit: no resolution has the name " + printable(clip(string(text), 40)))
}
