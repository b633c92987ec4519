package main

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
	"github.com/spf13/cobra"
)

// nodeAttempts bounds how often the update of a node is tried.
const nodeAttempts = 4

// demoteOwnLast has a command that demotes several managers take the one that it talks to last: nobody answers it afterwards.
func demoteOwnLast(oc *observedCLI, cmd *cobra.Command) {
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			args = ownLast(cmd.Context(), oc.observer().APIClient, args)
		}
		return run(cmd, args)
	}
}

// ownLast gives the names of nodes with that of the daemon's own at the end. What cannot be found out leaves the order: the command
// itself will say what is wrong.
func ownLast(ctx context.Context, cl client.APIClient, nodes []string) []string {
	info, err := cl.Info(ctx)
	if err != nil {
		return nodes
	}
	for i, name := range nodes {
		if n, _, err := cl.NodeInspectWithRaw(ctx, name); err == nil && n.ID == info.Swarm.NodeID {
			return append(slices.Delete(slices.Clone(nodes), i, i+1), name)
		}
	}
	return nodes
}

// NodeInspectWithRaw is the client's; what it finds is what a command means to change.
func (o *observer) NodeInspectWithRaw(ctx context.Context, id string) (swarm.Node, []byte, error) {
	n, raw, err := o.APIClient.NodeInspectWithRaw(ctx, id)
	if err == nil {
		if o.nodes == nil {
			o.nodes = make(map[string]json.RawMessage)
		}
		o.nodes[n.ID] = specOf(n.Spec)
	}
	return n, raw, err
}

// NodeUpdate is the client's, and goes through what several updates one after another bring about by themselves: the object of a
// node has a new version when its role has followed, and a leader that is demoted may leave a request unanswered. What somebody else
// wants of the node meanwhile is not written over.
func (o *observer) NodeUpdate(ctx context.Context, id string, version swarm.Version, spec swarm.NodeSpec) error {
	err := o.APIClient.NodeUpdate(ctx, id, version, spec)
	for range nodeAttempts - 1 {
		if err == nil || !cerrdefs.IsUnavailable(err) && !strings.Contains(err.Error(), "update out of sequence") {
			return err
		}
		now, _, failed := o.APIClient.NodeInspectWithRaw(ctx, id)
		switch is := specOf(now.Spec); {
		case failed != nil:
			return err
		case bytes.Equal(is, specOf(spec)):
			return nil
		case !bytes.Equal(is, o.nodes[id]):
			return err
		}
		err = o.APIClient.NodeUpdate(ctx, id, now.Version, spec)
	}
	return err
}

// specOf is a specification in a form that can be compared.
func specOf(spec swarm.NodeSpec) json.RawMessage {
	text, _ := json.Marshal(spec) // strings and maps of strings always can be
	return text
}
