// Package integration tests the SDK with libraries of others: what database/sql, GORM,
// ent, bun and sqlx write through auditsql, over pgx and over lib/pq, GORM with its plugin,
// audithttp in chi, and the UI in routers. It is a module of its own, so that none of them is a
// dependency of the SDK. What has a package of ours, as River and gRPC have, is tested there.
package integration
