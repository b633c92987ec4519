package main

import (
	"context"
	"fmt"
	"time"

	"github.com/miniswarm/miniswarm/examples/prime/load/loadgen"
)

const (
	spawnTime = 4 * time.Second // in which the whole crowd arrives
	userWaits = 5 * time.Second // until a user gives up on an answer
	userReads = 3 * time.Second // on average, between an answer and the next question
)

// crowd lets users loose on the targets and gives the account of the time after all had arrived. The story's users wait 1
// to 5 s between an answer and the next question.
func (s *story) crowd(ctx context.Context, name string, targets ...string) (phase, error) {
	g, err := loadgen.New(loadgen.Config{Targets: targets, Users: s.set.users, SpawnRate: float64(s.set.users) / spawnTime.Seconds(), Timeout: userWaits,
		Seed: 1, FirstPhase: "arriving", Live: func(l loadgen.Live) { s.tell.live("   " + l.String()) }})
	if err != nil {
		return phase{}, err
	}
	s.tell.aside("%d users ask for primes, read, and ask again: %v", s.set.users, targets)
	ctx, stop := context.WithTimeout(ctx, spawnTime+s.set.steady)
	defer stop()
	arrived := time.AfterFunc(spawnTime, func() { g.Phase(name) })
	defer arrived.Stop()
	result, err := g.Run(ctx)
	s.tell.endLive()
	if err != nil {
		return phase{}, err
	}
	if n := len(result.Phases); n < 2 {
		return phase{}, fmt.Errorf("the load %q ended early", name)
	}
	p := s.report.phase(name, result.Phases[1])
	s.tell.aside("   %.0f requests/s answered, %d failed, half of them within %.0f ms, 95 %% within %.0f ms, by %d replicas", p.RequestsPerSecond, p.Failures, p.P50, p.P95, p.Replicas)
	return p, nil
}

// measured is a crowd whose numbers are checked. What does not hold is measured once more: this machine may have been
// busy with something else.
func (s *story) measured(ctx context.Context, name string, check func(phase) error, targets ...string) (phase, error) {
	p, err := s.crowd(ctx, name, targets...)
	if err != nil {
		return p, err
	}
	failed := check(p)
	if failed == nil {
		return p, nil
	}
	s.tell.aside("   %v; once more, in case this machine was busy with something else", failed)
	if p, err = s.crowd(ctx, name+", again", targets...); err != nil {
		return p, err
	}
	return p, check(p)
}

// failing is the part of a phase's requests that failed.
func (p phase) failing() float64 {
	if p.Answered+p.Failures == 0 {
		return 1
	}
	return float64(p.Failures) / float64(p.Answered+p.Failures)
}
