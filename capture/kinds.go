package capture

import (
	"context"
	"errors"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/wal"
)

// Kinds knows how values of each type of a database are written. It asks the
// catalog once for each type that is not built in. It is safe for concurrent use.
type Kinds struct {
	db Querier

	mu    sync.Mutex
	known map[uint32]wal.Kind // guarded by mu
}

// NewKinds returns the kinds of the types of db's database.
func NewKinds(db Querier) *Kinds { return &Kinds{db: db, known: make(map[uint32]wal.Kind)} }

// Of returns the kind of a type. A type that is gone keeps its text.
func (k *Kinds) Of(ctx context.Context, oid uint32) (wal.Kind, error) {
	if kind, ok := wal.BuiltinKind(oid); ok {
		return kind, nil
	}
	k.mu.Lock()
	kind, ok := k.known[oid]
	k.mu.Unlock()
	if ok {
		return kind, nil
	}
	kind, err := k.lookUp(ctx, oid)
	if err != nil {
		return kind, err
	}
	k.mu.Lock()
	k.known[oid] = kind
	k.mu.Unlock()
	return kind, nil
}

func (k *Kinds) lookUp(ctx context.Context, oid uint32) (wal.Kind, error) {
	var typtype, delimiter string
	var base, elem uint32
	err := k.db.QueryRow(ctx, `
		SELECT t.typtype::text, t.typbasetype, CASE WHEN t.typcategory = 'A' AND e.typarray = t.oid THEN t.typelem ELSE 0 END, coalesce(e.typdelim, ',')::text
		FROM pg_catalog.pg_type t
		LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem
		WHERE t.oid = $1`, oid).Scan(&typtype, &base, &elem, &delimiter)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return wal.Kind{}, nil
	case err != nil:
		return wal.Kind{}, err
	case typtype == "d":
		return k.Of(ctx, base)
	case elem != 0:
		kind, err := k.Of(ctx, elem)
		return wal.ArrayOf(kind, delimiter[0]), err
	}
	return wal.Kind{}, nil
}
