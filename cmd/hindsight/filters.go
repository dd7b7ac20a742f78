package main

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hindsight-go/audit"
)

// filters narrow a query.
type filters struct {
	users, operations, columns               []string
	request, trace, tenant, endpoint, worker string
	environment, database, since, until      string
	noContext, defects                       bool
}

func (f *filters) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&f.users, "user", nil, "by this user")
	flags.StringVar(&f.request, "request", "", "in this request")
	flags.StringVar(&f.trace, "trace", "", "in this trace")
	flags.StringVar(&f.tenant, "tenant", "", "on behalf of this tenant")
	flags.StringVar(&f.endpoint, "endpoint", "", `at this endpoint: "POST /todo"`)
	flags.StringVar(&f.worker, "worker", "", "by this background worker")
	flags.StringSliceVar(&f.operations, "op", nil, "insert, update, delete or truncate; several with commas")
	flags.StringSliceVar(&f.columns, "column", nil, "that changed one of these columns")
	flags.StringVar(&f.environment, "environment", "", "captured in this environment")
	flags.StringVar(&f.database, "database", "", "of this database, where the store holds several")
	flags.StringVar(&f.since, "since", "", "committed at this moment or later")
	flags.StringVar(&f.until, "until", "", "committed before this moment")
	flags.BoolVar(&f.noContext, "no-context", false, "about which no program said anything")
	flags.BoolVar(&f.defects, "defects", false, "that could not be recorded faithfully")
}

// apply narrows a query, also by a table and the key of a row.
func (f *filters) apply(a *app, q audit.Query, row []string) (audit.Query, error) {
	if len(row) > 0 {
		q = q.ForTable(row[0])
	}
	if len(row) > 1 {
		q = q.ForRow(keyOf(row[1:])...)
	}
	if len(f.users) > 1 {
		return q, usagef("--user can be given once")
	}
	for _, user := range f.users {
		q = q.ByUser(user)
	}
	for _, each := range []struct {
		text   string
		filter func(string) audit.Query
	}{
		{f.request, func(id string) audit.Query { return q.InRequest(id) }},
		{f.trace, func(id string) audit.Query { return q.InTrace(id) }},
		{f.tenant, func(name string) audit.Query { return q.ByTenant(name) }},
		{f.endpoint, func(name string) audit.Query { return q.ByEndpoint(name) }},
		{f.worker, func(name string) audit.Query { return q.ByWorker(name) }},
		{f.environment, func(name string) audit.Query { return q.InEnvironment(name) }},
		{f.database, func(name string) audit.Query { return q.InDatabase(name) }},
	} {
		if each.text != "" {
			q = each.filter(each.text)
		}
	}
	if len(f.columns) > 0 {
		q = q.Changed(f.columns...)
	}
	var operations []audit.Operation
	for _, name := range f.operations {
		operation, ok := map[string]audit.Operation{
			"insert": audit.Create, "create": audit.Create, "update": audit.Update, "delete": audit.Delete, "truncate": audit.Truncate,
		}[strings.ToLower(name)]
		if !ok {
			return q, usagef("--op %q is not one of insert, update, delete, truncate", name)
		}
		operations = append(operations, operation)
	}
	if operations != nil {
		q = q.Operations(operations...)
	}
	if f.since != "" {
		t, err := a.time(f.since)
		if err != nil {
			return q, err
		}
		q = q.Since(t)
	}
	if f.until != "" {
		t, err := a.time(f.until)
		if err != nil {
			return q, err
		}
		q = q.Until(t)
	}
	if f.noContext {
		q = q.WithoutContext()
	}
	if f.defects {
		q = q.WithDefect()
	}
	return q, nil
}

// keyOf is a key of the command line for the library, which takes texts.
func keyOf(parts []string) []any {
	key := make([]any, len(parts))
	for i, part := range parts {
		key[i] = part
	}
	return key
}

// nothing is the error where a query gave nothing: it names what history does not know.
func (a *app) nothing(ctx context.Context, q audit.Query) error {
	warnings, err := q.Warnings(ctx)
	if err != nil {
		return exitf(exitNothing, "no change matches")
	}
	var said []string
	for _, w := range warnings {
		var unknown *audit.UnknownNameError
		if errors.As(w, &unknown) {
			said = append(said, "history knows no "+unknown.Kind+" "+printable(unknown.Name))
			continue
		}
		said = append(said, strings.TrimPrefix(w.Error(), "audit: "))
	}
	if len(said) > 0 {
		return exitf(exitNothing, "no change matches: %s", strings.Join(said, "; "))
	}
	return exitf(exitNothing, "no change matches")
}

// tableNames completes the first argument.
func (a *app) tableNames(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeTables(cmd)
}

// completeTables lists the tracked tables, in the time that somebody waits for a
// completion.
func (a *app) completeTables(cmd *cobra.Command) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
	defer cancel()
	client, err := a.open(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	status, err := client.Status(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, t := range status.Tables {
		if t.Until == 0 {
			names = append(names, tableName(audit.Change{Schema: t.Schema, Table: t.Table}.TableName()))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// any reports whether there is a filter.
func (f *filters) any() bool {
	return len(f.users)+len(f.operations)+len(f.columns) > 0 || f.noContext || f.defects ||
		f.request+f.trace+f.tenant+f.endpoint+f.worker+f.environment+f.database+f.since+f.until != ""
}
