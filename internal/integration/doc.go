// Package integration tests the SDK with libraries of others: what database/sql,
// GORM, ent, bun and sqlx write through auditsql, over pgx and over lib/pq, and
// the recipes for chi, gin, echo and gRPC. It is a module of its own, so that
// none of them is a dependency of the SDK.
//
// The files recipe_*_test.go are there to be copied.
package integration
