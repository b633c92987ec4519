package docker

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/swarm"
	"github.com/prometheus/procfs"

	"github.com/miniswarm/miniswarm/cluster"
)

const (
	// listenLimit is how long after its start a container that is to answer published ports may take until it listens on
	// them. After that it counts as running all the same: perhaps it never will listen, and Swarm would not have waited at all.
	listenLimit = 3 * time.Second
	// acceptLimit is how long a container that is to stop may take to accept the connections that wait for it.
	acceptLimit = 2 * time.Second
	// firstListenPause and lastListenPause are between two looks, ever longer.
	firstListenPause = 5 * time.Millisecond
	lastListenPause  = 50 * time.Millisecond
	// tcpListen is the kernel's number of the state (include/net/tcp_states.h).
	tcpListen = 10
)

// Listeners gives the TCP ports that somebody listens on, on an address that others reach, in the network namespace of the
// process pid, each with the number of connections that wait there to be accepted. It only reads what the kernel tells in
// /proc: a connection made to find out would be seen by the program, and some serve just one. An error means that the
// kernel does not tell this daemon.
func Listeners(pid int) (map[uint16]int, error) {
	fs, err := procfs.NewFS(path.Join(procfs.DefaultMountPoint, strconv.Itoa(pid)))
	if err != nil {
		return nil, fmt.Errorf("look for listeners of process %d: %w", pid, err)
	}
	//lint:ignore SA1019 netlink, which is recommended instead, would have to enter the process's network namespace
	four, err := fs.NetTCP()
	if err != nil {
		return nil, fmt.Errorf("look for listeners of process %d: %w", pid, err)
	}
	//lint:ignore SA1019 as above
	six, err := fs.NetTCP6()
	if err != nil {
		six = nil // a kernel without IPv6 has no such table
	}
	open := map[uint16]int{}
	for _, table := range []procfs.NetTCP{four, six} {
		for _, s := range table {
			if s.St == tcpListen && !s.LocalAddr.IsLoopback() {
				open[uint16(s.LocalPort)] += int(s.RxQueue) // of a listener, what it has not accepted
			}
		}
	}
	return open, nil
}

// awaitListeners waits until a container that has no health check listens on the TCP ports that the routing mesh leads
// to it, because a task gets traffic from the moment it is RUNNING. It returns early when the
// container ends, and when there is nothing to wait for or no way to know.
func (c *Controller) awaitListeners(ctx context.Context, sub *Subscription, have container.InspectResponse) error {
	ports := meshPorts(c.task)
	if c.rt.Listeners == nil || len(ports) == 0 || have.State.Pid == 0 {
		return nil
	}
	left := listenLimit
	if at, err := time.Parse(time.RFC3339Nano, have.State.StartedAt); err == nil {
		// It may have been started by a daemon that ended since.
		left = min(left, listenLimit-time.Since(at))
	}
	if left <= 0 {
		return nil
	}
	limit := time.NewTimer(left)
	defer limit.Stop()
	for pause := firstListenPause; ; pause = min(2*pause, lastListenPause) {
		open, err := c.rt.Listeners(have.State.Pid)
		if err != nil {
			c.log.Debug("cannot see what the container listens on", "err", err)
			return nil
		}
		if !slices.ContainsFunc(ports, func(p uint16) bool { _, ok := open[p]; return !ok }) {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-sub.C:
			if have, err := c.inspect(ctx); err != nil || !have.State.Running {
				return err
			}
		case <-limit.C:
			c.log.Info("the container runs and does not listen on its published ports", "ports", ports, "after", listenLimit)
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// awaitAccepted waits until no connection to the container waits to be accepted any more. The mesh sends it no new ones when it
// is to stop, but a program that did not come to run for a moment may have some left, and a listener that is closed resets
// them: requests that somebody has sent already. It returns early when there is no way to know, and when ctx ends.
func (c *Controller) awaitAccepted(ctx context.Context) {
	st, _ := c.Status()
	shared := slices.ContainsFunc(c.task.NetworksAttachments, func(a swarm.NetworkAttachment) bool {
		name, ok := predefined(a.Network)
		return ok && container.NetworkMode(name).IsHost() // with listeners that are not its own
	})
	if c.rt.Listeners == nil || st.PID == 0 || shared {
		return
	}
	limit := time.NewTimer(acceptLimit)
	defer limit.Stop()
	for pause := firstListenPause; ; pause = min(2*pause, lastListenPause) {
		open, err := c.rt.Listeners(st.PID)
		waiting := 0
		for _, n := range open {
			waiting += n
		}
		if err != nil || waiting == 0 {
			return
		}
		select {
		case <-time.After(pause):
		case <-limit.C:
			c.log.Info("the container is stopped though it has not accepted all connections", "waiting", waiting, "after", acceptLimit)
			return
		case <-ctx.Done():
			return
		}
	}
}

// meshPorts are the TCP ports inside the container that the routing mesh publishes.
func meshPorts(t *cluster.Task) []uint16 {
	var out []uint16
	for _, p := range endpointPorts(t) {
		if p.PublishMode != swarm.PortConfigPublishModeHost && (p.Protocol == "" || p.Protocol == swarm.PortConfigProtocolTCP) {
			out = append(out, uint16(p.TargetPort))
		}
	}
	return out
}
