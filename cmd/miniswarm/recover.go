package main

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/client"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/manager/backup"
)

func recoverCommand(e *env) *cli.Command {
	flags := slices.DeleteFunc(addressFlags(), func(f cli.Flag) bool { return f.Names()[0] == "availability" })
	return &cli.Command{Name: "recover", Usage: "bring a cluster back that has lost its managers, with this machine as the only one", Category: clusterCategory,
		Description: `   miniswarm recover --dry-run                                  what would be kept and what lost, on a manager that is left
   miniswarm recover                                            from that manager's own disk
   miniswarm recover --from monday --key-file backup.key        from a backup, on any machine
   miniswarm recover --from monday --advertise-addr 10.0.0.7    at that address

Services, tasks, networks, secrets, configs, nodes, join tokens and the CA are kept. Containers are not touched: those whose tasks
stand go on. Nodes find the cluster if it is at an address where they know a manager; elsewhere run 'miniswarm rejoin' on each.

The other managers are dropped. When one of them comes back it is refused as a manager and goes on as a worker; 'miniswarm node
promote' makes it a manager again. Where their disks are intact, bring most of them back instead: then nothing is lost.`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "from", Usage: "the `FILE` that 'miniswarm backup' wrote, - for standard input (default: this manager's own disk)"},
			&cli.StringFlag{Name: flagKeyFile, Usage: "`FILE` with the backup's recovery key or passphrase (default: it is asked for)"},
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be done, and do nothing"},
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "even if the cluster has a leader: managers that live are dropped"},
			&cli.StringFlag{Name: "format", Usage: "json prints the report"}}, flags...),
		Action: func(c *cli.Context) error { return runRecover(e, c) }}
}

func runRecover(e *env, c *cli.Context) error {
	if c.NArg() > 0 {
		return usage("miniswarm recover takes no arguments: the backup is named by --from")
	}
	req := backup.RecoverRequest{FromBackup: c.IsSet("from"), DryRun: c.Bool("dry-run"), Force: c.Bool("force"),
		ListenAddr: c.String("listen-addr"), AdvertiseAddr: c.String("advertise-addr"), DataPathAddr: c.String("data-path-addr")}
	var body io.Reader
	if req.FromBackup {
		body = e.stdin
		if name := c.String("from"); name != "-" { // before anybody types a key for it
			f, err := os.Open(name)
			if err != nil {
				return fmt.Errorf("open the backup: %w", err)
			}
			defer f.Close()
			body = f
		}
		secret, err := askSecret(e, c)
		if err != nil {
			return err
		}
		req.Secret = secret.Text()
	}
	raw, err := json.Marshal(req)
	if err != nil {
		return err
	}
	var cl *client.Client
	if req.FromBackup {
		cl, err = connectOrStart(c.Context, e, c)
	} else {
		cl, err = newClient(c)
	}
	if err != nil {
		return err
	}
	defer cl.Close()
	answer, err := open(c.Context, cl, http.MethodPost, "/miniswarm/recover", http.Header{backup.RecoverHeader: {base64.URLEncoding.EncodeToString(raw)}}, body)
	if err != nil {
		return hint(err, c)
	}
	defer answer.Close()
	var report backup.Report
	if err := json.NewDecoder(answer).Decode(&report); err != nil {
		return fmt.Errorf("recover: read the daemon's report: %w", err)
	}
	if f := c.String("format"); f != "" {
		return printFormatted(e.stdout, f, report)
	}
	printReport(e.stdout, &report)
	return nil
}

// askSecret takes the secret from the key file, or from a person who sits at the terminal.
func askSecret(e *env, c *cli.Context) (backup.Secret, error) {
	if path := c.String(flagKeyFile); path != "" {
		return readKeyFile(path)
	}
	in, ok := e.stdin.(*os.File)
	if !ok || c.String("from") == "-" || !term.IsTerminal(int(in.Fd())) {
		return backup.Secret{}, usage("miniswarm recover needs the backup's recovery key or passphrase: give --key-file FILE")
	}
	text, err := askHidden(c.Context, e, in, "Recovery key or passphrase of the backup: ")
	if err != nil {
		return backup.Secret{}, fmt.Errorf("read the key: %w", err)
	}
	return backup.ParseSecret(text)
}

