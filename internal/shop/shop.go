// Package shop is a shop's database in which tests undo and redo what its people did.
// It has something of everything that an application's schema may have: tables that
// inherit, partitions, keys of several columns and of natural values, references to
// oneself, cascades of every kind, constraints that are deferred, rules, triggers that
// write to other tables, views that can be written to, generated columns, full text,
// domains, enums, composite types and arrays, and a table without a key.
package shop

import _ "embed"

// Schema makes the shop, with a few rows in each table.
//
//go:embed schema.sql
var Schema string
