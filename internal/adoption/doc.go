// Package adoption has two small programs with the database layers that services have as
// a rule, as they are after the documented integration: its lines are marked with // +audit.
// The test counts them, and asks that all writes say who made them and where.
package adoption
