package dispatcher

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

const backID, backService = "back-network", "back-service"

// back makes a service without published ports on a network of its own, in an endpoint mode.
func (w *world) back(mode swarm.ResolutionMode) {
	n := &cluster.Network{VNI: 4097}
	n.ID, n.Spec.Name = backID, "back"
	svc := &cluster.Service{}
	svc.ID, svc.Spec.Name = backService, "db"
	svc.Spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "back", Aliases: []string{"data"}}} // by name
	svc.Endpoint.Spec.Mode = mode
	if mode == swarm.ResolutionModeVIP {
		svc.Endpoint.VirtualIPs = []swarm.EndpointVirtualIP{{NetworkID: backID, Addr: "10.0.1.2/24"}}
	}
	w.commit(cluster.CreateOf(n), cluster.CreateOf(svc))
}

func (w *world) placeBack(id, nodeID, addr string) {
	t := &cluster.Task{}
	t.ID, t.ServiceID, t.Slot, t.NodeID, t.DesiredState = id, backService, 1, nodeID, swarm.TaskStateRunning
	t.ServiceAnnotations.Name = "db"
	t.Status.State = swarm.TaskStateAssigned
	t.Spec.ContainerSpec = &swarm.ContainerSpec{Hostname: "dbhost"}
	net := swarm.Network{ID: backID}
	t.NetworksAttachments = []swarm.NetworkAttachment{{Network: net, Addresses: []string{addr + "/24"}}}
	w.commit(cluster.CreateOf(t))
}

// reaches tells how the agent was told to reach the service: networks, then replicas.
func (a *fakeAgent) reaches() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, ok := a.mesh[backService]
	if !ok {
		return "nothing"
	}
	var out []string
	for _, n := range s.Networks {
		out = append(out, fmt.Sprintf("%s vip=%s as %s", n.NetworkID, n.VIP, n.Aliases))
	}
	for _, b := range s.Backends {
		line := fmt.Sprintf("%s %s %s", b.TaskID, b.Networks, b.Names)
		if b.Draining {
			line += " draining"
		}
		out = append(out, line)
	}
	return strings.Join(out, "; ")
}

// A service without published ports is in the table for its names, and its replicas leave that before they stop.
func TestServicesAreReachedByName(t *testing.T) {
	for mode, vip := range map[swarm.ResolutionMode]string{swarm.ResolutionModeVIP: "10.0.1.2", swarm.ResolutionModeDNSRR: ""} {
		t.Run(string(mode), func(t *testing.T) {
			inWorld(t, func(w *world) {
				a, other := w.connect("n1"), w.connect("n2")
				defer a.close()
				defer other.close()
				w.back(mode)
				w.placeBack("t1", "n1", "10.0.1.11")
				synctest.Wait()
				network := "back-network vip=" + vip + " as [data]"
				if got := other.reaches(); got != network {
					t.Errorf("before it runs: %q", got)
				}
				a.report("t1", swarm.TaskStateRunning)
				if got, want := other.reaches(), network+"; t1 [{back-network 10.0.1.11}] [db.1.t1 dbhost]"; got != want {
					t.Errorf("once it runs: %q, want %q", got, want)
				}
				// Both nodes stop sending before the task is told to stop.
				other.mu.Lock()
				other.acks = false
				other.mu.Unlock()
				w.commit(cluster.PatchTask("t1", cluster.TaskPatch{DesiredState: swarm.TaskStateShutdown}))
				synctest.Wait()
				if got := other.reaches(); !strings.HasSuffix(got, "draining") {
					t.Errorf("when it is to stop: %q", got)
				}
				if got := a.told("t1"); got != swarm.TaskStateRunning {
					t.Errorf("told %q before every node routes around it", got)
				}
				w.commit(cluster.RemoveOf(w.store.Snapshot().Service(backService)))
				synctest.Wait()
				if got := other.reaches(); got != "nothing" {
					t.Errorf("after the service is gone: %q", got)
				}
			})
		})
	}
}

