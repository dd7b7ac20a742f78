package main

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// query is a line of a panel.
type query struct{ expr, legend string }

// panel is a panel of the dashboard.
type panel struct {
	title, about, unit string
	kind               string // of Grafana: stat or timeseries
	width              int    // of 24
	queries            []query
}

// ofJob restricts a metric to the job that the dashboard shows.
func ofJob(metric string) string { return metric + `{job=~"$job"}` }

func rate(metric string) string { return "rate(" + ofJob(metric) + "[$__rate_interval])" }

func panels() []panel {
	quantile := func(q string) query {
		return query{fmt.Sprintf("histogram_quantile(%s, sum by (job, le) (%s))", q, rate(duration+"_bucket")), "{{job}} " + q}
	}
	return []panel{
		{"Capturing", "How many instances capture: one, of each job. The others wait.", "none", "stat", 6, []query{{"sum by (job) (" + ofJob(streaming) + ")", "{{job}}"}}},
		{"Behind", "WAL between the source and the store.", "bytes", "stat", 6, []query{{"max by (job) (" + ofJob(lagBytes) + ")", "{{job}}"}}},
		{"WAL kept for the slot", "What the source cannot remove until it is captured.", "bytes", "stat", 6, []query{{"max by (job) (" + ofJob(retained) + ")", "{{job}}"}}},
		{"Gaps, last 7 days", "Times at which history was lost for good. Status.Gaps has them.", "none", "stat", 6, []query{{fmt.Sprintf(`sum by (job) (increase(%s{job=~"$job", kind="gap"}[7d]))`, errorsOf), "{{job}}"}}},
		{"Changes stored", "", "cps", "timeseries", 12, []query{{"sum by (job) (" + rate(changes) + ")", "{{job}}"}}},
		{"From commit to storage", "Of the change stored last: it stays where it is while nothing is written.", "s", "timeseries", 12, []query{{"max by (job) (" + ofJob(lagTime) + ")", "{{job}}"}}},
		{"Behind", "WAL between the source and the store.", "bytes", "timeseries", 12, []query{{"max by (job) (" + ofJob(lagBytes) + ")", "{{job}}"}}},
		{"WAL kept for the slot", "Beyond the bound the source gives up the slot, and history has a gap. There is no bound where max_slot_wal_keep_size is -1.", "bytes", "timeseries", 12, []query{
			{"max by (job) (" + ofJob(retained) + ")", "{{job}} kept"},
			{"max by (job) (" + ofJob(bound) + ")", "{{job}} bound"},
			{"min by (job) (" + ofJob(safe) + ")", "{{job}} left"},
		}},
		{"Time of a batch", "From the first byte sent to the store until its commit.", "s", "timeseries", 8, []query{quantile("0.5"), quantile("0.99")}},
		{"Batches", "Store transactions.", "ops", "timeseries", 8, []query{{"sum by (job) (" + rate(batches) + ")", "{{job}}"}}},
		{"Interruptions", "Errors by kind. Capture goes on by itself behind them.", "none", "timeseries", 8, []query{{"sum by (job, kind) (increase(" + ofJob(errorsOf) + "[$__rate_interval]))", "{{job}} {{kind}}"}}},
	}
}

type object = map[string]any

// dashboard is the file for Grafana.
func dashboard() ([]byte, error) {
	source := object{"type": "prometheus", "uid": "${datasource}"}
	var all []object
	x, y, height := 0, 0, 0
	for i, p := range panels() {
		if x+p.width > 24 {
			x, y = 0, y+height
		}
		height = 8
		if p.kind == "stat" {
			height = 4
		}
		var targets []object
		for n, q := range p.queries {
			targets = append(targets, object{"refId": string(rune('A' + n)), "expr": q.expr, "legendFormat": q.legend, "datasource": source})
		}
		all = append(all, object{
			"id": i + 1, "title": p.title, "description": p.about, "type": p.kind, "datasource": source, "targets": targets,
			"gridPos":     object{"x": x, "y": y, "w": p.width, "h": height},
			"fieldConfig": object{"defaults": object{"unit": p.unit, "min": 0}, "overrides": []object{}},
		})
		x += p.width
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	err := encoder.Encode(object{
		"title": "Audit: capture", "uid": "audit-capture", "tags": []string{"audit", "postgresql"}, "schemaVersion": 39, "editable": true,
		"description": "Made by internal/monitoring from the list of the metrics: change it there.",
		"refresh":     "30s", "time": object{"from": "now-6h", "to": "now"}, "panels": all,
		"templating": object{"list": []object{
			{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
			{
				"name": "job", "type": "query", "label": "Job", "datasource": source, "query": "label_values(" + streaming + ", job)",
				"includeAll": true, "multi": true, "refresh": 2, "current": object{"text": "All", "value": "$__all"},
			},
		}},
	})
	return b.Bytes(), err
}
