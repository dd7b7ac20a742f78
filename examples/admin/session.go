package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/hindsight-go/audit"
)

// shown is how many requests are listed.
const shown = 10

// session is one conversation with an administrator.
type session struct {
	history *audit.Client
	in      *bufio.Scanner
	out     io.Writer
}

func newSession(history *audit.Client, in io.Reader, out io.Writer) *session {
	return &session{history: history, in: bufio.NewScanner(in), out: out}
}

func (s *session) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

// ask returns the answer, which is empty when nobody answers.
func (s *session) ask(question string) string {
	fmt.Fprint(s.out, question+" ")
	if !s.in.Scan() {
		return ""
	}
	return strings.TrimSpace(s.in.Text())
}

// run lists requests and undoes those that are named, until none is.
func (s *session) run(ctx context.Context, user string) error {
	s.say("What %s did lately:", user)
	for r, err := range s.history.Changes().ByUser(user).Limit(shown).Requests(ctx) {
		if err != nil {
			return err
		}
		s.say("  %-6s %-26s %d created, %d updated, %d deleted in %s", r.ID, r.Context.Endpoint, r.Creates, r.Updates, r.Deletes, strings.Join(r.Tables, ", "))
	}
	for {
		id := s.ask("Undo which request?")
		if id == "" {
			return s.in.Err()
		}
		if err := s.undo(ctx, s.history.RevertRequest(id)); ctx.Err() != nil {
			return err
		} else if err != nil {
			s.say("That cannot be done: %v", err)
		}
	}
}

// undo shows what a revert would do, and does it if that is wanted.
func (s *session) undo(ctx context.Context, revert audit.Reversal) error {
	plan, err := revert.Plan(ctx)
	switch {
	case errors.Is(err, audit.ErrNothingSelected):
		s.say("There is no such request.")
		return nil
	case err != nil:
		return err
	case plan.Already != nil:
		s.say("That was undone by %s already.", cmp.Or(plan.Already.User, "somebody"))
		return nil
	}
	fmt.Fprint(s.out, plan) // with all who have changes in it
	if plan.Refused() != nil {
		if s.ask("Several users share this id. Undo the work of them all?") != "y" {
			return nil
		}
		return s.undo(ctx, revert.AcrossUsers())
	}
	if len(plan.Blocked()) > 0 {
		if s.ask("Others went on from there. Skip these rows?") != "y" {
			return nil
		}
		if plan, err = revert.OnConflict(audit.Skip).Plan(ctx); err != nil {
			return err
		}
		fmt.Fprint(s.out, plan)
	}
	if plan.Empty() {
		s.say("There is nothing left to undo.")
		return nil
	}
	if s.ask("Apply?") != "y" {
		return nil
	}
	// Just what was shown is done: if a row has changed since, nothing is.
	result, err := plan.Apply(ctx)
	var stale *audit.StaleError
	if errors.As(err, &stale) {
		s.say("Somebody was faster, nothing was written: %v", stale)
		return nil
	}
	if err != nil {
		return err
	}
	if result.Already != nil { // while this waited for an answer
		s.say("That was undone by %s already.", cmp.Or(result.Already.User, "somebody"))
		return nil
	}
	s.say("Done: %d inserted, %d updated, %d deleted, %d skipped.", result.Inserted, result.Updated, result.Deleted, result.Skipped)
	if s.ask("Was that wrong? Redo?") != "y" {
		return nil
	}
	again, err := s.history.Redo(result.ID).Apply(ctx)
	if err != nil {
		return err
	}
	s.say("Redone: %d inserted, %d updated, %d deleted.", again.Inserted, again.Updated, again.Deleted)
	return nil
}
