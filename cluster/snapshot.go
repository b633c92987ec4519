package cluster

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"
)

// Snapshot is an immutable view of all tables at one log index. It may be read from any number of goroutines and kept
// for any time; it costs memory only for what has changed since. Iterators yield objects in the order of their ids
// (tasks of a service by slot, then id), so that nothing computed from them depends on chance.
type Snapshot struct{ t tables }

// Index is the log index of the last transaction the snapshot has seen.
func (s *Snapshot) Index() uint64 { return s.t.index }

// Modified is the log index at which the table of the kind last changed, for a [Guard].
func (s *Snapshot) Modified(k Kind) uint64 { return s.t.kinds[k].modified }

// Object gives the object of that kind and id, or nil.
func (s *Snapshot) Object(k Kind, id string) Object {
	o, _ := s.t.kinds[k].byID.Get(id)
	return o
}

// Len is the number of objects of the kind.
func (s *Snapshot) Len(k Kind) int { return s.t.kinds[k].byID.Len() }

// Objects yields every object of the kind.
func (s *Snapshot) Objects(k Kind) iter.Seq[Object] {
	return func(yield func(Object) bool) {
		s.t.kinds[k].byID.Scan(func(_ string, o Object) bool { return yield(o) })
	}
}

func get[T Object](s *Snapshot, k Kind, id string) T {
	o, _ := s.t.kinds[k].byID.Get(id)
	t, _ := o.(T)
	return t
}

func getNamed[T Object](s *Snapshot, k Kind, name string) T {
	o, ok := s.t.kinds[k].byName.Get(foldName(name))
	t, _ := o.(T)
	if ok && o.ObjectName() != name {
		var none T
		return none
	}
	return t
}

func all[T Object](s *Snapshot, k Kind) iter.Seq[T] {
	return func(yield func(T) bool) {
		s.t.kinds[k].byID.Scan(func(_ string, o Object) bool { return yield(o.(T)) })
	}
}

// Cluster gives the cluster object, nil before the swarm was initialised.
func (s *Snapshot) Cluster() *Cluster {
	_, o, _ := s.t.kinds[KindCluster].byID.Min()
	c, _ := o.(*Cluster)
	return c
}

// Node gives the node with that id, or nil.
func (s *Snapshot) Node(id string) *Node { return get[*Node](s, KindNode, id) }

// Nodes yields every node.
func (s *Snapshot) Nodes() iter.Seq[*Node] { return all[*Node](s, KindNode) }

// Service gives the service with that id, or nil.
func (s *Snapshot) Service(id string) *Service { return get[*Service](s, KindService, id) }

// ServiceNamed gives the service with exactly that name, or nil.
func (s *Snapshot) ServiceNamed(name string) *Service {
	return getNamed[*Service](s, KindService, name)
}

// Services yields every service.
func (s *Snapshot) Services() iter.Seq[*Service] { return all[*Service](s, KindService) }

// Network gives the network with that id, or nil.
func (s *Snapshot) Network(id string) *Network { return get[*Network](s, KindNetwork, id) }

// NetworkNamed gives the network with exactly that name, or nil.
func (s *Snapshot) NetworkNamed(name string) *Network {
	return getNamed[*Network](s, KindNetwork, name)
}

// Networks yields every network.
func (s *Snapshot) Networks() iter.Seq[*Network] { return all[*Network](s, KindNetwork) }

// Secret gives the secret with that id, or nil.
func (s *Snapshot) Secret(id string) *Secret { return get[*Secret](s, KindSecret, id) }

// Secrets yields every secret.
func (s *Snapshot) Secrets() iter.Seq[*Secret] { return all[*Secret](s, KindSecret) }

// Config gives the config with that id, or nil.
func (s *Snapshot) Config(id string) *Config { return get[*Config](s, KindConfig, id) }

// Configs yields every config.
func (s *Snapshot) Configs() iter.Seq[*Config] { return all[*Config](s, KindConfig) }

// Task gives the task with that id, or nil.
func (s *Snapshot) Task(id string) *Task { return get[*Task](s, KindTask, id) }

// Tasks yields every task.
func (s *Snapshot) Tasks() iter.Seq[*Task] { return all[*Task](s, KindTask) }

// TasksOfService yields the tasks of a service in the order of slot, then id.
func (s *Snapshot) TasksOfService(serviceID string) iter.Seq[*Task] {
	return func(yield func(*Task) bool) {
		pivot := &Task{}
		pivot.ServiceID, pivot.Slot = serviceID, -1
		s.t.byService.Ascend(pivot, func(t *Task) bool { return t.ServiceID == serviceID && yield(t) })
	}
}

// TasksOfSlot yields the tasks of one slot of a service in the order of their ids.
func (s *Snapshot) TasksOfSlot(serviceID string, slot int) iter.Seq[*Task] {
	return func(yield func(*Task) bool) {
		pivot := &Task{}
		pivot.ServiceID, pivot.Slot = serviceID, slot
		s.t.byService.Ascend(pivot, func(t *Task) bool {
			return t.ServiceID == serviceID && t.Slot == slot && yield(t)
		})
	}
}

// TasksOfNode yields the tasks placed on a node in the order of their ids.
func (s *Snapshot) TasksOfNode(nodeID string) iter.Seq[*Task] {
	return func(yield func(*Task) bool) {
		pivot := &Task{}
		pivot.NodeID = nodeID
		s.t.byNode.Ascend(pivot, func(t *Task) bool { return t.NodeID == nodeID && yield(t) })
	}
}

// Matches finds what the user may mean by ref, as Docker does: the object with exactly that id, else the one with
// exactly that name (a node's hostname), else every object whose id begins with ref.
func (s *Snapshot) Matches(k Kind, ref string) []Object {
	if ref == "" {
		return nil
	}
	if o, ok := s.t.kinds[k].byID.Get(ref); ok {
		return []Object{o}
	}
	if o, ok := s.t.kinds[k].byName.Get(foldName(ref)); ok && o.ObjectName() == ref {
		return []Object{o}
	}
	var found []Object
	if k == KindNode {
		for n := range s.Nodes() {
			if n.Description.Hostname == ref || n.Spec.Name == ref {
				found = append(found, n)
			}
		}
		if len(found) > 0 {
			return found
		}
	}
	s.t.kinds[k].byID.Ascend(ref, func(id string, o Object) bool {
		if !strings.HasPrefix(id, ref) {
			return false
		}
		found = append(found, o)
		return true
	})
	return found
}

// Digest is a hash over every object. Two managers that applied the same log up to the same index have the same
// digest (invariant I3).
func (s *Snapshot) Digest() (string, error) {
	h := sha256.New()
	enc := json.NewEncoder(h)
	for _, k := range Kinds() {
		for o := range s.Objects(k) {
			if err := enc.Encode(o); err != nil {
				return "", fmt.Errorf("digest of %s %s: %w", k, o.ObjectID(), err)
			}
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// Newest orders tasks from the latest created to the earliest, ties by id.
func Newest(tasks []*Task) {
	slices.SortStableFunc(tasks, func(a, b *Task) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(b.Version.Index, a.Version.Index), cmp.Compare(a.ID, b.ID))
	})
}
