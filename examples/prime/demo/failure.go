package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/miniswarm/miniswarm/examples/prime/load/loadgen"
)

const (
	// victim is the node that dies. It is a worker.
	victim = "vm3"
	// lbPort is where the balancer listens on the machine, outside of all hosts.
	lbPort = "8080"
	// calm is the load before the failure and after the repair.
	calm = 4 * time.Second
	// replaceBound is how long the cluster may take to have all replicas running again.
	replaceBound = 20 * time.Second
	// recoverBound is how long connections through other nodes may come to nothing.
	recoverBound = 5 * time.Second
	// failureUsers is the part of the crowd that is there, in percent, half of it at the nodes, half at the balancer.
	failureUsers = 60
)

// loseNode is step 11: a worker dies under load.
func (s *story) loseNode(ctx context.Context) error {
	s.tell.step("11. A node dies", "Half of the users go to the nodes' own addresses, a third to each. The others go through miniswarm lb, in front of all three.")
	balancer := net.JoinHostPort(s.lab.MachineAddr().String(), lbPort)
	stop, err := s.startBalancer(ctx, balancer)
	if err != nil {
		return err
	}
	defer stop()

	direct, err := s.failureCrowd(userWaits, s.urls()...)
	if err != nil {
		return err
	}
	balanced, err := s.failureCrowd(2*userWaits, "http://"+balancer)
	if err != nil {
		return err
	}
	loaded, end := context.WithCancel(ctx)
	defer end()
	ran := make(chan error, 2)
	var results [2]loadgen.Result
	for i, g := range []*loadgen.Generator{direct, balanced} {
		go func() {
			var err error
			results[i], err = g.Run(loaded)
			ran <- err
		}()
	}
	p, lost, err := s.failUnderLoad(ctx, direct, balanced)
	end()
	err = errors.Join(err, <-ran, <-ran)
	s.tell.endLive()
	if err != nil {
		return err
	}
	return s.judgeFailure(ctx, p, lost, results[0], results[1])
}

// failureCrowd is a part of the crowd that is there while the node dies.
func (s *story) failureCrowd(waits time.Duration, targets ...string) (*loadgen.Generator, error) {
	cfg := loadgen.Config{Targets: targets, Users: max(3, s.set.users*failureUsers/200), Timeout: waits, Seed: 2, FirstPhase: "before"}
	cfg.SpawnRate = float64(cfg.Users) / 2
	if len(targets) > 1 {
		cfg.Live = func(l loadgen.Live) { s.tell.live("   " + l.String()) }
	}
	return loadgen.New(cfg)
}

// startBalancer runs miniswarm lb on the machine until the function it returns is called.
func (s *story) startBalancer(ctx context.Context, listen string) (func(), error) {
	var nodes []string
	for _, h := range s.hosts {
		nodes = append(nodes, h.Addr.String()+":80")
	}
	args := []string{"lb", "--http", "--listen", listen, "--to", strings.Join(nodes, ","), "--first-byte-timeout", "2s", "--grace", "1s"}
	s.tell.command("machine", "miniswarm "+strings.Join(args, " ")+" &")
	ctx, kill := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, s.set.miniswarm, args...)
	out, end := s.tell.output()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		kill()
		return nil, fmt.Errorf("start miniswarm lb: %w", err)
	}
	stop := func() {
		kill()
		_ = cmd.Wait() // it was killed
		end()
	}
	if err := answers(ctx, "http://"+listen+"/healthz"); err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

// failUnderLoad pulls the power cord and waits until all replicas run on the other nodes.
func (s *story) failUnderLoad(ctx context.Context, crowds ...*loadgen.Generator) (*probe, []string, error) {
	if err := sleep(ctx, calm); err != nil {
		return nil, nil, err
	}
	text, err := s.asks(ctx, "vm1", "miniswarm", "node", "inspect", "--format", "{{.ID}}", victim)
	if err != nil {
		return nil, nil, err
	}
	var others []string
	for _, h := range s.hosts {
		if h.Name != victim {
			others = append(others, net.JoinHostPort(h.Addr.String(), "80"))
		}
	}
	p := startProbe(ctx, others)
	defer p.stop()
	for _, g := range crowds {
		g.Phase("node dies")
	}
	s.tell.endLive()
	s.tell.command("machine", "miniswarm lab fail "+victim)
	died := time.Now()
	p.since(died)
	if err := s.lab.Fail(ctx, victim); err != nil {
		return nil, nil, err
	}
	var tasks []task
	for {
		if tasks, err = s.wantedTasks(ctx); err != nil {
			return nil, nil, err
		}
		elsewhere := slices.DeleteFunc(slices.Clone(tasks), func(t task) bool { return t.NodeID == text || t.Status.State != "running" })
		if len(elsewhere) == 12 {
			break
		}
		if err := told(time.Since(died) < replaceBound, "%s after the failure of %s only %d of 12 replicas run elsewhere", replaceBound, victim, len(elsewhere)); err != nil {
			return nil, nil, err
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return nil, nil, err
		}
	}
	last := died
	for _, t := range tasks {
		if t.Status.Timestamp.After(last) {
			last = t.Status.Timestamp
		}
	}
	s.report.Seconds.Replace = round(last.Sub(died).Seconds())
	// What was asked before is answered or given up by then, and is not counted as what comes after.
	if err := sleep(ctx, userWaits); err != nil {
		return nil, nil, err
	}
	for _, g := range crowds {
		g.Phase("after")
	}
	return p, others, sleep(ctx, calm)
}

