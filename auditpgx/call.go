package auditpgx

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/internal/sqltext"
	"github.com/hindsight-go/audit/internal/stamp"
)

// call is a call of Exec or Query with its options taken off the arguments, as
// pgx takes them off.
type call struct {
	isQuery bool
	sql     string
	args    []any

	options   []any // as given, without the rewriter
	mode      pgx.QueryExecMode
	formats   pgx.QueryResultFormats
	byOID     pgx.QueryResultFormatsByOID
	sd        *pgconn.StatementDescription // if it was prepared under its own text
	rewritten bool
	original  string
	given     []any // the arguments as given
	err       error // the rewriter's

	text  sqltext.Text // what the words of sql say, or of the statement that it names
	named bool         // sql may be the name of a prepared statement
}

// fixed is a rewriter that gives a text and arguments made before. With it pgx
// runs, and shows to tracers, the caller's statement, and the caller's rewriter
// runs once.
type fixed struct {
	sql  string
	args []any
	err  error
}

func (f fixed) RewriteQuery(context.Context, *pgx.Conn, string, []any) (string, []any, error) {
	return f.sql, f.args, f.err
}

func parseCall(ctx context.Context, conn *pgx.Conn, isQuery bool, sql string, args []any) call {
	c := call{isQuery: isQuery, sql: sql, original: sql, given: args, mode: stateOf(conn).mode}
	var rewriter pgx.QueryRewriter
options:
	for len(args) > 0 {
		switch arg := args[0].(type) {
		case pgx.QueryExecMode:
			c.mode = arg
			c.options = append(c.options, arg)
		case stamp.Prepared:
			c.sd = arg.SD
		case pgx.QueryRewriter:
			rewriter = arg
		case pgx.QueryResultFormats:
			if !isQuery {
				break options
			}
			c.formats = arg
			c.options = append(c.options, arg)
		case pgx.QueryResultFormatsByOID:
			if !isQuery {
				break options
			}
			c.byOID = arg
			c.options = append(c.options, arg)
		default:
			break options
		}
		args = args[1:]
	}
	c.args = args
	if rewriter != nil {
		c.rewritten = true
		c.sql, c.args, c.err = rewriter.RewriteQuery(ctx, conn, sql, args)
	}
	return c
}

// native returns the arguments with which pgx runs the call as it is.
func (c call) native() []any {
	args := append([]any(nil), c.options...)
	if c.rewritten {
		return append(args, fixed{c.sql, c.args, c.err})
	}
	return append(args, c.args...)
}

// with returns the arguments with which pgx runs another text in its place.
func (c call) with(sql string) []any {
	return append(append([]any(nil), c.options...), fixed{sql: sql, args: c.args})
}

// unfitForPipeline reports whether the server's answer is one that has no place in a
// pipeline, in which the call would be sent with its stamp. What pgx sends in mode exec
// as a batch is none.
func (c call) unfitForPipeline() bool {
	return c.text.Copies == sqltext.CopyOut && c.mode != pgx.QueryExecModeSimpleProtocol && (!c.named || c.mode != pgx.QueryExecModeExec)
}

func (c call) isDefault(st *connState) bool {
	if c.mode == pgx.QueryExecModeSimpleProtocol {
		return c.mode == st.mode // it has no use for formats
	}
	return c.mode == st.mode && c.formats == nil && c.byOID == nil
}
