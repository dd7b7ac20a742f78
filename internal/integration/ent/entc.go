//go:build ignore

// The program that generates package ent, see generate.go.
package main

import (
	"fmt"
	"os"

	"entgo.io/ent/entc"
	"entgo.io/ent/entc/gen"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "entc:", err)
		os.Exit(1)
	}
}

func run() error {
	storage, err := gen.NewStorage("sql")
	if err != nil {
		return err
	}
	// Tables are made in SQL here, and the migrations of ent would bring modules
	// into the tests that nothing else needs.
	storage.SchemaMode = gen.Unique | gen.Cascade
	return entc.Generate("./schema", &gen.Config{
		Storage:  storage,
		Features: []gen.Feature{gen.FeatureUpsert, gen.FeatureExecQuery},
	})
}
