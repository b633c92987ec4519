package node

import (
	"fmt"
	"time"

	"github.com/miniswarm/miniswarm/cluster"
)

// noteManaged remembers which life of the cluster this machine was a manager of when the other managers refused it. Whether it was
// demoted, or lost and the cluster recovered without it, only shows by the epoch that its agent hears of.
func (m *member) noteManaged(g *managing) {
	epoch, known := g.store.Epoch()
	if !known {
		return
	}
	if err := m.remember(func(st *state) { st.Managed = &epoch }); err != nil {
		m.logger.Warn("what this machine was a manager of could not be saved", "err", err)
	}
}

// forgetManaged forgets it in a session with the leader of that same life of the cluster: the machine was only demoted, and a
// recovery that comes later has not been without it.
func (m *member) forgetManaged() {
	m.mu.Lock()
	demoted := m.state.Managed != nil && *m.state.Managed >= m.state.Epoch
	m.mu.Unlock()
	if !demoted {
		return
	}
	if err := m.remember(func(st *state) { st.Managed = nil }); err != nil {
		m.logger.Warn("that this machine was demoted could not be saved", "err", err)
	}
}

// superseded says why this machine, which was a manager of the cluster before that was recovered, is none any more; empty if
// that is not so. It was let go as a manager and goes on as a worker: its agent hears what of its tasks still stands, and
// containers do not notice.
func (m *member) superseded() string {
	if m.managing() != nil {
		return ""
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	st := m.state
	if st.Managed == nil || *st.Managed >= st.Epoch {
		return ""
	}
	return fmt.Sprintf("the cluster was recovered without this manager at %s; it is refused and goes on as a worker. To make it a manager again run 'miniswarm node promote %s' on a manager",
		cluster.EpochTime(st.Epoch).Format(time.RFC3339), m.nodeID)
}
