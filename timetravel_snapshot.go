package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// snapshot is one consistent look at the live tables, of which history holds
// everything that it shows.
type snapshot struct {
	conn *pgxpool.Conn
	tx   pgx.Tx
	// xmin, xmax and running are those of pg_snapshot: a transaction is not seen if
	// it is running, or its id is at least xmax.
	xmin, xmax uint64
	running    []uint64
	// hidden are transactions that are in the moment, and that the snapshot does
	// not show: a transaction is in the write-ahead log, and with synchronous
	// replication for long, before others see it.
	hidden []uint64
}

// snapshotLockWait bounds the wait for a table that somebody alters: the past
// must not stand in line in front of the application.
const snapshotLockWait = 10 * time.Second

// liveSettings are what the texts of live values and of history have in common.
// Row security would silently leave rows out: without it, the server refuses.
const liveSettings = `
	SET LOCAL row_security = off;
	SET LOCAL intervalstyle = 'postgres';
	SET LOCAL extra_float_digits = 3;
	SET LOCAL bytea_output = 'hex';
	SET LOCAL cursor_tuple_fraction = 1;`

// snapshot takes a snapshot of the live tables and waits until the store holds
// everything that it shows. The tables are locked first, against TRUNCATE and
// ALTER TABLE only: those would be seen by an older snapshot.
func (t *travel) snapshot(ctx context.Context, tables []*pgcatalog.Table, mode pgx.TxAccessMode) (*snapshot, error) {
	conn, err := t.client.history.SourceLong.Acquire(ctx)
	if err != nil {
		return nil, history.OpError("connect to the source", err)
	}
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: mode})
	if err != nil {
		conn.Release()
		return nil, history.OpError("look at the live tables", err)
	}
	s := &snapshot{conn: conn, tx: tx}
	if err := s.take(ctx, tables); err != nil {
		s.close()
		if t.client.open() != nil { // of several statements at once pgx says less
			return nil, history.OpError("look at the live tables", ErrClosed)
		}
		return nil, err
	}
	if err := t.catchUp(ctx); err != nil {
		s.close()
		return nil, err
	}
	if err := s.findHidden(ctx, t); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// findHidden looks which transactions that the snapshot does not show are in the
// moment.
func (s *snapshot) findHidden(ctx context.Context, t *travel) error {
	changes := t.client.history.Relation("changes")
	rows, err := t.client.history.Store.Query(ctx, `
		SELECT running.xid
		FROM pg_catalog.unnest($1::bigint[]) running (xid)
		WHERE EXISTS (
			SELECT FROM `+changes+` c
			WHERE c.transaction_id = running.xid AND c.database = $3 AND c.position <= $4)
		UNION
		SELECT c.transaction_id
		FROM `+changes+` c
		WHERE c.transaction_id >= $2 AND c.database = $3 AND c.position <= $4`, s.running, int64(s.xmax), t.database, t.through.String())
	if err != nil {
		return history.OpError("look for transactions not visible yet", err)
	}
	s.hidden, err = pgx.CollectRows(rows, pgx.RowTo[uint64])
	return history.OpError("look for transactions not visible yet", err)
}

func (s *snapshot) take(ctx context.Context, tables []*pgcatalog.Table) error {
	statement := liveSettings + fmt.Sprintf("SET LOCAL lock_timeout = %d;", snapshotLockWait.Milliseconds())
	if len(tables) > 0 {
		var names []string
		for _, table := range tables {
			names = append(names, table.Ident())
		}
		slices.Sort(names)
		statement += "LOCK TABLE " + strings.Join(names, ", ") + " IN ACCESS SHARE MODE;"
	}
	if _, err := s.tx.Exec(ctx, statement+"SET LOCAL lock_timeout = 0"); err != nil {
		return history.OpError("lock the live tables against being altered", err)
	}
	var text string
	if err := s.tx.QueryRow(ctx, "SELECT pg_catalog.pg_current_snapshot()::text").Scan(&text); err != nil {
		return history.OpError("look at the live tables", err)
	}
	return history.OpError("read snapshot", s.parse(text))
}

// parse reads PostgreSQL's text form of a snapshot: xmin:xmax:xid,xid.
func (s *snapshot) parse(text string) error {
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return errors.New("not of the form xmin:xmax:xids")
	}
	var err1, err2 error
	s.xmin, err1 = strconv.ParseUint(parts[0], 10, 64)
	s.xmax, err2 = strconv.ParseUint(parts[1], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if parts[2] == "" {
		return nil
	}
	for item := range strings.SplitSeq(parts[2], ",") {
		xid, err := strconv.ParseUint(item, 10, 64)
		if err != nil {
			return err
		}
		s.running = append(s.running, xid)
	}
	return nil
}

// sees reports whether the snapshot shows what a committed transaction did.
func (s *snapshot) sees(xid uint64) bool {
	return xid < s.xmin || xid < s.xmax && !slices.Contains(s.running, xid)
}

// close ends the snapshot's transaction. It works after the caller's ctx has
// ended, too.
func (s *snapshot) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = s.tx.Rollback(ctx)
	s.conn.Release()
}
