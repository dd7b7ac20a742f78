// Command monitoring writes what operators watch capture with, from the list of the metrics:
// alert rules for Prometheus and a dashboard for Grafana, in deploy.
//
//	cd internal/monitoring && go run .
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// generated are the files, by their paths in the repository.
func generated() (map[string][]byte, error) {
	dashboard, err := dashboard()
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		"deploy/prometheus/alerts.yml":  rulesFile(),
		"deploy/grafana/dashboard.json": dashboard,
	}, nil
}

func main() {
	if err := run("../.."); err != nil {
		fmt.Fprintln(os.Stderr, "monitoring:", err)
		os.Exit(1)
	}
}

func run(root string) error {
	files, err := generated()
	if err != nil {
		return err
	}
	for name, text := range files {
		path := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // It is for everybody, as the repository is.
			return err
		}
		if err := os.WriteFile(path, text, 0o644); err != nil { //nolint:gosec // As above.
			return err
		}
	}
	return nil
}
