package agent

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/agent/taskdb"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

const (
	// recordRetry is how long a write that failed waits: disks that are full do not empty at once.
	recordRetry = 5 * time.Second
	// The routing table is written whole and may be large, so the pause after each write is recordShare times as long as
	// the write took, within bounds: the disk has a twentieth of the time at most, and a small table is there at once. What
	// the table on disk lacks, a machine lacks that is killed and then cut off.
	recordShare   = 20
	minRecordMesh = 100 * time.Millisecond
	maxRecordMesh = 2 * time.Second
)

// recorder writes to the task database behind everybody's back: nobody waits for the disk, and many changes become one
// write. What a crash may lose is learned again from the engine and the managers.
type recorder struct {
	log  *slog.Logger
	wake chan struct{}

	mu       sync.Mutex
	tasks    map[string]*taskdb.Task     // guarded by mu, like all below; nil: removed
	networks map[string]*cluster.Network // nil: removed
	node     *cluster.Node
	managers []protocol.ManagerAddr
	mesh     *protocol.Mesh
	meshDue  time.Time // when the mesh may be written again
}

func newRecorder(log *slog.Logger) *recorder {
	return &recorder{log: log, wake: make(chan struct{}, 1), tasks: map[string]*taskdb.Task{}, networks: map[string]*cluster.Network{}}
}

func (r *recorder) change(do func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	do()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *recorder) putTask(t *cluster.Task, st swarm.TaskStatus) {
	r.change(func() { r.tasks[t.ID] = &taskdb.Task{Task: t, Status: st} })
}
func (r *recorder) removeTask(id string) { r.change(func() { r.tasks[id] = nil }) }
func (r *recorder) putNetwork(n *cluster.Network) {
	r.change(func() { r.networks[n.ID] = n })
}
func (r *recorder) removeNetwork(id string)                 { r.change(func() { r.networks[id] = nil }) }
func (r *recorder) putNode(n *cluster.Node)                 { r.change(func() { r.node = n }) }
func (r *recorder) putManagers(list []protocol.ManagerAddr) { r.change(func() { r.managers = list }) }
func (r *recorder) putMesh(m *protocol.Mesh)                { r.change(func() { r.mesh = m }) }

// take gives what is to be written. The mesh comes along when it is due or all is asked for; otherwise later says when.
func (r *recorder) take(now time.Time, all bool) (c taskdb.Changes, later time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, t := range r.tasks {
		if t == nil {
			c.RemoveTasks = append(c.RemoveTasks, id)
		} else {
			c.Tasks = append(c.Tasks, *t)
		}
	}
	for id, n := range r.networks {
		if n == nil {
			c.RemoveNetworks = append(c.RemoveNetworks, id)
		} else {
			c.Networks = append(c.Networks, n)
		}
	}
	c.Node, c.Managers = r.node, r.managers
	clear(r.tasks)
	clear(r.networks)
	r.node, r.managers = nil, nil
	if r.mesh != nil {
		if all || !now.Before(r.meshDue) {
			c.Mesh, r.mesh = r.mesh, nil
		} else {
			later = r.meshDue.Sub(now)
		}
	}
	return c, later
}

// rest sets when the mesh may be written again, now that writing it took that long.
func (r *recorder) rest(now time.Time, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.meshDue = now.Add(min(max(recordShare*took, minRecordMesh), maxRecordMesh))
}

// giveBack returns changes that could not be written, where nothing newer has come in.
func (r *recorder) giveBack(c taskdb.Changes) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range c.Tasks {
		if _, newer := r.tasks[c.Tasks[i].Task.ID]; !newer {
			r.tasks[c.Tasks[i].Task.ID] = &c.Tasks[i]
		}
	}
	for _, id := range c.RemoveTasks {
		if _, newer := r.tasks[id]; !newer {
			r.tasks[id] = nil
		}
	}
	for _, n := range c.Networks {
		if _, newer := r.networks[n.ID]; !newer {
			r.networks[n.ID] = n
		}
	}
	for _, id := range c.RemoveNetworks {
		if _, newer := r.networks[id]; !newer {
			r.networks[id] = nil
		}
	}
	if r.node == nil {
		r.node = c.Node
	}
	if r.managers == nil {
		r.managers = c.Managers
	}
	if r.mesh == nil {
		r.mesh = c.Mesh
	}
}

// run writes until ctx ends; what came in before that is written.
func (r *recorder) run(ctx context.Context, db *taskdb.DB) {
	var timer <-chan time.Time
	for ended := false; !ended; {
		select {
		case <-ctx.Done():
			ended = true
		case <-r.wake:
		case <-timer:
		}
		c, later := r.take(time.Now(), ended)
		timer = nil
		if later > 0 {
			timer = time.After(later)
		}
		if c.Empty() {
			continue
		}
		began := time.Now()
		err := db.Write(c)
		if c.Mesh != nil {
			r.rest(time.Now(), time.Since(began))
		}
		if err != nil {
			r.log.Error("the state of tasks could not be written; after a restart the agent needs a manager", "err", err)
			r.giveBack(c)
			timer = time.After(recordRetry)
		}
	}
}
