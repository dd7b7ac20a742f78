// Package docs holds the tests of the documents: of the README, of those beside
// it and of docs. Nothing that people paste is left to the eye.
//
// Every block of code in a document belongs to one of these, by its language:
//
//   - go: it is a quotation. The code stands, line by line, in a program under
//     examples or in a test of any module, where it is compiled and run. A line
//     "..." leaves something out. A block that begins with "package main" is also
//     written to main.go where the shell blocks of the document run.
//   - sql: it is run, in the order of the document, in a database of the
//     document's own that has a history (see sqlWorlds).
//   - sh: it is run in an empty directory, in the order of the document, or is one of
//     the commands of shellRules that are looked at in another way, or that cannot be
//     run here, with the reason.
//   - console: it is played by the tests of cmd/hindsight.
//   - json: it is JSON.
//   - yaml, dockerfile: it is a quotation from a file of the repository.
//   - text, or no language: it is what a program prints. It stands in a golden file, in
//     an Output comment of an example, in a test, or is what the shell block before it
//     prints.
//
// Anything else fails: a block that no test knows is one that nobody has run.
package docs
