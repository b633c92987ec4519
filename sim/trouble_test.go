package sim

import (
	"sync/atomic"

	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/agent/docker/fake"
)

// Several faults may strike one host at a time; what they share is counted, so that the first that ends does not end the
// other.

// strikes counts the faults of a host that keep something down.
type strikes struct {
	daemon, engine atomic.Int32
}

// down keeps the daemon from running while during runs.
func (h *host) down(during func()) {
	h.strikes.daemon.Add(1)
	h.kill()
	during()
	if h.strikes.daemon.Add(-1) == 0 {
		h.revive()
	}
}

// powerless cuts the machine's power while during runs.
func (h *host) powerless(during func()) {
	h.disk.powerless.Store(true)
	cuts := func(by int) {
		for _, o := range h.w.hosts {
			if o != h {
				h.w.cut(h.i, o.i, by)
				h.w.cut(o.i, h.i, by)
			}
		}
	}
	cuts(1)
	h.engine.Crash()
	h.mesh.reboot()
	h.down(func() {
		during()
		h.engine.Return()
		h.disk.powerless.Store(false)
		cuts(-1)
	})
}

// back brings the engine back, unless the machine has no power.
func (h *host) back() {
	if !h.disk.powerless.Load() {
		h.engine.Return()
	}
}

// hang has the engine's calls wait until release; the second of two that do so at a time waits for the first.
func (h *host) hang() (release func()) {
	if h.strikes.engine.Add(1) > 1 {
		return func() { h.strikes.engine.Add(-1) }
	}
	r := h.engine.Hang()
	return func() {
		h.strikes.engine.Add(-1)
		r()
	}
}

// running lists the containers of tasks that run on the host.
func (h *host) running() []fake.Instance {
	var out []fake.Instance
	for _, c := range h.engine.Instances() {
		if c.Running && c.Labels[docker.LabelTaskID] != "" {
			out = append(out, c)
		}
	}
	return out
}