// printReport says what was done, or would be, and what is to be done next.
func printReport(w io.Writer, r *backup.Report) {
	verb := map[bool]string{true: "would be recovered", false: "is recovered"}[r.DryRun]
	fmt.Fprintf(w, "Cluster %s %s with one manager: this machine, node %s at %s.\n\n", r.ClusterID, verb, r.NodeID, r.Addr)
	if b := r.Backup; b != nil {
		fmt.Fprintf(w, "  source    backup taken %s (%s ago) on node %s, log index %d of term %d\n", b.Taken.Local().Format(time.RFC3339), age(b.Taken), b.NodeID, b.Index, b.Term)
	} else {
		fmt.Fprintf(w, "  source    this manager's disk, to log index %d of term %d\n", r.Index, r.Term)
		if tail := r.Index - r.Committed; tail > 0 {
			fmt.Fprintf(w, "            %d of these entries it did not know to be acknowledged; they are kept\n", tail)
		}
	}
	fmt.Fprintf(w, "  newest    the last change in it was made %s (%s ago)\n", r.LastChange.Local().Format(time.RFC3339), age(r.LastChange))
	fmt.Fprintf(w, "  kept      %s, the CA and the join tokens\n", countObjects(r.Objects))
	fmt.Fprintf(w, "  missing   %s\n", cmp.Or(r.MayMiss, "nothing"))
	if len(r.ExternalCAs) > 0 {
		fmt.Fprintf(w, "  signer    %s\n", signer(r))
	}
	for i, d := range r.Dropped {
		label := "dropped"
		if i > 0 {
			label = ""
		}
		fmt.Fprintf(w, "  %-9s manager %s %s\n", label, strings.TrimSpace(d.Hostname+" "+d.NodeID), d.Addr)
	}
	fmt.Fprintf(w, "  epoch     %s: nodes that have heard of it follow no manager of before\n", cluster.EpochTime(r.Epoch).Local().Format(time.RFC3339Nano))
	for _, text := range r.Warnings {
		fmt.Fprintf(w, "  warning   %s\n", text)
	}
	switch {
	case r.Refused != "":
		fmt.Fprintf(w, "\nNothing was done, and without --dry-run it is refused: %s.\n", r.Refused)
		return
	case r.DryRun:
		fmt.Fprintln(w, "\nNothing was done. Without --dry-run it is.")
		return
	}
	fmt.Fprintln(w)
	if slices.Contains(r.Known, r.Addr) {
		fmt.Fprintln(w, "Nodes that still run find it by themselves.")
	} else {
		fmt.Fprintf(w, "Nodes that still run look for managers at %s, not here. Tell each of them:\n\n    miniswarm rejoin %s\n\n", strings.Join(r.Known, ", "), r.Addr)
	}
	if r.NotSigned != "" {
		fmt.Fprintln(w, "Nodes cannot join, renew or change their role until the external CA answers: bring it back, or 'miniswarm update --external-ca \"\"' if the managers are to sign.")
	}
	if len(r.Dropped) > 0 {
		fmt.Fprintln(w, "Dropped managers that come back go on as workers: 'miniswarm node promote' makes them managers again. Those that do not: 'miniswarm node rm'.")
	}
	fmt.Fprintln(w, "One manager is no safety. To add others run 'miniswarm token manager' and follow the instructions.")
}

// signer says who certifies this machine where that is an external CA's part.
func signer(r *backup.Report) string {
	who := "external CA " + strings.Join(r.ExternalCAs, ", ")
	switch {
	case r.NotSigned != "":
		return "the key of the root CA, which is here: " + r.NotSigned
	case !r.DryRun:
		return who
	case r.HasKey:
		return who + " is asked for this machine's certificate; if it does not sign, the key of the root CA does, which is here"
	}
	return who + " is asked for this machine's certificate: it must answer, nobody else has the key of the root CA"
}

func age(t time.Time) time.Duration { return max(time.Since(t), 0).Round(time.Second) }

func rejoinCommand(e *env) *cli.Command {
	return &cli.Command{Name: "rejoin", Usage: "tell this node where its cluster's managers are now", ArgsUsage: "HOST[:PORT]", Category: clusterCategory,
		Description: `   miniswarm rejoin 192.168.1.17:2377

For a node that was away while all managers got other addresses, a manager that all others have moved away from, or a node whose cluster was recovered
on another machine. It needs no token: the node's certificate counts. Containers go on. On a manager whose cluster was recovered on another machine it ends the manager; the node goes on as a
worker of the recovered cluster.`,
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return usage("miniswarm rejoin needs exactly one argument: the HOST:PORT of a manager")
			}
			cl, err := newClient(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			body, err := json.Marshal(backup.RejoinRequest{Addr: c.Args().First()})
			if err != nil {
				return err
			}
			if _, err := ask(c.Context, cl, http.MethodPost, "/miniswarm/rejoin", strings.NewReader(string(body))); err != nil {
				return hint(err, c)
			}
			fmt.Fprintln(e.stdout, "This node has a session with its cluster's leader.")
			return nil
		}}
}
