package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/lab"
)

// siteReplicas is what runs while hosts fail: three on each of four.
const siteReplicas = 12

// fail takes things away from a cluster, several times, and adds how long it took to recover.
func (t *trial) fail(ctx context.Context, s *system, rounds int) error {
	if rounds == 0 {
		return nil
	}
	// The mesh of Docker Swarm needs IPVS, which a kernel may not have; its replicas go without a port, and its
	// clients are not measured.
	port := uint32(8080)
	if s != t.ours {
		port = 0
	}
	if err := s.create(ctx, "site", 0, port); err != nil {
		return err
	}
	var worker, write, leader []time.Duration
	var lost []losses
	for range rounds {
		took, l, err := s.failWorker(ctx, port)
		if err != nil {
			return err
		}
		worker, lost = append(worker, took), append(lost, l)
		if took, err = s.killLeader(ctx); err != nil {
			return err
		}
		write = append(write, took)
		if took, err = s.failLeader(ctx); err != nil {
			return err
		}
		leader = append(leader, took)
	}
	t.out.add(s.name+": worker failed -> 12 replicas running elsewhere", spread(worker))
	t.out.add(s.name+": leader's process killed -> next write accepted", spread(write))
	t.out.add(s.name+": leader's host failed -> 12 replicas running elsewhere", spread(leader))
	if port == 0 {
		return nil
	}
	for i, l := range lost {
		t.out.add(fmt.Sprintf("%s: clients of the other nodes while the worker failed, round %d", s.name, i+1), l.String())
	}
	return nil
}

// level has the service's replicas spread evenly over all hosts.
func (s *system) level(ctx context.Context) error {
	if err := s.ready(ctx); err != nil {
		return err
	}
	via, _, err := s.leader(ctx)
	if err != nil {
		return err
	}
	for _, n := range []int{0, siteReplicas} {
		if err := s.scale(ctx, via, "site", uint64(n)); err != nil {
			return err
		}
		if err := s.running(ctx, via, "site", n, ""); err != nil {
			return err
		}
	}
	return rest(ctx, 2*time.Second)
}

// lose takes a host's power and gives the time until all replicas run on the others.
func (s *system) lose(ctx context.Context, host, via lab.Host) (time.Duration, error) {
	node, err := s.nodeOf(ctx, via, host.Name)
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	if err := s.Fail(ctx, host.Name); err != nil {
		return 0, err
	}
	err = until(ctx, s.name+": replicas run elsewhere", func(ctx context.Context) (bool, error) {
		tasks, err := s.tasks(ctx, via, "site")
		n := 0
		for _, task := range tasks {
			if task.NodeID != node && task.Status.State == swarm.TaskStateRunning && task.DesiredState == swarm.TaskStateRunning {
				n++
			}
		}
		return n == siteReplicas, err
	})
	return time.Since(begun), err
}

// failWorker fails the last host, which is a worker, while clients ask the others.
func (s *system) failWorker(ctx context.Context, port uint32) (took time.Duration, l losses, err error) {
	if err := s.level(ctx); err != nil {
		return 0, l, err
	}
	victim := s.hosts[len(s.hosts)-1]
	via, _, err := s.leader(ctx)
	if err != nil {
		return 0, l, err
	}
	asking, stop := context.WithCancel(ctx)
	defer stop()
	var clients crowd
	if port != 0 {
		for _, h := range s.hosts[:len(s.hosts)-1] {
			clients.ask(asking, fmt.Sprintf("http://%s:%d/primes?start=2&end=100", h.Addr, port))
		}
		if err := rest(ctx, 2*time.Second); err != nil {
			return 0, l, err
		}
	}
	failed := time.Now()
	if took, err = s.lose(ctx, victim, via); err != nil {
		return 0, l, err
	}
	if err := rest(ctx, 3*time.Second); err != nil {
		return 0, l, err
	}
	stop()
	clients.running.Wait()
	return took, clients.since(failed), s.Start(ctx, victim.Name)
}

// killLeader ends the leader's process and writes through another manager until a write is accepted. Attempts are
// begun side by side, so that one that waits for a dead leader holds up none.
func (s *system) killLeader(ctx context.Context) (time.Duration, error) {
	if err := s.ready(ctx); err != nil {
		return 0, err
	}
	leader, other, err := s.leader(ctx)
	if err != nil {
		return 0, err
	}
	writing, stop := context.WithTimeoutCause(ctx, time.Minute, errors.New("no write was accepted for a minute"))
	defer stop()
	if err := s.kill(ctx, leader.Name); err != nil {
		return 0, err
	}
	killed := time.Now()
	accepted := make(chan time.Time, 1)
	var attempts sync.WaitGroup
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for i := 0; ; i++ {
		attempts.Go(func() {
			spec := swarm.ConfigSpec{Annotations: swarm.Annotations{Name: fmt.Sprintf("write-%d-%d", killed.UnixNano(), i)}, Data: []byte("x")}
			if s.call(writing, other, http.MethodPost, "/configs/create", spec, nil) == nil {
				select {
				case accepted <- time.Now():
				default: // another one was first
				}
			}
		})
		select {
		case at := <-accepted:
			stop()
			attempts.Wait()
			return at.Sub(killed), s.revive(ctx, leader.Name)
		case <-writing.Done():
			attempts.Wait()
			return 0, context.Cause(writing)
		case <-tick.C:
		}
	}
}

// failLeader fails the host of the leader, which runs replicas as well.
func (s *system) failLeader(ctx context.Context) (time.Duration, error) {
	if err := s.level(ctx); err != nil {
		return 0, err
	}
	leader, other, err := s.leader(ctx)
	if err != nil {
		return 0, err
	}
	took, err := s.lose(ctx, leader, other)
	if err != nil {
		return 0, err
	}
	return took, s.Start(ctx, leader.Name)
}
