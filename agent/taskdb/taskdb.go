// Package taskdb keeps on disk what an agent must know to go on without its managers: the tasks given to it with the last
// status of each, the networks, the node's own object, the managers' addresses and the last routing table.
//
// The file is a convenience, not a truth. What runs is known from the engine, what should run from the managers; a lost
// file costs the agent its independence until it reaches a manager again, and nothing else. A file that cannot be read is
// therefore put aside, not repaired.
package taskdb

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/docker/docker/api/types/swarm"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// lockTimeout bounds the wait for another process that has the file open.
const lockTimeout = 2 * time.Second

var (
	bucketTasks    = []byte("tasks")
	bucketNetworks = []byte("networks")
	bucketAgent    = []byte("agent")
	keyNode        = []byte("node")
	keyManagers    = []byte("managers")
	keyMesh        = []byte("mesh")
)

// Task is a task with what this node last saw of it.
type Task struct {
	Task   *cluster.Task
	Status swarm.TaskStatus
}

// DB is an open file. It may be used concurrently.
type DB struct{ bolt *bolt.DB }

// Open opens or creates the file. One that is damaged is renamed to path.damaged and a new one begun; the error says
// so and the DB is usable all the same.
func Open(path string) (*DB, error) {
	db, err := open(path)
	if err == nil || !damaged(err) {
		return db, err
	}
	if renameErr := os.Rename(path, path+".damaged"); renameErr != nil {
		return nil, errors.Join(err, renameErr)
	}
	db, again := open(path)
	if again != nil {
		return nil, errors.Join(err, again)
	}
	return db, fmt.Errorf("%w; it was put aside as %s.damaged, and tasks are learned from the managers anew", err, path)
}

func damaged(err error) bool {
	return errors.Is(err, berrors.ErrInvalid) || errors.Is(err, berrors.ErrChecksum) || errors.Is(err, berrors.ErrVersionMismatch)
}

func open(path string) (*DB, error) {
	b, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockTimeout})
	if err != nil {
		if errors.Is(err, berrors.ErrTimeout) {
			return nil, fmt.Errorf("open %s: another agent has it open; give each its own state directory", path)
		}
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	err = b.Update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketTasks, bucketNetworks, bucketAgent} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Close()
		return nil, fmt.Errorf("prepare %s: %w", path, err)
	}
	return &DB{b}, nil
}

// Close closes the file.
func (db *DB) Close() error { return db.bolt.Close() }

// Changes are written together or not at all.
type Changes struct {
	Tasks          []Task
	RemoveTasks    []string
	Networks       []*cluster.Network
	RemoveNetworks []string
	// Node, Managers and Mesh replace what was stored, if not nil.
	Node     *cluster.Node
	Managers []protocol.ManagerAddr
	Mesh     *protocol.Mesh
}

// Empty says that there is nothing to write.
func (c *Changes) Empty() bool {
	return len(c.Tasks)+len(c.RemoveTasks)+len(c.Networks)+len(c.RemoveNetworks) == 0 && c.Node == nil && c.Managers == nil && c.Mesh == nil
}

// Write stores changes and returns when they are on disk.
func (db *DB) Write(c Changes) error {
	err := db.bolt.Update(func(tx *bolt.Tx) error {
		tasks, networks, agent := tx.Bucket(bucketTasks), tx.Bucket(bucketNetworks), tx.Bucket(bucketAgent)
		var errs []error
		put := func(b *bolt.Bucket, key []byte, v any) {
			data, err := json.Marshal(v)
			if err == nil {
				err = b.Put(key, data)
			}
			errs = append(errs, err)
		}
		for _, t := range c.Tasks {
			put(tasks, []byte(t.Task.ID), t)
		}
		for _, id := range c.RemoveTasks {
			errs = append(errs, tasks.Delete([]byte(id)))
		}
		for _, n := range c.Networks {
			put(networks, []byte(n.ID), n)
		}
		for _, id := range c.RemoveNetworks {
			errs = append(errs, networks.Delete([]byte(id)))
		}
		if c.Node != nil {
			put(agent, keyNode, c.Node)
		}
		if c.Managers != nil {
			put(agent, keyManagers, c.Managers)
		}
		if c.Mesh != nil {
			put(agent, keyMesh, c.Mesh)
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return fmt.Errorf("write tasks to %s: %w", db.bolt.Path(), err)
	}
	return nil
}

// Content is everything in the file.
type Content struct {
	Tasks    []Task // by id
	Networks []*cluster.Network
	Node     *cluster.Node // nil if none was stored
	Managers []protocol.ManagerAddr
	Mesh     *protocol.Mesh // nil if none was stored
}

// Read gives everything. Records that cannot be decoded are left out and named in the error.
func (db *DB) Read() (Content, error) {
	var c Content
	var errs []error
	decode := func(key, data []byte, into any) bool {
		if err := json.Unmarshal(data, into); err != nil {
			errs = append(errs, fmt.Errorf("record %s: %w", key, err))
			return false
		}
		return true
	}
	err := db.bolt.View(func(tx *bolt.Tx) error {
		_ = tx.Bucket(bucketTasks).ForEach(func(k, v []byte) error {
			var t Task
			if decode(k, v, &t) && t.Task != nil {
				c.Tasks = append(c.Tasks, t)
			}
			return nil
		})
		_ = tx.Bucket(bucketNetworks).ForEach(func(k, v []byte) error {
			n := new(cluster.Network)
			if decode(k, v, n) {
				c.Networks = append(c.Networks, n)
			}
			return nil
		})
		agent := tx.Bucket(bucketAgent)
		if v := agent.Get(keyNode); v != nil {
			n := new(cluster.Node)
			if decode(keyNode, v, n) {
				c.Node = n
			}
		}
		if v := agent.Get(keyManagers); v != nil {
			decode(keyManagers, v, &c.Managers)
		}
		if v := agent.Get(keyMesh); v != nil {
			m := new(protocol.Mesh)
			if decode(keyMesh, v, m) {
				c.Mesh = m
			}
		}
		return nil
	})
	if err = errors.Join(append(errs, err)...); err != nil {
		err = fmt.Errorf("read tasks from %s: %w", db.bolt.Path(), err)
	}
	return c, err
}

// Clear forgets everything, as when the node leaves its cluster.
func (db *DB) Clear() error {
	err := db.bolt.Update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketTasks, bucketNetworks, bucketAgent} {
			if err := tx.DeleteBucket(name); err != nil {
				return err
			}
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("clear %s: %w", db.bolt.Path(), err)
	}
	return nil
}
