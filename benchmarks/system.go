package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/lab"
)

// system is a cluster on the hosts of a lab: miniswarm's, or Docker Swarm itself. Both are asked through the same API,
// the Engine's, so whatever is measured is measured alike.
type system struct {
	*lab.Lab
	name  string
	hosts []lab.Host
	image string
	// socket is where a host's API is.
	socket func(lab.Host) string
	// kill ends the process on a host that holds its manager, leaving containers alone where the system can; revive
	// starts it again.
	kill, revive func(ctx context.Context, host string) error
	clients      map[string]*http.Client
}

// built is what runs on the hosts: miniswarm's binary, and a directory with the prime service's image to build.
type built struct{ dir, miniswarm, image string }

func build(ctx context.Context) (b built, err error) {
	if b.dir, err = os.MkdirTemp("", "miniswarm-bench-"); err != nil {
		return b, err
	}
	b.miniswarm, b.image = filepath.Join(b.dir, "miniswarm"), filepath.Join(b.dir, "image")
	err = os.Mkdir(b.image, 0o755)
	for out, pkg := range map[string]string{b.miniswarm: "./cmd/miniswarm", filepath.Join(b.image, "prime"): "./examples/prime"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if said, e := cmd.CombinedOutput(); e != nil {
			err = errors.Join(err, fmt.Errorf("build %s (run this in the repository): %w\n%s", pkg, e, said))
		}
	}
	text, e := os.ReadFile("examples/prime/Dockerfile")
	err = errors.Join(err, e, os.WriteFile(filepath.Join(b.image, "Dockerfile"), text, 0o644))
	if err != nil {
		return b, errors.Join(err, b.remove())
	}
	return b, nil
}

func (b built) remove() error { return os.RemoveAll(b.dir) }

// newMiniswarm brings up hosts and a miniswarm cluster on them, managers first.
func newMiniswarm(ctx context.Context, b built, hosts, managers int) (*system, error) {
	s := &system{name: "miniswarm", socket: func(h lab.Host) string { return h.DaemonSocket }}
	err := s.up(ctx, b, lab.Options{Name: fmt.Sprint("bench", os.Getpid()), Nodes: hosts, Managers: managers, MiniswarmBinary: b.miniswarm, Cluster: true})
	if err != nil {
		return nil, err
	}
	s.kill, s.revive = s.KillDaemon, s.StartDaemon
	return s, nil
}

// newSwarm brings up hosts with engines only and makes them a Docker Swarm.
func newSwarm(ctx context.Context, b built, hosts, managers int) (*system, error) {
	s := &system{name: "Docker Swarm", socket: func(h lab.Host) string { return h.EngineSocket }}
	if err := s.up(ctx, b, lab.Options{Name: fmt.Sprint("benchswarm", os.Getpid()), Nodes: hosts, NoDaemon: true}); err != nil {
		return nil, err
	}
	s.kill, s.revive = s.KillEngine, s.StartEngine
	if err := s.formSwarm(ctx, managers); err != nil {
		return nil, errors.Join(err, s.end())
	}
	return s, nil
}

func (s *system) up(ctx context.Context, b built, opts lab.Options) (err error) {
	opts.Ephemeral = true
	var said strings.Builder
	if s.Lab, err = lab.Up(ctx, opts, &said); err != nil {
		return fmt.Errorf("%w\n%s", err, said.String())
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.end())
		}
	}()
	if s.hosts, err = s.Hosts(); err != nil {
		return err
	}
	if s.image, err = s.BuildImage(ctx, "vm1", b.image, "prime:1"); err != nil {
		return err
	}
	s.clients = map[string]*http.Client{}
	for _, h := range s.hosts {
		for _, socket := range []string{h.EngineSocket, h.DaemonSocket} {
			dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			}
			s.clients[socket] = &http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 16}}
		}
	}
	return s.Preload(ctx, s.image)
}

func (s *system) formSwarm(ctx context.Context, managers int) error {
	first := s.hosts[0]
	if err := s.call(ctx, first, http.MethodPost, "/swarm/init", swarm.InitRequest{ListenAddr: "0.0.0.0:2377", AdvertiseAddr: first.Addr.String()}, nil); err != nil {
		return err
	}
	var cluster swarm.Swarm
	if err := s.call(ctx, first, http.MethodGet, "/swarm", nil, &cluster); err != nil {
		return err
	}
	for i, h := range s.hosts[1:] {
		token := cluster.JoinTokens.Worker
		if i+1 < managers {
			token = cluster.JoinTokens.Manager
		}
		req := swarm.JoinRequest{ListenAddr: "0.0.0.0:2377", AdvertiseAddr: h.Addr.String(), RemoteAddrs: []string{first.Addr.String() + ":2377"}, JoinToken: token}
		if err := s.call(ctx, h, http.MethodPost, "/swarm/join", req, nil); err != nil {
			return err
		}
	}
	return nil
}

// end removes hosts and everything on them.
func (s *system) end() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return s.Down(ctx)
}

