package audit

import (
	"context"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/history"
)

// environment switches between the settings that the comparison of texts needs,
// and those that the application's triggers expect.
type environment struct {
	// pins are for comparing, theirs for statements that fire triggers, home are
	// those that the transaction began with. guarded are for statements that compare
	// and write: values are printed as for comparing, names found as by triggers.
	pins, theirs, guarded, home map[string]string
	inPlace                     map[string]string
}

// textSettings decide how values are printed, and how names are found.
var textSettings = map[string]string{
	"datestyle": "ISO, MDY", "intervalstyle": "postgres", "timezone": "UTC", "extra_float_digits": "3",
	"bytea_output": "hex", "search_path": "pg_catalog", "quote_all_identifiers": "off",
}

// inputSettings decide how texts are read. They stay while rows are written, also
// for the triggers then: nothing else would put the values back as they were.
var inputSettings = map[string]string{"xmloption": "content", "array_nulls": "on", "client_encoding": "UTF8"}

// triggerRole is the setting that turns triggers off.
const triggerRole = "session_replication_role"

// pinEnvironment is that of a transaction: of the caller's, or of one of ours.
func pinEnvironment(ctx context.Context, tx pgx.Tx, noTriggers bool) (*environment, error) {
	e := &environment{pins: make(map[string]string), theirs: make(map[string]string), home: make(map[string]string)}
	if encoding := tx.Conn().PgConn().ParameterStatus("client_encoding"); encoding != "UTF8" {
		// Else the other settings could not be read.
		if err := e.set(ctx, tx, map[string]string{"client_encoding": "UTF8"}); err != nil {
			return nil, err
		}
		defer func() { e.home["client_encoding"] = encoding }()
	}
	names := slices.Concat(slices.Collect(maps.Keys(textSettings)), slices.Collect(maps.Keys(inputSettings)), []string{triggerRole})
	rows, err := tx.Query(ctx, "SELECT n, pg_catalog.current_setting(n) FROM unnest($1::text[]) n", names)
	if err != nil {
		return nil, history.OpError("read settings", err)
	}
	var name, value string
	if _, err := pgx.ForEachRow(rows, []any{&name, &value}, func() error { e.home[name] = value; return nil }); err != nil {
		return nil, history.OpError("read settings", err)
	}
	maps.Copy(e.pins, textSettings)
	maps.Copy(e.pins, inputSettings)
	maps.Copy(e.theirs, e.home)
	maps.Copy(e.theirs, inputSettings)
	e.pins[triggerRole] = e.home[triggerRole]
	if noTriggers {
		e.theirs[triggerRole] = "replica"
	}
	e.guarded = maps.Clone(e.pins)
	e.guarded["search_path"] = e.home["search_path"]
	e.inPlace = maps.Clone(e.home)
	return e, e.set(ctx, tx, e.pins)
}

// pinTexts is enough for a transaction in which nothing is written.
func pinTexts(ctx context.Context, tx pgx.Tx) error {
	pins := maps.Clone(textSettings)
	maps.Copy(pins, inputSettings)
	return (&environment{}).set(ctx, tx, pins)
}

func (e *environment) set(ctx context.Context, tx capture.Querier, settings map[string]string) error {
	names, values := make([]string, 0, len(settings)), make([]string, 0, len(settings))
	for name, value := range settings {
		if e.inPlace[name] != value || e.inPlace == nil {
			names, values = append(names, name), append(values, value)
		}
	}
	if len(names) == 0 {
		return nil
	}
	var n int
	err := tx.QueryRow(ctx, "SELECT count(pg_catalog.set_config(n, v, true)) FROM unnest($1::text[], $2::text[]) AS s (n, v)", names, values).Scan(&n)
	if err != nil {
		return history.OpError("change settings", err)
	}
	if e.inPlace == nil {
		e.inPlace = make(map[string]string)
	}
	for i, name := range names {
		e.inPlace[name] = values[i]
	}
	return nil
}

// application sets what the application's triggers expect.
func (e *environment) application(ctx context.Context, tx pgx.Tx) error {
	err := e.set(ctx, tx, e.theirs)
	if isDenied(err) { // only one of the settings is not for everybody
		return &ApplyError{Action: Update, cause: err}
	}
	return err
}

// pinned sets what comparing needs.
func (e *environment) pinned(ctx context.Context, tx pgx.Tx) error { return e.set(ctx, tx, e.pins) }

// leave gives the caller's transaction its settings back. After an error of a
// statement nothing can be set, nor has to be: the transaction is over.
func (e *environment) leave(ctx context.Context, tx pgx.Tx) error {
	if tx.Conn().PgConn().TxStatus() != 'T' {
		return nil
	}
	return e.set(ctx, tx, e.home)
}
