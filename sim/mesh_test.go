package sim

import (
	"context"
	"sync"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// mesh is a data plane that keeps the table it was given, as a kernel does: also while no daemon runs.
type mesh struct {
	mu    sync.Mutex
	input plan.Input // guarded by mu
	given bool       // guarded by mu
}

func (m *mesh) Apply(_ context.Context, in plan.Input) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.input, m.given = in, true
	return nil
}

func (m *mesh) Installed(context.Context) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.given, nil
}

func (m *mesh) Verify(context.Context) (bool, error) { return false, nil }

// reboot empties the kernel.
func (m *mesh) reboot() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.input, m.given = plan.Input{}, false
}

// backends lists the replicas that new connections are sent to, by service id.
func (m *mesh) backends() map[string]map[string]plan.Backend {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]map[string]plan.Backend{}
	for _, p := range m.input.Ports {
		if out[p.ServiceID] == nil {
			out[p.ServiceID] = map[string]plan.Backend{}
		}
		for _, b := range p.Backends {
			if !b.Draining {
				out[p.ServiceID][b.TaskID] = b
			}
		}
	}
	return out
}
