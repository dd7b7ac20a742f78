// Package storm has a test only: hundreds of goroutines write through auditsql, over pgx
// and lib/pq in all their modes, and every row is read back from the write-ahead log.
package storm
