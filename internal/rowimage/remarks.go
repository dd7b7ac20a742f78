package rowimage

import (
	"regexp"
	"strconv"
)

// Defect is a column whose value an image cannot hold.
type Defect struct {
	Column string
	// Value is what it is, where that is known: the null of JSON.
	Value []byte
}

var defective = regexp.MustCompile(`(before|after): column ("(?:[^"\\]|\\.)*") is (the null of JSON|not valid UTF-8)`)

// ReadDefects reads the store's remarks on one of the images of a change.
func ReadDefects(remarks *string, image string) []Defect {
	if remarks == nil {
		return nil
	}
	var defects []Defect
	for _, match := range defective.FindAllStringSubmatch(*remarks, -1) {
		name, err := strconv.Unquote(match[2])
		if err != nil || match[1] != image {
			continue
		}
		d := Defect{Column: name}
		if match[3] == "the null of JSON" {
			d.Value = []byte("null")
		}
		defects = append(defects, d)
	}
	return defects
}
