package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// flagsFirst gives the command line as the library wants it: it stops at the first argument, but people type "join HOST
// --token X". Flags that follow arguments move in front of them. Docker's commands and the command line that "lab exec"
// passes on are left as they are, and so is everything after "--".
func flagsFirst(app *cli.App, args []string) []string {
	if len(args) == 0 {
		return args
	}
	if len(args) > 2 && args[1] == "help" { // "help lab up" is "lab up --help", for Docker's commands too
		return slices.Concat(args[:1], args[2:], []string{"--help"})
	}
	cmd, n := descend(app, args[1:])
	n++
	if cmd == nil || cmd.SkipFlagParsing {
		return args
	}
	out, rest := slices.Clone(args[:n]), args[n:]
	var words []string
	for len(rest) > 0 {
		w := rest[0]
		if w == "--" || len(words) > 0 && cmd.Name == execCommandName {
			break
		}
		rest = rest[1:]
		if !strings.HasPrefix(w, "-") || w == "-" {
			words = append(words, w)
			continue
		}
		out = append(out, w)
		if takesNext(cmd.Flags, w) && len(rest) > 0 {
			out = append(out, rest[0])
			rest = rest[1:]
		}
	}
	return slices.Concat(out, words, rest)
}

// descend follows the names of commands in args and gives the last one, and how many of args it took to get there.
func descend(app *cli.App, args []string) (*cli.Command, int) {
	var cmd *cli.Command
	flags, commands := app.Flags, app.Commands
	for i := 0; i < len(args); i++ {
		if strings.HasPrefix(args[i], "-") {
			if len(commands) == 0 {
				return cmd, i
			}
			if takesNext(flags, args[i]) {
				i++
			}
			continue
		}
		at := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(args[i]) })
		if at < 0 {
			return cmd, i
		}
		cmd = commands[at]
		flags, commands = cmd.Flags, cmd.Subcommands
		if len(commands) == 0 {
			return cmd, i + 1
		}
	}
	return cmd, len(args)
}

// takesNext says whether the word is a flag whose value is the next word.
func takesNext(flags []cli.Flag, word string) bool {
	name := strings.TrimLeft(word, "-")
	if strings.Contains(name, "=") {
		return false
	}
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			d, ok := f.(cli.DocGenerationFlag)
			return ok && d.TakesValue()
		}
	}
	return false
}