func TestTaskNames(t *testing.T) {
	task := &cluster.Task{}
	task.ID, task.Slot, task.ServiceAnnotations.Name = "x", 3, "web"
	task.Spec.ContainerSpec = &swarm.ContainerSpec{Hostname: "{{.Node.Hostname}}"}
	task.Status.ContainerStatus = &swarm.ContainerStatus{ContainerID: "0123456789abcdef0123"}
	if got := taskNames(task); !slices.Equal(got, []string{"web.3.x", "0123456789ab"}) {
		t.Errorf("names %v", got)
	}
	same := protocol.Backend{TaskID: "x", Names: []string{"a"}}
	if other := (protocol.Backend{TaskID: "x", Names: []string{"b"}}); same.Equal(other) || !same.Equal(same) {
		t.Error("backends that differ in names are equal")
	}
}

// A container that a person attached is found by its names while it runs, whatever session is told of it.
func TestAttachedContainersHaveNames(t *testing.T) {
	inWorld(t, func(w *world) {
		w.back(swarm.ResolutionModeVIP)
		a := w.connect("n1")
		place := &cluster.Task{}
		place.ID, place.NodeID, place.DesiredState, place.Status.State = "place", "n1", swarm.TaskStateRunning, swarm.TaskStateAssigned
		place.Spec.NetworkAttachmentSpec = &swarm.NetworkAttachmentSpec{}
		place.Spec.Networks = []swarm.NetworkAttachmentConfig{{Target: backID, Aliases: []string{"mine", "alias"}}}
		place.NetworksAttachments = []swarm.NetworkAttachment{{Network: swarm.Network{ID: backID}, Addresses: []string{"10.0.1.9/24"}}}
		w.commit(cluster.CreateOf(place))
		knows := func(a *fakeAgent) string {
			synctest.Wait()
			a.mu.Lock()
			defer a.mu.Unlock()
			s, ok := a.mesh["place"]
			if !ok {
				return "nothing"
			}
			return fmt.Sprint(s.Name, s.Networks, s.Backends, len(s.Ports))
		}
		if got := knows(a); got != "nothing" {
			t.Errorf("before it runs: %s", got)
		}
		a.report("place", swarm.TaskStateRunning)
		const want = "mine[{back-network  [alias]}] [{place n1  [{back-network 10.0.1.9}] [mine] false}] 0"
		if got := knows(a); got != want {
			t.Errorf("while it runs: %s, want %s", got, want)
		}
		if got := knows(w.connect("n2")); got != want {
			t.Errorf("a new session: %s, want %s", got, want)
		}
		a.report("place", swarm.TaskStateComplete)
		if got := knows(a); got != "nothing" {
			t.Errorf("after it has gone: %s", got)
		}
	})
}

// A node without a data plane is nobody's peer, and nobody is sent to what it runs; with one it is a peer again.
func TestWithoutADataPlaneNobodyIsReached(t *testing.T) {
	inWorld(t, func(w *world) {
		w.place("t1", "n1", 1)
		w.place("t2", "n2", 2)
		a, b := w.connect("n1"), w.connect("n2")
		defer a.close()
		a.report("t1", swarm.TaskStateRunning)
		b.report("t2", swarm.TaskStateRunning)
		look := func(when, routes string, isPeer bool) {
			t.Helper()
			synctest.Wait()
			a.mu.Lock()
			_, is := a.peers["n2"]
			a.mu.Unlock()
			if got := a.routes(); got != routes || is != isPeer {
				t.Errorf("%s: routes to %q, n2 is a peer: %t", when, got, is)
			}
		}
		look("both have one", "t1 t2 ", true)
		b.close()
		b = w.greetAs("n2", protocol.Hello{Epoch: w.epoch})
		look("the other came back without", "t1 ", false)
		b.close()
		b = w.connect("n2")
		defer b.close()
		look("and with one again", "t1 t2 ", true)
	})
}
