package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/sdk/metric"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/telemetry"
)

func TestFilesAreWhatIsGenerated(t *testing.T) {
	t.Parallel()
	files, err := generated()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			t.Error(err)
		} else if !bytes.Equal(got, want) {
			t.Errorf("%s is not what is generated: go run . in internal/monitoring", name)
		}
	}
}

// exprs are the expressions of rules and dashboard, by where they stand.
func exprs(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	groups, problems := rulefmt.Parse(rulesFile(), false)
	if err := errors.Join(problems...); err != nil {
		t.Fatal(err)
	}
	for _, group := range groups.Groups {
		for _, r := range group.Rules {
			all["alert "+r.Alert] = r.Expr
			if r.Annotations["summary"] == "" || r.Annotations["description"] == "" || r.Labels["severity"] == "" {
				t.Errorf("alert %s does not say what it means", r.Alert)
			}
		}
	}
	if len(all) != len(rules()) {
		t.Errorf("%d alerts in the file, want %d", len(all), len(rules()))
	}
	text, err := dashboard()
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ RefID, Expr string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	// What Grafana puts in.
	replaced := strings.NewReplacer("$__rate_interval", "5m", "$job", ".*")
	taken := make(map[[2]int]int)
	for _, p := range board.Panels {
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != 0 || x >= 24 {
					t.Errorf("panel %d lies over panel %d, or outside", p.ID, other)
				}
				taken[[2]int{x, y}] = p.ID
			}
		}
		for _, target := range p.Targets {
			all["panel "+p.Title+" "+target.RefID+" "+string(rune('0'+p.ID))] = replaced.Replace(target.Expr)
		}
	}
	return all
}

// metricsIn are the names of the metrics of an expression.
func metricsIn(t *testing.T, where, expr string) (names []string) {
	t.Helper()
	parsed, err := parser.ParseExpr(expr)
	if err != nil {
		t.Errorf("%s: %v", where, err)
		return nil
	}
	parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
		if selector, ok := node.(*parser.VectorSelector); ok {
			names = append(names, selector.Name)
		}
		return nil
	})
	return names
}

// exported are the names of the series that a running capture exports.
func exported(t *testing.T) map[string]bool {
	t.Helper()
	registry := prometheus.NewRegistry()
	exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(registry))
	if err != nil {
		t.Fatal(err)
	}
	server := audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{"max_slot_wal_keep_size": "1GB"}})
	db := server.NewDatabase(t)
	db.Exec(t, "CREATE TABLE todo (id int PRIMARY KEY)")
	a := audittest.Open(t, db, audit.Config{MeterProvider: metric.NewMeterProvider(metric.WithReader(exporter))})
	if err := a.Client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer a.Stop(t)
	db.Exec(t, "INSERT INTO todo VALUES (1)")
	a.Sync(t)
	for deadline := time.Now().Add(time.Minute); ; <-time.After(100 * time.Millisecond) {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		names := make(map[string]bool)
		for _, f := range families {
			if names[f.GetName()] = true; f.GetType().String() == "HISTOGRAM" {
				for _, part := range []string{"_bucket", "_sum", "_count"} {
					names[f.GetName()+part] = true
				}
			}
		}
		// The gauges of the slot come with the first look at it.
		if names[telemetry.SlotSafe.Prometheus()] || time.Now().After(deadline) {
			return names
		}
	}
}

func TestMetricsAreExportedByARunningCapture(t *testing.T) {
	t.Parallel()
	names := exported(t)
	used := make(map[string]bool)
	for where, expr := range exprs(t) {
		for _, name := range metricsIn(t, where, expr) {
			if used[strings.TrimSuffix(name, "_bucket")] = true; !names[name] {
				t.Errorf("%s names %s, which a running capture does not export: %v", where, name, slices.Sorted(maps.Keys(names)))
			}
		}
	}
	for _, m := range telemetry.All {
		if !names[m.Prometheus()] {
			t.Errorf("%s is not exported as %s", m.Name, m.Prometheus())
		}
		if !used[m.Prometheus()] {
			t.Errorf("neither an alert nor a panel shows %s", m.Name)
		}
	}
}

