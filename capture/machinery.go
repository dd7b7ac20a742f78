package capture

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// machinery are the tables of migration tools and job queues. What happens in them is
// nobody's work: it goes on by itself, and whoever undoes a request does not mean it.
// Names that a table of an application may well have, such as migrations or jobs, are not
// among them.
var machinery = []string{
	// Migration tools: golang-migrate, Rails, dbmate and Ecto; goose; gorp; Flyway; tern;
	// Atlas; Liquibase; bun; Prisma; Drizzle; Knex; Sequelize; node-pg-migrate; Supabase;
	// Django; Alembic; Doctrine; Entity Framework; Sqitch.
	"*.schema_migrations", "*.ar_internal_metadata", "*.goose_db_version", "*.gorp_migrations", "*.flyway_schema_history", "*.schema_version",
	"*.atlas_schema_revisions", "*.databasechangelog", "*.databasechangeloglock", "*.bun_migrations", "*.bun_migration_locks",
	"*._prisma_migrations", "*.__drizzle_migrations", "*.knex_migrations", "*.knex_migrations_lock", "*.SequelizeMeta", "*.pgmigrations",
	"supabase_migrations.*", "*.django_migrations", "*.alembic_version", "*.doctrine_migration_versions", "*.__EFMigrationsHistory", "sqitch.*",
	// Job queues: River; Que; gue; neoq; pg-boss; Graphile Worker; PGMQ; pg_cron; Oban;
	// GoodJob; Solid Queue; Delayed Job; queue_classic; Procrastinate; Hangfire.
	"*.river_job*", "*.river_leader", "*.river_queue", "*.river_migration", "*.river_client*", "*.river_notification", "*.river_periodic_job", "*.river_producer", "*.river_workflow*",
	"*.que_jobs", "*.que_lockers", "*.que_values", "*.gue_jobs", "*.neoq_jobs", "*.neoq_dead_jobs", "pgboss.*", "graphile_worker.*", "pgmq.*", "cron.*",
	"*.oban_jobs", "*.oban_peers", "*.oban_producers", "*.good_jobs", "*.good_job_*", "*.solid_queue_*", "*.delayed_jobs", "*.queue_classic_jobs",
	"*.procrastinate_*", "hangfire.*",
}

// Machinery returns patterns that exclude the tables of migration tools and job queues,
// unless another pattern names them: by a name of which it says more than *, or of those
// that are excluded by their schema, by that.
func Machinery() Patterns {
	patterns := make(Patterns, 0, len(machinery))
	for _, text := range machinery {
		p, err := ParsePattern("!" + text)
		if err != nil {
			panic(err) // a test reads them all
		}
		p.yields = true
		patterns = append(patterns, p)
	}
	return patterns
}

// names reports whether a pattern names the tables that another one excludes.
func (p Pattern) names(excluded Pattern) bool {
	if excluded.Table.Text == "*" && excluded.Table.Glob {
		return !p.Schema.Glob
	}
	return !p.Table.Glob || p.Table.Text != "*"
}

// Machinery reports whether a table would be tracked, were it not one of a migration
// tool's or a job queue's.
func (ps Patterns) Machinery(schema, table string) bool {
	var others Patterns
	for _, p := range ps {
		if !p.yields {
			others = append(others, p)
		}
	}
	with, _ := ps.Match(schema, table)
	without, _ := others.Match(schema, table)
	return without && !with
}

// Machinery lists the tables that are only left out because they are a migration tool's
// or a job queue's.
func (s *Setup) Machinery(ctx context.Context) (tables []string, err error) {
	rows, err := s.DB.Query(ctx, `
		SELECT n.nspname, c.relname
		FROM pg_catalog.pg_class c
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
		  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND n.nspname <> $1
		ORDER BY 1, 2`, s.StoreSchema)
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	var schema, table string
	_, err = pgx.ForEachRow(rows, []any{&schema, &table}, func() error {
		if s.Patterns.Machinery(schema, table) {
			tables = append(tables, schema+"."+table)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	return tables, nil
}
