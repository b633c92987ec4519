package node

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/miniswarm/miniswarm/manager/identity"
)

// strangePatience is how long managers must refuse this node as a stranger before it is told: while the root CA changes, one of them may
// lag behind for a moment.
const strangePatience = 3 * time.Second

// What a node that its managers take for a stranger most likely is, and what helps. Its containers go on until a person agrees: those who
// say so may be anybody.
const (
	textStranger = "the managers' certificates and this node's are of different root CAs: most likely this node was removed while the root CA was changed, or the managers there belong to another cluster"
	cureStranger = "if this node is not in 'miniswarm node ls' on a manager, run 'miniswarm leave --force' here, and to take part again 'miniswarm join' with a new token"
)

// alone takes in what came of asking each known manager for a session, by its address.
func (m *member) alone(all map[string]error) {
	all = maps.Clone(all)
	delete(all, m.state.AdvertiseAddr) // a manager on this machine trusts what this node trusts
	if !identity.Estranged(slices.Collect(maps.Values(all))...) {
		return
	}
	now := time.Now()
	m.mu.Lock()
	if m.strange.IsZero() {
		m.strange = now
	}
	tell := !m.stranger && now.Sub(m.strange) >= strangePatience
	m.stranger = m.stranger || tell
	m.mu.Unlock()
	if tell {
		m.logger.Error(textStranger+"; its containers go on", "node", m.nodeID, "todo", cureStranger)
	}
}

// estrangement says that the managers take this node for a stranger, empty while they do not, or none of them can be reached.
func (m *member) estrangement() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.stranger {
		return ""
	}
	return textStranger
}

// stranger adds to an error what it most likely means, if a manager takes this node for a stranger.
func stranger(err error) error {
	if !identity.Estranged(err) {
		return err
	}
	return fmt.Errorf("%w; %s; %s", err, textStranger, cureStranger)
}
