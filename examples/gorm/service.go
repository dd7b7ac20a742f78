package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"gorm.io/gorm"

	"github.com/hindsight-go/audit"
)

// as says who writes and where. In a service, audithttp does it for every request.
func as(ctx context.Context, user, endpoint string) context.Context {
	return audit.WithContext(ctx, audit.Context{UserID: user, Endpoint: endpoint})
}

// useService does what a service would do for some requests.
func useService(ctx context.Context, db *gorm.DB) error {
	ann := User{Name: "Ann", Todos: []Todo{{Task: "Sleep"}, {Task: "Eat"}}}
	if err := db.WithContext(as(ctx, "ann", "POST /user")).Create(&ann).Error; err != nil {
		return err
	}
	sleep, eat := &ann.Todos[0], &ann.Todos[1]
	if err := db.WithContext(as(ctx, "ann", "POST /todo/{id}/done")).Model(sleep).Update("done", true).Error; err != nil {
		return err
	}

	// What is rolled back never happened.
	lost := errors.New("changed my mind")
	err := db.WithContext(as(ctx, "bob", "POST /cleanup")).Transaction(func(tx *gorm.DB) error {
		if err := tx.Where("done").Delete(&Todo{}).Error; err != nil {
			return err
		}
		return lost
	})
	if !errors.Is(err, lost) {
		return err
	}

	if err := db.WithContext(as(ctx, "bob", "DELETE /todo/{id}")).Delete(eat).Error; err != nil {
		return err
	}
	// At night, somebody mends a row, and does not say who.
	return db.WithContext(ctx).Exec("UPDATE todos SET task = ? WHERE id = ?", "Sleep more", sleep.ID).Error
}

// printHistory prints every change, and what an auditor asks for.
func printHistory(ctx context.Context, out io.Writer, history *audit.Client) error {
	if err := history.Sync(ctx); err != nil {
		return err
	}
	for change, err := range history.Changes().OldestFirst().All(ctx) {
		if err != nil {
			return err
		}
		who := "nobody knows who"
		if change.Stamped {
			who = change.Context.User() + " at " + change.Context.Endpoint
		}
		fmt.Fprintf(out, "%s %s[%s] by %s\n", change.Operation, change.Table, change.PrimaryKey, who)
		if change.Operation != audit.Update {
			fmt.Fprintf(out, "    %s\n", change.Row())
			continue
		}
		for _, column := range change.Diff() {
			fmt.Fprintf(out, "    %s\n", column)
		}
	}
	count, err := history.Changes().WithoutContext().Count(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%d change(s) came without context.\n", count)
	return nil
}
