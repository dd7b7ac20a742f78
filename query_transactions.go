package audit

import (
	"context"
	"iter"
	"slices"
	"time"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// groupPage is how many transactions or requests an iterator reads at a time.
const groupPage = 64

// Transaction is a source transaction, with those of its changes that the query
// matches.
type Transaction struct {
	// ID is the 64-bit transaction id, Position the commit LSN.
	ID       uint64        `json:"id"`
	Position pglogrepl.LSN `json:"position"`
	Database string        `json:"database"`
	// CommittedAt is the commit time by the clock of the source.
	CommittedAt time.Time `json:"committedAt"`
	// First and Last are the sequences of the first and the last matching change.
	First int `json:"first"`
	Last  int `json:"last"`
	// Context is that of the first change that has one. Stamped is false if none
	// has.
	Context Context `json:"context"`
	Stamped bool    `json:"stamped"`
	// Counts says how many changes matched, by operation.
	Counts
	// Tables lists their tables, sorted, in the form that ForTable reads.
	Tables []string `json:"tables"`
}

// Transactions returns the transactions that the matching changes belong to, in
// the order of the query, reading ahead in pages. Limit counts transactions.
//
// Each pair is a value and nil, or a zero value and an error; after an error the
// sequence ends. Each range runs the query again.
func (q Query) Transactions(ctx context.Context) iter.Seq2[Transaction, error] {
	return func(yield func(Transaction, error) bool) {
		left := q.limit
		for at := q; ; {
			size := groupPage
			if q.limit > 0 {
				size = min(size, left)
			}
			page, err := at.TransactionsPage(ctx, size)
			if err != nil {
				yield(Transaction{}, err)
				return
			}
			for _, transaction := range page.Transactions {
				if !yield(transaction, nil) {
					return
				}
			}
			left -= len(page.Transactions)
			if !page.More || q.limit > 0 && left <= 0 {
				return
			}
			at = at.After(page.Next)
		}
	}
}

// TransactionPage is a part of the list of transactions. See [Page].
type TransactionPage struct {
	Transactions []Transaction `json:"transactions"`
	Next         Cursor        `json:"next,omitempty"`
	More         bool          `json:"more"`
}

// TransactionsPage returns the next size transactions, from 1 to 10,000. A Limit
// of the query is not regarded.
func (q Query) TransactionsPage(ctx context.Context, size int) (TransactionPage, error) {
	if size < 1 || size > maxPage {
		q = q.refuse("TransactionsPage", "the size must be from 1 to 10,000", nil)
	}
	client, err := q.ready()
	if err != nil {
		return TransactionPage{}, err
	}
	from, err := q.continueFrom(newestTransactions, oldestTransactions)
	if err != nil {
		return TransactionPage{}, err
	}
	marks, err := q.transactionMarks(ctx, client, from, size+1)
	if err != nil {
		return TransactionPage{}, err
	}
	page := TransactionPage{More: len(marks) > size}
	marks = marks[:min(size, len(marks))]
	if len(marks) == 0 {
		if from != nil {
			page.Next = from.encode()
		}
		return page, nil
	}
	kind := newestTransactions
	if q.oldest {
		kind = oldestTransactions
	}
	page.Next = cursor{kind, marks[len(marks)-1:]}.encode()
	page.Transactions, err = q.describeTransactions(ctx, client, marks)
	return page, err
}

// transactionMarks finds which transactions come next.
func (q Query) transactionMarks(ctx context.Context, client *Client, from *cursor, size int) ([]mark, error) {
	b := q.transactionStatement(client, from, size)
	return collect(ctx, client, "list transactions", b, func(row pgx.CollectableRow) (m mark, err error) {
		var lsn lsnText
		err = row.Scan(&lsn, &m.database)
		m.position.LSN = pglogrepl.LSN(lsn)
		return m, err
	})
}

// transactionStatement reads no more of an index than finding the transactions
// takes: it stops at the limit.
func (q Query) transactionStatement(client *Client, from *cursor, size int) sq.SelectBuilder {
	order := []string{"c.position DESC", "c.database DESC"}
	if q.oldest {
		order = []string{"c.position", "c.database"}
	}
	b := q.from(client, "c.position", "c.database")
	if from != nil {
		b = b.Where(sq.Expr(`(c.position, c.database) `+q.beyond()+` (?::pg_lsn, ?::text)`,
			from.marks[0].position.LSN.String(), from.marks[0].database))
	}
	if q.rare {
		b = sq.StatementBuilder.PlaceholderFormat(sq.Dollar).
			Select("c.position", "c.database").
			FromSelect(b.Suffix("OFFSET 0"), "c")
	}
	return b.GroupBy("c.position", "c.database").OrderBy(order...).Limit(uint64(size))
}

// describeTransactions counts the changes of the transactions at the marks,
// which follow one another in the order of the query.
func (q Query) describeTransactions(ctx context.Context, client *Client, marks []mark) ([]Transaction, error) {
	low, high := marks[0].position.LSN, marks[len(marks)-1].position.LSN
	if low > high {
		low, high = high, low
	}
	b := q.from(client, "c.position", "c.database", "c.schema", `c."table"`, "c.operation",
		"min(c.transaction_id)", "min(c.committed_at)", "count(*)", "min(c.sequence)", "max(c.sequence)",
		"min(c.sequence) FILTER (WHERE c.context IS NOT NULL)").
		Where(sq.Expr("c.position BETWEEN ?::pg_lsn AND ?::pg_lsn", low.String(), high.String())).
		GroupBy("c.position", "c.database", "c.schema", `c."table"`, "c.operation")

	transactions := make([]Transaction, len(marks))
	stamps := make([]mark, len(marks))
	at := make(map[mark]int, len(marks))
	for i, m := range marks {
		at[m] = i
	}
	_, err := collect(ctx, client, "list transactions", b, func(row pgx.CollectableRow) (struct{}, error) {
		var (
			lsn           lsnText
			m             mark
			schema, table string
			operation     Operation
			id, count     int64
			committed     time.Time
			first, last   int
			stamped       *int
		)
		if err := row.Scan(&lsn, &m.database, &schema, &table, &operation, &id, &committed, &count, &first, &last, &stamped); err != nil {
			return struct{}{}, err
		}
		m.position.LSN = pglogrepl.LSN(lsn)
		i, wanted := at[m]
		if !wanted {
			return struct{}{}, nil
		}
		transaction, stamp := &transactions[i], &stamps[i]
		if transaction.First == 0 || first < transaction.First {
			transaction.First = first
		}
		transaction.ID, transaction.Position, transaction.Database = uint64(id), m.position.LSN, m.database
		transaction.CommittedAt = committed.UTC()
		transaction.Last = max(transaction.Last, last)
		transaction.Tables = append(transaction.Tables, pgcatalog.Qualified(schema, table))
		transaction.add(operation, count)
		if stamped != nil && (stamp.position.Sequence == 0 || *stamped < stamp.position.Sequence) {
			*stamp = mark{Position{m.position.LSN, *stamped}, m.database}
		}
		return struct{}{}, nil
	})
	if err != nil {
		return nil, err
	}
	contexts, err := client.contextsAt(ctx, stamps)
	for i := range transactions {
		transactions[i].Tables = slices.Compact(slices.Sorted(slices.Values(transactions[i].Tables)))
		if raw, ok := contexts[stamps[i]]; ok {
			transactions[i].Context, transactions[i].Stamped = readContext(raw), true
		}
	}
	// Retention may have dropped a partition between the statements.
	return slices.DeleteFunc(transactions, func(t Transaction) bool { return t.Total() == 0 }), err
}

// contextsAt reads the contexts of single changes, by their places.
func (c *Client) contextsAt(ctx context.Context, marks []mark) (map[mark][]byte, error) {
	var positions, databases []string
	var sequences []int
	for _, m := range marks {
		if m.position.Sequence > 0 {
			positions = append(positions, m.position.LSN.String())
			sequences = append(sequences, m.position.Sequence)
			databases = append(databases, m.database)
		}
	}
	contexts := make(map[mark][]byte, len(positions))
	if len(positions) == 0 {
		return contexts, nil
	}
	statement := `
		SELECT c.position, c.sequence, c.database, c.context
		FROM unnest($1::text[], $2::integer[], $3::text[]) AS at (position, sequence, database)
		JOIN ` + c.history.Relation("changes") + ` AS c
			ON c.position = at.position::pg_lsn
			AND c.sequence = at.sequence
			AND c.database = at.database`
	_, err := collect(ctx, c, "read contexts", sq.Expr(statement, positions, sequences, databases), func(row pgx.CollectableRow) (struct{}, error) {
		var m mark
		var lsn lsnText
		var raw []byte
		err := row.Scan(&lsn, &m.position.Sequence, &m.database, &raw)
		m.position.LSN = pglogrepl.LSN(lsn)
		contexts[m] = raw
		return struct{}{}, err
	})
	return contexts, err
}
