package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/miniswarm/miniswarm/lab"
)

// completeName is the hidden command that the shells' scripts ask. Its arguments are the words before the cursor, without
// the program's name, and last the beginning of the word at the cursor, which may be empty.
const completeName = "__complete"

// completionScripts offer what the daemon has to say, such as names that other machines have given themselves. None may let
// the shell read them as anything but text: bash's own compgen -W would run a $(command) in them.
var completionScripts = map[string]string{
	"bash": `_miniswarm() {
    local word
    COMPREPLY=()
    while IFS= read -r word; do
        [[ $word == *: ]] && compopt -o nospace 2>/dev/null
        printf -v word %q "$word"
        COMPREPLY+=("$word")
    done < <("${COMP_WORDS[0]}" __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o default -F _miniswarm miniswarm
`,
	"zsh": `#compdef miniswarm
_miniswarm() {
    local -a found
    found=("${(@f)$("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [ -n "${found[*]}" ]; then compadd -a found; else _files; fi
}
compdef _miniswarm miniswarm
`,
	"fish": `function __miniswarm_complete
    set -l words (commandline -opc)
    $words[1] __complete $words[2..-1] (commandline -ct) 2>/dev/null
end
complete -c miniswarm -a '(__miniswarm_complete)'
`,
}

func completionCommand(e *env) *cli.Command {
	return &cli.Command{Name: "completion", Usage: "print a script that completes commands in a shell", ArgsUsage: "bash|zsh|fish", Category: machineCategory,
		Description: "   source <(miniswarm completion bash)\n   miniswarm completion zsh > ~/.zfunc/_miniswarm\n   miniswarm completion fish > ~/.config/fish/completions/miniswarm.fish",
		Action: func(c *cli.Context) error {
			script, ok := completionScripts[c.Args().First()]
			if !ok || c.NArg() != 1 {
				return usage("miniswarm completion needs the name of a shell: bash, zsh or fish")
			}
			_, err := fmt.Fprint(e.stdout, script)
			return err
		}}
}

func completeCommand(e *env) *cli.Command {
	return &cli.Command{Name: completeName, Hidden: true, SkipFlagParsing: true, HideHelp: true, Action: func(c *cli.Context) error {
		words := c.Args().Slice()
		if len(words) == 0 {
			return nil
		}
		last := len(words) - 1
		for _, found := range complete(c.Context, e, c.App, c.String(flagHost), words[:last], words[last]) {
			if strings.HasPrefix(found, words[last]) {
				fmt.Fprintln(e.stdout, found)
			}
		}
		return nil
	}}
}

// complete gives what may stand at the cursor.
func complete(ctx context.Context, e *env, app *cli.App, host string, words []string, current string) []string {
	cmd, n := descend(app, words)
	if cmd != nil && cmd.SkipFlagParsing {
		at := slices.IndexFunc(nouns, func(n noun) bool { return n.name == cmd.Name })
		if at < 0 {
			return nil
		}
		return completeDocker(ctx, e, hostURL(flagIn(words[:n], host, flagHost, "H")), nouns[at], words[n:], current)
	}
	flags, commands := app.Flags, app.Commands
	if cmd != nil {
		flags, commands = cmd.Flags, cmd.Subcommands
	}
	var found []string
	switch {
	case len(words) > 0 && takesNext(flags, words[len(words)-1]):
	case strings.HasPrefix(current, "-"):
		for _, f := range flags {
			for _, name := range f.Names() {
				if len(name) > 1 {
					found = append(found, "--"+name)
				}
			}
		}
		found = append(found, "--help")
	case len(commands) > 0:
		for _, c := range commands {
			if !c.Hidden {
				found = append(found, c.Name)
			}
		}
	case cmd != nil && slices.Contains(words, "lab"):
		found = labHosts(words)
	case cmd != nil:
		found = fixedArguments[cmd.Name]
	}
	slices.Sort(found)
	return found
}

var fixedArguments = map[string][]string{"token": {"worker", "manager"}, "completion": {"bash", "fish", "zsh"}}

// flagIn gives the value that one of the words gives to a flag, or the fallback.
func flagIn(words []string, fallback string, names ...string) string {
	for i, w := range words {
		name, value, ok := strings.Cut(strings.TrimLeft(w, "-"), "=")
		if !strings.HasPrefix(w, "-") || !slices.Contains(names, name) {
			continue
		}
		if ok {
			return value
		}
		if i+1 < len(words) {
			return words[i+1]
		}
	}
	return fallback
}

// labHosts are the hosts of the lab that the words, or else the environment, name.
func labHosts(words []string) []string {
	name := flagIn(words, cmp.Or(os.Getenv(envLabName), defaultLab), "name")
	l, err := lab.Open(flagIn(words, os.Getenv(envLabRoot), "state-dir"), name)
	if err != nil {
		return nil
	}
	hosts, err := l.Hosts()
	if err != nil {
		return nil
	}
	var names []string
	for _, h := range hosts {
		names = append(names, h.Name)
	}
	return names
}
