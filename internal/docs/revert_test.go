package docs

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// undoAndRedo is the beginning of docs/revert.md.
func undoAndRedo(ctx context.Context, out io.Writer, client *audit.Client, id string) error {
	plan, err := client.RevertRequest(id).Plan(ctx) // what would happen; writes nothing
	if err != nil {
		return err
	}
	fmt.Fprintln(out, plan)

	result, err := client.RevertRequest(id).Reason("wrong customer").Apply(ctx)
	if err != nil {
		return err // a *ConflictError where somebody has worked on the rows since
	}

	again, err := client.Redo(result.ID).Apply(ctx) // and back again
	if err != nil {
		return err
	}
	fmt.Fprintln(out, result.Deleted, again.Inserted)
	return nil
}

func TestRevertOfTheGuide(t *testing.T) {
	t.Parallel()
	a, pool := newGuide(t)
	ctx := audit.WithContext(t.Context(), audit.Context{UserID: "ann", RequestID: "req-1"})
	if err := createStamped(ctx, pool, "Sleep"); err != nil {
		t.Fatal(err)
	}
	a.Sync(t)
	var out strings.Builder
	if err := undoAndRedo(t.Context(), &out, a.Client, "req-1"); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.HasSuffix(got, "1 1\n") || !strings.Contains(got, "1 to delete") {
		t.Errorf("printed %q", got)
	}
}

// undoRequest is what docs/quickstart.md adds to its program.
func undoRequest(ctx context.Context, client *audit.Client) error {
	result, err := client.RevertRequest("req-1").Apply(ctx)
	if err != nil {
		return err // a *ConflictError: somebody has worked on the row since, and nothing was written
	}
	fmt.Println("undone:", result.Deleted, "row removed")
	return nil
}

func TestUndoOfTheQuickstart(t *testing.T) {
	t.Parallel()
	a, pool := newGuide(t)
	ctx := audit.WithContext(t.Context(), audit.Context{UserID: "ann", RequestID: "req-1"})
	if err := createStamped(ctx, pool, "Sleep"); err != nil {
		t.Fatal(err)
	}
	if err := undoRequest(t.Context(), a.Client); err != nil {
		t.Fatal(err)
	}
	if n := audittest.Value[int](t, a.Database, "SELECT count(*)::int FROM todo"); n != 0 {
		t.Errorf("%d rows are left", n)
	}
}
