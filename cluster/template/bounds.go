package template

import (
	"errors"
	"fmt"
	"strings"
	"text/template"
	"text/template/parse"
)

// Limits of one expansion, far above what the fields of a service need.
const (
	maxText   = 1 << 20
	maxRounds = 100_000
	// roundName is a function that a template calls in each round of a range and at its beginning. It gives no text.
	roundName = "miniswarm_round"
)

var (
	errText   = errors.New("the template makes more than 1 MiB of text")
	errRounds = errors.New("the template goes through more than 100000 rounds of a range, or calls others as often")
)

// bounded is a builder that refuses to grow beyond maxText.
type bounded struct{ strings.Builder }

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxText {
		return 0, errText
	}
	return b.Builder.Write(p)
}

// builtin are text/template's own functions that make text of text, with results within maxText: applied to what they gave
// before, again and again, they would fill the memory without a byte of output.
var builtin = template.FuncMap{
	"printf":   func(format string, args ...any) (string, error) { return within(fmt.Sprintf(format, args...)) },
	"print":    func(args ...any) (string, error) { return within(fmt.Sprint(args...)) },
	"println":  func(args ...any) (string, error) { return within(fmt.Sprintln(args...)) },
	"html":     func(args ...any) (string, error) { return within(template.HTMLEscaper(args...)) },
	"js":       func(args ...any) (string, error) { return within(template.JSEscaper(args...)) },
	"urlquery": func(args ...any) (string, error) { return within(template.URLQueryEscaper(args...)) },
}

func within(text string) (string, error) {
	if len(text) > maxText {
		return "", errText
	}
	return text, nil
}

// countCalls has every call of a template counted, and every round in it: templates that call each other twice are work that
// doubles with each of them.
func countCalls(t *template.Template) {
	countRounds(t.Root)
	t.Root.Nodes = append([]parse.Node{round(t.Root.Pos, 0)}, t.Root.Nodes...)
}

// countRounds has every round of every range below a node counted.
func countRounds(n parse.Node) {
	list := func(l *parse.ListNode) {
		if l != nil {
			countRounds(l)
		}
	}
	switch n := n.(type) {
	case *parse.ListNode:
		for _, m := range n.Nodes {
			countRounds(m)
		}
	case *parse.IfNode:
		list(n.List)
		list(n.ElseList)
	case *parse.WithNode:
		list(n.List)
		list(n.ElseList)
	case *parse.RangeNode:
		list(n.List)
		list(n.ElseList)
		n.List.Nodes = append([]parse.Node{round(n.Pos, n.Line)}, n.List.Nodes...)
	}
}

// round is the call of the counting function.
func round(at parse.Pos, line int) parse.Node {
	call := &parse.CommandNode{NodeType: parse.NodeCommand, Pos: at, Args: []parse.Node{parse.NewIdentifier(roundName).SetPos(at)}}
	return &parse.ActionNode{NodeType: parse.NodeAction, Pos: at, Line: line, Pipe: &parse.PipeNode{NodeType: parse.NodePipe, Pos: at, Line: line, Cmds: []*parse.CommandNode{call}}}
}
