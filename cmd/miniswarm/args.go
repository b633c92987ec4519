package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
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
		if (w == "--help" || w == "-h") && len(cmd.Subcommands) == 0 { // the library takes an argument for the name of a command to help with
			return append(out[:n], w)
		}
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

// withoutArguments are the commands that would pass over arguments, with what to say of them besides. Somebody who types one means
// something by it, and "lab down mine" must not take another lab away.
var withoutArguments = map[string]string{
	"init": "", "leave": "", "info": "", "version": "", "events": "", "doctor": "", "daemon": "",
	"lab up": ": --name names the lab", "lab down": ": --name names the lab", "lab ls": ": --name names the lab",
}

// refuseArguments makes arguments an error of a command that takes none.
func refuseArguments(path, why string, c *cli.Command) {
	act := c.Action
	c.Action = func(ctx *cli.Context) error {
		if ctx.NArg() > 0 {
			return usage("%s takes no arguments%s; see '%s --help'", path, why, path)
		}
		return act(ctx)
	}
}

// unknownCommand is the error of a word that is no command of those, with the one that is nearest to it.
func unknownCommand(parent, word string, commands []*cli.Command) error {
	var names []string
	for _, c := range commands {
		if !c.Hidden {
			names = append(names, c.Name)
		}
	}
	near := ""
	if name := nearest(word, names); name != "" {
		near = fmt.Sprintf("; did you mean '%s %s'?", parent, name)
	} else if word == "swarm" {
		near = "; its commands stand by themselves: 'miniswarm init', 'miniswarm join' and so on"
	}
	return usage("%s: %q is not a command%s; see '%s --help'", parent, word, near, parent)
}

// nearest gives the one of the names that word was perhaps meant for, "" if none is like it: two letters are changed at the most, or
// all are there in another order.
func nearest(word string, names []string) string {
	known := &cobra.Command{SuggestionsMinimumDistance: min(len(word)/3, 2)}
	for _, name := range names {
		known.AddCommand(&cobra.Command{Use: name, Run: func(*cobra.Command, []string) {}})
	}
	if s := known.SuggestionsFor(word); len(s) > 0 {
		return s[0]
	}
	letters := func(s string) string { return string(slices.Sorted(slices.Values([]byte(s)))) }
	if at := slices.IndexFunc(names, func(name string) bool { return letters(name) == letters(word) }); at >= 0 {
		return names[at]
	}
	return ""
}

// didYouMean adds to Docker's words about an unknown command the one that is nearest to it.
func didYouMean(err error, noun *cobra.Command, word string) error {
	if err == nil || !strings.Contains(err.Error(), "unknown command: "+noun.CommandPath()+" "+word+"\n") {
		return err
	}
	var names []string
	for _, c := range noun.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	if name := nearest(word, names); name != "" {
		return fmt.Errorf("%w\ndid you mean '%s %s'?", err, noun.CommandPath(), name)
	}
	return err
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
