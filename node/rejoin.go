package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/identity"
)

// rejoinPatience bounds how long a node looks for its managers at an address that a person names.
const rejoinPatience = 15 * time.Second

// errRejoining ends the member of a manager that goes on as a worker of the recovered cluster.
var errRejoining = errors.New("the cluster was recovered elsewhere")

// Rejoin implements engineapi.Local: the managers of this node's cluster are at an address that the node could not hear of, because
// they were recovered on another machine or all have moved. The node proves who it is by its certificate and the managers
// by theirs; containers go on. A manager becomes a worker that way, if the cluster at that address is a later recovery of its own.
func (n *Node) Rejoin(ctx context.Context, addr string) error {
	m := n.current()
	switch {
	case m == nil:
		return unavailable(textNoSwarm)
	case m.locked:
		return unavailable(textLocked)
	}
	addr, err := identity.ParseAddr(addr)
	if err != nil {
		return badRequest("%v", err)
	}
	ctx, cancel := context.WithTimeout(ctx, rejoinPatience)
	defer cancel()
	if g := m.managing(); g != nil {
		if m, err = n.giveWay(ctx, m, g, addr); err != nil {
			return err
		}
	}
	conn, err := m.dial(ctx, addr)
	if err != nil {
		return unavailable("no manager of this node's cluster answers at %s: %v", addr, stranger(err))
	}
	_ = conn.Close() // it was only to see whether somebody is there
	// What that one thinks of this node shows with the first request.
	if _, err := m.askManager(ctx, protocol.ManagerAddr{Addr: addr}); identity.Estranged(err) {
		return unavailable("the manager at %s does not take this node: %v", addr, stranger(err))
	}
	select {
	case <-m.agent.Seek(addr):
		return nil
	case <-ctx.Done():
		return unavailable("the manager at %s was reached, but gives this node no session; the daemon's log says why", addr)
	case <-m.done:
		return errors.Join(errors.New("this node's part in the swarm has ended"), m.failure())
	}
}

// giveWay ends the manager on this machine in favour of the cluster at an address, and gives the member that goes on as a worker.
func (n *Node) giveWay(ctx context.Context, m *member, g *managing, addr string) (*member, error) {
	epoch, err := n.askEpoch(ctx, addr)
	if err != nil {
		return nil, unavailable("ask the manager at %s: %v", addr, stranger(err))
	}
	own, known := g.store.Epoch()
	if known && epoch == own { // of the same life: it is here to be met
		return m, g.meet(ctx, addr)
	}
	if known && epoch < own {
		return nil, &requestError{http.StatusConflict, "this node is a manager, and the cluster at " + addr + " is no later recovery of its own: there is nothing to rejoin"}
	}
	n.changing.Lock()
	defer n.changing.Unlock()
	if n.current() != m {
		return nil, unavailable("this node's part in the swarm has changed meanwhile: try again")
	}
	m.stop(errRejoining)
	<-m.done
	n.cfg.Logger.Warn("this manager gives way to a later recovery of its cluster", "addr", addr, "recovered", cluster.EpochTime(epoch))
	// Noted before anything else: from now on the managers of before are not followed. The certificate of a worker comes from those
	// of now.
	err = m.remember(func(st *state) {
		st.RaftID, st.Epoch, st.Managed, st.Managers = 0, epoch, &own, []protocol.ManagerAddr{{Addr: addr}}
	})
	if err == nil {
		err = m.closeParts()
	}
	if err == nil {
		err = m.forgetRaft()
	}
	if err == nil {
		err = n.startAnew()
	}
	if err != nil {
		n.fails("this node could not rejoin", err)
		return nil, fmt.Errorf("rejoin: %w", err)
	}
	return n.current(), nil
}

// meet tells a manager that has lost the others where one of them is, and waits until they have a leader: that one tells the rest. Where
// the others have one already, it is told where this manager is.
func (g *managing) meet(ctx context.Context, addr string) error {
	id, err := g.member.whoIsAt(ctx, addr)
	if err != nil {
		return unavailable("ask the manager at %s: %v", addr, err)
	}
	if id == g.member.nodeID {
		return badRequest("%s is this manager's own address: name another manager's, or run it on the others with this one", addr)
	}
	g.transport.Meet(protocol.Member{NodeID: id, Addr: addr})
	asking, enough := context.WithCancel(ctx)
	var asked sync.WaitGroup
	asked.Go(func() {
		there := []protocol.ManagerAddr{{NodeID: id, Addr: addr}}
		_, err := g.member.node.joinRaft(asking, func() []protocol.ManagerAddr { return there }, g.member.joinRequest(false))
		if err != nil && asking.Err() == nil {
			g.member.logger.Info("the manager that this one was told of does not pass its address on", "addr", addr, "err", err)
		}
	})
	defer asked.Wait()
	defer enough()
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for g.store.Status().Leader == 0 {
		select {
		case <-poll.C:
		case <-ctx.Done():
			return unavailable("the manager at %s was reached and knows this one now, but they have no leader yet: run it on the other managers, too", addr)
		case <-g.member.done:
			return errors.Join(errors.New("this node's part in the swarm has ended"), g.member.failure())
		}
	}
	return nil
}

// askEpoch asks a manager, which proves that it is one of this node's cluster, which life of the cluster it is of.
func (n *Node) askEpoch(ctx context.Context, addr string) (uint64, error) {
	client := &http.Client{Transport: managerTransport(n.credentials, "")}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+addr+protocol.PathEpoch, nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return 0, err
	}
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("it answers %s: %s", resp.Status, body)
	}
	var answer protocol.EpochAnswer
	if err := json.Unmarshal(body, &answer); err != nil {
		return 0, fmt.Errorf("it answers no epoch: %w", err)
	}
	return answer.Epoch, nil
}
