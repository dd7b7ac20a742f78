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

// visit is one request of somebody's to the service.
type visit struct{ user, request, method, path, body string }

// aDay is one in the life of the service.
var aDay = []visit{
	{owner, "req-1", "POST", "/todo", `{"task": "Sleep"}`},
	{owner, "req-2", "POST", "/todo", `{"task": "Eat"}`},
	{owner, "req-3", "POST", "/todo", `{"task": "Code"}`},
	{owner, "req-4", "POST", "/todo/26/complete", ""},
	{support, "req-5", "DELETE", "/todo/27", ""},
}

// pay makes the visit, and returns the request id that the answer carries.
func (v visit) pay(ctx context.Context, address string) (requestID string, err error) {
	r, err := http.NewRequestWithContext(ctx, v.method, address+v.path, strings.NewReader(v.body))
	if err != nil {
		return "", err
	}
	r.Header.Set("X-User", v.user)
	if v.request != "" {
		r.Header.Set("X-Request-Id", v.request)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	if err := response.Body.Close(); err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s %s: %s", v.method, v.path, response.Status)
	}
	return response.Header.Get("X-Request-Id"), nil
}
