package docs

import (
	"regexp"
	"strings"
	"testing"
)

// What differs from run to run.
var (
	positions = regexp.MustCompile(`\b[0-9A-F]+/[0-9A-F]{3,}\b`)
	moments   = regexp.MustCompile(`20\d\d-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00)`)
	spaces    = regexp.MustCompile(` +|-{3,}`)
)

// stable is printed text without what differs from run to run, and without the widths
// of columns.
func stable(printed string) string {
	printed = positions.ReplaceAllString(printed, "0/1559D20")
	printed = moments.ReplaceAllString(printed, "2024-01-02 03:04:05+00")
	return spaces.ReplaceAllStringFunc(printed, func(s string) string { return s[:1] })
}

// isPrinted reports whether an output of a document stands in one of the printed texts.
// A line "..." stands for some lines, and "...}" in a line for the rest of an object.
func isPrinted(printed []string, output string) bool {
	want := strings.Split(strings.TrimSpace(stable(output)), "\n")
	for i := range want {
		want[i] = strings.TrimSpace(want[i])
	}
	for _, text := range printed {
		found := true
		for _, part := range strings.Split("\n"+strings.Join(want, "\n")+"\n", "\n...\n") {
			pattern := regexp.QuoteMeta(strings.Trim(part, "\n"))
			pattern = strings.ReplaceAll(pattern, regexp.QuoteMeta("...}"), `.*?\}`)
			at := regexp.MustCompile("(?m)^" + pattern + "$").FindStringIndex(text)
			if at == nil {
				found = false
				break
			}
			text = text[at[1]:]
		}
		if found {
			return true
		}
	}
	return false
}

var (
	outputComment = regexp.MustCompile(`(?m)^[ \t]*// Output:(.*(?:\n[ \t]*//.*)*)`)
	wantConstant  = regexp.MustCompile("(?s)const printed\\w* = `\\n?(.*?)`")
)

// printedTexts are those of golden files, of the Output comments of examples, and of the
// constants printed... of this package, which tests compare with what is printed.
func printedTexts(t *testing.T) []string {
	t.Helper()
	var printed []string
	add := func(text string) {
		split := strings.Split(stable(text), "\n")
		for i := range split {
			split[i] = strings.TrimSpace(split[i])
		}
		printed = append(printed, strings.Join(split, "\n"))
	}
	for path, text := range readAll(t, ".golden", "_test.go") {
		if strings.HasSuffix(path, ".golden") {
			add(text)
			continue
		}
		for _, comment := range outputComment.FindAllStringSubmatch(text, -1) {
			add(regexp.MustCompile(`(?m)^[ \t]*// ?`).ReplaceAllString(comment[1], ""))
		}
		for _, constant := range wantConstant.FindAllStringSubmatch(text, -1) {
			add(constant[1])
		}
	}
	return printed
}

// What a document says that a program prints is what it prints.
func TestOutputsArePrinted(t *testing.T) {
	t.Parallel()
	printed := printedTexts(t)
	for _, blocks := range documents(t) {
		for i, b := range blocks {
			if b.language != "" && b.language != "text" {
				continue
			}
			if i > 0 && blocks[i-1].language == "sh" && runs(blocks[i-1]) {
				continue // TestShellRuns compares it
			}
			if !isPrinted(printed, b.text) {
				t.Errorf("%s: nothing that is tested prints\n%s", b, b.text)
			}
		}
	}
}
