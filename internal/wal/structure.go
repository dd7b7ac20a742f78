package wal

import "slices"

// Attribute is a column of a table as a catalog describes it.
type Attribute struct {
	Name    string `json:"name"`
	Type    string `json:"type,omitempty"` // as SQL, with its modifier
	TypeOID uint32 `json:"typeOid"`
	TypeMod int32  `json:"typeMod"`
	// Attnum tells a column from one of the same name that is made after it was
	// dropped, and finds it again under another name. It is 0 where nobody knows.
	Attnum int16 `json:"attnum,omitempty"`
	// Generated is attgenerated, and Expression what the server computes by.
	Generated  string `json:"generated,omitempty"`
	Expression string `json:"expression,omitempty"`
	Identity   string `json:"identity,omitempty"` // attidentity
	// Definition is what the type itself can be altered in: the labels of an enum,
	// the attributes of a composite type. It is empty for all others.
	Definition string `json:"definition,omitempty"`
	// Rewritten is the transaction that computed the values of the column anew last, by
	// ALTER TABLE ... USING: values from before mean something else. No catalog knows it.
	Rewritten LSN `json:"rewritten,omitempty"`
	// Policy is how much of the values is stored from there on. Formerly are the names
	// that the column, its table and its schema had when it got it: under others it keeps
	// it.
	Policy         Policy `json:"policy,omitempty"`
	Formerly       string `json:"formerly,omitempty"`
	FormerlySchema string `json:"formerlySchema,omitempty"`
	FormerlyTable  string `json:"formerlyTable,omitempty"`
}

// Structure is a table as the catalog described it at a position of the stream.
type Structure struct {
	OID    uint32 `json:"oid"`
	Schema string `json:"schema"`
	Table  string `json:"table"`
	// Kind is pg_class.relkind: r, p.
	Kind string `json:"kind"`
	// Root is the partitioned table that the table is a part of, or 0.
	Root       uint32 `json:"root,omitempty"`
	RootSchema string `json:"rootSchema,omitempty"`
	RootTable  string `json:"rootTable,omitempty"`
	// Parts are the leaves of a partitioned table, the children of one that others
	// inherit from.
	Parts []uint32 `json:"parts,omitempty"`
	// Key holds the attnums of the primary key's columns, in key order.
	Key []int16 `json:"key,omitempty"`
	// KeyConstraint is the primary key's OID: a key that was dropped and made anew
	// has another, and rows may have shared a key meanwhile.
	KeyConstraint uint32      `json:"keyConstraint,omitempty"`
	Columns       []Attribute `json:"columns"`
	// Attached reports whether parts may have come with rows of their own.
	Attached bool `json:"attached,omitempty"`
	// Dropped reports whether the table is gone.
	Dropped bool `json:"dropped,omitempty"`

	// At is the transaction that the structure was told in.
	At LSN `json:"-"`
	// After is zero where the structure came to be at the very place in the stream
	// where it is told. Else it came to be somewhere behind After.
	After LSN `json:"-"`
	// Guessed reports whether which column is which could not be decided.
	Guessed bool `json:"-"`
}

// Sends reports whether a Relation message describes the structure: the same
// columns, in order. The server leaves out generated columns, or does not.
func (s *Structure) Sends(columns []Column) bool {
	return s.attributes(columns) != nil || len(columns) == 0 && s != nil && len(s.Columns) == 0
}

// attributes returns the attribute of each column, or nil if they do not go
// together.
func (s *Structure) attributes(columns []Column) []*Attribute {
	if s == nil {
		return nil
	}
	found := make([]*Attribute, 0, len(columns))
	for i := range s.Columns {
		a := &s.Columns[i]
		at := len(found)
		switch {
		case at < len(columns) && a.Name == columns[at].Name && a.TypeOID == columns[at].TypeOID && a.TypeMod == columns[at].TypeMod:
			found = append(found, a)
		case a.Generated == "":
			return nil
		}
	}
	if len(found) != len(columns) {
		return nil
	}
	return found
}

