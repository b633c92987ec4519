package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/agent/docker/fake"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/ingress"
)

// attaching has the leader give every container that asks the address 10.0.1.9 on network n1.
func (w *world) attaching() (seen func() *cluster.Task) {
	front := &cluster.Network{}
	front.ID, front.Spec.Name, front.VNI = "n1", "front", 4097
	me := &cluster.Node{Attachments: map[string]string{"n1": "10.0.1.4/24"}, DataAddr: "192.0.2.1"}
	me.ID = nodeID
	var task *cluster.Task
	w.manager("a").set(func() {
		w.manager("a").attach = func(req protocol.AttachRequest) (int, string) {
			if req.Network != "front" {
				return http.StatusForbidden, `{"message":"network ` + req.Network + ` not manually attachable"}`
			}
			t := &cluster.Task{}
			t.ID, t.NodeID, t.DesiredState = req.ID, nodeID, swarm.TaskStateRunning
			t.Spec.NetworkAttachmentSpec = &swarm.NetworkAttachmentSpec{}
			t.NetworksAttachments = []swarm.NetworkAttachment{{Network: front.Network, Addresses: []string{"10.0.1.9/24"}}}
			t.Status.State = swarm.TaskStateAssigned
			w.mu.Lock()
			task = t
			w.mu.Unlock()
			go w.manager("a").tell(protocol.Assignments{Node: me, Tasks: []*cluster.Task{t}, Networks: []*cluster.Network{front}})
			return http.StatusNoContent, ""
		}
	})
	return func() *cluster.Task {
		w.mu.Lock()
		defer w.mu.Unlock()
		return task
	}
}

// byHand makes a container on the engine's network, as the engine does for a person.
func (w *world) byHand(t *testing.T, at *Attached) string {
	t.Helper()
	w.engine.SetImage("app", fake.Program{})
	id, err := w.engine.Create(t.Context(), &docker.Container{Name: "mine", Config: container.Config{Image: "app"}, Networks: []docker.Connection{
		{Network: at.Network, Endpoint: network.EndpointSettings{IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: at.Address.String()}}}}})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (w *world) stateOf(id string) swarm.TaskState { return w.manager("a").heard().state[id].State }

