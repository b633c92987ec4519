package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/miniswarm/miniswarm/examples/prime/load/loadgen"
	"github.com/miniswarm/miniswarm/ingress/lb"
	"github.com/miniswarm/miniswarm/lab/claim"
)

// startProcess starts this service as a process of its own and waits until it listens.
func startProcess(t *testing.T) (cmd *exec.Cmd, address string) {
	t.Helper()
	port := claim.Addr(t).Port()
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "PRIME_TEST_RUN=1", fmt.Sprintf("PORT=%d", port))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	logged := make(chan struct{})
	listening := make(chan struct{}, 1)
	go func() { // reads the access log, or the service would block on a full pipe
		defer close(logged)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if strings.Contains(lines.Text(), "listening") {
				listening <- struct{}{}
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // the test may have done so
		<-logged
		_ = cmd.Wait() // "signal: killed"
	})
	select {
	case <-listening:
	case <-logged:
		t.Fatal("the service ended before it listened")
	}
	return cmd, fmt.Sprintf("127.0.0.1:%d", port)
}

// The last step of the story in small: three services, a load balancer in front, users, and the kill of one service with
// requests under way. The users lose nothing.
func TestClientsLoseNothing(t *testing.T) {
	victim, first := startProcess(t)
	_, second := startProcess(t)
	_, third := startProcess(t)
	balancer, err := lb.New(lb.Config{Listen: "127.0.0.1:0", Mode: lb.HTTP, Source: lb.Static{first, second, third}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- balancer.Run(ctx) }()
	<-balancer.Ready()

	load, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	var crowd *loadgen.Generator
	killed := false
	crowd, err = loadgen.New(loadgen.Config{
		Targets: []string{"http://" + balancer.Addr().String()}, Users: 30, FirstPhase: "three",
		ThinkMin: 10 * time.Millisecond, ThinkMax: 50 * time.Millisecond,
		LiveInterval: 10 * time.Millisecond,
		Live: func(l loadgen.Live) {
			switch {
			case l.Requests >= 100 && !killed:
				killed = true
				crowd.Phase("two")
				_ = victim.Process.Kill() // had it not died, the balancer would not find it down
			case l.Requests >= 300 && balancer.Stats().Backends[0].State == "down":
				stop()
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	result, err := crowd.Run(load)
	if err != nil {
		t.Fatal(err)
	}
	stats := balancer.Stats()
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("balancer: %v", err)
	}
	var table strings.Builder
	if err := result.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d sent again\n%s", stats.Resent, table.String())
	if result.Total.Failures != 0 {
		t.Errorf("%d requests were lost", result.Total.Failures)
	}
	if len(result.Phases) != 2 || result.Phases[0].Answered < 100 || result.Phases[1].Answered < 50 {
		t.Errorf("too few answers to prove anything: %+v", result.Phases)
	}
	if stats.Backends[0].State != "down" {
		t.Errorf("the killed one is %s", stats.Backends[0].State)
	}
}
