package docker

import (
	"context"
	"fmt"
	"path"
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
	// firstListenPause and lastListenPause are between two looks, ever longer.
	firstListenPause = 5 * time.Millisecond
	lastListenPause  = 50 * time.Millisecond
	// tcpListen is the kernel's number of the state (include/net/tcp_states.h).
	tcpListen = 10
)

// Listening says whether every one of the TCP ports has somebody who listens on it, on an address that others reach, in
// the network namespace of the process pid. It only reads what the kernel tells in /proc: a connection made to find out
// would be seen by the program, and some serve just one. An error means that the kernel does not tell this daemon.
func Listening(pid int, ports []uint16) (bool, error) {
	fs, err := procfs.NewFS(path.Join(procfs.DefaultMountPoint, strconv.Itoa(pid)))
	if err != nil {
		return false, fmt.Errorf("look for listeners of process %d: %w", pid, err)
	}
	//lint:ignore SA1019 netlink, which is recommended instead, would have to enter the process's network namespace
	four, err := fs.NetTCP()
	if err != nil {
		return false, fmt.Errorf("look for listeners of process %d: %w", pid, err)
	}
	//lint:ignore SA1019 as above
	six, err := fs.NetTCP6()
	if err != nil {
		six = nil // a kernel without IPv6 has no such table
	}
	open := map[uint64]bool{}
	for _, table := range []procfs.NetTCP{four, six} {
		for _, s := range table {
			if s.St == tcpListen && !s.LocalAddr.IsLoopback() {
				open[s.LocalPort] = true
			}
		}
	}
	for _, p := range ports {
		if !open[uint64(p)] {
			return false, nil
		}
	}
	return true, nil
}

// awaitListeners waits until a container that has no health check listens on the TCP ports that the routing mesh leads
// to it, because a task gets traffic from the moment it is RUNNING. It returns early when the
// container ends, and when there is nothing to wait for or no way to know.
func (c *Controller) awaitListeners(ctx context.Context, sub *Subscription, have container.InspectResponse) error {
	ports := meshPorts(c.task)
	if c.rt.Listening == nil || len(ports) == 0 || have.State.Pid == 0 {
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
		ready, err := c.rt.Listening(have.State.Pid, ports)
		if err != nil {
			c.log.Debug("cannot see what the container listens on", "err", err)
			return nil
		}
		if ready {
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
