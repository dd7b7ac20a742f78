// Package ent is the client that ent generates for the tests, and how to
// generate it again (the generator's own modules are not in go.mod):
//
//	go generate ./ent && go mod tidy
package ent

//go:generate go run -mod=mod entc.go
