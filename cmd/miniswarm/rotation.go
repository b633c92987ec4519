package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/progress"
	"github.com/docker/docker/pkg/streamformatter"
)

const (
	// rotationPatience is how long a rotation may stand still before it is said for whom it waits; nodes renew within seconds.
	rotationPatience = 5 * time.Second
	// rotationNamed is how many nodes are named: more are a cluster that has just begun.
	rotationNamed = 8
	// digestID is what Docker's progress calls the line with the root's digest.
	digestID = "desired root digest"
)

// rotationWatch stands between Docker's progress of a rotation and the daemon, and between that progress and who shows it: it adds for
// whom the rotation waits, and leaves out the digest of the root before, which is the cluster's until the rotation is over. It is the
// progress's alone, which uses it in one goroutine.
type rotationWatch struct {
	client.APIClient
	out *io.PipeWriter
	now func() time.Time

	rotating bool
	root     swarm.TLSInfo
	waiting  string    // who lacks a certificate of the new root
	since    time.Time // so long already
	said     string
}

// SwarmInspect implements client.APIClient.
func (w *rotationWatch) SwarmInspect(ctx context.Context) (swarm.Swarm, error) {
	sw, err := w.APIClient.SwarmInspect(ctx)
	if err == nil {
		w.rotating, w.root = sw.RootRotationInProgress, sw.TLSInfo
	}
	return sw, err
}

// NodeList implements client.APIClient.
func (w *rotationWatch) NodeList(ctx context.Context, opts swarm.NodeListOptions) ([]swarm.Node, error) {
	nodes, err := w.APIClient.NodeList(ctx, opts)
	if err == nil {
		w.look(nodes)
	}
	return nodes, err
}

// look says for whom the rotation waits, when that has not changed for a while, and again when it has.
func (w *rotationWatch) look(nodes []swarm.Node) {
	waiting, advice := awaited(nodes, w.root)
	if waiting != w.waiting {
		w.waiting, w.since = waiting, w.now()
	}
	switch {
	case waiting == w.said:
		return
	case waiting == "":
		waiting = "nobody any more"
	case w.now().Sub(w.since) < rotationPatience:
		return
	}
	w.said = w.waiting
	out := streamformatter.NewJSONProgressOutput(w.out, false)
	progress.Update(out, "waiting for", waiting)
	progress.Update(out, "what to do", advice)
}

// awaited names the nodes that have no certificate of root yet, and what to do about them.
func awaited(nodes []swarm.Node, root swarm.TLSInfo) (names, advice string) {
	count := map[string]int{}
	for _, n := range nodes {
		count[n.Description.Hostname]++
	}
	var all []string
	down, manager := false, false
	for _, n := range nodes {
		if shown := n.Description.TLSInfo; bytes.Equal(shown.CertIssuerPublicKey, root.CertIssuerPublicKey) && bytes.Equal(shown.CertIssuerSubject, root.CertIssuerSubject) {
			continue
		}
		name := cmp.Or(n.Description.Hostname, n.ID)
		if count[n.Description.Hostname] > 1 {
			name = n.ID
		}
		all = append(all, fmt.Sprintf("%s (%s)", name, n.Status.State))
		if n.Status.State != swarm.NodeStateReady {
			down, manager = true, manager || n.Spec.Role == swarm.NodeRoleManager
		}
	}
	slices.Sort(all)
	if len(all) > rotationNamed {
		all = append(all[:rotationNamed], fmt.Sprintf("%d more", len(all)-rotationNamed))
	}
	switch advice = "see 'miniswarm doctor'"; {
	case len(all) == 0:
		advice = ""
	case manager:
		advice = "bring them back, or 'miniswarm node rm' those that are not to come back (a manager is demoted first)"
	case down:
		advice = "bring them back, or 'miniswarm node rm' those that are not to come back"
	}
	return strings.Join(all, ", "), advice
}

// rotationWriter is where the progress writes, a message at a time.
type rotationWriter struct{ watch *rotationWatch }

// Write implements io.Writer.
func (w rotationWriter) Write(message []byte) (int, error) {
	if w.watch.rotating && bytes.Contains(message, []byte(`"`+digestID+`"`)) {
		return len(message), nil
	}
	return w.watch.out.Write(message)
}

// Close implements io.Closer.
func (w rotationWriter) Close() error { return w.watch.out.Close() }