// judgeFailure says what the clients saw.
func (s *story) judgeFailure(ctx context.Context, p *probe, others []string, direct, balanced loadgen.Result) error {
	if _, err := s.shows(ctx, "vm1", "miniswarm", "node", "ls"); err != nil {
		return err
	}
	if err := s.listed(ctx, "12/12"); err != nil {
		return err
	}
	counts, _, err := s.placed(ctx, victim+" failed")
	if err != nil {
		return err
	}
	if err := told(counts["vm1"]+counts["vm2"] == 12, "the nodes run %v", counts); err != nil {
		return err
	}
	s.tell.seen("all 12 replicas run on the other nodes, the last %.1f s after the failure", s.report.Seconds.Replace)

	s.report.Seconds.Recover = round(p.recovered().Seconds())
	if err := told(p.recovered() < recoverBound, "new connections through %v failed for %s", others, p.recovered()); err != nil {
		return err
	}
	s.tell.seen("new connections through the other nodes: %d of %d came to nothing, the last %.2f s after the failure", p.lost, p.begun, s.report.Seconds.Recover)
	if p.early > 0 {
		s.tell.aside("       (%d more were refused by new replicas that did not listen yet)", p.early)
	}

	dead := "http://" + s.address(victim)
	before, during, after := direct.Phases[0], direct.Phases[1], direct.Phases[2]
	var asked, failed, failedAfter int64
	for i, name := range []string{"nodes: before", "nodes: " + victim + " dies", "nodes: after"} {
		s.report.phase(name, direct.Phases[i])
	}
	if err := told(during.Targets[dead].Failures+after.Targets[dead].Failures > 0, "clients of a node without power noticed nothing"); err != nil {
		return err
	}
	for target, n := range after.Targets {
		if target == dead {
			continue
		}
		if err := told(n.Requests > 0 && share(n) <= share(before.Targets[target])+0.01, "after the repair, %d of %d requests to %s failed: %v", n.Failures, n.Requests, target, after.Examples); err != nil {
			return err
		}
		failedAfter += n.Failures
	}
	for target, n := range during.Targets {
		if target != dead {
			asked, failed = asked+n.Requests, failed+n.Failures
		}
	}
	s.tell.seen("clients of the other nodes are served: %d of %d requests failed while %s died, %d after", failed, asked, victim, failedAfter)
	wound := during.Targets[dead].Failures + after.Targets[dead].Failures
	s.tell.seen("clients of %s itself are cut off: %d requests failed. That is the open wound", victim, wound)

	for i, name := range []string{"lb: before", "lb: " + victim + " dies", "lb: after"} {
		s.report.phase(name, balanced.Phases[i])
	}
	t := balanced.Total
	s.report.LB = &loadOfBalance{Requests: t.Requests, Failures: t.Failures, MaxMS: t.Latency.Max}
	if err := told(t.Requests > 0 && t.Failures == 0, "through the balancer %d of %d requests failed: %v", t.Failures, t.Requests, t.Examples); err != nil {
		return err
	}
	s.tell.seen("clients of miniswarm lb lost nothing: %d requests, 0 failed, the slowest took %.0f ms", t.Requests, t.Latency.Max)
	return nil
}

// share is the part of a target's requests that failed.
func share(n loadgen.TargetCount) float64 { return float64(n.Failures) / float64(max(1, n.Requests)) }

// summary is the end of the story.
func (s *story) summary() {
	s.tell.step("As told", "")
	for _, p := range []phase{s.one, s.four, s.twelve} {
		s.tell.aside("   %-12s %6.0f requests/s answered, %5.1f %% failed, p95 %5.0f ms", p.Name, p.RequestsPerSecond, 100*p.failing(), p.P95)
	}
	s.tell.aside("   %d users who read for %.0f s between questions ask some %.0f times a second and no more: further replicas are room for further users",
		s.set.users, userReads.Seconds(), float64(s.set.users)/userReads.Seconds())
	sec := s.report.Seconds
	s.tell.aside("   4 replicas ran after %.1f s, 12 after %.1f s; a lost node's replicas elsewhere after %.1f s; other nodes answered again after %.2f s", sec.Converge4, sec.Converge12, sec.Replace, sec.Recover)
	s.tell.aside("   %.0f s in all; the report is %s", since(s.report.Began), s.set.report)
}