func TestAttach(t *testing.T) {
	withWorld(t, func(w *world) {
		t := w.T
		w.manager("a").complete()
		task := w.attaching()
		_, err := w.agent.Attach(t.Context(), protocol.AttachRequest{Network: "back"})
		if refused, ok := errors.AsType[*AttachError](err); !ok || refused.Status != http.StatusForbidden {
			t.Errorf("back: %v", err)
		}
		at, err := w.agent.Attach(t.Context(), protocol.AttachRequest{Network: "front"})
		if err != nil {
			t.Fatal(err)
		}
		if at.Network != "front" || at.Address != netip.MustParseAddr("10.0.1.9") {
			t.Errorf("a place of %+v", at)
		}
		// While the container is being made, it is not missed.
		for range 10 {
			w.settle()
		}
		id := w.byHand(t, at)
		at.Done()
		w.settle()
		if s := w.stateOf(task().ID); s != swarm.TaskStateRunning {
			t.Errorf("with its container the attachment is %s", s)
		}
		// A container that stops keeps its place, and the agent may go and come back.
		if err := w.engine.Start(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if err := w.engine.Stop(t.Context(), id, nil); err != nil {
			t.Fatal(err)
		}
		w.stop()
		w.start()
		for range 10 {
			w.settle()
		}
		if s := w.stateOf(task().ID); s != swarm.TaskStateRunning {
			t.Errorf("after a restart of the agent the attachment is %s", s)
		}
		if err := w.engine.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		w.settle()
		if s := w.stateOf(task().ID); s != swarm.TaskStateComplete {
			t.Errorf("without its container the attachment is %s", s)
		}
	})
}

// A container that was never made, and one that went while the agent was away, give their places up.
func TestAttachmentsThatCameToNothing(t *testing.T) {
	withWorld(t, func(w *world) {
		t := w.T
		w.manager("a").complete()
		task := w.attaching()
		at, err := w.agent.Attach(t.Context(), protocol.AttachRequest{Network: "front"})
		if err != nil {
			t.Fatal(err)
		}
		at.Done()
		for range 6 {
			w.settle() // the first seconds of an agent's life
		}
		if s := w.stateOf(task().ID); s != swarm.TaskStateComplete {
			t.Errorf("an attachment that was never used is %s", s)
		}
		if at, err = w.agent.Attach(t.Context(), protocol.AttachRequest{Network: "front"}); err != nil {
			t.Fatal(err)
		}
		id := w.byHand(t, at)
		at.Done()
		w.settle()
		w.stop()
		if err := w.engine.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		w.start()
		if s := w.stateOf(task().ID); s != swarm.TaskStateRunning {
			t.Errorf("a container is missed before the engine can have made it: %s", s)
		}
		for range 6 {
			w.settle()
		}
		if s := w.stateOf(task().ID); s != swarm.TaskStateComplete {
			t.Errorf("an attachment whose container went unseen is %s", s)
		}
	})
}

// The data plane may be about to take a network away that the last container has left, when the next one is promised a place on
// it, as when an image was pulled between docker run's two requests.
func TestAPromisedNetworkStays(t *testing.T) {
	withWorld(t, func(w *world) {
		t := w.T
		w.manager("a").complete()
		task := w.attaching()
		parts := func() int {
			t.Helper()
			list, err := w.engine.Networks(t.Context(), docker.LabelNetworkID, "n1")
			if err != nil {
				t.Fatal(err)
			}
			return len(list)
		}
		at, err := w.agent.Attach(t.Context(), protocol.AttachRequest{Network: "front"})
		if err != nil {
			t.Fatal(err)
		}
		at.Done() // there is no image
		for range 6 {
			w.settle()
		}
		first := task().ID
		w.manager("a").assign(protocol.Assignments{RemoveTasks: []string{first}, RemoveNetworks: []string{"n1"}})
		w.settle()
		if at, err = w.agent.Attach(t.Context(), protocol.AttachRequest{Network: "front"}); err != nil {
			t.Fatal(err)
		}
		// The table without the network has come to its last step only now.
		old := ingress.BridgeNetwork{ID: "n1", Name: "front"}
		if err := w.agent.networks.Remove(t.Context(), old); !ingress.Waiting(err) || parts() != 1 {
			t.Errorf("%d networks with a container being made: %v", parts(), err)
		}
		id := w.byHand(t, at)
		at.Done()
		w.settle()
		if err := w.agent.networks.Remove(t.Context(), old); !ingress.Waiting(err) || parts() != 1 {
			t.Errorf("%d networks with a container that was not started: %v", parts(), err)
		}
		if err := w.engine.Start(t.Context(), id); err != nil {
			t.Error(err)
		}
		if err := w.engine.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		w.settle()
		w.manager("a").assign(protocol.Assignments{RemoveTasks: []string{task().ID}, RemoveNetworks: []string{"n1"}})
		w.settle()
		if err := w.agent.networks.Remove(t.Context(), old); err != nil || parts() != 0 {
			t.Errorf("%d networks that nobody is on: %v", parts(), err)
		}
	})
}

// A container that was put on a network by the engine itself keeps the node from taking part in it anew: whoever waits for that is told
// whose fault it is, and not that the managers are slow.
func TestAContainerPastTheSwarmIsNamed(t *testing.T) {
	withWorld(t, func(w *world) {
		t := w.T
		w.manager("a").complete()
		task := w.attaching()
		before := swarm.Network{ID: "n1"}
		before.Spec.Name = "front"
		name, err := w.agent.networks.Make(t.Context(), docker.Bridge(before, netip.MustParsePrefix("10.0.1.3/24")))
		if err != nil {
			t.Fatal(err)
		}
		w.engine.SetImage("app", fake.Program{})
		stranger, err := w.engine.Create(t.Context(), &docker.Container{Name: "stranger", Config: container.Config{Image: "app"}, Networks: []docker.Connection{{Network: name}}})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.engine.Start(t.Context(), stranger); err != nil {
			t.Fatal(err)
		}
		_, err = w.agent.Attach(t.Context(), protocol.AttachRequest{Network: "front"})
		if err == nil || !strings.Contains(err.Error(), "container stranger was put on it past miniswarm: remove it with docker rm -f stranger") ||
			strings.Contains(err.Error(), "manager") || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the person is told: %v", err)
		}
		if st := w.manager("a").heard().state[task().ID]; !strings.Contains(st.Err, "docker rm -f stranger") {
			t.Errorf("the task says: %s", st.Err)
		}
		if err := w.engine.Remove(t.Context(), stranger); err != nil {
			t.Fatal(err)
		}
		at, err := w.agent.Attach(t.Context(), protocol.AttachRequest{Network: "front"})
		if err != nil {
			t.Fatal(err)
		}
		at.Done()
	})
}

// Managers that gave an attachment up have its address for somebody else.
func TestAttachmentsThatWereGivenUp(t *testing.T) {
	withWorld(t, func(w *world) {
		t := w.T
		w.manager("a").complete()
		task := w.attaching()
		at, err := w.agent.Attach(t.Context(), protocol.AttachRequest{Network: "front"})
		if err != nil {
			t.Fatal(err)
		}
		w.byHand(t, at)
		at.Done()
		w.settle()
		w.manager("a").assign(protocol.Assignments{RemoveTasks: []string{task().ID}})
		if all, err := w.engine.Endpoints(t.Context()); err != nil || len(all) != 0 {
			t.Errorf("the container is still on %v, %v", all, err)
		}
		if _, err := w.engine.Inspect(t.Context(), "mine"); err != nil {
			t.Errorf("the container itself: %v", err)
		}
	})
}

// refusing is an engine that fails to take containers off networks.
type refusing struct {
	*fake.Engine
	times int
}

