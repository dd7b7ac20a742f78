package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// api is what a package exports: names, and for each type its fields and methods.
type api struct {
	names   map[string]bool
	members map[string]map[string]bool
}

// exported reads what the package in a directory exports.
func exported(t *testing.T, directory string) api {
	t.Helper()
	a := api{names: map[string]bool{}, members: map[string]map[string]bool{}}
	member := func(of, name string) {
		if a.members[of] == nil {
			a.members[of] = map[string]bool{}
		}
		a.members[of][name] = true
	}
	parsed, err := parser.ParseDir(token.NewFileSet(), filepath.Join(root, directory), func(f fs.FileInfo) bool {
		return !strings.HasSuffix(f.Name(), "_test.go")
	}, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parsed {
		for _, file := range p.Files {
			for _, declaration := range file.Decls {
				switch d := declaration.(type) {
				case *ast.FuncDecl:
					if d.Recv == nil {
						a.names[d.Name.Name] = true
						continue
					}
					member(receiver(d.Recv.List[0].Type), d.Name.Name)
				case *ast.GenDecl:
					for _, spec := range d.Specs {
						switch s := spec.(type) {
						case *ast.ValueSpec:
							for _, name := range s.Names {
								a.names[name.Name] = true
							}
						case *ast.TypeSpec:
							a.names[s.Name.Name] = true
							for _, name := range membersOf(s.Type) {
								member(s.Name.Name, name)
							}
						}
					}
				}
			}
		}
	}
	return a
}

// receiver is the name of the type of a method.
func receiver(of ast.Expr) string {
	switch e := of.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// membersOf are the fields of a struct and the methods of an interface.
func membersOf(of ast.Expr) []string {
	var list *ast.FieldList
	switch e := of.(type) {
	case *ast.StructType:
		list = e.Fields
	case *ast.InterfaceType:
		list = e.Methods
	default:
		return nil
	}
	var names []string
	for _, field := range list.List {
		for _, name := range field.Names {
			names = append(names, name.Name)
		}
	}
	return names
}

var (
	inlineName = regexp.MustCompile("`[*&]?([a-z]+)\\.([A-Z]\\w*)(?:\\.([A-Z]\\w*))?[^`]*`")
	inlineType = regexp.MustCompile("`[*&]?([A-Z]\\w*)\\.([A-Z]\\w*)[^`]*`")
	inlineTest = regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w*)`")
)

// What a document calls by name has that name.
func TestNamesInTextExist(t *testing.T) {
	t.Parallel()
	packages := map[string]api{"audit": exported(t, "."), "capture": exported(t, "capture"), "store": exported(t, "store")}
	beside, err := filepath.Glob(filepath.Join(root, "audit*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range beside {
		if name := filepath.Base(path); !strings.Contains(name, ".") {
			packages[name] = exported(t, name)
		}
	}
	var tests strings.Builder
	for _, text := range readAll(t, "_test.go") {
		tests.WriteString(text)
	}
	known := 0
	for path, text := range readAll(t, ".md") {
		if path == "CHANGELOG.md" || strings.HasPrefix(path, "docs/adr/") {
			continue // they tell of what was
		}
		for _, match := range inlineName.FindAllStringSubmatch(text, -1) {
			p, ours := packages[match[1]]
			if match[1] == "client" {
				if known++; !packages["audit"].members["Client"][match[2]] {
					t.Errorf("%s: %s: a Client has no %s", path, match[0], match[2])
				}
			}
			if !ours {
				continue
			}
			if known++; !p.names[match[2]] {
				t.Errorf("%s: %s: package %s has no %s", path, match[0], match[1], match[2])
			} else if members := p.members[match[2]]; match[3] != "" && members != nil && !members[match[3]] {
				t.Errorf("%s: %s: %s has no %s", path, match[0], match[2], match[3])
			}
		}
		for _, match := range inlineType.FindAllStringSubmatch(text, -1) {
			for _, p := range packages { // whose type of that name has the member
				if members := p.members[match[1]]; members[match[2]] {
					known++
					goto next
				}
			}
			for _, p := range packages {
				if p.members[match[1]] != nil {
					t.Errorf("%s: %s: %s has no %s", path, match[0], match[1], match[2])
					break
				}
			}
		next:
		}
		for _, match := range inlineTest.FindAllStringSubmatch(text, -1) {
			if known++; !strings.Contains(tests.String(), "func "+match[1]) {
				t.Errorf("%s: there is no %s", path, match[1])
			}
		}
	}
	if known < 100 {
		t.Errorf("only %d names", known)
	}
}

// Whoever gets an error finds in the documents what to do about it.
func TestEveryErrorIsExplained(t *testing.T) {
	t.Parallel()
	var documents strings.Builder
	for path, text := range readAll(t, ".md") {
		if path != "CHANGELOG.md" {
			documents.WriteString(text)
		}
	}
	n := 0
	for name := range exported(t, ".").names {
		isType := strings.HasSuffix(name, "Error") && ast.IsExported(name)
		if !isType && (!strings.HasPrefix(name, "Err") || len(name) < 5) {
			continue
		}
		if n++; !regexp.MustCompile(`\b` + name + `\b`).MatchString(documents.String()) {
			t.Errorf("no document says what to do about %s", name)
		}
	}
	if n < 30 {
		t.Errorf("only %d errors", n)
	}
}

var (
	commentLine = regexp.MustCompile(`(?m)^\s*// (.*)$`)
	docLink     = regexp.MustCompile(`\[\*?([A-Z]\w*)(?:\.([A-Z]\w*))?\]`)
)

// A link of a doc comment that leads nowhere is printed with its brackets.
func TestLinksOfDocCommentsLeadSomewhere(t *testing.T) {
	t.Parallel()
	packages := map[string]api{}
	n := 0
	for path, text := range readAll(t, ".go") {
		directory := filepath.ToSlash(filepath.Dir(path))
		if strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, "internal/") || strings.HasPrefix(path, "examples/") {
			continue
		}
		if _, read := packages[directory]; !read {
			packages[directory] = exported(t, directory)
		}
		p := packages[directory]
		for _, line := range commentLine.FindAllStringSubmatch(text, -1) {
			for _, match := range docLink.FindAllStringSubmatch(line[1], -1) {
				n++
				if !p.names[match[1]] {
					t.Errorf("%s: %s: the package has no %s", path, match[0], match[1])
				} else if members := p.members[match[1]]; match[2] != "" && members != nil && !members[match[2]] {
					t.Errorf("%s: %s: %s has no %s", path, match[0], match[1], match[2])
				}
			}
		}
	}
	if n < 100 {
		t.Errorf("only %d links", n)
	}
}
