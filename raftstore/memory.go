package raftstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// Network joins members of one process for tests and simulations. It can lose, delay and separate; what it does by
// chance depends on its seed only.
type Network struct {
	mu      sync.Mutex // guards all below
	rand    *rand.Rand
	locals  map[uint64]Local
	cut     map[[2]uint64]bool
	drop    float64
	double  float64
	delay   time.Duration
	dropped uint64
}

// NewNetwork gives a network without faults.
func NewNetwork(seed uint64) *Network {
	return &Network{rand: rand.New(rand.NewPCG(seed, 0)), locals: map[uint64]Local{}, cut: map[[2]uint64]bool{}}
}

// SetFaults makes the network lose each message with probability drop and deliver it after a random time up to delay,
// which also changes their order.
func (n *Network) SetFaults(drop float64, delay time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.drop, n.delay = drop, delay
}

// SetDoubles makes the network deliver each message a second time, later, with probability double.
func (n *Network) SetDoubles(double float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.double = double
}

// Cut makes messages from one member to another be lost, or not any more. The other direction stays as it is.
func (n *Network) Cut(from, to uint64, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if cut {
		n.cut[[2]uint64{from, to}] = true
	} else {
		delete(n.cut, [2]uint64{from, to})
	}
}

// again draws whether a message comes twice, and after what time.
func (n *Network) again() (time.Duration, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.double == 0 || n.rand.Float64() >= n.double {
		return 0, false
	}
	return time.Millisecond + time.Duration(n.rand.Int64N(int64(200*time.Millisecond))), true
}

// Partition separates the members into groups that do not hear each other. Members that are in no group hear everybody.
// No group at all heals the network.
func (n *Network) Partition(groups ...[]uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	for i, a := range groups {
		for j, b := range groups {
			if i == j {
				continue
			}
			for _, x := range a {
				for _, y := range b {
					n.cut[[2]uint64{x, y}] = true
				}
			}
		}
	}
}

// Dropped is the number of messages lost so far.
func (n *Network) Dropped() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dropped
}

// Transport gives the transport for one member.
func (n *Network) Transport() Transport { return &memoryTransport{net: n} }

type memoryTransport struct {
	net   *Network
	mu    sync.Mutex // guards all below
	local Local
	runs  bool
	work  sync.WaitGroup
}

var errCut = errors.New("the network is cut")

// route finds the receiver and draws the fate of a message.
func (n *Network) route(from, to uint64) (Local, time.Duration, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	local, ok := n.locals[to]
	delay := time.Duration(0)
	if n.delay > 0 {
		delay = time.Duration(n.rand.Int64N(int64(n.delay)))
	}
	if !ok || n.cut[[2]uint64{from, to}] || n.drop > 0 && n.rand.Float64() < n.drop {
		n.dropped++
		return nil, 0, errCut
	}
	return local, delay, nil
}

func (t *memoryTransport) Attach(local Local) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.local = local
}

func (t *memoryTransport) Run(ctx context.Context) error {
	t.mu.Lock()
	local := t.local
	t.runs = true
	t.mu.Unlock()
	id := local.Member().RaftID
	t.net.mu.Lock()
	t.net.locals[id] = local
	t.net.mu.Unlock()
	<-ctx.Done()
	t.net.mu.Lock()
	if t.net.locals[id] == local {
		delete(t.net.locals, id)
	}
	t.net.mu.Unlock()
	t.mu.Lock()
	t.runs = false
	t.mu.Unlock()
	t.work.Wait()
	return nil
}

func (t *memoryTransport) SetMembers([]protocol.Member) {}
func (t *memoryTransport) Meet(protocol.Member)         {}

func (t *memoryTransport) Send(msgs []*raftpb.Message) {
	t.mu.Lock()
	defer t.mu.Unlock()
	local := t.local
	for _, m := range msgs {
		// The copy is what a wire would make of it.
		m = proto.Clone(m).(*raftpb.Message)
		if m.GetType() == raftpb.MsgSnap {
			if !t.runs {
				local.SnapshotSent(m.GetTo(), errCut)
				continue
			}
			t.work.Go(func() { local.SnapshotSent(m.GetTo(), t.sendSnapshot(local, m)) })
			continue
		}
		to, delay, err := t.net.route(m.GetFrom(), m.GetTo())
		if later, twice := t.net.again(); twice && err == nil && t.runs {
			second := proto.Clone(m).(*raftpb.Message)
			t.work.Go(func() {
				time.Sleep(delay + later)
				deliver(local, to, second)
			})
		}
		switch {
		case err != nil || !t.runs:
			local.Unreachable(m.GetTo())
		case delay == 0:
			deliver(local, to, m)
		default:
			t.work.Go(func() {
				time.Sleep(delay)
				deliver(local, to, m)
			})
		}
	}
}

func deliver(from, to Local, m *raftpb.Message) {
	if errors.Is(to.Receive(m), ErrRemoved) {
		from.Removed()
	}
}

func (t *memoryTransport) sendSnapshot(local Local, m *raftpb.Message) error {
	to, delay, err := t.net.route(m.GetFrom(), m.GetTo())
	if err != nil {
		return err
	}
	time.Sleep(delay)
	src, err := local.OpenSnapshot(m.GetSnapshot().GetMetadata().GetIndex())
	if err != nil {
		return err
	}
	defer src.Close()
	next := func() ([]byte, error) {
		if _, _, err := t.net.route(m.GetFrom(), m.GetTo()); err != nil {
			return nil, err
		}
		return src.Next()
	}
	if err := to.ReceiveSnapshot(m, next); err != nil {
		return fmt.Errorf("send snapshot to %x: %w", m.GetTo(), err)
	}
	return nil
}
