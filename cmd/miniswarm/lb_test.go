package main

import (
	"log/slog"
	"slices"
	"testing"

	"github.com/docker/docker/client"
)

// A balancer that runs on a node does not take itself for one of its backends.
func TestLBLeavesItselfOut(t *testing.T) {
	f := startFake(t, t.TempDir())
	f.member = true
	cl, err := client.NewClientWithOpts(client.WithHost("unix://" + f.socket))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	f.nodes[0].Status.Addr = "127.0.0.1"
	for _, c := range []struct {
		own  ownAddress
		port string
		want []string
	}{
		{ownAddress{"", "80"}, "80", []string{"10.0.0.2:80", "10.0.0.3:80"}},
		{ownAddress{"0.0.0.0", "80"}, "80", []string{"10.0.0.2:80", "10.0.0.3:80"}},
		{ownAddress{"127.0.0.1", "80"}, "80", []string{"10.0.0.2:80", "10.0.0.3:80"}},
		{ownAddress{"127.0.0.9", "80"}, "80", []string{"10.0.0.2:80", "10.0.0.3:80", "127.0.0.1:80"}},
		{ownAddress{"", "8080"}, "80", []string{"10.0.0.2:80", "10.0.0.3:80", "127.0.0.1:80"}},
	} {
		n := &clusterNodes{client: cl, port: c.port, own: c.own, log: slog.New(slog.DiscardHandler)}
		if got, err := n.ready(t.Context()); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v, %v", c, got, err)
		}
	}
	f.nodes = f.nodes[:1]
	n := &clusterNodes{client: cl, port: "80", own: ownAddress{"", "80"}, log: slog.New(slog.DiscardHandler)}
	if got, err := n.ready(t.Context()); err == nil {
		t.Errorf("only itself: %v", got)
	}
}
