package wal

// Base is the JSON form of a type's values.
type Base uint8

// The forms of a value in an image. String is the zero value: what is not known
// better keeps PostgreSQL's text, which its input function reads back exactly.
const (
	String Base = iota
	Bool
	Number
	JSON  // type json: keeps its exact text
	JSONB // type jsonb: already normal
	Array // Elem says of what, Delimiter separates
)

// Kind says how values of a type are written.
type Kind struct {
	Base      Base
	Elem      Base
	Delimiter byte
}

// BuiltinKind returns the kind of a type that PostgreSQL ships, by its OID. It
// reports false for an OID that a catalog has to be asked for.
//
// OIDs: src/include/catalog/pg_type.dat.
func BuiltinKind(oid uint32) (Kind, bool) {
	if k, ok := builtin[oid]; ok {
		return k, true
	}
	// Below FirstNormalObjectId everything is built in; what is not listed
	// keeps its text.
	return Kind{}, oid < 16384
}

var builtin = func() map[uint32]Kind {
	m := map[uint32]Kind{
		16:   {Base: Bool},
		20:   {Base: Number}, // int8
		21:   {Base: Number}, // int2
		23:   {Base: Number}, // int4
		26:   {Base: Number}, // oid
		700:  {Base: Number}, // float4
		701:  {Base: Number}, // float8
		1700: {Base: Number}, // numeric
		114:  {Base: JSON},
		3802: {Base: JSONB},
	}
	arrays := map[Base][]uint32{
		Bool:   {1000},
		Number: {1016, 1005, 1007, 1028, 1021, 1022, 1231},
		String: {
			1009, 1015, 1014, 1002, 1003, // text varchar bpchar "char" name
			1001,                               // bytea
			1182, 1183, 1270, 1115, 1185, 1187, // date time timetz timestamp timestamptz interval
			2951,                 // uuid
			1041, 651, 1040, 775, // inet cidr macaddr macaddr8
			1561, 1563, // bit varbit
			791,                              // money
			1017, 1018, 1019, 1027, 719, 629, // point lseg path polygon circle line
			3643, 3645, // tsvector tsquery
			143,                                // xml
			3905, 3907, 3909, 3911, 3913, 3927, // ranges
			6150, 6151, 6152, 6153, 6155, 6157, // multiranges
			1010, 1011, 1012, 271, 3221, 2949, // tid xid cid xid8 pg_lsn txid_snapshot
		},
	}
	for elem, oids := range arrays {
		for _, oid := range oids {
			m[oid] = Kind{Base: Array, Elem: elem, Delimiter: ','}
		}
	}
	m[1020] = Kind{Base: Array, Elem: String, Delimiter: ';'} // box is the one type whose values hold commas
	// json and jsonb arrays (199, 3807) keep their text: an element that is
	// itself a JSON array could not be told from a dimension.
	return m
}()

// ArrayOf returns the kind of an array of elem.
func ArrayOf(elem Kind, delimiter byte) Kind {
	switch elem.Base {
	case String, Bool, Number:
		return Kind{Base: Array, Elem: elem.Base, Delimiter: delimiter}
	default:
		return Kind{}
	}
}
