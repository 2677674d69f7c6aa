package model

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestEveryCheckerIsListed reads the names that this package and sim/history give to checkers: one that is not listed would be told to
// nobody.
func TestEveryCheckerIsListed(t *testing.T) {
	found := 0
	for file, prefix := range map[string]string{"check.go": "checker", "../history/check.go": "Check"} {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			spec, is := n.(*ast.ValueSpec)
			if !is || len(spec.Values) != 1 || !strings.HasPrefix(spec.Names[0].Name, prefix) {
				return true
			}
			text, is := spec.Values[0].(*ast.BasicLit)
			if !is {
				return true
			}
			name, err := strconv.Unquote(text.Value)
			if err != nil {
				return true
			}
			found++
			if !slices.ContainsFunc(Checkers, func(c struct{ Name, Holds string }) bool { return c.Name == name && c.Holds != "" }) {
				t.Errorf("the checker %q of %s is not in Checkers", name, file)
			}
			return true
		})
	}
	if found < len(Checkers) {
		t.Errorf("%d names were found in the sources, %d are listed", found, len(Checkers))
	}
}
