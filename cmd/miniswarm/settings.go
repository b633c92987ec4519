package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"
)

// settingsFlags are the cluster's settings, for init.
func settingsFlags() []cli.Flag {
	return []cli.Flag{
		&cli.Int64Flag{Name: "task-history-limit", Value: 5, Usage: "tasks kept of each slot"},
		&cli.DurationFlag{Name: "dispatcher-heartbeat", Value: time.Second, Usage: "a node silent for three of these is Down"},
		&cli.DurationFlag{Name: "cert-expiry", Value: 90 * 24 * time.Hour, Usage: "validity of node certificates"},
		&cli.Uint64Flag{Name: "snapshot-interval", Value: 10000, Usage: "log entries between snapshots"},
		&cli.Uint64Flag{Name: "max-snapshots", Usage: "snapshots kept besides the newest"},
	}
}

// changesFlags are the settings for update, which leaves alone what is not named.
func changesFlags() []cli.Flag {
	const same = "as it is"
	flags := append(settingsFlags(), &cli.BoolFlag{Name: "autolock", Usage: "managers lock themselves when they restart (true or false)"})
	for _, f := range flags {
		switch f := f.(type) {
		case *cli.Int64Flag:
			f.DefaultText = same
		case *cli.Uint64Flag:
			f.DefaultText = same
		case *cli.DurationFlag:
			f.DefaultText = same
		case *cli.BoolFlag:
			f.DefaultText = same
		}
	}
	return flags
}

// mergeSettings puts what the command line sets into a specification.
func mergeSettings(c *cli.Context, spec *swarm.Spec) {
	if c.IsSet("task-history-limit") {
		limit := c.Int64("task-history-limit")
		spec.Orchestration.TaskHistoryRetentionLimit = &limit
	}
	if c.IsSet("dispatcher-heartbeat") {
		spec.Dispatcher.HeartbeatPeriod = c.Duration("dispatcher-heartbeat")
	}
	if c.IsSet("cert-expiry") {
		spec.CAConfig.NodeCertExpiry = c.Duration("cert-expiry")
	}
	if c.IsSet("snapshot-interval") {
		spec.Raft.SnapshotInterval = c.Uint64("snapshot-interval")
	}
	if c.IsSet("max-snapshots") {
		keep := c.Uint64("max-snapshots")
		spec.Raft.KeepOldSnapshots = &keep
	}
	if c.IsSet("autolock") {
		spec.EncryptionConfig.AutoLockManagers = c.Bool("autolock")
	}
}

func updateCommand(e *env) *cli.Command {
	return &cli.Command{Name: "update", Usage: "change the settings of the cluster", Category: clusterCategory,
		Description: "   miniswarm update --task-history-limit 10\n   miniswarm update --autolock=true",
		Flags: append(changesFlags(),
			&cli.StringSliceFlag{Name: "external-ca", Usage: "`SPEC` of who signs in place of the managers, with the present root: protocol=cfssl,url=https://...; '' for none"}),
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return usage("miniswarm update takes no arguments; see 'miniswarm update --help'")
			}
			if c.NumFlags() == 0 {
				return cli.ShowSubcommandHelp(c)
			}
			cl, err := newClient(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			sw, err := cl.SwarmInspect(c.Context)
			if err != nil {
				return hint(err, c)
			}
			locked := sw.Spec.EncryptionConfig.AutoLockManagers
			mergeSettings(c, &sw.Spec)
			if c.IsSet("external-ca") {
				if sw.Spec.CAConfig.ExternalCAs, err = externalCAs(c, sw.TLSInfo.TrustRoot); err != nil {
					return err
				}
			}
			if err := cl.SwarmUpdate(c.Context, sw.Version, sw.Spec, swarm.UpdateFlags{}); err != nil {
				return hint(err, c)
			}
			fmt.Fprintln(e.stdout, "Swarm updated.")
			for _, text := range meanings(c) {
				fmt.Fprintln(e.stdout, text)
			}
			if sw.Spec.EncryptionConfig.AutoLockManagers && !locked {
				return printUnlockKey(c.Context, e, cl)
			}
			return nil
		}}
}

// meanings say of the values on the command line that are no plain numbers what comes of them.
func meanings(c *cli.Context) (texts []string) {
	if c.IsSet("task-history-limit") && c.Int64("task-history-limit") < 0 {
		texts = append(texts, fmt.Sprintf("A task history limit of %d is none: finished tasks are kept for ever.", c.Int64("task-history-limit")))
	}
	if c.IsSet("dispatcher-heartbeat") && c.Duration("dispatcher-heartbeat") == 0 {
		texts = append(texts, "A dispatcher heartbeat of 0s is the default: one each second.")
	}
	return texts
}

// printSettings prints what info says of the cluster, in Docker's words.
func printSettings(w io.Writer, cl *swarm.ClusterInfo) {
	if len(cl.DefaultAddrPool) > 0 {
		fmt.Fprintf(w, " Default Address Pool: %s\n SubnetSize: %d\n", strings.Join(cl.DefaultAddrPool, "  "), cl.SubnetSize)
	}
	if cl.DataPathPort > 0 {
		fmt.Fprintf(w, " Data Path Port: %d\n", cl.DataPathPort)
	}
	limit, old := int64(0), uint64(0)
	if p := cl.Spec.Orchestration.TaskHistoryRetentionLimit; p != nil {
		limit = *p
	}
	if p := cl.Spec.Raft.KeepOldSnapshots; p != nil {
		old = *p
	}
	fmt.Fprintf(w, " Orchestration:\n  Task History Retention Limit: %d\n", limit)
	fmt.Fprintf(w, " Raft:\n  Snapshot Interval: %d\n  Number of Old Snapshots to Retain: %d\n  Heartbeat Tick: %d\n  Election Tick: %d\n",
		cl.Spec.Raft.SnapshotInterval, old, cl.Spec.Raft.HeartbeatTick, cl.Spec.Raft.ElectionTick)
	fmt.Fprintf(w, " Dispatcher:\n  Heartbeat Period: %s\n", units.HumanDuration(cl.Spec.Dispatcher.HeartbeatPeriod))
	fmt.Fprintf(w, " CA Configuration:\n  Expiry Duration: %s\n  Force Rotate: %d\n", units.HumanDuration(cl.Spec.CAConfig.NodeCertExpiry), cl.Spec.CAConfig.ForceRotate)
	if len(cl.Spec.CAConfig.ExternalCAs) > 0 {
		fmt.Fprintln(w, "  External CAs:")
		for _, ca := range cl.Spec.CAConfig.ExternalCAs {
			fmt.Fprintf(w, "    %s: %s\n", ca.Protocol, ca.URL)
		}
	}
	fmt.Fprintf(w, " Autolock Managers: %v\n Root Rotation In Progress: %v\n", cl.Spec.EncryptionConfig.AutoLockManagers, cl.RootRotationInProgress)
}
