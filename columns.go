package audit

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/internal/secretname"
	"github.com/hindsight-go/audit/internal/wal"
)

// ColumnPolicy says how much of a column's values is stored.
type ColumnPolicy string

// The policies. What is withheld does not leave the memory of the program that captures:
// neither the store has it, nor its WAL, baselines, logs and exports.
const (
	// KeepColumn stores the values, whatever the column's name.
	KeepColumn ColumnPolicy = "keep"
	// ExcludeColumn stores that there is something to be withheld, and nothing of it:
	// images have the text "excluded", also for NULL.
	ExcludeColumn ColumnPolicy = "exclude"
	// DigestColumn stores a digest by [Config.DigestKey], so that who has the history
	// sees whether a value changed, or is that of another row: "digest:9f86...".
	DigestColumn ColumnPolicy = "digest"
	// MaskColumn stores asterisks, and the last four letters or digits of values with at
	// least twelve characters: "***4242".
	MaskColumn ColumnPolicy = "mask"
)

// wal is the policy as the encoder knows it.
func (p ColumnPolicy) wal() (wal.Policy, bool) {
	switch p {
	case KeepColumn:
		return "", true
	case ExcludeColumn:
		return wal.Exclude, true
	case DigestColumn:
		return wal.Digest, true
	case MaskColumn:
		return wal.Mask, true
	}
	return "", false
}

// columnPolicy is the ColumnPolicy of what the store has recorded.
func columnPolicy(p wal.Policy) ColumnPolicy {
	for _, known := range []ColumnPolicy{ExcludeColumn, DigestColumn, MaskColumn} {
		if w, _ := known.wal(); w == p {
			return known
		}
	}
	return KeepColumn
}

// ColumnRule gives columns a policy.
type ColumnRule struct {
	// Columns is a pattern of columns (see capture.ColumnPattern), a table and a column
	// with a dot between: "public.users.email", "billing.*.iban", "*.ssn".
	Columns string
	Policy  ColumnPolicy
}

// LikelySecret reports whether the name of a column looks as if its values were secrets,
// such as password or api_token. Of such columns history stores no values unless
// [Config.Columns] says otherwise.
func LikelySecret(column string) bool { return secretname.Likely(column) }

// columnRule is a ColumnRule that was read.
type columnRule struct {
	pattern capture.ColumnPattern
	policy  wal.Policy
}

// minDigestKey is the least length of a key: 128 bits.
const minDigestKey = 16

// resolveColumns reads the rules.
func (r *resolved) resolveColumns(bad func(field, format string, args ...any)) {
	digests := false
	for _, rule := range r.Columns {
		pattern, err := capture.ParseColumnPattern(rule.Columns)
		if err != nil {
			bad("Columns", "%v", err)
			continue
		}
		policy, ok := rule.Policy.wal()
		if !ok {
			bad("Columns", "%q has the policy %q: it is one of keep, exclude, digest, mask", rule.Columns, rule.Policy)
			continue
		}
		digests = digests || policy == wal.Digest
		r.columnRules = append(r.columnRules, columnRule{pattern, policy})
	}
	if digests && len(r.DigestKey) < minDigestKey {
		bad("DigestKey", "has %d bytes: digests need a secret key of at least %d", len(r.DigestKey), minDigestKey)
	}
}

// policyOf tells the policy of a column: that of the first rule for it, or else what
// its name looks like. It reports whether a rule is meant for it: one that keeps by a
// pattern is for whatever comes, and takes no policy from a table that was renamed into it.
func (r *resolved) policyOf(schema, table, column string) (policy wal.Policy, ruled bool) {
	for _, rule := range r.columnRules {
		if rule.pattern.Match(schema, table, column) {
			return rule.policy, rule.policy != "" || !rule.pattern.Table.Glob && !rule.pattern.Column.Glob
		}
	}
	if LikelySecret(column) {
		return wal.Exclude, false
	}
	return "", false
}

// exactRules are the rules that withhold a column of one table, by its name.
func (r *resolved) exactRules() (exact []columnRule) {
	for _, rule := range r.columnRules {
		if rule.policy != "" && !rule.pattern.Table.Glob && !rule.pattern.Column.Glob {
			exact = append(exact, rule)
		}
	}
	return exact
}

// SecretKeyError is returned by [Client.Start] where a column of a primary key is to be
// withheld: the history knows rows by their key, and would have to store it.
type SecretKeyError struct {
	// Columns are the columns, as schema.table.column.
	Columns []string
}