// Each alert fires when it should, and is silent when all is well. Series have a value a
// minute; what is asked for is 20 minutes later.
func TestAlertsFire(t *testing.T) {
	t.Parallel()
	const well = `load 1m
		audit_streaming{job="app", instance="a"} 1x30
		audit_streaming{job="app", instance="b"} 0x30
		audit_changes_total{job="app", instance="a"} 0+100x30
		audit_errors_total{job="app", instance="a", kind="gap"} 0x30
		audit_errors_total{job="app", instance="a", kind="refused"} 0x30
		audit_errors_total{job="app", instance="a", kind="other"} 0 0 0 1x27
		audit_lag_bytes{job="app", instance="a"} 1000 2000 500 1000 2000 500 1000 2000 500 1000 2000 500 1000 2000 500 1000 2000 500 1000 2000 500
		audit_lag_time_seconds{job="app", instance="a"} 0.01x30
		audit_slot_retained_bytes{job="app", instance="a"} 1000000x30
		audit_slot_bound_bytes{job="app", instance="a"} 1000000000x30
		`
	ill := map[string]string{
		"AuditNotCapturing": `load 1m
			audit_streaming{job="app", instance="a"} 1x10 0x20
			audit_streaming{job="app", instance="b"} 0x30`,
		"AuditNoMetrics": `load 1m
			up{job="app"} 1x30`,
		"AuditGap": `load 1m
			audit_errors_total{job="app", instance="a", kind="gap"} 0x15 1x15`,
		"AuditWALNearBound": `load 1m
			audit_slot_retained_bytes{job="app", instance="a"} 600000000x30
			audit_slot_bound_bytes{job="app", instance="a"} 1000000000x30`,
		"AuditWALUnbounded": `load 1m
			audit_slot_retained_bytes{job="app", instance="a"} 30000000000x30`,
		"AuditLagGrowing": `load 1m
			audit_lag_bytes{job="app", instance="a"} 300000000+1000000x30`,
		"AuditSlow": `load 1m
			audit_lag_time_seconds{job="app", instance="a"} 61x30
			audit_changes_total{job="app", instance="a"} 0+100x30`,
		"AuditInterrupted": `load 1m
			audit_errors_total{job="app", instance="a", kind="other"} 0+1x30`,
		"AuditRefused": `load 1m
			audit_errors_total{job="app", instance="a", kind="refused"} 0x15 1x15`,
	}
	if len(ill) != len(rules()) {
		t.Errorf("%d alerts are tested, and there are %d", len(ill), len(rules()))
	}
	// What is no reason for an alert, though it looks like one.
	harmless := map[string]string{
		"AuditSlow": `load 1m
			audit_lag_time_seconds{job="app", instance="a"} 3600x30
			audit_changes_total{job="app", instance="a"} 100x30`,
		"AuditWALUnbounded": `load 1m
			audit_slot_retained_bytes{job="app", instance="a"} 30000000000x30
			audit_slot_bound_bytes{job="app", instance="a"} 90000000000x30`,
		"AuditLagGrowing": `load 1m
			audit_lag_bytes{job="app", instance="a"} 0+100000x30`,
		"AuditNotCapturing": `load 1m
			audit_streaming{job="app", instance="a"} 0x30
			audit_streaming{job="app", instance="b"} 1x30`,
	}
	fires := func(r rule, series string) bool {
		storage := promqltest.LoadedStorage(t, series)
		defer storage.Close()
		query, err := promqltest.NewTestEngine(t, false, 0, 1<<20).NewInstantQuery(t.Context(), storage, nil, r.expr, time.Unix(20*60, 0))
		if err != nil {
			t.Fatal(err)
		}
		defer query.Close()
		vector, err := query.Exec(t.Context()).Vector()
		if err != nil {
			t.Fatal(err)
		}
		return len(vector) > 0
	}
	for _, r := range rules() {
		if !fires(r, ill[r.name]) {
			t.Errorf("%s does not fire", r.name)
		}
		if fires(r, well) {
			t.Errorf("%s fires when all is well", r.name)
		}
		if series := harmless[r.name]; series != "" && fires(r, series) {
			t.Errorf("%s fires at what is harmless", r.name)
		}
	}
}
