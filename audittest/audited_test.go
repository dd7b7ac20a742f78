package audittest_test

import (
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// Check does not take for wrong what history cannot tell by a key, or does not have
// of a column that was added.
func TestCheckOfWhatHistoryCannotTell(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, `
		CREATE TABLE shifted (id int PRIMARY KEY DEFERRABLE, word text);
		CREATE TABLE bag (word text);
		INSERT INTO shifted SELECT i, 'w' || i FROM generate_series(1, 5) i;
		INSERT INTO bag SELECT word FROM shifted`)
	a.Exec(t, "UPDATE shifted SET id = id + 1")
	a.Exec(t, "UPDATE shifted SET id = 8 - id")
	a.Exec(t, "UPDATE bag SET word = word || '!' WHERE word < 'w3'")
	a.Exec(t, "ALTER TABLE bag ADD n int NOT NULL DEFAULT 7")
	a.Exec(t, "DELETE FROM bag WHERE word = 'w5'")
	a.Check(t)
}
