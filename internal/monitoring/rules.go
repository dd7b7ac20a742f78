package main

import (
	"bytes"
	"fmt"
	"strconv"

	"github.com/hindsight-go/audit/internal/telemetry"
)

// rule is an alert.
type rule struct {
	name, expr, wait, severity string
	// summary is what it means, action what to do about it.
	summary, action string
}

var (
	streaming = telemetry.Streaming.Prometheus()
	changes   = telemetry.Changes.Prometheus()
	errorsOf  = telemetry.Errors.Prometheus()
	lagBytes  = telemetry.LagBytes.Prometheus()
	lagTime   = telemetry.LagTime.Prometheus()
	retained  = telemetry.SlotRetained.Prometheus()
	bound     = telemetry.SlotBound.Prometheus()
	safe      = telemetry.SlotSafe.Prometheus()
	duration  = telemetry.BatchDuration.Prometheus()
	batches   = telemetry.Batches.Prometheus()
)

// highest is a gauge's value over the instances of a job: those that wait have it, too.
func highest(metric string) string { return "max by (job) (" + metric + ")" }

// rose is by how much the errors of a kind rose.
func rose(kinds, over string) string {
	return fmt.Sprintf(`sum by (job) (increase(%s{kind=~"%s"}[%s]))`, errorsOf, kinds, over)
}

const (
	megabyte = 1 << 20
	gigabyte = 1 << 30
)

func rules() []rule {
	return []rule{
		{
			"AuditNotCapturing", highest(streaming) + " == 0", "2m", "critical",
			"No instance captures: nothing new is in the history, and the source keeps its WAL.",
			"Look at Status.Err and the log of the program, and run hindsight doctor.",
		},
		{
			"AuditNoMetrics", "absent(" + streaming + ")", "5m", "critical",
			"No program exports metrics of capture: either none runs, or it is not scraped.",
			"Start the program, or look at the targets of Prometheus. While nobody captures the source keeps its WAL.",
		},
		{
			"AuditGap", rose("gap", "15m") + " > 0", "", "critical",
			"The history has lost changes for good.",
			"Status.Gaps says from when to when, and why: the slot was dropped, lost or moved.",
		},
		{
			"AuditWALNearBound", highest(retained) + " > 0.5 * " + highest(bound), "5m", "critical",
			"The source keeps more than half of the WAL after which it gives up the slot, which leaves a gap.",
			"Capture is behind or stopped, or somebody has a long open transaction: hindsight doctor names it.",
		},
		{
			"AuditWALUnbounded", fmt.Sprintf("%s > %d unless on (job) %s", highest(retained), 20*gigabyte, highest(bound)), "5m", "critical",
			"The source keeps more than 20 GiB of WAL for the slot, and nothing bounds it: a full disk stops the source.",
			"End what holds it (hindsight doctor), and set max_slot_wal_keep_size or Config.MaxRetainedWAL.",
		},
		{
			"AuditLagGrowing", fmt.Sprintf("max by (job) (deriv(%s[10m])) > 0 and on (job) %s > %d", lagBytes, highest(lagBytes), 256*megabyte), "10m", "warning",
			"The store falls behind the source.",
			"It is slower than what is written, or a huge transaction is being decoded: look at the CPU and disk of the store.",
		},
		{
			"AuditSlow", fmt.Sprintf("%s > 60 and on (job) sum by (job) (rate(%s[5m])) > 0", highest(lagTime), changes), "5m", "warning",
			"Changes reach the history more than a minute after their commit.",
			"As for AuditLagGrowing.",
		},
		{
			"AuditInterrupted", rose("other|fenced|lock", "15m") + " > 10", "", "warning",
			"Capture is interrupted, or its maintenance fails, again and again.",
			"The log of the program says by what. Of the kind lock: hindsight doctor says which tables wait.",
		},
		{
			"AuditRefused", rose("refused", "15m") + " > 0", "", "warning",
			"The store refused what was to be stored; what could not be kept is marked.",
			"Changes().WithDefect() finds the changes.",
		},
	}
}

// rulesFile is the file of the rules. Texts are in JSON's quotes, which YAML takes.
func rulesFile() []byte {
	var b bytes.Buffer
	b.WriteString("# Made by internal/monitoring from the list of the metrics: change it there, and run\n# go run . in that directory.\ngroups:\n  - name: audit\n    rules:\n")
	for _, r := range rules() {
		fmt.Fprintf(&b, "      - alert: %s\n        expr: %s\n", r.name, strconv.Quote(r.expr))
		if r.wait != "" {
			fmt.Fprintf(&b, "        for: %s\n", r.wait)
		}
		fmt.Fprintf(&b, "        labels:\n          severity: %s\n        annotations:\n          summary: %s\n          description: %s\n",
			r.severity, strconv.Quote(r.summary), strconv.Quote(r.action))
	}
	return b.Bytes()
}
