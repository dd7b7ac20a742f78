package audit

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/telemetry"
	"github.com/hindsight-go/audit/store"
)

// instruments are the metrics of a client. Names and units follow
// OpenTelemetry's conventions: seconds and bytes.
type instruments struct {
	changes, batches, errors metric.Int64Counter
	duration                 metric.Float64Histogram
	registration             metric.Registration
}

func newInstruments(provider metric.MeterProvider, c *Client) (_ *instruments, err error) {
	if provider == nil {
		provider = noop.NewMeterProvider()
	}
	meter := provider.Meter("github.com/hindsight-go/audit")
	m := &instruments{}
	var problems []error
	gauge := func(of telemetry.Metric) metric.Int64ObservableGauge {
		g, err := meter.Int64ObservableGauge(of.Name, metric.WithDescription(of.Description), metric.WithUnit(of.Unit))
		problems = append(problems, err)
		return g
	}
	counter := func(of telemetry.Metric) metric.Int64Counter {
		n, err := meter.Int64Counter(of.Name, metric.WithDescription(of.Description), metric.WithUnit(of.Unit))
		problems = append(problems, err)
		return n
	}
	m.changes, m.batches, m.errors = counter(telemetry.Changes), counter(telemetry.Batches), counter(telemetry.Errors)
	duration := telemetry.BatchDuration
	m.duration, err = meter.Float64Histogram(duration.Name, metric.WithDescription(duration.Description), metric.WithUnit(duration.Unit),
		metric.WithExplicitBucketBoundaries(duration.Buckets...))
	problems = append(problems, err)
	streaming, lag := gauge(telemetry.Streaming), gauge(telemetry.LagBytes)
	lagTime, err := meter.Float64ObservableGauge(telemetry.LagTime.Name, metric.WithDescription(telemetry.LagTime.Description), metric.WithUnit(telemetry.LagTime.Unit))
	problems = append(problems, err)
	retained, bound, safe := gauge(telemetry.SlotRetained), gauge(telemetry.SlotBound), gauge(telemetry.SlotSafe)
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("audit: create metrics: %w", err)
	}
	m.begin()
	m.registration, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		var here int64
		if c.last.state == capture.Streaming {
			here = 1
		}
		o.ObserveInt64(streaming, here)
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
	}, streaming, lag, lagTime, retained, bound, safe)
	if err != nil {
		return nil, fmt.Errorf("audit: create metrics: %w", err)
	}
	return m, nil
}

// begin has all series begin at zero: where one begins with its first error, nobody sees it
// rise.
func (m *instruments) begin() {
	ctx := context.Background()
	m.changes.Add(ctx, 0)
	m.batches.Add(ctx, 0)
	for _, kind := range telemetry.ErrorKinds {
		m.errors.Add(ctx, 0, metric.WithAttributes(attribute.String("kind", kind)))
	}
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
	case history.IsCode(err, "55P03"), errors.As(err, &locked):
		kind = "lock"
	}
	m.errors.Add(context.Background(), 1, metric.WithAttributes(attribute.String("kind", kind)))
}
