package auditnats

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/hindsight-go/audit"
)

// MessageID is the id of a change's message: source:position:sequence. In the name of the
// source a colon, and what a header cannot have, is escaped as in [Token].
func MessageID(c audit.Change) string {
	return fmt.Sprintf("%s:%s:%d", source(c.Database), c.Position.LSN, c.Position.Sequence)
}

func source(database string) string { return strings.ReplaceAll(Token(database), ":", "%3A") }

// message makes that of a change, which leads to a place.
func (x *session) message(c audit.Change, next place) (*nats.Msg, error) {
	subject := x.cfg.Subject(c)
	if err := x.checkSubject(subject); err != nil {
		return nil, err
	}
	m := &nats.Msg{Subject: subject, Header: next.header(MessageID(c), string(c.Operation))}
	var err error
	if m.Data, err = json.Marshal(c); err != nil {
		return nil, fmt.Errorf("auditnats: write change %s as JSON: %w", c.Position, err)
	}
	most := x.most()
	if x.sizeOf(m) > most && x.cfg.OnOversize == OmitImages {
		c.Before, c.After = nil, nil
		m.Header.Set(HeaderOmitted, "images")
		if m.Data, err = json.Marshal(c); err != nil {
			return nil, fmt.Errorf("auditnats: write change %s as JSON: %w", c.Position, err)
		}
	}
	if size := x.sizeOf(m); size > most {
		return nil, &OversizeError{c.Position, size, most}
	}
	return m, nil
}

// lossMessage makes that of a loss.
func (x *session) lossMessage(loss Loss, next place) (*nats.Msg, error) {
	subject := x.cfg.Prefix + ".loss"
	if err := x.checkSubject(subject); err != nil {
		return nil, err
	}
	id := fmt.Sprintf("%s:loss:%s:%s", source(loss.Database), loss.From, loss.To)
	data, err := json.Marshal(loss)
	if err != nil {
		return nil, err
	}
	return &nats.Msg{Subject: subject, Header: next.header(id, operationLoss), Data: data}, nil
}

func (x *session) checkSubject(subject string) error {
	if err := validSubject(subject); err != nil {
		return &SubjectError{Subject: subject, reason: err.Error()}
	}
	if !slices.ContainsFunc(x.subjects, func(pattern string) bool { return matches(pattern, subject) }) {
		return &SubjectError{Subject: subject, Stream: x.cfg.Stream}
	}
	return nil
}

// headroom is what headers that are set while a message is published may take.
const headroom = 200

// sizeOf is how large a message counts for the broker: headers and payload.
func (x *session) sizeOf(m *nats.Msg) int { return m.Size() - len(m.Subject) - len(m.Reply) + headroom }

// most is how large a message may be.
func (x *session) most() int {
	most := int(x.cfg.JetStream.Conn().MaxPayload())
	if x.maxMsgSize > 0 {
		most = min(most, x.maxMsgSize)
	}
	return most
}