func (r *refusing) Disconnect(ctx context.Context, network, containerID string) error {
	if r.times--; r.times >= 0 {
		return errors.New("the engine is in a mood")
	}
	return r.Engine.Disconnect(ctx, network, containerID)
}

// The record of an attachment does not go before the container has left the address. Once it has, nobody else is driven
// from there.
func TestAnAddressIsLeftBeforeItIsForgotten(t *testing.T) {
	engine := &refusing{fake.New(), 1}
	engine.SetImage("app", fake.Program{})
	if _, err := engine.CreateNetwork(t.Context(), "front", network.CreateOptions{Labels: map[string]string{docker.LabelNetworkID: "n1"}}); err != nil {
		t.Fatal(err)
	}
	create := func(name string) {
		t.Helper()
		_, err := engine.Create(t.Context(), &docker.Container{Name: name, Config: container.Config{Image: "app"}, Networks: []docker.Connection{
			{Network: "front", Endpoint: network.EndpointSettings{IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: "10.0.1.9"}}}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	holders := func() int {
		t.Helper()
		all, err := engine.Endpoints(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	front := &cluster.Network{}
	front.ID = "n1"
	task := &cluster.Task{}
	task.NetworksAttachments = []swarm.NetworkAttachment{{Network: front.Network, Addresses: []string{"10.0.1.9/24"}}}
	task.Status.State, task.DesiredState = swarm.TaskStateRunning, swarm.TaskStateRunning
	a := &attachment{all: newAttachments(engine, nil, nil, slog.New(slog.DiscardHandler)), task: task}
	create("mine")
	r := newRunner(task, task.Status, a, slog.New(slog.DiscardHandler), func(*cluster.Task, swarm.TaskStatus) {})
	r.leave()
	if !r.run(t.Context()) || holders() != 0 {
		t.Errorf("the task is gone, and %d containers have its address", holders())
	}
	create("next")
	if err := a.Remove(t.Context()); err != nil || holders() != 1 {
		t.Errorf("who had the address next is gone: %v", err)
	}
}

// Managers may take a place back before the node could do anything with it.
func TestAPlaceThatIsTakenBack(t *testing.T) {
	withWorld(t, func(w *world) {
		t := w.T
		w.manager("a").complete()
		task := w.attaching()
		release := w.engine.Hang()
		failed := make(chan error, 1)
		began := time.Now()
		go func() {
			_, err := w.agent.Attach(t.Context(), protocol.AttachRequest{Network: "front"})
			failed <- err
		}()
		w.settle()
		w.manager("a").assign(protocol.Assignments{RemoveTasks: []string{task().ID}})
		if err := <-failed; !errors.Is(err, errTakenBack) || time.Since(began) > attachLimit/2 {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		release()
	})
}

// counting is an engine that counts how often it is asked for all its containers.
type counting struct {
	*fake.Engine
	asked atomic.Int64
}

func (c *counting) Endpoints(ctx context.Context) ([]docker.Endpoint, error) {
	c.asked.Add(1)
	return c.Engine.Endpoints(ctx)
}

// However many containers are attached, one event has the engine asked once.
func TestAttachmentsShareWhatTheEngineSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := &counting{Engine: fake.New()}
		engine.SetImage("app", fake.Program{})
		if _, err := engine.CreateNetwork(t.Context(), "front", network.CreateOptions{Labels: map[string]string{docker.LabelNetworkID: "n1"}}); err != nil {
			t.Fatal(err)
		}
		front := &cluster.Network{}
		front.ID = "n1"
		all := newAttachments(engine, nil, nil, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		var g errgroup.Group
		g.Go(func() error { return all.run(ctx) })
		const n = 20
		ids := make([]string, n)
		ended := make(chan int, n)
		for i := range n {
			addr := fmt.Sprintf("10.0.1.%d", 10+i)
			id, err := engine.Create(t.Context(), &docker.Container{Name: fmt.Sprint("c", i), Config: container.Config{Image: "app"}, Networks: []docker.Connection{
				{Network: "front", Endpoint: network.EndpointSettings{IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: addr}}}}})
			if err != nil {
				t.Fatal(err)
			}
			ids[i] = id
			task := &cluster.Task{}
			task.NetworksAttachments = []swarm.NetworkAttachment{{Network: front.Network, Addresses: []string{addr + "/24"}}}
			g.Go(func() error {
				defer func() { ended <- i }()
				return (&attachment{all: all, task: task}).Wait(ctx)
			})
		}
		time.Sleep(2 * settleTime)
		synctest.Wait()
		before := engine.asked.Load()
		if err := engine.Remove(t.Context(), ids[7]); err != nil {
			t.Fatal(err)
		}
		if gone := <-ended; gone != 7 {
			t.Errorf("container 7 was removed, and %d is missed", gone)
		}
		synctest.Wait()
		if asked := engine.asked.Load() - before; asked > 3 { // it disconnects, it is destroyed
			t.Errorf("the engine was asked %d times", asked)
		}
		cancel()
		_ = g.Wait()
	})
}
