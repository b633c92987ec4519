package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/docker/client"
	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/miniswarm/miniswarm/manager/backup"
	"github.com/miniswarm/miniswarm/node"
)

const flagKeyFile = "key-file"

func backupCommand(e *env) *cli.Command {
	return &cli.Command{Name: "backup", Usage: "write everything the managers know to a sealed file, or check one", ArgsUsage: "FILE|-", Category: clusterCategory,
		Description: `   miniswarm backup /srv/backup/cluster-$(date +%F)              prints a new recovery key, once
   miniswarm backup --key-file /root/backup.key /srv/backup/monday
   miniswarm backup --key-file /root/backup.key - | ssh archive 'cat > cluster'
   miniswarm backup --check --key-file /root/backup.key /srv/backup/monday

Services, tasks, networks, secrets, configs, nodes, join tokens and the CA with its key, as they are at one moment; writes go on
meanwhile. Any manager can do it. What containers keep in volumes is not in it. 'miniswarm recover --from FILE' makes a cluster of it.

The key file has a recovery key (SWMBKP-1-...) or a passphrase of 8 characters or more in its first line.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: flagKeyFile, Usage: "`FILE` with the recovery key or passphrase that seals the backup (default: a new recovery key is printed)"},
			&cli.BoolFlag{Name: "check", Usage: "read FILE and say what it is of, or where it is damaged; without --key-file only its checksums are compared"},
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "replace FILE if it exists"}},
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return usage("miniswarm backup needs exactly one argument: the FILE, or - for standard output")
			}
			if c.Bool("check") {
				return checkBackup(e, c)
			}
			return runBackup(c.Context, e, c)
		}}
}

// readKeyFile reads the secret that a person keeps in a file.
func readKeyFile(path string) (backup.Secret, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return backup.Secret{}, fmt.Errorf("read the key: %w", err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	secret, err := backup.ParseSecret(first)
	if err != nil {
		return backup.Secret{}, fmt.Errorf("key file %s: %w", path, err)
	}
	return secret, nil
}

func runBackup(ctx context.Context, e *env, c *cli.Context) (err error) {
	name := c.Args().First()
	secret, generated := backup.NewRecoveryKey(), true
	if path := c.String(flagKeyFile); path != "" {
		if secret, err = readKeyFile(path); err != nil {
			return err
		}
		generated = false
	}
	if err := mayBackUpTo(name, c.Bool("force")); err != nil {
		return err
	}
	if f, ok := e.stdout.(*os.File); ok && name == "-" && term.IsTerminal(int(f.Fd())) {
		return usage("a backup is not for a terminal: name a FILE, or send standard output somewhere else")
	}
	cl, err := newClient(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	if name == "-" {
		if _, err := fetchBackup(ctx, cl, secret, e.stdout); err != nil {
			return hint(err, c)
		}
		return tellKey(e, secret, generated)
	}
	m, size, err := backupToFile(ctx, cl, secret, name)
	if err != nil {
		return hint(err, c)
	}
	fmt.Fprintf(e.stderr, "Backed up to %s (%s), and read back: %s\n", name, units.BytesSize(float64(size)), describeBackup(m))
	return tellKey(e, secret, generated)
}

// mayBackUpTo says of a file that a backup cannot be written to why, before the cluster is asked for one.
func mayBackUpTo(name string, force bool) error {
	if name == "-" {
		return nil
	}
	dir := filepath.Dir(name)
	switch at, err := os.Stat(name); {
	case err == nil && at.IsDir():
		return fmt.Errorf("%s is a directory: name a file in it, such as %s", name, filepath.Join(name, "cluster.backup"))
	case err == nil && !force:
		return fmt.Errorf("%s exists: give another name, or --force to replace it", name)
	}
	switch at, err := os.Stat(dir); {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("back up to %s: there is no directory %s: make it, or name a file elsewhere", name, dir)
	case err == nil && !at.IsDir():
		return fmt.Errorf("back up to %s: %s is no directory", name, dir)
	}
	return nil
}

func tellKey(e *env, secret backup.Secret, generated bool) error {
	if generated {
		fmt.Fprintf(e.stderr, "\nRecovery key of this backup. Nobody can read it without, and it is not shown again:\n\n    %s\n\n", secret.Text())
	}
	return nil
}

// fetchBackup copies a backup from the daemon.
func fetchBackup(ctx context.Context, cl client.APIClient, secret backup.Secret, w io.Writer) (int64, error) {
	body, err := json.Marshal(backup.Request{Secret: secret.Text()})
	if err != nil {
		return 0, err
	}
	answer, err := open(ctx, cl, http.MethodPost, "/miniswarm/backup", http.Header{"Content-Type": {"application/json"}}, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	defer answer.Close()
	size, err := io.Copy(w, answer)
	if err != nil {
		return size, fmt.Errorf("the backup was broken off after %d bytes and is of no use; the daemon's log has the reason: %w", size, err)
	}
	return size, nil
}

// backupToFile makes a file that is there only once it is whole, on disk and was read back.
func backupToFile(ctx context.Context, cl client.APIClient, secret backup.Secret, name string) (m *backup.Manifest, size int64, err error) {
	partial := name + ".partial"
	f, err := os.OpenFile(partial, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, 0, fmt.Errorf("create the backup: %w; name a file where you may write, or - for standard output", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(partial))
		}
	}()
	defer func() { err = errors.Join(err, f.Close()) }()
	if size, err = fetchBackup(ctx, cl, secret, f); err != nil {
		return nil, size, err
	}
	if err := f.Sync(); err != nil {
		return nil, size, fmt.Errorf("write the backup: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, size, fmt.Errorf("read the backup back: %w", err)
	}
	if m, err = node.CheckBackup(f, secret); err != nil {
		return nil, size, fmt.Errorf("read the backup back: %w", err)
	}
	if err := os.Rename(partial, name); err != nil {
		return nil, size, fmt.Errorf("write the backup: %w", err)
	}
	return m, size, nil
}

func checkBackup(e *env, c *cli.Context) error {
	in := io.Reader(e.stdin)
	if name := c.Args().First(); name != "-" {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("there is no backup %s", name)
		} else if err != nil {
			return fmt.Errorf("check backup: %w", err)
		}
		defer f.Close()
		in = f
	}
	if !c.IsSet(flagKeyFile) {
		size, err := backup.Check(in)
		if err != nil {
			return err
		}
		fmt.Fprintf(e.stdout, "No damage: the checksums of all %d bytes are right. With --key-file its content is read as well.\n", size)
		return nil
	}
	secret, err := readKeyFile(c.String(flagKeyFile))
	if err != nil {
		return err
	}
	m, err := node.CheckBackup(in, secret)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "Whole and readable: %s\n", describeBackup(m))
	return nil
}

// describeBackup says in one sentence what a backup is of.
func describeBackup(m *backup.Manifest) string {
	return fmt.Sprintf("cluster %s at log index %d, taken %s on node %s by miniswarm %s: %s", m.ClusterID, m.Index, m.Taken.Local().Format(time.RFC3339), m.NodeID, m.Version, countObjects(m.Objects))
}

// countObjects lists how many objects there are of each kind that there are any of.
func countObjects(counts map[string]int) string {
	var parts []string
	for _, kind := range []string{"node", "service", "task", "network", "secret", "config"} {
		if n := counts[kind]; n > 0 {
			parts = append(parts, counted(n, kind))
		}
	}
	return strings.Join(parts, ", ")
}
