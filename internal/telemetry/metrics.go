// Package telemetry lists the metrics of a client, for the client and for whatever is
// generated from the list: alerts, and the dashboard.
package telemetry

import "strings"

// Kind is the kind of instrument.
type Kind string

// The kinds of instruments.
const (
	Counter   Kind = "counter"
	Histogram Kind = "histogram"
	Gauge     Kind = "gauge"
)

// Metric is one of the metrics. Names and units follow OpenTelemetry's conventions.
type Metric struct {
	Name        string
	Kind        Kind
	Unit        string
	Description string
	Buckets     []float64 // of a Histogram: the upper bounds
}

// The metrics.
var (
	Changes       = Metric{"audit.changes", Counter, "{change}", "Changes stored.", nil}
	Batches       = Metric{"audit.batches", Counter, "{batch}", "Store transactions.", nil}
	Errors        = Metric{"audit.errors", Counter, "{error}", "Interruptions of capture and failures of its maintenance, by kind.", nil}
	BatchDuration = Metric{
		"audit.batch.duration", Histogram, "s", "From the first byte of a batch sent to the store until its commit.",
		// A batch takes milliseconds when little is written, and seconds when much is.
		[]float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60},
	}
	Streaming    = Metric{"audit.streaming", Gauge, "{instance}", "1 in the instance that captures, 0 in one that waits, retries or was stopped.", nil}
	LagBytes     = Metric{"audit.lag.bytes", Gauge, "By", "WAL between the source's position and the store's.", nil}
	LagTime      = Metric{"audit.lag.time", Gauge, "s", "From commit to storage of the change stored last.", nil}
	SlotRetained = Metric{"audit.slot.retained", Gauge, "By", "WAL that the source keeps for the slot.", nil}
	SlotBound    = Metric{"audit.slot.bound", Gauge, "By", "WAL beyond which the source gives up the slot; not there without a bound.", nil}
	SlotSafe     = Metric{"audit.slot.safe", Gauge, "By", "WAL that may still be written before the source gives up the slot; not there without a bound.", nil}
)

// All are all of them.
var All = []Metric{Changes, Batches, Errors, BatchDuration, Streaming, LagBytes, LagTime, SlotRetained, SlotBound, SlotSafe}

// ErrorKinds are the values of the attribute kind of Errors.
var ErrorKinds = []string{"gap", "refused", "fenced", "lock", "other"}

// Prometheus is the metric's name where OpenTelemetry is exported to Prometheus, of a
// histogram the name that _bucket, _sum and _count are added to.
func (m Metric) Prometheus() string {
	name := strings.ReplaceAll(m.Name, ".", "_")
	switch unit := map[string]string{"s": "_seconds", "By": "_bytes"}[m.Unit]; {
	case m.Kind == Counter:
		name += "_total"
	case !strings.HasSuffix(name, unit):
		name += unit
	}
	return name
}
