package dispatcher

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

const (
	// writeTimeout is how long a node may leave a message unread, and slowest how many bytes a second it must take of a
	// large one.
	writeTimeout = 5 * time.Second
	slowest      = 64 << 10
)

// terms is what a session tells its agent about the session itself.
type terms struct {
	period   time.Duration
	managers []protocol.ManagerAddr
}

func (d *Dispatcher) terms() terms {
	d.mu.Lock()
	defer d.mu.Unlock()
	return terms{d.period, d.managers}
}

// write sends what the node does not know yet, whenever something may have changed.
func (s *session) write(ctx context.Context) error {
	told, said, trust, stored := newTold(), terms{}, protocol.Trust{}, uint64(0)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.wake:
		}
		if s.d.cfg.Store.Snapshot().Node(s.nodeID) == nil {
			return s.dismiss() // it was there when the session began, so that it is gone for good
		}
		if err := s.sendTerms(&said); err != nil {
			return err
		}
		if err := s.sendTrust(&trust); err != nil {
			return err
		}
		if s.beats.Swap(false) {
			if err := s.send(protocol.ToAgent{Heartbeat: &protocol.Heartbeat{}}); err != nil {
				return err
			}
		}
		if seq := s.stored.Load(); seq != stored {
			if err := s.send(protocol.ToAgent{StatusAck: &protocol.StatusAck{Seq: seq}}); err != nil {
				return err
			}
			stored = seq
		}
		s.mu.Lock()
		out := s.outbox
		s.outbox = nil
		s.mu.Unlock()
		for _, m := range out {
			if err := s.send(m); err != nil {
				return err
			}
		}
		// The mesh goes first: a node that may not send to a replica any more must hear so before others wait for it.
		if err := s.sendMesh(); err != nil {
			return err
		}
		if a := told.difference(s.d.cfg.Store.Snapshot(), s.nodeID, s.d.mayStop); a != nil {
			if err := s.send(protocol.ToAgent{Assignments: a}); err != nil {
				return err
			}
			s.d.cfg.Counters.Assignments.Add(1)
		}
	}
}

// sendTerms welcomes the node, again when the heartbeat period has changed, and tells it when the managers have.
func (s *session) sendTerms(said *terms) error {
	now := s.d.terms()
	var m protocol.ToAgent
	switch {
	case now.period != said.period:
		snap := s.d.cfg.Store.Snapshot()
		m.Welcome = &protocol.Welcome{SessionID: s.id, Node: snap.Node(s.nodeID), HeartbeatPeriod: now.period / beats, Managers: now.managers}
		if c := snap.Cluster(); c != nil {
			m.Welcome.ClusterID, m.Welcome.Epoch = c.ID, c.Epoch
		}
	case !slices.Equal(now.managers, said.managers):
		m.Managers = now.managers
	default:
		return nil
	}
	*said = now
	return s.send(m)
}

func (s *session) sendMesh() error {
	s.d.mu.Lock()
	m := s.d.mesh.since(s.meshSent.Load())
	s.d.mu.Unlock()
	if m == nil {
		return nil
	}
	line, err := m.encode()
	if err != nil {
		return fmt.Errorf("send to node %s: %w", s.nodeID, err)
	}
	if err := s.sendLine(line); err != nil {
		return err
	}
	s.meshSent.Store(m.seq)
	s.d.cfg.Counters.Meshes.Add(1)
	return nil
}

// send writes one message. Only register and, after it, the writer do.
func (s *session) send(m protocol.ToAgent) error {
	line, err := encode(m)
	if err != nil {
		return fmt.Errorf("send to node %s: %w", s.nodeID, err)
	}
	return s.sendLine(line)
}

func encode(m protocol.ToAgent) ([]byte, error) {
	line, err := json.Marshal(m)
	return append(line, '\n'), err
}

func (s *session) sendLine(line []byte) error {
	_ = s.conn.SetWriteDeadline(time.Now().Add(writeTimeout + time.Duration(len(line))*time.Second/slowest))
	if _, err := s.conn.Write(line); err != nil {
		return fmt.Errorf("send to node %s: %w", s.nodeID, err)
	}
	return nil
}
