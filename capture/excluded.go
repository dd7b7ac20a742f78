package capture

import (
	"context"
	"fmt"
	"strconv"

	"github.com/hindsight-go/audit/internal/wal"
)

// ofHistory is a condition on pg_namespace n: whether it is the schema of a history,
// this one or another, by the tables that such a schema has.
const ofHistory = `(SELECT count(*) = 5
	FROM pg_catalog.pg_class h
	WHERE h.relnamespace = n.oid AND h.relkind IN ('r', 'p') AND h.relname IN ('changes', 'checkpoints', 'commit_times', 'coverage', 'gaps'))`

// excluded reports whether the changes of a relation are none of ours, though the
// publication sends them: somebody made it send more, and storing the changes of a
// history makes more of them, without end.
//
// The pattern counts only where the table is still there: of a partition that is gone
// nobody can say any more which table it belonged to.
func (s *session) excluded(ctx context.Context, rel *wal.Relation) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	var history, exists bool
	err := s.cfg.Catalog.QueryRow(ctx, `
		SELECT coalesce((SELECT `+ofHistory+` FROM pg_catalog.pg_namespace n WHERE n.nspname = $1), false),
			EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = $2::text::oid)`,
		rel.Schema, strconv.FormatUint(uint64(rel.OID), 10)).Scan(&history, &exists)
	if err != nil {
		return false, &lookupError{fmt.Errorf("look up schema %s: %w", rel.Schema, err)}
	}
	return history || exists && !s.cfg.Wanted(rel.Schema, rel.Table), nil
}
