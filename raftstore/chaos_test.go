package raftstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/miniswarm/miniswarm/cluster"
)

// chaos is a group under faults with clients that write and read a few registers. Time is virtual; the faults depend on
// the seed.
type chaos struct {
	*group
	rand *rand.Rand

	mu      sync.Mutex // guards all below, and group.members while clients run
	acked   map[string]bool
	history []porcupine.Operation
	clock   atomic.Int64
	digests map[uint64]string
}

type registerInput struct {
	key   string
	write string // "" reads
}

// registers is the model that the history must fit: each key holds what was written last.
var registers = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, op := range history {
			k := op.Input.(registerInput).key
			byKey[k] = append(byKey[k], op)
		}
		var parts [][]porcupine.Operation
		for _, ops := range byKey {
			parts = append(parts, ops)
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		if in := input.(registerInput); in.write != "" {
			return true, in.write
		}
		return output == state, state
	},
}

// somebody picks a member that is alive.
func (c *chaos) somebody(r *rand.Rand, leader bool) *member {
	c.mu.Lock()
	defer c.mu.Unlock()
	if leader {
		for _, m := range c.members {
			if m.Leadership().Leader {
				return m
			}
		}
	}
	if len(c.members) == 0 {
		return nil
	}
	return c.members[r.IntN(len(c.members))]
}

const never = int64(1) << 60

// client writes and reads until ctx ends.
func (c *chaos) client(ctx context.Context, id int, r *rand.Rand) {
	for n := 0; ctx.Err() == nil; n++ {
		m := c.somebody(r, r.IntN(4) > 0)
		if m == nil {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		op := porcupine.Operation{ClientId: id, Call: c.clock.Add(1), Input: registerInput{key: fmt.Sprint("k", r.IntN(3))}}
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		var keep bool
		if r.IntN(2) == 0 {
			keep = c.write(try, m, &op, fmt.Sprintf("%d-%d", id, n))
		} else {
			keep = c.read(try, m, &op)
		}
		cancel()
		if keep {
			c.mu.Lock()
			c.history = append(c.history, op)
			c.mu.Unlock()
		}
		time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
	}
}

// write stores the value in a register together with an object of its own, so that both are there or neither.
func (c *chaos) write(ctx context.Context, m *member, op *porcupine.Operation, value string) (keep bool) {
	in := op.Input.(registerInput)
	in.write = value
	op.Input = in
	reg := config(in.key, 0)
	reg.Spec.Labels = map[string]string{"value": value}
	_, err := m.Update(ctx, func(s *cluster.Snapshot) (*cluster.Txn, error) {
		change := cluster.CreateOf(reg)
		if old := s.Config(in.key); old != nil {
			change.Action, change.Version = cluster.Update, old.Version.Index
		}
		return &cluster.Txn{Changes: []cluster.Change{change, cluster.CreateOf(config("w"+value, 10))}}, nil
	})
	var refused *cluster.TxnError
	var notLeader *ErrNotLeader
	switch {
	case err == nil:
		op.Return = c.clock.Add(1)
		c.mu.Lock()
		c.acked["w"+value] = true
		c.mu.Unlock()
		return true
	case errors.As(err, &notLeader) || errors.As(err, &refused):
		return false // surely not done
	}
	op.Return = never // perhaps done, now or later
	return true
}

func (c *chaos) read(ctx context.Context, m *member, op *porcupine.Operation) (keep bool) {
	s, err := m.Read(ctx)
	if err != nil {
		return false
	}
	value := ""
	if reg := s.Config(op.Input.(registerInput).key); reg != nil {
		value = reg.Spec.Labels["value"]
	}
	op.Output, op.Return = value, c.clock.Add(1)
	return true
}

// check compares a member's state with what others had at the same index (invariant I3).
func (c *chaos) check() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.members {
		s := m.Snapshot()
		d := digest(c.t, s)
		if before, ok := c.digests[s.Index()]; ok && before != d {
			c.t.Errorf("%s has another state at index %d than another member had", m.cfg.NodeID, s.Index())
		}
		c.digests[s.Index()] = d
	}
}

// fault does one bad thing and says how long to wait before the next.
func (c *chaos) fault(dead []*member) []*member {
	var ids []uint64
	for _, m := range c.members {
		ids = append(ids, m.self)
	}
	switch c.rand.IntN(7) {
	case 0, 1:
		if len(dead) < 1 {
			// Clients must not wait for the lock while the member ends: time would stand still.
			c.mu.Lock()
			i := c.rand.IntN(len(c.members))
			m := c.members[i]
			c.members = slices.Delete(slices.Clone(c.members), i, i+1)
			c.mu.Unlock()
			m.kill()
			dead = append(dead, m)
		}
	case 2:
		for _, m := range dead {
			c.mu.Lock()
			m.restart()
			c.mu.Unlock()
		}
		dead = nil
	case 3:
		c.rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
		at := c.rand.IntN(len(ids) + 1)
		c.net.Partition(ids[:at], ids[at:])
	case 4:
		c.net.Partition()
	case 5:
		c.net.SetFaults(c.rand.Float64()/5, time.Duration(c.rand.IntN(80))*time.Millisecond)
		c.net.SetDoubles(c.rand.Float64() / 5)
	case 6:
		c.net.SetFaults(0, 0)
		c.net.SetDoubles(0)
	}
	return dead
}

func TestNothingAcknowledgedIsLostUnderFaults(t *testing.T) {
	for _, members := range []int{3, 5} {
		for n := range 4 - members/2 {
			seed := rand.Uint64()
			t.Run(fmt.Sprintf("%d members, %d", members, n), func(t *testing.T) {
				t.Logf("seed %d", seed)
				var history []porcupine.Operation
				synctest.Test(t, func(t *testing.T) { history = runChaos(t, members, seed) })
				if res := porcupine.CheckOperationsTimeout(registers, history, time.Minute); res != porcupine.Ok {
					t.Errorf("the history of %d operations is not linearizable (%s)", len(history), res)
				}
			})
		}
	}
}

func runChaos(t *testing.T, members int, seed uint64) []porcupine.Operation {
	g := newGroup(t, seed, func(c *Config) { c.SnapshotEvery, c.KeepEntries = 60, 20 })
	g.grow(members)
	c := &chaos{group: g, rand: rand.New(rand.NewPCG(seed, 1)), acked: map[string]bool{}, digests: map[uint64]string{}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var clients sync.WaitGroup
	for i := range 4 {
		clients.Go(func() { c.client(ctx, i, rand.New(rand.NewPCG(seed, uint64(i)+2))) })
	}
	var dead []*member
	for range 40 {
		time.Sleep(time.Duration(c.rand.IntN(1500)) * time.Millisecond)
		dead = c.fault(dead)
		c.check()
	}
	cancel()
	clients.Wait()
	g.net.Partition()
	g.net.SetFaults(0, 0)
	g.net.SetDoubles(0)
	for _, m := range dead {
		m.restart()
	}
	g.leader().mustPut("the end")
	g.settle()
	final := g.members[0].Snapshot()
	for id := range c.acked {
		if final.Config(id) == nil {
			t.Errorf("the acknowledged write %s is lost", id)
		}
	}
	if len(c.acked) < 50 {
		t.Errorf("only %d writes were acknowledged: the test says little", len(c.acked))
	}
	t.Logf("%d writes acknowledged, %d operations, %d messages lost", len(c.acked), len(c.history), g.net.Dropped())
	return c.history
}
