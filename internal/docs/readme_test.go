package docs

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
)

// threeQuestions is the first screen of the README.
func threeQuestions(ctx context.Context, out io.Writer, client *audit.Client) error {
	// Who changed it?
	change, err := client.Changes().ForTable("orders").ForRow(11).First(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, change.Context.User(), "at", change.Context.Endpoint, change.Diff())
	// How was it?
	var before Order
	err = client.BeforeRequest(change.Context.RequestID).Load(ctx, &before, 11)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, before.State)
	// Undo it: all that the request did, in all tables, in one transaction.
	result, err := client.RevertRequest(change.Context.RequestID).Apply(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, result.Updated, "row restored,", result.Inserted, "put back")
	return nil
}

const printedByThreeQuestions = `
u-17 at DELETE /customer/{id} [state: "paid" -> "closed"]
paid
1 row restored, 2 put back
`

func TestThreeQuestionsOfTheReadme(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	var out strings.Builder
	if err := threeQuestions(t.Context(), &out, s.client); err != nil {
		t.Fatal(err)
	}
	wantPrinted(t, printedByThreeQuestions, out.String())
}
