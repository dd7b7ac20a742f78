package stamp

import (
	"context"
	"sync"

	"github.com/hindsight-go/audit/internal/sqltext"
)

// Wants reports whether a text is to be stamped, if there is a context: it changes
// rows, or ctx says that what acts does.
func Wants(ctx context.Context, text sqltext.Text) bool {
	return text.Class >= sqltext.Write || text.Acts && IsAsWrite(ctx)
}

// WantsBehind reports whether a text goes on to change rows behind the end of a
// transaction, where a stamp before it does not reach.
func WantsBehind(ctx context.Context, text sqltext.Text) bool {
	return text.Behind >= sqltext.Write || text.Behind == sqltext.Read && IsAsWrite(ctx)
}

const (
	// maxTexts bounds how many texts are remembered. A program that pastes values
	// into its statements would fill any memory.
	maxTexts = 1000
	// maxTextBytes is up to what length a text is remembered.
	maxTextBytes = 2000
)

// texts remembers what the texts of statements mean: programs run the same ones
// again and again.
type texts struct {
	mu    sync.RWMutex
	known map[string]sqltext.Text // guarded by mu
}

// Parse is sqltext.Parse with a memory.
func (s *Stamper) Parse(sql string) sqltext.Text {
	if len(sql) > maxTextBytes {
		return sqltext.Parse(sql)
	}
	s.texts.mu.RLock()
	text, ok := s.texts.known[sql]
	full := len(s.texts.known) >= maxTexts
	s.texts.mu.RUnlock()
	if ok {
		return text
	}
	text = sqltext.Parse(sql)
	if !full {
		s.texts.mu.Lock()
		defer s.texts.mu.Unlock()
		if s.texts.known == nil {
			s.texts.known = map[string]sqltext.Text{}
		}
		s.texts.known[sql] = text
	}
	return text
}
