package auditsql

import (
	"database/sql/driver"
	"errors"
	"io"
	"strings"

	"github.com/hindsight-go/audit/internal/stamp"
)

// isQuestion reports whether a text asks who stamps.
func isQuestion(query string) bool { return strings.HasPrefix(query, stamp.Question) }

// answer is the result of the question who stamps, and the statement that was prepared
// of it where something around the connection must prepare.
type answer struct{}

// LastInsertId is of driver.Result.
func (answer) LastInsertId() (int64, error) { return 0, errors.New("auditsql: no id was inserted") }

// RowsAffected is of driver.Result.
func (answer) RowsAffected() (int64, error) { return stamp.Answer, nil }

// Close is of driver.Stmt.
func (answer) Close() error { return nil }

// NumInput is of driver.Stmt.
func (answer) NumInput() int { return 0 }

// Exec is of driver.Stmt.
func (answer) Exec([]driver.Value) (driver.Result, error) { return answer{}, nil }

// Query is of driver.Stmt.
func (answer) Query([]driver.Value) (driver.Rows, error) { return nil, io.EOF }
