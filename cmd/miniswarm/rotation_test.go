package main

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/docker/cli/cli/command/swarm/progress"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
)

// rotatingDaemon is a cluster whose root rotates while a node is down, until it is removed.
type rotatingDaemon struct {
	client.APIClient
	asked int // for the nodes
}

// now has some seconds pass from one look to the next.
func (d *rotatingDaemon) now() time.Time { return time.Unix(int64(d.asked)*2, 0) }

func (d *rotatingDaemon) over() bool { return d.asked >= 5 }

func (d *rotatingDaemon) SwarmInspect(context.Context) (swarm.Swarm, error) {
	return d.inspect(), nil
}

func (d *rotatingDaemon) inspect() (sw swarm.Swarm) {
	sw.TLSInfo = swarm.TLSInfo{TrustRoot: "old", CertIssuerPublicKey: []byte("new")}
	if sw.RootRotationInProgress = !d.over(); d.over() {
		sw.TLSInfo.TrustRoot = "new"
	}
	return sw
}

func (d *rotatingDaemon) NodeList(context.Context, swarm.NodeListOptions) ([]swarm.Node, error) {
	sw := d.inspect()
	renewed, away := swarm.Node{ID: "n1"}, swarm.Node{ID: "n2"}
	renewed.Description.Hostname, renewed.Description.TLSInfo, renewed.Status.State = "vm1", sw.TLSInfo, swarm.NodeStateReady
	away.Description.Hostname, away.Status.State = "vm2", swarm.NodeStateDown
	if d.over() {
		return []swarm.Node{renewed}, nil
	}
	d.asked++
	return []swarm.Node{renewed, away}, nil
}

// A rotation that stands still says for whom it waits, and shows no digest but that of the new root.
func TestARotationNamesWhomItWaitsFor(t *testing.T) {
	reader, writer := io.Pipe()
	daemon := &rotatingDaemon{}
	watch := &rotationWatch{APIClient: daemon, out: writer, now: daemon.now}
	done := make(chan error, 1)
	go func() { done <- progress.RootRotationProgress(t.Context(), watch, rotationWriter{watch}) }()
	var out strings.Builder
	printRotation(&out, reader)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	const want = `rotated TLS certificates: 1/2 nodes
rotated CA certificates: 0/2 nodes
waiting for: vm2 (down)
what to do: bring them back, or 'miniswarm node rm' those that are not to come back
waiting for: nobody any more
desired root digest: sha256:11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437
rotated TLS certificates: 1/1 nodes
rotated CA certificates: 1/1 nodes
`
	if out.String() != want {
		t.Errorf("it says\n%s\nwant\n%s", out.String(), want)
	}
}
