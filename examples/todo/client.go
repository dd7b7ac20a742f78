package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
)

// The people of the story.
const (
	owner   = "187234" // keeps the todo list
	support = "42"     // helps
)

// useService is a day in the life of the service.
func useService(ctx context.Context, address string) error {
	for _, step := range []struct{ user, request, method, path, body string }{
		{owner, "req-1", "POST", "/todo", `{"task": "Sleep"}`},
		{owner, "req-2", "POST", "/todo", `{"task": "Eat"}`},
		{owner, "req-3", "POST", "/todo", `{"task": "Code"}`},
		{owner, "req-4", "POST", "/todo/26/complete", ""},
		{support, "req-5", "DELETE", "/todo/27", ""},
	} {
		r, err := http.NewRequestWithContext(ctx, step.method, address+step.path, strings.NewReader(step.body))
		if err != nil {
			return err
		}
		r.Header.Set("X-User", step.user)
		r.Header.Set("X-Request-Id", step.request)
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			return err
		}
		if err := response.Body.Close(); err != nil {
			return err
		}
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s %s: %s", step.method, step.path, response.Status)
		}
	}
	return nil
}
