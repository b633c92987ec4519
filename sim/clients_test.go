package sim

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"
	dockernetwork "github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
)

// clients create, read, update and remove configs through any manager and write down what they were told.
type clients struct {
	w     *world
	clock atomic.Int64

	mu      sync.Mutex // guards all below
	history []porcupine.Operation
	acked   int
}

// Images whose containers do not run until they are stopped.
const (
	sick = "sick:1" // fails after half a second
	done = "done:1" // ends well after one
)

// never is when a request returns that was not answered: it may be carried out at any later time.
const never = int64(1) << 60

// client makes one request after the other until ctx ends.
func (c *clients) client(ctx context.Context, id int) {
	r := c.w.stream(10 + uint64(id))
	seen := map[string]outcome{} // what this client read last of each name
	for n := 0; ctx.Err() == nil; n++ {
		h := c.w.someManager(r)
		in := call{name: configName(r.IntN(4)), label: fmt.Sprintf("%d-%d", id, n)}
		switch k := r.IntN(10); {
		case k < 2:
			in.verb = create
		case k < 5 && seen[in.name].id != "":
			in.verb, in.id, in.version = update, seen[in.name].id, seen[in.name].version
		case k < 6 && seen[in.name].id != "":
			in.verb, in.id = remove, seen[in.name].id
		default:
			in.verb = read
		}
		begin := c.clock.Add(1)
		do := c.do
		if in.verb == read && r.IntN(3) == 0 {
			do = c.readHere
		}
		out, answered, sent := do(ctx, h, in)
		if in.verb != read || *verbose {
			c.w.trace("client %d at %s: %+v: %+v, answered %v, sent %v", id, h, in, out, answered, sent)
		}
		switch {
		case in.verb == read && out.kind == "ok":
			seen[in.name] = out
		case in.verb != create:
			delete(seen, in.name)
		}
		if sent && (answered || in.verb != read) {
			c.note(id, begin, in, out, answered)
		}
		_ = pause(ctx, time.Duration(50+r.IntN(400))*time.Millisecond)
	}
}

