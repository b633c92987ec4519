package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

func unlockCommand(e *env) *cli.Command {
	return &cli.Command{Name: "unlock", Usage: "start the manager of this machine, which is locked", Category: clusterCategory,
		Description: "   miniswarm unlock                  (asks for the key)\n   miniswarm unlock < key-file",
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return usage("miniswarm unlock takes no arguments: it asks for the key, which then is in no history of commands")
			}
			cl, err := newClient(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			info, err := cl.Info(c.Context)
			if err != nil {
				return hint(err, c)
			}
			switch info.Swarm.LocalNodeState {
			case swarm.LocalNodeStateInactive:
				return errors.New("error: this node is not part of a swarm, so there is nothing to unlock")
			case swarm.LocalNodeStateLocked:
			case swarm.LocalNodeStateActive:
				if !info.Swarm.ControlAvailable {
					return errors.New("error: swarm is not locked: this node runs no manager, and only managers are locked")
				}
				return errors.New("error: swarm is not locked: its manager here runs already")
			default:
				return fmt.Errorf("error: swarm is not locked: the state of this node is %s, see 'miniswarm info'", info.Swarm.LocalNodeState)
			}
			key, err := readKey(c.Context, e)
			if err != nil {
				return fmt.Errorf("read the unlock key: %w", err)
			}
			return hint(cl.SwarmUnlock(c.Context, swarm.UnlockRequest{UnlockKey: key}), c)
		}}
}

// readKey asks a person for the key without showing it, or reads the first line of what a script gives.
func readKey(ctx context.Context, e *env) (string, error) {
	if f, ok := e.stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return askHidden(ctx, e, f, "Enter unlock key: ")
	}
	key, err := bufio.NewReader(e.stdin).ReadString('\n')
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return strings.TrimSpace(key), err
}

func unlockKeyCommand(e *env) *cli.Command {
	return &cli.Command{Name: "unlock-key", Usage: "show or rotate the key that unlocks managers", Category: clusterCategory,
		Description: "   miniswarm unlock-key\n   miniswarm unlock-key -q\n   miniswarm unlock-key --rotate",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "rotate", Usage: "make a new key; a manager that is off needs the old one once more"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print the key only"}},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return usage("miniswarm unlock-key takes no arguments; see 'miniswarm unlock-key --help'")
			}
			cl, err := newClient(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			if c.Bool("rotate") {
				sw, err := cl.SwarmInspect(c.Context)
				if err != nil {
					return hint(err, c)
				}
				if !sw.Spec.EncryptionConfig.AutoLockManagers {
					return errors.New("cannot rotate because autolock is not turned on: 'miniswarm update --autolock=true' does that, with a new key")
				}
				if err := cl.SwarmUpdate(c.Context, sw.Version, sw.Spec, swarm.UpdateFlags{RotateManagerUnlockKey: true}); err != nil {
					return hint(err, c)
				}
				if !c.Bool("quiet") {
					fmt.Fprintln(e.stdout, "Successfully rotated manager unlock key.")
				}
			}
			if c.Bool("quiet") {
				key, err := fetchUnlockKey(c.Context, cl)
				if err != nil {
					return hint(err, c)
				}
				fmt.Fprintln(e.stdout, key)
				return nil
			}
			return hint(printUnlockKey(c.Context, e, cl), c)
		}}
}

func fetchUnlockKey(ctx context.Context, cl *client.Client) (string, error) {
	answer, err := cl.SwarmGetUnlockKey(ctx)
	if err != nil {
		return "", fmt.Errorf("could not fetch unlock key: %w", err)
	}
	if answer.UnlockKey == "" {
		return "", errors.New("no unlock key is set: managers are not locked; 'miniswarm update --autolock=true' turns that on and shows the key")
	}
	return answer.UnlockKey, nil
}

// printUnlockKey prints the key with Docker's advice.
func printUnlockKey(ctx context.Context, e *env, cl *client.Client) error {
	key, err := fetchUnlockKey(ctx, cl)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "To unlock a swarm manager after it restarts, run the `miniswarm unlock`\ncommand and provide the following key:\n\n    %s\n\n"+
		"Remember to store this key in a password manager, since without it you\nwill not be able to restart the manager.\n", key)
	return nil
}
