package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/store"
)

func (a *app) setupCommand() *cobra.Command {
	var role, retention string
	var roles audit.StoreRoles
	var noEventTrigger bool
	cmd := &cobra.Command{
		Use:   "setup --sql ROLE",
		Short: "Print the script that a DBA runs so that a role can capture",
		Long: `Print the script that makes everything a program needs to capture as ROLE: its rights,
the publication, the replica identities, the slot and the store. It only reads the
catalog. A program whose role may make all that needs no script.

With --store-owner it makes a store with least rights: the program adds to the history,
and cannot change it.`,
		Example: "  hindsight setup --sql app --tables 'public.*' | psql",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if role == "" {
				return usagef("give --sql ROLE: the role that the program connects as; the script is printed, not run")
			}
			cfg := a.config()
			cfg.StoreRoles, cfg.NoEventTrigger = roles, noEventTrigger
			if retention != "" {
				keep, err := parseDuration(retention)
				if err != nil {
					return usagef("--retention %v", err)
				}
				cfg.Retention = keep
			}
			client, err := audit.Open(cmd.Context(), cfg)
			if err != nil {
				return configText(err)
			}
			a.client = client
			script, err := client.SetupSQL(cmd.Context(), role)
			if err != nil {
				return err
			}
			return a.writef("%s", script)
		},
	}
	f := cmd.Flags()
	f.StringVar(&role, "sql", "", "the role that the program connects as")
	f.StringVar(&roles.Owner, "store-owner", "", "a role that owns the store and that nobody logs in as")
	f.StringVar(&roles.Writer, "store-writer", "", "with --store-owner: the role of the program in the store (default: ROLE)")
	f.StringVar(&roles.Reader, "store-reader", "", "with --store-owner: a role that may read the history")
	f.StringVar(&retention, "retention", "", "with --store-owner: how young history has to be that nobody can drop: 365d")
	f.BoolVar(&noEventTrigger, "no-event-trigger", false, "without the event triggers, which take a superuser")
	a.registerNames(cmd)
	return cmd
}

func (a *app) uninstallCommand() *cobra.Command {
	var sql bool
	cmd := &cobra.Command{
		Use:   "uninstall --sql",
		Short: "Print the statements that remove capture and all history",
		Long: `Print the statements that remove everything that capture has made, the history included.
Stop the programs that capture before they are run.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !sql {
				return usagef("give --sql: the statements are printed, not run")
			}
			client, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			source, history, err := client.UninstallSQL(cmd.Context())
			if err != nil {
				return err
			}
			return a.writef("-- The source. Stop the programs that capture first.\n%s\n-- The store: this removes all history.\n%s", script(source), script(history))
		},
	}
	cmd.Flags().BoolVar(&sql, "sql", false, "print the statements")
	a.registerNames(cmd)
	return cmd
}

// script is statements one below the other.
func script(statements []string) string {
	var b strings.Builder
	for _, sql := range statements {
		b.WriteString(strings.TrimRight(sql, "; \n") + ";\n")
	}
	return b.String()
}

func (a *app) migrateCommand() *cobra.Command {
	var sql bool
	var owner string
	cmd := &cobra.Command{
		Use:   "migrate --sql",
		Short: "Print the migrations that the store lacks",
		Long: `Print the migrations that the store lacks for this version. A program whose role owns the
store migrates it by itself when it starts; a DBA does where that role owns nothing. The
exit code is 3 where there is nothing to do.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !sql {
				return usagef("give --sql: the migrations are printed, not run")
			}
			pending, _, err := a.pendingMigrations(cmd.Context())
			if err != nil {
				return err
			}
			if len(pending) == 0 {
				return exitf(exitNothing, "the store is up to date")
			}
			return a.writef("%s", migrationScript(a.flags.schema, owner, pending))
		},
	}
	cmd.Flags().BoolVar(&sql, "sql", false, "print the migrations")
	cmd.Flags().StringVar(&owner, "owner", "", "the role that owns the store, if the one that runs them does not")
	return cmd
}

// pendingMigrations are those that the store lacks, and the version that it has.
func (a *app) pendingMigrations(ctx context.Context) (pending []store.Migration, version int, err error) {
	all, err := store.Migrations(a.flags.schema)
	if err != nil {
		return nil, 0, err
	}
	err = a.onStore(ctx, func(conn *pgx.Conn) error {
		table := pgx.Identifier{a.flags.schema, "schema_migrations"}.Sanitize()
		return conn.QueryRow(ctx, "SELECT coalesce(max(version), 0) FROM "+table).Scan(&version)
	})
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (pg.Code == "42P01" || pg.Code == "3F000") {
		return nil, 0, audit.ErrNoHistory
	}
	if err != nil {
		return nil, 0, err
	}
	if newest := all[len(all)-1].Version; version > newest {
		return nil, version, exitf(exitUnhealthy, "the store is at version %d, which this command does not know: install a newer one", version)
	}
	for _, m := range all {
		if m.Version > version {
			pending = append(pending, m)
		}
	}
	return pending, version, nil
}

// migrationScript is a script of migrations, each in a transaction of its own.
func migrationScript(schema, owner string, pending []store.Migration) string {
	table := pgx.Identifier{schema, "schema_migrations"}.Sanitize()
	var b strings.Builder
	if owner != "" {
		fmt.Fprintf(&b, "SET ROLE %s;\n", pgx.Identifier{owner}.Sanitize())
	}
	for _, m := range pending {
		fmt.Fprintf(&b, "-- %s\nBEGIN;\nSET LOCAL lock_timeout = '10s';\nLOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE;\n%s\nINSERT INTO %s (version, name) VALUES (%d, '%s');\nCOMMIT;\n",
			m.Name, table, strings.TrimSpace(m.SQL), table, m.Version, strings.ReplaceAll(m.Name, "'", "''"))
	}
	if owner != "" {
		b.WriteString("RESET ROLE;\n")
	}
	return b.String()
}
