package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/swarm"
)

const (
	upkeepPort     = 8083
	upkeepReplicas = 8
)

// upkeep does to a service what people do to theirs every day, under load, and counts the requests that fail: none may.
func (t *trial) upkeep(ctx context.Context) error {
	s := t.ours
	grace, interval := 5*time.Second, 500*time.Millisecond
	replicas := uint64(upkeepReplicas)
	spec := swarm.ServiceSpec{Annotations: swarm.Annotations{Name: "upkeep"}}
	spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: s.image, StopGracePeriod: &grace,
		Healthcheck: &container.HealthConfig{Test: []string{"CMD", "/prime", "-healthcheck"}, Interval: interval, Timeout: grace, Retries: 10}}
	spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: &replicas}
	spec.UpdateConfig = &swarm.UpdateConfig{Parallelism: 2, Monitor: time.Second}
	spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{Protocol: swarm.PortConfigProtocolTCP, TargetPort: 8000, PublishedPort: upkeepPort}}}
	if err := s.ready(ctx); err != nil {
		return err
	}
	via, _, err := s.leader(ctx)
	if err != nil {
		return err
	}
	if err := s.call(ctx, via, http.MethodPost, "/services/create", spec, nil); err != nil {
		return err
	}
	if err := s.running(ctx, via, "upkeep", upkeepReplicas, ""); err != nil {
		return err
	}
	if err := rest(ctx, time.Second); err != nil {
		return err
	}
	worker := s.hosts[len(s.hosts)-1]
	availability := func(a swarm.NodeAvailability) func(context.Context) error {
		return func(ctx context.Context) error {
			nodes, err := s.nodes(ctx, via)
			for _, n := range nodes {
				if n.Description.Hostname == worker.Name {
					n.Spec.Availability = a
					if err := s.call(ctx, via, http.MethodPost, fmt.Sprintf("/nodes/%s/update?version=%d", n.ID, n.Version.Index), n.Spec, nil); err != nil {
						return err
					}
					return s.running(ctx, via, "upkeep", upkeepReplicas, "")
				}
			}
			return fmt.Errorf("no node %s: %w", worker.Name, err)
		}
	}
	scale := func(n int) func(context.Context) error {
		return func(ctx context.Context) error {
			if err := s.scale(ctx, via, "upkeep", uint64(n)); err != nil {
				return err
			}
			return s.running(ctx, via, "upkeep", n, "")
		}
	}
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"rolling update of 8 replicas", s.rollingUpdate},
		{"scale 8 -> 2", scale(2)},
		{"scale 2 -> 8", scale(upkeepReplicas)},
		{"drain of a worker", availability(swarm.NodeAvailabilityDrain)},
		{"worker active again", availability(swarm.NodeAvailabilityActive)},
	} {
		var clients crowd
		asking, stop := context.WithCancel(ctx)
		for _, h := range s.hosts {
			clients.ask(asking, fmt.Sprintf("http://%s:%d/primes?start=2&end=100", h.Addr, upkeepPort))
		}
		err := rest(ctx, time.Second)
		if err == nil {
			err = step.do(ctx)
		}
		if err == nil {
			err = rest(ctx, 2*time.Second)
		}
		stop()
		clients.running.Wait()
		if err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
		asked, failed, example := clients.failed()
		figures := []string{fmt.Sprintf("%d of %d requests failed", failed, asked)}
		if failed > 0 {
			figures = append(figures, "such as: "+example.Error())
		}
		t.out.add(s.name+": "+step.what+" under load", figures...)
	}
	return s.remove(ctx, "upkeep")
}

// rollingUpdate replaces all replicas, as an update to a new image does, and waits for its end.
func (s *system) rollingUpdate(ctx context.Context) error {
	via, _, err := s.leader(ctx)
	if err != nil {
		return err
	}
	var service swarm.Service
	if err := s.call(ctx, via, http.MethodGet, "/services/upkeep", nil, &service); err != nil {
		return err
	}
	service.Spec.TaskTemplate.ForceUpdate++
	if err := s.call(ctx, via, http.MethodPost, fmt.Sprintf("/services/%s/update?version=%d", service.ID, service.Version.Index), service.Spec, nil); err != nil {
		return err
	}
	return until(ctx, "the update completes", func(ctx context.Context) (bool, error) {
		err := s.call(ctx, via, http.MethodGet, "/services/upkeep", nil, &service)
		return service.UpdateStatus != nil && service.UpdateStatus.State == swarm.UpdateStateCompleted, err
	})
}

// follow measures how long after a first replica runs its published port answers on every node.
func (t *trial) follow(ctx context.Context) error {
	s := t.ours
	var times []time.Duration
	for range t.rounds {
		if err := s.create(ctx, "follow", 0, 8084); err != nil {
			return err
		}
		if err := rest(ctx, time.Second); err != nil {
			return err
		}
		if err := s.scale(ctx, s.hosts[0], "follow", 1); err != nil {
			return err
		}
		answered := make(chan time.Time, len(s.hosts))
		failures := make(chan error, len(s.hosts))
		for _, h := range s.hosts {
			go func() {
				at, err := firstAnswer(ctx, fmt.Sprintf("http://%s:8084/primes?start=2&end=100", h.Addr))
				answered <- at
				failures <- err
			}()
		}
		var last time.Time
		for range s.hosts {
			if at := <-answered; at.After(last) {
				last = at
			}
		}
		for range s.hosts {
			if err := <-failures; err != nil {
				return err
			}
		}
		tasks, err := s.tasks(ctx, s.hosts[0], "follow")
		if err != nil || len(tasks) != 1 {
			return fmt.Errorf("%d tasks of one: %w", len(tasks), err)
		}
		// All hosts share this machine's clock.
		times = append(times, max(0, last.Sub(tasks[0].Status.Timestamp)))
		if err := s.remove(ctx, "follow"); err != nil {
			return err
		}
		if err := rest(ctx, time.Second); err != nil {
			return err
		}
	}
	t.out.add(s.name+": a first replica is RUNNING -> its port answers on every node", spread(times))
	return nil
}

// firstAnswer asks over new connections until there is an answer.
func firstAnswer(ctx context.Context, url string) (time.Time, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 200 * time.Millisecond}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := get(ctx, client, url)
		if err == nil {
			return time.Now(), nil
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("no answer within a minute: %w", err)
		}
	}
}
