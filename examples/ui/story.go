package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/hindsight-go/audit"
)

// visitor sends requests of employees to the shop.
type visitor struct{ address string }

func (v *visitor) visit(ctx context.Context, user, path, to string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, v.address+path+"?"+url.Values{"to": {to}}.Encode(), nil)
	if err != nil {
		return err
	}
	r.Header.Set("X-User", user)
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	if err := response.Body.Close(); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, response.Status)
	}
	return nil
}

// tellStory is what went on before anybody looks: a price that is wrong, an order that
// was archived by mistake, with a refund since, and an import.
func tellStory(ctx context.Context, v *visitor, client *audit.Client) error {
	for _, at := range []struct{ user, path, to string }{
		{ada, "/customer/1/order", "2"},
		{ada, "/product/3/price", "4100"},
		{bob, "/product/2/price", "3200"}, // task 1: who set this price?
		{bob, "/customer/2/phone", "+49 89 2180"},
		{ada, "/product/2/rename", "Chair, oak"},
		{bob, "/order/101/state", "paid"},
		{ada, "/order/101/archive", "-"},  // task 2: archived by mistake ...
		{bob, "/order/101/refund", "500"}, // ... and refunded in part since
		{ada, "/order/102/state", "paid"},
	} {
		if err := v.visit(ctx, at.user, at.path, at.to); err != nil {
			return err
		}
	}
	if _, err := client.Mark(ctx, "before Friday's import"); err != nil {
		return err
	}
	// Task 3: what did the import change?
	for _, at := range []struct{ path, to string }{{"/product/5/import", "-"}, {"/product/6/remove", "-"}} {
		if err := v.visit(ctx, "import", at.path, at.to); err != nil {
			return err
		}
	}
	return client.Sync(ctx)
}

// work goes on in the background: orders that come in, are paid and sent.
func work(ctx context.Context, v *visitor) {
	next := time.NewTicker(1500 * time.Millisecond)
	defer next.Stop()
	states := []string{"paid", "packed", "sent"}
	for order := 500; ; {
		select {
		case <-ctx.Done():
			return
		case <-next.C:
		}
		user := []string{ada, bob}[rand.IntN(2)]
		path, to := "/customer/"+strconv.Itoa(1+rand.IntN(3))+"/order", strconv.Itoa(1+rand.IntN(5))
		if rand.IntN(2) == 0 {
			path, to = "/order/"+strconv.Itoa(order)+"/state", states[rand.IntN(len(states))]
		} else {
			order++
		}
		if v.visit(ctx, user, path, to) != nil {
			return // the shop has closed
		}
	}
}
