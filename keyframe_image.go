package audit

import (
	"encoding/json"

	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/internal/rowimage"
	"github.com/hindsight-go/audit/internal/wal"
	"github.com/hindsight-go/audit/store"
)

// nullsOfJSON is the member of a keyframe's image that names the jsonb columns whose
// null is a value, and not NULL. No column has an empty name.
const nullsOfJSON = ""

// frameImage makes the image of a row for a keyframe.
func (p *pastTable) frameImage(values [][]byte) Image {
	image := store.ImageWriter{}
	var nulls []string
	unstored := p.unstored()
	for i, c := range p.columns.List {
		if unstored[c.Name] {
			continue
		}
		image.Add(c.Name, c.Kind, values[i])
		if c.Kind.Base == wal.JSONB && string(values[i]) == "null" { // a json is a string in an image
			nulls = append(nulls, c.Name)
		}
	}
	if nulls != nil {
		names, _ := json.Marshal(nulls) // strings can always be
		image.Add(nullsOfJSON, wal.Kind{Base: wal.JSONB}, names)
	}
	return Image(image.Bytes())
}

// frameValues is values of a keyframe's image.
func (im Image) frameValues(columns []pgcatalog.Column, index map[string]int) (values [][]byte, missing []int) {
	values, missing = rowimage.Texts(im, columns, index)
	rowimage.EachMember(im, func(name, value []byte) {
		var nulls []string
		if string(name) != nullsOfJSON || json.Unmarshal(value, &nulls) != nil {
			return
		}
		for _, column := range nulls {
			if at, ok := index[column]; ok {
				values[at] = []byte("null")
			}
		}
	})
	return values, missing
}
