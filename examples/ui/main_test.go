package main

import (
	"context"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The program says where it is, and shows its history to whoever may see it.
func TestShowsTheShopsHistory(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	read, write := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, "127.0.0.1:0", true, write)
		_ = write.CloseWithError(io.EOF)
		ended <- err
	}()
	line := make([]byte, 200)
	n, err := read.Read(line)
	if err != nil {
		t.Fatal(err, <-ended)
	}
	address := regexp.MustCompile(`http://[^ ]+`).FindString(string(line[:n]))

	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Jar: jar}
	get := func(path string) (int, string) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := browser.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(body)
	}
	login := func(as string) {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, address+"login", strings.NewReader(url.Values{"as": {as}}.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		response, err := browser.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
	}
	if code, _ := get("history/"); code != http.StatusUnauthorized {
		t.Errorf("without a login: %d, want 401", code)
	}
	login(ada)
	if code, _ := get("history/"); code != http.StatusForbidden {
		t.Errorf("an employee: %d, want 403", code)
	}
	login(support)
	if code, page := get("history/?table=product&column=price&value=3200"); code != http.StatusOK || !strings.Contains(page, "Bob Kahn") || !strings.Contains(page, "3200") {
		t.Errorf("support: %d\n%s", code, page)
	}
	if _, page := get("history/?table=customer"); strings.Contains(page, "+49") || !strings.Contains(page, "masked") {
		t.Errorf("the page shows a phone number:\n%s", page)
	}
	login(auditor)
	if code, page := get("history/?table=product"); code != http.StatusOK || strings.Contains(page, "3200") {
		t.Errorf("an auditor: %d\n%s", code, page)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
}
