package oracle

import (
	"fmt"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
)

// outcome is what a command did.
type outcome struct {
	stdout, stderr string
	code           int
}

// text is the outcome as the package comment describes it, in which variables' values are replaced by their names.
func (o outcome) text(variables map[string]string) string {
	var b strings.Builder
	for _, stream := range []struct{ text, mark string }{{o.stdout, ""}, {o.stderr, "! "}} {
		if stream.text == "" {
			continue
		}
		for line := range strings.Lines(normal(strings.TrimSuffix(stream.text, "\n")+"\n", variables)) {
			b.WriteString(strings.TrimRight(stream.mark+strings.TrimSuffix(line, "\n"), " ") + "\n")
		}
	}
	if o.code != 0 {
		fmt.Fprintf(&b, "exit %d\n", o.code)
	}
	return b.String()
}

// compare gives the lines that are only in one of the texts, with - or + before them, and the whole as people read it.
func compare(theirs, ours string) (lines []string, readable string) {
	readable = string(diff.Diff("Docker Swarm", []byte(theirs), "miniswarm", []byte(ours)))
	for i, line := range strings.Split(strings.TrimSuffix(readable, "\n"), "\n") {
		if i > 2 && line != "" && (line[0] == '-' || line[0] == '+') {
			lines = append(lines, line)
		}
	}
	return lines, readable
}
