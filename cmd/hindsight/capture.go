package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/sdk/metric"

	"github.com/hindsight-go/audit"
)

// captureOptions are the flags of the command, with what a container is told by
// environment variables.
type captureOptions struct {
	environment, retention, listen, logFormat string
	storeOwner                                string
	requireWALBound, stopAtGap                bool
	noEventTrigger                            bool
}

func (a *app) captureCommand() *cobra.Command {
	var o captureOptions
	cmd := &cobra.Command{
		Use:   "capture",
		Short: "Capture, and nothing else, until it is stopped",
		Long: `Capture the changes of the database until SIGTERM or Ctrl-C, and then store what was read:
for databases whose programs do not capture by themselves, because they are written in
other languages, say. Run as many as you like: one captures, the others wait to take over.

With --listen it serves /metrics for Prometheus and /healthz for probes.

Every flag can be given by an environment variable as well: HINDSIGHT_ and its name in
capitals, such as HINDSIGHT_TABLES='public.*,!public.sessions'.`,
		Example: `  hindsight capture --tables 'public.*' --tables '!public.sessions' --retention 365d
  hindsight capture --listen :9187 --log json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.fromEnvironment(cmd); err != nil {
				return err
			}
			return a.capture(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.environment, "environment", "", "recorded with every change: production")
	f.StringVar(&o.retention, "retention", "", "how long history is kept: 365d (default: for ever)")
	f.StringVar(&o.listen, "listen", "", "serve /metrics and /healthz at this address: :9187 (default: nowhere)")
	f.StringVar(&o.logFormat, "log", "text", "how to log to standard error: text or json")
	f.StringVar(&o.storeOwner, "store-owner", "", "the role that owns the store, where a DBA has made it with setup --store-owner")
	f.BoolVar(&o.requireWALBound, "require-wal-bound", false, "refuse a server whose max_slot_wal_keep_size is -1")
	f.BoolVar(&o.stopAtGap, "stop-at-gap", false, "end where history was lost, and do not go on behind it")
	f.BoolVar(&o.noEventTrigger, "no-event-trigger", false, "do not make the event triggers, which take a superuser")
	a.registerNames(cmd)
	return cmd
}

// fromEnvironment gives the flags of a command, and those of all commands, that are not on the
// command line what the environment says.
func (a *app) fromEnvironment(cmd *cobra.Command) error {
	var problems []error
	set := func(name string) {
		flag := cmd.Flags().Lookup(name)
		variable := "HINDSIGHT_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		value := a.getenv(variable)
		if value == "" || flag == nil || flag.Changed {
			return
		}
		if err := cmd.Flags().Set(name, value); err != nil {
			problems = append(problems, usagef("%s is not a value for --%s", variable, name))
		}
	}
	for _, name := range []string{
		"schema", "tables", "slot", "publication", "environment", "retention", "listen", "log", "store-owner",
		"require-wal-bound", "stop-at-gap", "no-event-trigger",
	} {
		set(name)
	}
	return errors.Join(problems...)
}

// capture captures until ctx ends.
func (a *app) capture(ctx context.Context, o captureOptions) error {
	cfg := a.config()
	cfg.Environment, cfg.StoreRoles.Owner, cfg.RequireWALBound, cfg.NoEventTrigger = o.environment, o.storeOwner, o.requireWALBound, o.noEventTrigger
	if o.stopAtGap {
		cfg.OnGap = audit.StopAtGap
	}
	if o.retention != "" {
		keep, err := parseDuration(o.retention)
		if err != nil {
			return usagef("--retention %v", err)
		}
		cfg.Retention = keep
	}
	switch o.logFormat {
	case "text":
		cfg.Logger = slog.New(slog.NewTextHandler(a.err, nil))
	case "json":
		cfg.Logger = slog.New(slog.NewJSONHandler(a.err, nil))
	default:
		return usagef("--log %s is not one of text, json", o.logFormat)
	}
	registry := prometheus.NewRegistry()
	exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(registry), otelprometheus.WithoutScopeInfo(), otelprometheus.WithoutTargetInfo())
	if err != nil {
		return fmt.Errorf("export metrics: %w", err)
	}
	meters := metric.NewMeterProvider(metric.WithReader(exporter))
	cfg.MeterProvider = meters
	defer func() { _ = meters.Shutdown(context.WithoutCancel(ctx)) }()
	client, err := audit.Open(ctx, cfg)
	if err != nil {
		return configText(err)
	}
	a.client = client
	if o.listen == "" {
		return client.Run(ctx)
	}
	// Probes are answered from the beginning: starting may take as long as somebody's
	// transaction keeps the slot from being made.
	served, err := a.serveProbes(ctx, o.listen, client, promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	if err != nil {
		return err
	}
	err = client.Run(ctx)
	return errors.Join(err, served())
}

// serveProbes serves metrics and probes until the func that it returns is called.
func (a *app) serveProbes(ctx context.Context, address string, client *audit.Client, metrics http.Handler) (end func() error, err error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.Handle("GET /healthz", client.Health())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: headPatience}
	a.note("Metrics are at http://%s/metrics, and /healthz says whether changes are being captured.", listener.Addr())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	return func() error {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastPatience)
		defer cancel()
		if err := server.Shutdown(last); err != nil {
			_ = server.Close()
		}
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}, nil
}
