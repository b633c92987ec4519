package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

var updateDocs = flag.Bool("update", false, "write docs/commands.md anew")

// docs/commands.md is the help of every command, as the commands give it.
func TestDocsHaveEveryCommand(t *testing.T) {
	t.Setenv("MINISWARM_HOST", "")
	path := filepath.Join("..", "..", "docs", "commands.md")
	var b strings.Builder
	b.WriteString("# Commands\n\nThe help of every command, as `--help` prints it. Made by `go test ./cmd/miniswarm -run TestDocs -update`.\n\n" +
		"Those of `node`, `service`, `stack`, `network`, `secret` and `config` are Docker's own, so `docker -H unix:///run/miniswarm.sock` has\n" +
		"them too, without what is miniswarm's: `--dry-run`, `--wait`, `explain`, profiles, and reasons while it waits.\n")
	section := func(words ...string) {
		t.Helper()
		code, out, errs := call(t.Context(), append(append([]string{"--host", "unix:///nowhere"}, words...), "--help")...)
		if code != 0 {
			t.Errorf("%v: code %d, %s", words, code, errs)
		}
		fmt.Fprintf(&b, "\n## miniswarm %s\n\n```\n%s\n```\n", strings.Join(words, " "), strings.TrimSpace(out))
	}
	e := &env{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, executable: "miniswarm"}
	var each func(above []string, all []*cli.Command)
	each = func(above []string, all []*cli.Command) {
		for _, c := range all {
			words := append(append([]string{}, above...), c.Name)
			at := nounNamed(c.Name)
			switch {
			case c.Hidden || c.Name == "help":
			case at != nil && len(above) == 0:
				root, err := dockerRoot(t.Context(), e, "unix:///nowhere", *at)
				if err != nil {
					t.Fatal(err)
				}
				for _, noun := range root.Commands() {
					for _, sub := range noun.Commands() {
						if !sub.Hidden && sub.Name() != "help" {
							section(c.Name, sub.Name())
						}
					}
				}
			case len(c.Subcommands) > 0:
				each(words, c.Subcommands)
			default:
				section(words...)
			}
		}
	}
	each(nil, newApp(e).Commands)
	if *updateDocs {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != b.String() {
		t.Errorf("%s is stale: go test ./cmd/miniswarm -run TestDocs -update", path)
	}
}

func nounNamed(name string) *noun {
	for i := range nouns {
		if nouns[i].name == name {
			return &nouns[i]
		}
	}
	return nil
}
