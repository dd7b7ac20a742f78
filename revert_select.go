package audit

import (
	"context"
	"errors"
	"strconv"
	"strings"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/history"
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
	// truncated names the table whose TRUNCATEs belong to the selection as well,
	// which is of one row then.
	truncated string
	// extra are the changes that a cascade has added.
	extra []Position
	// sorted reports whether the changes cannot be had in order without sorting them.
	sorted bool
}

// statement selects the changes from a position on. Where changes are few they are
// to be found by their own index: OFFSET 0 keeps the planner from walking all of
// history in order instead. They mostly lie in the store as they came, so that they
// need not be sorted: whoever reads them has to see to that.
func (s selection) statement(c *Client, from Position) (string, []any, error) {
	sql, args, err := s.part(c, s.query, from)
	if err != nil {
		return "", nil, err
	}
	if s.truncated != "" {
		more, moreArgs, err := s.part(c, Query{}.ForTable(s.truncated).Operations(Truncate), from)
		if err != nil {
			return "", nil, err
		}
		sql, args = sql+" UNION ALL "+more, append(args, moreArgs...)
	}
	if len(s.extra) > 0 {
		positions, sequences := make([]string, len(s.extra)), make([]int, len(s.extra))
		for i, p := range s.extra {
			positions[i], sequences[i] = p.LSN.String(), p.Sequence
		}
		sql += ` UNION ALL (SELECT c.*
			FROM unnest(?::text[], ?::int[]) AS more (position, sequence)
			JOIN ` + c.history.Relation("changes") + ` c ON c.position = more.position::pg_lsn AND c.sequence = more.sequence AND c.database = ?
			WHERE (c.position, c.sequence) >= (?::pg_lsn, ?::int))`
		args = append(args, positions, sequences, s.database, from.LSN.String(), from.Sequence)
	}
	sql = "(" + sql + ") AS c"
	if s.inOrder() {
		// Documents are sorted as they are, and made into text while the rows are read.
		sql = "(SELECT c.* FROM " + sql + " ORDER BY c.position, c.sequence OFFSET 0) AS c ORDER BY c.position, c.sequence"
	}
	sql, err = sq.Dollar.ReplacePlaceholders("SELECT " + strings.Join(selectionColumns, ", ") + " FROM " + sql)
	return sql, args, err
}

// inOrder reports whether the statement sorts the changes.
func (s selection) inOrder() bool { return s.sorted || s.truncated != "" || len(s.extra) > 0 }

// part selects the changes that a query matches.
func (s selection) part(c *Client, q Query, from Position) (string, []any, error) {
	b := q.from(c, "c.*").Where(sq.Expr("c.database = ?", s.database))
	if s.after != nil {
		b = b.Where(sq.Expr("c.position > ?::pg_lsn", s.after.String()))
	}
	if !from.IsZero() {
		b = b.Where(sq.Expr("(c.position, c.sequence) >= (?::pg_lsn, ?::int)", from.LSN.String(), from.Sequence))
	}
	sql, args, err := b.Suffix("OFFSET 0").PlaceholderFormat(sq.Question).ToSql()
	return "(" + sql + ")", args, err
}

// each calls yield with the selected changes, oldest first. Their bytes are valid
// until yield returns. If they are not in order, which only shows while they are
// read, it gives errUnordered: they have to be read again then, sorted.
//
// What a TRUNCATE took away is read from the store, too. If the connections of a
// pool were held meanwhile, reverts could wait for each other for good: from the
// first TRUNCATE on, the selection has a connection of its own.
func (s selection) each(ctx context.Context, c *Client, yield func(*selectedChange) error) error {
	var from Position
	err := s.read(ctx, c, c.history.Store, from, func(change *selectedChange) error {
		if change.operation == Truncate {
			if !s.inOrder() { // what is read on from there has to be all that is left
				return errUnordered
			}
			from = change.position
			return errTruncated
		}
		return yield(change)
	})
	if err != errTruncated { //nolint:errorlint // it is ours, and never wrapped
		return err
	}
	config, err := connConfig(ctx, c.cfg.store)
	if err != nil {
		return history.OpError("connect to the store", err)
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return history.OpError("connect to the store", err)
	}
	defer closeConn(ctx, conn)
	return s.read(ctx, c, conn, from, yield)
}

// errUnordered ends a read of changes that are not in order.
var errUnordered = errors.New("audit: not in order")

// errTruncated ends a read at a TRUNCATE.
var errTruncated = errors.New("audit: truncated")

// read calls yield with the selected changes from a position on.
func (s selection) read(ctx context.Context, c *Client, db capture.Querier, from Position, yield func(*selectedChange) error) error {
	sql, args, err := s.statement(c, from)
	if err != nil {
		return history.OpError("read selection", err)
	}
	// Leaving the rows early would read the rest of them: cutting the connection
	// does not.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return history.OpError("read selection", err)
	}
	defer rows.Close()
	var last Position
	for rows.Next() {
		change, err := readSelected(rows)
		if err != nil {
			cancel()
			return history.OpError("read selection", err)
		}
		if change.position == last { // a cascade met what was selected
			continue
		}
		if change.position.Compare(last) < 0 {
			cancel()
			return errUnordered
		}
		last = change.position
		if err := yield(&change); err != nil {
			cancel()
			return err
		}
	}
	return history.OpError("read selection", rows.Err())
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