func (c *clients) note(id int, begin int64, in call, out outcome, answered bool) {
	op := porcupine.Operation{ClientId: id, Input: in, Call: begin, Output: out, Return: never}
	if answered {
		op.Return = c.clock.Add(1)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.history = append(c.history, op)
	if answered && in.verb != read && out.kind == "ok" {
		c.acked++
	}
}

// do makes a request. An update that was refused as stale was answered, too.
func (c *clients) do(ctx context.Context, h *host, in call) (out outcome, answered, sent bool) {
	spec := swarm.ConfigSpec{Annotations: swarm.Annotations{Name: in.name, Labels: map[string]string{"v": in.label}}, Data: []byte("x")}
	var status int
	var answer []byte
	switch in.verb {
	case create:
		status, answer = c.w.api(ctx, h, http.MethodPost, "/configs/create", spec)
	case read:
		status, answer = c.w.api(ctx, h, http.MethodGet, "/configs/"+in.name, nil)
	case update:
		status, answer = c.w.api(ctx, h, http.MethodPost, fmt.Sprintf("/configs/%s/update?version=%d", in.id, in.version), spec)
	case remove:
		status, answer = c.w.api(ctx, h, http.MethodDelete, "/configs/"+in.id, nil)
	}
	switch {
	case status == notSent:
		return out, false, false
	case status == noAnswer:
		return out, false, true
	case status == http.StatusForbidden && c.w.changing: // it has been demoted, and hears so from the leader
		return out, false, false
	case status == http.StatusNotFound:
		return outcome{kind: "absent"}, true, true
	case status == http.StatusConflict:
		return outcome{kind: "exists"}, true, true
	case status >= 500 && strings.Contains(string(answer), "out of sequence"):
		return outcome{kind: "stale"}, true, true
	case status >= 300:
		c.w.violate("%s %+v: status %d: %s", h, in, status, answer)
		return out, false, true
	}
	out.kind = "ok"
	var got swarm.Config
	if in.verb == create || in.verb == read {
		if err := json.Unmarshal(answer, &got); err != nil {
			c.w.violate("%s %+v: answer %s: %v", h, in, answer, err)
		}
		out.id, out.version, out.label = got.ID, got.Version.Index, got.Spec.Labels["v"]
	}
	return out, true, true
}

// readHere reads from a manager's own replica, whether it leads or not, as a linearizable read.
func (c *clients) readHere(ctx context.Context, h *host, in call) (out outcome, answered, sent bool) {
	p := h.managing()
	if p == nil {
		return out, false, false
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	snap, err := control{p: p}.Read(ctx)
	if err != nil {
		return out, false, true
	}
	for o := range snap.Configs() {
		if o.Spec.Name == in.name {
			return outcome{kind: "ok", id: o.ID, version: o.Version.Index, label: o.Spec.Labels["v"]}, true, true
		}
	}
	return outcome{kind: "absent"}, true, true
}

// conclude reads every name once more.
func (c *clients) conclude(ctx context.Context) {
	for i := range 4 {
		in := call{verb: read, name: configName(i)}
		begin := c.clock.Add(1)
		all := c.w.managing()
		out, answered, _ := c.do(ctx, all[i%len(all)].h, in)
		if !answered {
			c.w.violate("a healthy cluster did not answer %+v", in)
			continue
		}
		c.note(100, begin, in, out, true)
	}
}

// operator deploys, changes and removes services, and drains nodes. Only it does, so that it knows what was acknowledged.
type operator struct {
	w        *world
	rand     *rand.Rand
	services [5]believed
	acked    int
	ops      int
}

// believed is what the operator knows of a service that it alone changes.
type believed struct {
	sure spec
	// late are what requests without an answer may still make of it.
	late []spec
}

type spec struct {
	exists   bool
	replicas uint64
	image    string
	bump     uint64
}

const overlay = "net-0"

func (o *operator) run(ctx context.Context) {
	for ctx.Err() == nil { // the network that some services are on
		req := dockernetwork.CreateRequest{Name: overlay, CreateOptions: dockernetwork.CreateOptions{Driver: "overlay"}}
		if status, _ := o.w.api(ctx, o.w.someManager(o.rand), http.MethodPost, "/networks/create", req); status == http.StatusCreated || status == http.StatusConflict {
			break
		}
		_ = pause(ctx, 500*time.Millisecond)
	}
	for ctx.Err() == nil {
		h := o.w.someManager(o.rand)
		i := o.rand.IntN(len(o.services))
		switch k := o.rand.IntN(12); {
		case k == 0:
			o.setNode(ctx, h)
		case k == 1 && o.services[i].sure.exists:
			o.remove(ctx, h, i)
		case k < 5 && o.services[i].sure.exists:
			o.change(ctx, h, i, func(s *swarm.ServiceSpec, want *spec) {
				n := uint64(o.rand.IntN(7))
				if s.Mode.Replicated != nil {
					s.Mode.Replicated.Replicas, want.replicas = &n, n
				}
			})
		case k < 8 && o.services[i].sure.exists:
			o.change(ctx, h, i, func(s *swarm.ServiceSpec, want *spec) {
				want.image = fmt.Sprint("app:", 1+o.rand.IntN(3))
				if o.rand.IntN(8) == 0 {
					want.image = sick
				}
				if s.Mode.ReplicatedJob != nil {
					want.image = done
				}
				s.TaskTemplate.ContainerSpec.Image = want.image
			})
		case k < 9 && o.services[i].sure.exists:
			o.change(ctx, h, i, func(s *swarm.ServiceSpec, want *spec) {
				want.bump++
				s.TaskTemplate.ForceUpdate++
			})
		default:
			o.create(ctx, h, i)
		}
		_ = pause(ctx, time.Duration(200+o.rand.IntN(2500))*time.Millisecond)
	}
}

// Names have a dash, which ids have not: a name that is not there must not be taken for the beginning of an id.
func serviceName(i int) string { return fmt.Sprint("svc-", i) }
func configName(i int) string  { return fmt.Sprint("conf-", i) }

func (o *operator) create(ctx context.Context, h *host, i int) {
	n := uint64(1 + o.rand.IntN(4))
	want := spec{exists: true, replicas: n, image: fmt.Sprint("app:", 1+o.rand.IntN(3))}
	delay := time.Second
	s := swarm.ServiceSpec{Annotations: swarm.Annotations{Name: serviceName(i)}}
	s.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: want.image}
	s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionAny, Delay: &delay}
	s.UpdateConfig = &swarm.UpdateConfig{Parallelism: uint64(o.rand.IntN(3)), Monitor: 2 * time.Second, Order: swarm.UpdateOrderStopFirst, FailureAction: swarm.UpdateFailureActionPause}
	if o.rand.IntN(3) == 0 {
		s.UpdateConfig.FailureAction = swarm.UpdateFailureActionRollback
	}
	if i == 3 {
		s.UpdateConfig.Order = swarm.UpdateOrderStartFirst
	}
	switch {
	case i == 2 && o.rand.IntN(2) == 0:
		s.Mode.Global, want.replicas = &swarm.GlobalService{}, 0
	case i == 4:
		s.Mode.ReplicatedJob, want.replicas = &swarm.ReplicatedJob{TotalCompletions: &n}, 0
		s.UpdateConfig, want.image = nil, done
		s.TaskTemplate.ContainerSpec.Image = done
		s.TaskTemplate.RestartPolicy.Condition = swarm.RestartPolicyConditionOnFailure
	default:
		s.Mode.Replicated = &swarm.ReplicatedService{Replicas: &n}
	}
	if i == 1 || i == 2 {
		s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: overlay}}
	}
	if i < 2 {
		s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{Protocol: swarm.PortConfigProtocolTCP, TargetPort: 80, PublishedPort: uint32(8000 + i), PublishMode: swarm.PortConfigPublishModeIngress}}}
	}
	o.request(ctx, h, i, want, http.MethodPost, "/services/create", s)
}

