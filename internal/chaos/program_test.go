//go:build unix

package chaos_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/hindsight-go/audit"
)

// programEnv holds the configuration of a program, and so makes this binary one.
const programEnv = "AUDIT_CHAOS_PROGRAM"

// programConfig configures a program that captures.
type programConfig struct {
	SourceURL, StoreURL string
	// PasswordFile holds the password of the role, whatever it is at the moment.
	PasswordFile string
}

// answer is what a program says about itself when it is asked.
type answer struct {
	State audit.State `json:"state"`
	// Err is Status.Err, StatusErr what Status returned.
	Err       string   `json:"err"`
	StatusErr string   `json:"statusErr"`
	Warnings  []string `json:"warnings"`
	Pending   []string `json:"pending"`
	Gaps      int      `json:"gaps"`
	// Errors is the sum of the metric audit.errors.
	Errors int64 `json:"errors"`
}

// says returns what the answer complains of, or nothing.
func (a answer) says() string {
	return strings.Join(append(append([]string{a.Err, a.StatusErr}, a.Warnings...), a.Pending...), "")
}

const (
	// answerMark stands before an answer among the lines of the log.
	answerMark = "answer "
	hasEnded   = "program: has ended"
)

func isProgram() bool { return os.Getenv(programEnv) != "" }

// runProgram captures until its standard input ends, as it does when the test is gone,
// and returns the exit code.
func runProgram() int {
	logger := slog.New(slog.NewJSONHandler(os.Stdout, nil))
	if err := program(logger); err != nil {
		logger.Error(hasEnded, "error", err)
		return 1
	}
	return 0
}

func (c programConfig) audit() audit.Config {
	ask := func(_ context.Context, config *pgconn.Config) error {
		password, err := os.ReadFile(c.PasswordFile)
		config.Password = string(password)
		return err
	}
	return audit.Config{SourceURL: c.SourceURL, StoreURL: c.StoreURL, Tables: []string{"public.*"}, BeforeConnect: ask, StoreBeforeConnect: ask}
}

func program(logger *slog.Logger) error {
	var config programConfig
	if err := json.Unmarshal([]byte(os.Getenv(programEnv)), &config); err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	reader := metric.NewManualReader()
	cfg := config.audit()
	cfg.Logger, cfg.MeterProvider = logger, metric.NewMeterProvider(metric.WithReader(reader))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	client, err := audit.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer client.Close()
	ended := make(chan error, 1)
	go func() { ended <- client.Run(ctx) }()
	questions := make(chan struct{})
	go func() {
		defer close(questions)
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			questions <- struct{}{}
		}
	}()
	for {
		select {
		case err := <-ended:
			return err
		case _, more := <-questions:
			if !more {
				cancel()
				return <-ended
			}
			text, err := json.Marshal(ask(ctx, client, reader))
			if err != nil {
				return err
			}
			if _, err := os.Stdout.WriteString(answerMark + string(text) + "\n"); err != nil {
				return err
			}
		}
	}
}

func ask(ctx context.Context, client *audit.Client, reader *metric.ManualReader) (a answer) {
	short, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	status, err := client.Status(short)
	a.State, a.Gaps = status.State, len(status.Gaps)
	if status.Err != nil {
		a.Err = status.Err.Error()
	}
	if err != nil {
		a.StatusErr = err.Error()
	}
	for _, w := range status.Warnings {
		if w.Code != audit.WarningWALUnbounded {
			a.Warnings = append(a.Warnings, w.Text)
		}
	}
	for _, t := range status.Tables {
		if t.Pending != nil {
			a.Pending = append(a.Pending, t.Table+": "+t.Pending.Error())
		}
	}
	var all metricdata.ResourceMetrics
	if err := reader.Collect(ctx, &all); err != nil {
		return a
	}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if sum, ok := m.Data.(metricdata.Sum[int64]); ok && m.Name == "audit.errors" {
				for _, p := range sum.DataPoints {
					a.Errors += p.Value
				}
			}
		}
	}
	return a
}
