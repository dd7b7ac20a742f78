package audit

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/hindsight-go/audit/store"
)

// instruments are the metrics of a client. Names and units follow
// OpenTelemetry's conventions: seconds and bytes.
type instruments struct {
	changes, batches, errors metric.Int64Counter
	duration                 metric.Float64Histogram
	registration             metric.Registration
}

func newInstruments(provider metric.MeterProvider, c *Client) (*instruments, error) {
	if provider == nil {
		provider = noop.NewMeterProvider()
	}
	meter := provider.Meter("github.com/hindsight-go/audit")
	m := &instruments{}
	var problems [9]error
	m.changes, problems[0] = meter.Int64Counter("audit.changes", metric.WithDescription("Changes stored."), metric.WithUnit("{change}"))
	m.batches, problems[1] = meter.Int64Counter("audit.batches", metric.WithDescription("Store transactions."), metric.WithUnit("{batch}"))
	m.errors, problems[2] = meter.Int64Counter("audit.errors", metric.WithDescription("Interruptions of capture and failures of its maintenance, by kind."), metric.WithUnit("{error}"))
	m.duration, problems[3] = meter.Float64Histogram("audit.batch.duration", metric.WithDescription("From the first byte of a batch sent to the store until its commit."), metric.WithUnit("s"))
	lag, err := meter.Int64ObservableGauge("audit.lag.bytes", metric.WithDescription("WAL between the source's position and the store's."), metric.WithUnit("By"))
	problems[4] = err
	lagTime, err := meter.Float64ObservableGauge("audit.lag.time", metric.WithDescription("From commit to storage of the change stored last."), metric.WithUnit("s"))
	problems[5] = err
	retained, err := meter.Int64ObservableGauge("audit.slot.retained", metric.WithDescription("WAL that the source keeps for the slot."), metric.WithUnit("By"))
	problems[6] = err
	bound, err := meter.Int64ObservableGauge("audit.slot.bound", metric.WithDescription("WAL beyond which the source gives up the slot; not there without a bound."), metric.WithUnit("By"))
	problems[7] = err
	safe, err := meter.Int64ObservableGauge("audit.slot.safe", metric.WithDescription("WAL that may still be written before the source gives up the slot; not there without a bound."), metric.WithUnit("By"))
	problems[8] = err
	if err := errors.Join(problems[:]...); err != nil {
		return nil, fmt.Errorf("audit: create metrics: %w", err)
	}
	m.registration, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		o.ObserveInt64(lag, c.last.lag)
		o.ObserveFloat64(lagTime, c.last.lagTime.Seconds())
		o.ObserveInt64(retained, c.last.slot.Retained)
		if c.last.slot.Bound > 0 {
			o.ObserveInt64(bound, c.last.slot.Bound)
		}
		if c.last.slot.Bound > 0 && c.last.slot.Safe >= 0 {
			o.ObserveInt64(safe, c.last.slot.Safe)
		}
		return nil
	}, lag, lagTime, retained, bound, safe)
	if err != nil {
		return nil, fmt.Errorf("audit: create metrics: %w", err)
	}
	return m, nil
}

func (m *instruments) close() { _ = m.registration.Unregister() }

func (m *instruments) stored(b store.Batch) {
	ctx := context.Background()
	m.changes.Add(ctx, b.Changes)
	m.batches.Add(ctx, 1)
	m.duration.Record(ctx, b.Duration.Seconds())
}

func (m *instruments) failed(err error) {
	kind := "other"
	var gap *GapError
	var refused *store.RefusedError
	var locked *store.SetupLockedError
	switch {
	case errors.As(err, &gap):
		kind = "gap"
	case errors.As(err, &refused):
		kind = "refused"
	case errors.Is(err, store.ErrFenced):
		kind = "fenced"
	case isCode(err, "55P03"), errors.As(err, &locked):
		kind = "lock"
	}
	m.errors.Add(context.Background(), 1, metric.WithAttributes(attribute.String("kind", kind)))
}
