package dispatcher

import (
	"slices"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// told is what one node has been told in one session. Its session's writer owns it.
type told struct {
	seq      uint64
	node     uint64                     // version index of the node object, 0 before the first message
	tasks    map[string]swarm.TaskState // task id -> desired state
	secrets  map[string]uint64          // id -> version index
	configs  map[string]uint64
	networks map[string]uint64
}

func newTold() *told {
	return &told{tasks: map[string]swarm.TaskState{}, secrets: map[string]uint64{}, configs: map[string]uint64{}, networks: map[string]uint64{}}
}

// difference compares what the node must know according to snap with what it was told, and takes the difference as
// told. mayStop is asked before a task that runs is told to stop; what it refuses runs on until a later call. The
// message is nil when there is nothing to say.
func (d *told) difference(snap *cluster.Snapshot, nodeID string, mayStop func(*cluster.Task) bool) *protocol.Assignments {
	node := snap.Node(nodeID)
	if node == nil {
		return nil
	}
	msg := &protocol.Assignments{Complete: d.seq == 0}
	if d.node != node.Version.Index {
		msg.Node, d.node = node, node.Version.Index
	}
	secrets, configs := map[string]bool{}, map[string]bool{}
	present := make(map[string]bool, len(d.tasks))
	for t := range snap.TasksOfNode(nodeID) {
		if cluster.Before(t.Status.State, swarm.TaskStateAssigned) {
			continue
		}
		desired, known := d.tasks[t.ID]
		if !known && cluster.Terminal(t.Status.State) && cluster.Rank(t.DesiredState) >= cluster.Rank(swarm.TaskStateRemove) {
			continue
		}
		present[t.ID] = true
		if !cluster.Terminal(t.Status.State) {
			references(t, secrets, configs)
		}
		if known && desired == t.DesiredState {
			continue
		}
		send := withLogDriver(t, snap.Cluster())
		if stops(t) && t.Status.State == swarm.TaskStateRunning && !mayStop(t) {
			if known {
				continue
			}
			// A new session, as with a new leader, must not cut short what the old one was waiting for.
			held := *send
			held.DesiredState = swarm.TaskStateRunning
			send = &held
		}
		d.tasks[t.ID] = send.DesiredState
		msg.Tasks = append(msg.Tasks, send)
	}
	for id := range d.tasks {
		if !present[id] {
			delete(d.tasks, id)
			msg.RemoveTasks = append(msg.RemoveTasks, id)
		}
	}
	slices.Sort(msg.RemoveTasks)
	msg.Networks, msg.RemoveNetworks = diffObjects(d.networks, node.Attachments, snap.Network)
	msg.Secrets, msg.RemoveSecrets = diffObjects(d.secrets, secrets, snap.Secret)
	msg.Configs, msg.RemoveConfigs = diffObjects(d.configs, configs, snap.Config)
	if d.seq > 0 && msg.Node == nil && len(msg.Tasks)+len(msg.RemoveTasks)+len(msg.Networks)+len(msg.RemoveNetworks)+
		len(msg.Secrets)+len(msg.RemoveSecrets)+len(msg.Configs)+len(msg.RemoveConfigs) == 0 {
		return nil
	}
	d.seq++
	msg.Seq = d.seq
	return msg
}

// withLogDriver gives the task with the cluster's default log driver where its service names none. A container keeps
// the driver it was created with, so that a change of the default reaches new tasks only, as in Swarm.
func withLogDriver(t *cluster.Task, c *cluster.Cluster) *cluster.Task {
	if c == nil || c.Spec.TaskDefaults.LogDriver == nil || t.Spec.LogDriver != nil || t.Spec.ContainerSpec == nil {
		return t
	}
	out := *t
	out.Spec.LogDriver = c.Spec.TaskDefaults.LogDriver
	return &out
}

func stops(t *cluster.Task) bool {
	return cluster.Rank(t.DesiredState) >= cluster.Rank(swarm.TaskStateShutdown)
}

// references adds the ids of the secrets and configs that the task uses.
func references(t *cluster.Task, secrets, configs map[string]bool) {
	c := t.Spec.ContainerSpec
	if c == nil {
		return
	}
	for _, s := range c.Secrets {
		secrets[s.SecretID] = true
	}
	for _, s := range c.Configs {
		configs[s.ConfigID] = true
	}
}

// object is what diffObjects needs of a kind.
type object interface {
	comparable
	cluster.Object
}

// diffObjects compares the objects wanted (keys of wanted that exist) with those told, updates told, and gives the
// objects to send and the ids to take back.
func diffObjects[T object, V any](told map[string]uint64, wanted map[string]V, find func(string) T) (send []T, remove []string) {
	var none T
	ids := make([]string, 0, len(wanted))
	for id := range wanted {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		o := find(id)
		if o == none {
			continue
		}
		if v := o.ObjectMeta().Version.Index; told[id] != v {
			told[id] = v
			send = append(send, o)
		}
	}
	for id := range told {
		if _, ok := wanted[id]; !ok {
			delete(told, id)
			remove = append(remove, id)
		}
	}
	slices.Sort(remove)
	return send, remove
}
