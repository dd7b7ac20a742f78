package pgserver

import (
	"maps"
	"slices"
	"strings"
)

// settings gives the configuration of a server of our own, ours first and the
// caller's over it.
func settings(opts Options) map[string]string {
	s := map[string]string{
		"wal_level": "logical",
		// Every test that captures has a slot and a sender, and the tests of a
		// package run in parallel on one server.
		"max_replication_slots": "200",
		"max_wal_senders":       "200",
		"max_connections":       "300",
		"timezone":              "UTC",
		"log_line_prefix":       "%m [%p] %q%d %a ",
	}
	if !opts.Durable {
		// synchronous_commit stays on. Without fsync it costs one write, and
		// turning it off would be wrong twice: a server that is killed would
		// lose transactions that it had confirmed, and the WAL of a commit
		// would be sent up to 600 ms late, when the WAL writer gets to it.
		s["fsync"] = "off"
		// Statements over tables that nobody has analyzed have plans with high
		// costs: compiling them took half of the time of the tests.
		s["jit"] = "off"
	}
	maps.Copy(s, opts.Settings)
	return s
}

// configuration writes settings in the syntax of postgresql.conf, sorted so
// that the file is the same each time.
func configuration(settings map[string]string) string {
	// The file's strings know backslash escapes, unlike those of SQL.
	quote := strings.NewReplacer(`\`, `\\`, `'`, `''`, "\n", `\n`)
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		b.WriteString(name + " = '" + quote.Replace(settings[name]) + "'\n")
	}
	return b.String()
}
