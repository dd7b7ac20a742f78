// Command hindsight asks the history that package audit keeps of a PostgreSQL
// database: who changed a row, what a request did, how a table was yesterday; it
// undoes what should not have happened, and says whether the history is whole.
//
//	go install github.com/hindsight-go/audit/cmd/hindsight@latest
//	export DATABASE_URL=postgres://user@host/database
//	hindsight log
//
// It does not capture: that is done by the program that embeds package audit. Its
// pages of help say everything; docs/cli.md of the repository shows it at work.
package main
