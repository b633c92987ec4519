package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/identity"
)

// countTimeout bounds how long a manager that is asked to leave looks for the leader, who knows which managers are reachable.
const countTimeout = 5 * time.Second

// A manager that leaves by force has resignTimeout to be demoted first; it looks every resignPause.
const (
	resignTimeout = 5 * time.Second
	resignPause   = 100 * time.Millisecond
)

// leaveWarning words what leaving by force would do to the managers (swarm-semantics, 10.4). Swarm's rule: too few remain
// where those that are reachable, less two, are no more than those that are not.
func (g *managing) leaveWarning(ctx context.Context) string {
	text := "You are attempting to leave the swarm on a node that is participating as a manager. "
	reachable, unreachable, err := g.countManagers(ctx)
	switch {
	case err != nil:
		text += "Doing so may lose the consensus of your cluster. "
	case reachable == 1 && unreachable == 0:
		return text + "Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. "
	case reachable-2 <= unreachable:
		text += fmt.Sprintf("Removing this node leaves %d managers out of %d. Without a Raft quorum your swarm will be inaccessible. ",
			reachable-1, reachable+unreachable)
	}
	return text + "The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message."
}

// countManagers asks the leader how many managers it reaches and how many not.
func (g *managing) countManagers(ctx context.Context) (reachable, unreachable int, err error) {
	ctx, cancel := context.WithTimeout(ctx, countTimeout)
	defer cancel()
	if self, _, _ := g.manager.Leader(); self {
		for _, m := range g.store.Members() {
			if g.manager.Reachability(m.NodeID) == swarm.ReachabilityReachable {
				reachable++
			} else {
				unreachable++
			}
		}
		return reachable, unreachable, nil
	}
	var nodes []swarm.Node
	if err := g.askLeader(ctx, http.MethodGet, "/nodes", nil, &nodes); err != nil {
		return 0, 0, fmt.Errorf("count the managers: %w", err)
	}
	for _, n := range nodes {
		switch {
		case n.ManagerStatus == nil:
		case n.ManagerStatus.Reachability == swarm.ReachabilityReachable:
			reachable++
		default:
			unreachable++
		}
	}
	return reachable, unreachable, nil
}

// askLeader sends a request of the Engine API to the leader, which may be this manager.
func (g *managing) askLeader(ctx context.Context, method, path string, body, answer any) error {
	_, leaderID, addr := g.manager.Leader()
	if addr == "" {
		return errors.New("the swarm has no leader at present")
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+addr+protocol.PathEngine+path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := g.member.transports.to(leaderID).RoundTrip(req)
	if err != nil {
		return fmt.Errorf("ask the leader at %s: %w", addr, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return &identity.StatusError{Status: resp.StatusCode, Message: fmt.Sprintf("the leader at %s answers: %s", addr, bytes.TrimSpace(text))}
	}
	if answer == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(answer)
}

// resign has this manager demoted before it leaves, so that those who remain are a majority of those who count. It is back when
// that is done, or with the reason why it was not: that the others cannot do without it, for one.
func (g *managing) resign(ctx context.Context) error {
	if len(g.store.Members()) < 2 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, resignTimeout)
	defer cancel()
	id := g.member.nodeID
	var last error
	asked := false // and perhaps done: then the leader hears this node as a worker, before it has found out itself
	for g.member.managing() == g {
		var n swarm.Node
		err := g.askLeader(ctx, http.MethodGet, "/nodes/"+id, nil, &n)
		if err == nil && n.Spec.Role == swarm.NodeRoleManager {
			n.Spec.Role, asked = swarm.NodeRoleWorker, true
			err = g.askLeader(ctx, http.MethodPost, fmt.Sprintf("/nodes/%s/update?version=%d", id, n.Version.Index), n.Spec, nil)
		}
		if refusal, ok := errors.AsType[*identity.StatusError](err); ok && refusal.Status < http.StatusInternalServerError && refusal.Status != http.StatusMisdirectedRequest &&
			!(asked && refusal.Status == http.StatusForbidden) {
			return err
		}
		last = err
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), last)
		case <-time.After(resignPause):
		}
	}
	return nil
}

// rejoin says how a node comes back that the swarm has removed.
func (m *member) rejoin() string {
	return fmt.Sprintf(`to take part again, run "docker swarm leave --force" on this machine and then "docker swarm join --token TOKEN %s"; `+
		`"docker swarm join-token worker" on a manager prints the token`, m.another())
}

// another is the address of another manager, for advice.
func (m *member) another() string {
	if all := m.others(); len(all) > 0 {
		return all[0].Addr
	}
	return "MANAGER:2377"
}

// refuse notes that the leader takes no session of this node, and why: another machine is this node already.
func (m *member) refuse(why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refused = why
}

// accepted ends what refuse and alone noted.
func (m *member) accepted() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refused, m.strange, m.stranger = "", time.Time{}, false
}

func (m *member) refusal() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.refused
}
