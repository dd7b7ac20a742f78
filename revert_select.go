package audit

import (
	"context"
	"strconv"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pgx/v5"
)

// selectionColumns are those that readSelected reads, all as text, which is what
// the images are taken apart as anyway.
var selectionColumns = []string{
	"c.position::text", "c.sequence::text", "c.schema", `c."table"`, "c.primary_key", "c.previous_key",
	"c.operation", "c.before::text", "c.after::text", "coalesce(c.defect, '')",
}

// selection is the changes that a revert undoes.
type selection struct {
	query    Query
	database string
	// after bounds a selection that goes back to a moment.
	after *LSN
	// extra are the changes that a cascade has added.
	extra []Position
}

// statement selects the changes oldest first. Where changes are few they are to be
// found by their own index and sorted: OFFSET 0 keeps the planner from walking
// all of history in order instead.
func (s selection) statement(c *Client) (string, []any, error) {
	inner := s.query.from(c, "c.*").Where(sq.Expr("c.database = ?", s.database))
	if s.after != nil {
		inner = inner.Where(sq.Expr("c.position > ?::pg_lsn", s.after.String()))
	}
	sql, args, err := inner.Suffix("OFFSET 0").PlaceholderFormat(sq.Question).ToSql()
	if err != nil {
		return "", nil, err
	}
	sql = "(" + sql + ")"
	if len(s.extra) > 0 {
		positions, sequences := make([]string, len(s.extra)), make([]int, len(s.extra))
		for i, p := range s.extra {
			positions[i], sequences[i] = p.LSN.String(), p.Sequence
		}
		sql += ` UNION ALL (SELECT c.*
			FROM unnest(?::text[], ?::int[]) AS more (position, sequence)
			JOIN ` + c.table("changes") + ` c ON c.position = more.position::pg_lsn AND c.sequence = more.sequence AND c.database = ?)`
		args = append(args, positions, sequences, s.database)
	}
	b := sq.Select(selectionColumns...).From("("+sql+") AS c").OrderBy("c.position", "c.sequence")
	sql, none, err := b.ToSql()
	if err != nil {
		return "", nil, err
	}
	sql, err = sq.Dollar.ReplacePlaceholders(sql)
	return sql, append(args, none...), err
}

// each calls yield with the selected changes, oldest first. Their bytes are valid
// until yield returns.
func (s selection) each(ctx context.Context, c *Client, yield func(*selectedChange) error) error {
	sql, args, err := s.statement(c)
	if err != nil {
		return wrap("read selection", err)
	}
	// Leaving the rows early would read the rest of them: cutting the connection
	// does not.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rows, err := c.store.Query(ctx, sql, args...)
	if err != nil {
		return wrap("read selection", err)
	}
	defer rows.Close()
	var last Position
	for rows.Next() {
		change, err := readSelected(rows)
		if err != nil {
			cancel()
			return wrap("read selection", err)
		}
		if change.position == last { // a cascade met what was selected
			continue
		}
		last = change.position
		if err := yield(&change); err != nil {
			cancel()
			return err
		}
	}
	return wrap("read selection", rows.Err())
}

func readSelected(rows pgx.Rows) (selectedChange, error) {
	v := rows.RawValues()
	lsn, err := parseLSN(string(v[0]))
	if err != nil {
		return selectedChange{}, err
	}
	sequence, err := strconv.Atoi(string(v[1]))
	return selectedChange{
		position: Position{LSN: lsn, Sequence: sequence},
		schema:   string(v[2]), table: string(v[3]), key: v[4], previous: v[5],
		operation: Operation(v[6]), before: v[7], after: v[8], defect: string(v[9]),
	}, err
}
