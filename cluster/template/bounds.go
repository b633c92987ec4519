package template

import (
	"errors"
	"strings"
	"text/template/parse"
)

// Limits of one expansion, far above what the fields of a service need.
const (
	maxText   = 1 << 20
	maxRounds = 100_000
	// roundName is a function that a template calls in each round of a range. It gives no text.
	roundName = "miniswarm_round"
)

var (
	errText   = errors.New("the template makes more than 1 MiB of text")
	errRounds = errors.New("the template goes through more than 100000 rounds of a range")
)

// bounded is a builder that refuses to grow beyond maxText.
type bounded struct{ strings.Builder }

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxText {
		return 0, errText
	}
	return b.Builder.Write(p)
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
		n.List.Nodes = append([]parse.Node{round(n)}, n.List.Nodes...)
	}
}

// round is the call of the counting function.
func round(at *parse.RangeNode) parse.Node {
	call := &parse.CommandNode{NodeType: parse.NodeCommand, Pos: at.Pos, Args: []parse.Node{parse.NewIdentifier(roundName).SetPos(at.Pos)}}
	return &parse.ActionNode{NodeType: parse.NodeAction, Pos: at.Pos, Line: at.Line, Pipe: &parse.PipeNode{NodeType: parse.NodePipe, Pos: at.Pos, Line: at.Line, Cmds: []*parse.CommandNode{call}}}
}