// Describe gives the columns of a Relation message what only the catalog knows,
// and returns where those of the key stand. It reports false if the key has a
// column that the message lacks, or the structure is another one.
func (s *Structure) Describe(columns []Column) (key []int, ok bool) {
	attributes := s.attributes(columns)
	if attributes == nil {
		return nil, false
	}
	for i, a := range attributes {
		c := &columns[i]
		c.Type, c.Attnum, c.Generated, c.AttIdentity, c.Policy = a.Type, a.Attnum, a.Generated, a.Identity, a.Policy
	}
	for _, attnum := range s.Key {
		at := slices.IndexFunc(columns, func(c Column) bool { return c.Attnum == attnum })
		if at < 0 {
			return nil, false
		}
		key = append(key, at)
	}
	return key, true
}

// Same reports whether two structures are the same but for where they were seen, and for
// what no catalog knows: policies, and whether values were computed anew.
func (s *Structure) Same(o *Structure) bool {
	return s.OID == o.OID && s.Schema == o.Schema && s.Table == o.Table && s.Kind == o.Kind && s.Root == o.Root &&
		s.RootSchema == o.RootSchema && s.RootTable == o.RootTable && s.KeyConstraint == o.KeyConstraint && s.Dropped == o.Dropped && s.Guessed == o.Guessed &&
		slices.Equal(s.Parts, o.Parts) && slices.Equal(s.Key, o.Key) && slices.EqualFunc(s.Columns, o.Columns, func(a, b Attribute) bool {
		a.Policy, a.Formerly, a.FormerlySchema, a.FormerlyTable = b.Policy, b.Formerly, b.FormerlySchema, b.FormerlyTable
		a.Rewritten = b.Rewritten
		return a == b
	})
}

// Matches reports whether a structure that the store knows is the one that was
// found: of a partition the store has the names of its root only.
func (s *Structure) Matches(found *Structure) bool {
	as := *found
	if as.Root != 0 {
		as.Schema, as.Table = as.RootSchema, as.RootTable
	}
	return s.Same(&as)
}

// KeepRewritten takes over which columns were rewritten from what was known of the table
// before, and from its root: what a part of it holds from there on means the same.
func (s *Structure) KeepRewritten(before, root *Structure) {
	for i := range s.Columns {
		a := &s.Columns[i]
		if was := before.attribute(*a); was != nil {
			a.Rewritten = max(a.Rewritten, was.Rewritten)
		}
		if of := root.named(a.Name); of != nil {
			a.Rewritten = max(a.Rewritten, of.Rewritten)
		}
	}
}

// HasKey reports whether all columns of the key are among the columns; a table
// without a key has none to lack.
func (s *Structure) HasKey() bool {
	return !slices.ContainsFunc(s.Key, func(attnum int16) bool {
		return !slices.ContainsFunc(s.Columns, func(a Attribute) bool { return a.Attnum == attnum })
	})
}

// KeyOf gives a partition the primary key of its root, whose columns have the same names. It
// does nothing where the partition has other columns.
func (s *Structure) KeyOf(root *Structure) {
	key := make([]int16, 0, len(root.Key))
	for _, attnum := range root.Key {
		of := slices.IndexFunc(root.Columns, func(a Attribute) bool { return a.Attnum == attnum })
		if of < 0 {
			return
		}
		at := slices.IndexFunc(s.Columns, func(a Attribute) bool { return a.Name == root.Columns[of].Name })
		if at < 0 {
			return
		}
		key = append(key, s.Columns[at].Attnum)
	}
	s.Key = key
}

// As returns the structure under the names and with the columns of a Relation
// message that came when the table was gone from the catalog. Columns that the
// structure does not know as they are in the message have no number, and the copy
// says so.
func (s *Structure) As(schema, table string, columns []Column) *Structure {
	as := *s
	as.Schema, as.Table = schema, table
	if s.Sends(columns) {
		return &as
	}
	as.Columns, as.Guessed = nil, true
	for _, c := range columns {
		a := Attribute{Name: c.Name, TypeOID: c.TypeOID, TypeMod: c.TypeMod}
		for _, known := range s.Columns {
			if known.Name == c.Name && known.TypeOID == c.TypeOID {
				a = known
				a.TypeMod = c.TypeMod
			}
		}
		as.Columns = append(as.Columns, a)
	}
	if !as.HasKey() {
		as.Key = nil
	}
	return &as
}
