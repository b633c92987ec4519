package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// foreign are messages that docs/operations.md explains and that others say.
var foreign = []string{"no space left on device"}

var (
	codeSpan = regexp.MustCompile("`([^`]+)`")
	// variable is what stands in the documentation for what differs each time: dots, a word in capitals, a number, a path.
	variable = regexp.MustCompile(`\.\.\.|'[A-Z]+'|\b[A-Z]+\b|\b\d+\b|unix://|\S*/\S*`)
)

// docs/operations.md tells of messages that there are: each fragment between what differs is in a string of the code. A
// message that was reworded has to be reworded there.
func TestDocumentedMessagesExist(t *testing.T) {
	said := ourStrings(t)
	text, err := os.ReadFile(filepath.Join("docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, tables, ok := strings.Cut(string(text), "## Messages and what to do")
	if !ok {
		t.Fatal("docs/operations.md has no messages")
	}
	rows := 0
	for line := range strings.Lines(tables) {
		cells := strings.Split(line, " | ")
		span := codeSpan.FindStringSubmatch(cells[0])
		if !strings.HasPrefix(line, "| ") || span == nil {
			continue
		}
		rows++
		longest := 0
		for _, part := range variable.Split(span[1], -1) {
			part = strings.Trim(part, " ().,;:'")
			longest = max(longest, len(part))
			if len(part) >= 8 && !strings.Contains(said, part) {
				t.Errorf("no string of the code has %q, of the message %q", part, span[1])
			}
		}
		if longest < 10 {
			t.Errorf("the message %q is too vague to be found", span[1])
		}
	}
	if rows < 50 {
		t.Errorf("only %d messages", rows)
	}
}

// ourStrings gives all strings in code that is not for tests, those that are put together with + as one.
func ourStrings(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, s := range foreign {
		all.WriteString(s + "\n")
	}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || d.Name() == ".git" || d.Name() == "fake"):
			return filepath.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if e, ok := n.(ast.Expr); ok {
				if s, ok := constant(e); ok {
					all.WriteString(s + "\n")
					return false
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// constant gives a string literal, or several that are added; what else is added to them is left out.
func constant(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			s, err := strconv.Unquote(e.Value)
			return s, err == nil
		}
	case *ast.BinaryExpr:
		if e.Op == token.ADD {
			a, ok := constant(e.X)
			b, also := constant(e.Y)
			return a + b, ok || also
		}
	}
	return "", false
}