func (e *SecretKeyError) Error() string {
	return fmt.Sprintf("audit: start: %s in a primary key looks like a secret, or has a rule: the history stores keys: leave the table out of Config.Tables (\"!schema.table\"), or give the column the policy keep in Config.Columns",
		strings.Join(e.Columns, ", "))
}

// checkColumns refuses keys that are to be withheld, and logs which columns are.
func (c *Client) checkColumns(ctx context.Context) error {
	rows, err := c.history.Source.Query(ctx, `
		SELECT n.nspname, c.relname, a.attname,
			EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND a.attnum = ANY (i.indkey))
		FROM pg_catalog.pg_class c
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
		WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
		ORDER BY 1, 2, a.attnum`)
	if err != nil {
		return fmt.Errorf("look for columns to withhold: %w", err)
	}
	var schema, table, column string
	var inKey bool
	withheld := make(map[wal.Policy][]string)
	secret := &SecretKeyError{}
	unmet := c.cfg.exactRules()
	_, err = pgx.ForEachRow(rows, []any{&schema, &table, &column, &inKey}, func() error {
		unmet = slices.DeleteFunc(unmet, func(rule columnRule) bool { return rule.pattern.Match(schema, table, column) })
		policy, _ := c.cfg.policyOf(schema, table, column)
		if policy == "" || !c.wanted(schema, table) {
			return nil
		}
		name := printable(schema + "." + table + "." + column)
		withheld[policy] = append(withheld[policy], name)
		if inKey {
			secret.Columns = append(secret.Columns, name)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look for columns to withhold: %w", err)
	}
	if len(secret.Columns) > 0 {
		return secret
	}
	for _, rule := range unmet {
		c.cfg.Logger.WarnContext(ctx, "audit: a rule of Config.Columns names no column that is there: if that was renamed before its changes were captured, the rule has to name it anew", "rule", rule.pattern.String())
	}
	for _, policy := range []wal.Policy{wal.Exclude, wal.Digest, wal.Mask} {
		if names := withheld[policy]; len(names) > 0 {
			c.cfg.Logger.InfoContext(ctx, "audit: columns are withheld from the history; Config.Columns says otherwise", "policy", string(columnPolicy(policy)), "columns", names)
		}
	}
	return nil
}

// withheld returns the columns that versions of the table from a moment on withhold, by
// their numbers: of a row that was changed meanwhile nobody knows them.
func (p *pastTable) withheld() map[string]wal.Policy {
	if p.hidden != nil {
		return p.hidden
	}
	p.hidden = make(map[string]wal.Policy)
	for _, v := range p.laterVersions {
		for _, o := range v.Columns {
			if o.Policy == "" {
				continue
			}
			other := pgcatalog.Column{Name: o.Name, Attnum: o.Attnum}
			if v.RelationID != p.oid {
				other.Attnum = 0
			}
			for _, c := range p.columns.List {
				if sameColumn(c, other) {
					p.hidden[c.Name] = cmp.Or(p.hidden[c.Name], o.Policy)
				}
			}
		}
	}
	var names []string
	for name := range p.hidden {
		names = append(names, name)
	}
	for _, c := range p.columns.List {
		if p.hidden[c.Name] == "" && c.Generated && wal.Mentions(c.Expression, names) {
			p.hidden[c.Name] = wal.Exclude
		}
	}
	return p.hidden
}

// hide leaves out the columns that history withholds.
func (p *pastTable) hide() {
	hidden := p.withheld()
	if len(hidden) == 0 {
		return
	}
	list := slices.DeleteFunc(slices.Clone(p.columns.List), func(c pgcatalog.Column) bool { return hidden[c.Name] != "" && !slices.Contains(p.key, c.Name) })
	p.columns = pgcatalog.NewColumns(list)
}

// unstored are the columns of which a baseline must not store anything.
func (p *pastTable) unstored() map[string]bool {
	unstored := make(map[string]bool)
	var names []string
	recorded := p.withheld() // by names that it had, too
	for _, c := range p.columns.List {
		if policy, _ := p.client.cfg.policyOf(p.schema, p.name, c.Name); policy != "" || recorded[c.Name] != "" {
			unstored[c.Name] = true
			names = append(names, c.Name)
		}
	}
	for _, c := range p.columns.List {
		if wal.Mentions(c.Expression, names) {
			unstored[c.Name] = true
		}
	}
	return unstored
}

func (p *pastTable) withheldNames() []string {
	return slices.Sorted(maps.Keys(p.withheld()))
}