func (o *operator) remove(ctx context.Context, h *host, i int) {
	// By id: a request that comes late must not hit another service of the name.
	if svc := o.inspect(ctx, h, i); svc != nil {
		o.request(ctx, h, i, spec{}, http.MethodDelete, "/services/"+svc.ID, nil)
	}
}

func (o *operator) inspect(ctx context.Context, h *host, i int) *swarm.Service {
	status, answer := o.w.api(ctx, h, http.MethodGet, "/services/"+serviceName(i), nil)
	if status != http.StatusOK {
		return nil
	}
	var svc swarm.Service
	if err := json.Unmarshal(answer, &svc); err != nil {
		o.w.violate("inspect %s: %v", serviceName(i), err)
		return nil
	}
	return &svc
}

func (o *operator) change(ctx context.Context, h *host, i int, edit func(*swarm.ServiceSpec, *spec)) {
	svc := o.inspect(ctx, h, i)
	if svc == nil {
		return
	}
	want := specOf(svc.Spec)
	edit(&svc.Spec, &want)
	o.request(ctx, h, i, want, http.MethodPost, fmt.Sprintf("/services/%s/update?version=%d", svc.ID, svc.Version.Index), svc.Spec)
}

func specOf(s swarm.ServiceSpec) spec {
	out := spec{exists: true, image: s.TaskTemplate.ContainerSpec.Image, bump: s.TaskTemplate.ForceUpdate}
	if s.Mode.Replicated != nil {
		out.replicas = *s.Mode.Replicated.Replicas
	}
	return out
}

// request makes a request that is to bring a service to want.
func (o *operator) request(ctx context.Context, h *host, i int, want spec, method, path string, body any) {
	o.ops++
	status, answer := o.w.api(ctx, h, method, path, body)
	b := &o.services[i]
	switch {
	case status == noAnswer:
		b.late = append(b.late, want)
	case status >= 200 && status < 300:
		b.sure = want
		o.acked++
	case status == http.StatusNotFound && method == http.MethodDelete:
		b.sure = spec{} // a removal that was not answered was carried out
	case status == http.StatusConflict:
		if !b.sure.exists && len(b.late) == 0 {
			o.w.violate("creating %s: it exists already, and was never created: %s", serviceName(i), answer)
		}
		if svc := o.inspect(ctx, h, i); svc != nil {
			b.sure = specOf(svc.Spec)
		}
	}
	o.w.trace("%s %s to %+v at %s: %s", method, path, want, h, statusText(status, answer))
}

func statusText(status int, answer []byte) string {
	switch {
	case status == notSent:
		return "not sent"
	case status == noAnswer:
		return "no answer"
	case status < 300:
		return "done"
	}
	return fmt.Sprintf("%d %s", status, strings.TrimSpace(string(answer)))
}

// setNode drains a worker or makes it active again.
func (o *operator) setNode(ctx context.Context, h *host) {
	n := o.w.hosts[o.w.managers+o.rand.IntN(2)]
	to := []swarm.NodeAvailability{swarm.NodeAvailabilityActive, swarm.NodeAvailabilityDrain, swarm.NodeAvailabilityPause}[o.rand.IntN(3)]
	o.w.trace("node %s to %s at %s: %s", n, to, h, o.availability(ctx, h, n, to))
}

func (o *operator) availability(ctx context.Context, h, n *host, to swarm.NodeAvailability) string {
	return statusText(o.w.changeNode(ctx, h, n, func(s *swarm.NodeSpec) { s.Availability = to }))
}

// changeNode changes the spec of a node, as the command line does: it is read first.
func (w *world) changeNode(ctx context.Context, at, n *host, edit func(*swarm.NodeSpec)) (status int, answer []byte) {
	if status, answer = w.api(ctx, at, http.MethodGet, "/nodes/"+n.id(), nil); status != http.StatusOK {
		return status, answer
	}
	var node swarm.Node
	if err := json.Unmarshal(answer, &node); err != nil {
		w.violate("inspect %s: %v", n, err)
		return noAnswer, nil
	}
	edit(&node.Spec)
	return w.api(ctx, at, http.MethodPost, fmt.Sprintf("/nodes/%s/update?version=%d", node.ID, node.Version.Index), node.Spec)
}