// call asks a host's API.
func (s *system) call(ctx context.Context, h lab.Host, method, path string, in, out any) error {
	return s.callAt(ctx, s.socket(h), method, path, in, out)
}

func (s *system) callAt(ctx context.Context, socket, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://docker/v1.41"+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.clients[socket].Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s: %s %s: %s: %s", s.name, method, path, resp.Status, bytes.TrimSpace(text))
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(text, out)
}

// create makes a service; a published port of 0 is none.
func (s *system) create(ctx context.Context, name string, replicas uint64, published uint32) error {
	grace := time.Second
	spec := swarm.ServiceSpec{Annotations: swarm.Annotations{Name: name}}
	spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: s.image, StopGracePeriod: &grace}
	spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: &replicas}
	if published != 0 {
		spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{Protocol: swarm.PortConfigProtocolTCP, TargetPort: 8000, PublishedPort: published}}}
	}
	return s.call(ctx, s.hosts[0], http.MethodPost, "/services/create", spec, nil)
}

// scale asks for another number of replicas.
func (s *system) scale(ctx context.Context, via lab.Host, name string, replicas uint64) error {
	var service swarm.Service
	if err := s.call(ctx, via, http.MethodGet, "/services/"+name, nil, &service); err != nil {
		return err
	}
	service.Spec.Mode.Replicated.Replicas = &replicas
	return s.call(ctx, via, http.MethodPost, fmt.Sprintf("/services/%s/update?version=%d", service.ID, service.Version.Index), service.Spec, nil)
}

func (s *system) remove(ctx context.Context, name string) error {
	return s.call(ctx, s.hosts[0], http.MethodDelete, "/services/"+name, nil, nil)
}

func (s *system) tasks(ctx context.Context, via lab.Host, name string) (tasks []swarm.Task, err error) {
	filters := url.QueryEscape(fmt.Sprintf(`{"service":[%q]}`, name))
	err = s.call(ctx, via, http.MethodGet, "/tasks?filters="+filters, nil, &tasks)
	return tasks, err
}

func (s *system) nodes(ctx context.Context, via lab.Host) (nodes []swarm.Node, err error) {
	err = s.call(ctx, via, http.MethodGet, "/nodes", nil, &nodes)
	return nodes, err
}

// pollEvery is how often a state is asked for that is waited for; it bounds the error of a measured time.
const pollEvery = 20 * time.Millisecond

// until asks until the condition holds, for three minutes at most. Errors are part of a bad day and do not end it.
func until(ctx context.Context, what string, holds func(ctx context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 3*time.Minute, errors.New("not within three minutes"))
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		// A question to a host that has just died must not outlast the moment that it asks about.
		once, end := context.WithTimeout(ctx, 5*time.Second)
		ok, err := holds(once)
		end()
		if ok && err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w (last: %w)", what, context.Cause(ctx), err)
		}
	}
}

// running waits until exactly n tasks of the service run, none of them on the node without (which may be empty), and
// those that are to stop have stopped.
func (s *system) running(ctx context.Context, via lab.Host, name string, n int, without string) error {
	return until(ctx, fmt.Sprintf("%s: %d of %s run", s.name, n, name), func(ctx context.Context) (bool, error) {
		tasks, err := s.tasks(ctx, via, name)
		run := 0
		for _, t := range tasks {
			if t.NodeID == without {
				continue
			}
			if t.Status.State == swarm.TaskStateRunning {
				run++
			}
			if t.Status.State == swarm.TaskStateRunning && t.DesiredState != swarm.TaskStateRunning {
				return false, err
			}
		}
		return run == n, err
	})
}

// ready waits until all hosts are ready nodes.
func (s *system) ready(ctx context.Context) error {
	return until(ctx, s.name+": all nodes are ready", func(ctx context.Context) (bool, error) {
		n, err := s.nodes(ctx, s.hosts[0])
		for _, node := range n {
			if node.Status.State != swarm.NodeStateReady || node.ManagerStatus != nil && node.ManagerStatus.Reachability != swarm.ReachabilityReachable {
				return false, err
			}
		}
		return len(n) == len(s.hosts), err
	})
}

// nodeOf is the id of the node that a host is.
func (s *system) nodeOf(ctx context.Context, via lab.Host, host string) (string, error) {
	nodes, err := s.nodes(ctx, via)
	for _, n := range nodes {
		if n.Description.Hostname == host {
			return n.ID, nil
		}
	}
	return "", errors.Join(err, fmt.Errorf("%s: no node is %s", s.name, host))
}

// leader is the host that leads, and another manager.
func (s *system) leader(ctx context.Context) (leader, other lab.Host, err error) {
	nodes, err := s.nodes(ctx, s.hosts[0])
	for _, n := range nodes {
		for _, h := range s.hosts {
			switch {
			case h.Name != n.Description.Hostname || n.ManagerStatus == nil:
			case n.ManagerStatus.Leader:
				leader = h
			default:
				other = h
			}
		}
	}
	if leader.Name == "" || other.Name == "" {
		err = errors.Join(err, fmt.Errorf("%s: no leader with another manager", s.name))
	}
	return leader, other, err
}
