package role

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
	"github.com/miniswarm/miniswarm/trouble"
)

const (
	// rolePause is the wait before the next attempt to become a manager.
	rolePause = time.Second
	// removedPatience is how long a manager that the group has removed waits for the certificate of a worker before it
	// asks to be a member again: it was promoted anew meanwhile.
	removedPatience = 3 * time.Second
)

// errDemoted ends the manager's parts when the certificate says worker.
var errDemoted = errors.New("this node is a worker now")

// Parts are what a machine runs while it is a manager: its replica of the store, and what works on it. The zero value is none.
type Parts interface {
	comparable
	// Run works until ctx ends, whose cause it returns, or one of the parts fails; [raftstore.ErrRemoved] says that the group has removed
	// this member. It is called once, and nothing is left to close when it is back.
	Run(ctx context.Context) error
	// Close lets go of parts that were never run.
	Close() error
}

// Machine is where a supervisor works. Its methods are called by [Supervisor.Run] one at a time, but for Role and RenewNow, which
// may be called at any time.
type Machine[P Parts] interface {
	// Role is what the certificate says.
	Role() identity.Role
	// RenewNow has another certificate fetched, and returns at once.
	RenewNow()

	// Join asks the raft group for a place, as [Join] does. It may be repeated.
	Join(ctx context.Context) (*protocol.JoinResponse, error)
	// Forget deletes the replica that is on disk, if there is one.
	Forget() error
	// Note remembers on disk what the group has answered.
	Note(answer *protocol.JoinResponse) error
	// Open opens a new replica and prepares the parts over it.
	Open(answer *protocol.JoinResponse) (P, error)

	// Removed is told that the group has removed these parts' member; they have ended.
	Removed(parts P)
	// Retire deletes all that a manager has on disk and a worker has not. It is called whenever this machine is found to be a worker, and so
	// also when there is nothing to delete.
	Retire() error
}

// Config says what a supervisor supervises.
type Config[P Parts] struct {
	Machine Machine[P]
	NodeID  string
	Addr    string // where others reach its manager, for the log
	Logger  *slog.Logger
}

// Supervisor runs a manager's parts while this node's role is that of a manager. Its methods may be called concurrently, Run once.
type Supervisor[P Parts] struct {
	cfg     Config[P]
	changed chan struct{} // of capacity 1: the certificate has another role than before

	mu     sync.Mutex
	parts  P             // guarded by mu; zero while this node is no manager
	wanted identity.Role // guarded by mu; the role that the leader said last that this node is to have, empty before the first time
}

// New gives a supervisor that does nothing until Run.
func New[P Parts](cfg Config[P]) *Supervisor[P] {
	return &Supervisor[P]{cfg: cfg, changed: make(chan struct{}, 1)}
}

// StartWith has a machine that starts as a manager begin with parts that are open already. It is called before Run, which closes
// them if it does not come to running them; until then they are the caller's to close.
func (s *Supervisor[P]) StartWith(parts P) { s.set(parts) }

// Parts gives the manager's parts, the zero value while this node is no manager.
func (s *Supervisor[P]) Parts() P {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.parts
}

func (s *Supervisor[P]) set(parts P) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parts = parts
}

// Learn takes in the role that the leader says this node is to have. When it is not that of the certificate the node was promoted or
// demoted, and fetches its new certificate; that in turn starts or stops the manager's parts.
func (s *Supervisor[P]) Learn(wanted identity.Role) {
	s.mu.Lock()
	s.wanted = wanted
	s.mu.Unlock()
	if wanted != s.cfg.Machine.Role() {
		s.cfg.Machine.RenewNow()
	}
}

// ToManage says whether this node is to be a manager: by its certificate, or by what the leader said last, where that certificate is on
// its way.
func (s *Supervisor[P]) ToManage() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wanted == identity.Manager || s.cfg.Machine.Role() == identity.Manager
}

// Renewed is told of every new certificate, once it is the machine's.
func (s *Supervisor[P]) Renewed(before, after identity.Identity) {
	if before.Role == after.Role {
		return
	}
	s.cfg.Logger.Info("the role of this node has changed", "node", s.cfg.NodeID, "before", before.Role, "now", after.Role)
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Run runs the manager's parts while the role is that of a manager, until ctx ends, whose cause it returns, or they fail for another
// reason than a change of the role.
func (s *Supervisor[P]) Run(ctx context.Context) error {
	var none P
	first := s.Parts()
	defer func() { s.letGo(first) }()
	var waiting trouble.Log
	for ctx.Err() == nil {
		if s.cfg.Machine.Role() != identity.Manager {
			waiting.Over(time.Now())
			s.letGo(first)
			first = none
			if err := s.cfg.Machine.Retire(); err != nil {
				s.cfg.Logger.Warn("a former manager's replica is still on disk", "err", err)
			}
			s.awaitRole(ctx, 0)
			continue
		}
		parts := first
		if first = none; parts == none {
			var err error
			if parts, err = s.become(ctx); err != nil {
				if ctx.Err() == nil {
					if tell, lasting := waiting.Again(time.Now(), ""); tell {
						s.cfg.Logger.Warn("this node is to be a manager and cannot yet; it goes on trying", "since", lasting.Round(time.Second), "err", err)
					}
					s.cfg.Machine.RenewNow() // it may be a worker again
					s.awaitRole(ctx, rolePause)
				}
				continue
			}
			waiting.Over(time.Now())
			s.cfg.Logger.Info("this node is a manager now", "node", s.cfg.NodeID, "addr", s.cfg.Addr)
		}
		err := s.runParts(ctx, parts)
		switch {
		case ctx.Err() != nil || errors.Is(err, errDemoted):
		case errors.Is(err, raftstore.ErrRemoved):
			s.cfg.Logger.Warn("the managers have removed this one from their group", "node", s.cfg.NodeID)
			s.cfg.Machine.Removed(parts)
			s.cfg.Machine.RenewNow()
			s.awaitRole(ctx, removedPatience)
		default:
			return err
		}
	}
	return context.Cause(ctx)
}

// letGo closes the parts of a machine that was to start as a manager, and did not come to it; the zero value is none.
func (s *Supervisor[P]) letGo(first P) {
	var none P
	if first == none {
		return
	}
	s.set(none)
	if err := first.Close(); err != nil {
		s.cfg.Logger.Warn("a replica that was not run is not closed cleanly", "err", err)
	}
}

// awaitRole waits for a change of the role, at most so long; 0 is for ever.
func (s *Supervisor[P]) awaitRole(ctx context.Context, limit time.Duration) {
	var over <-chan time.Time
	if limit > 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		over = t.C
	}
	select {
	case <-ctx.Done():
	case <-s.changed:
	case <-over:
	}
}

// become makes this node a member of the raft group and opens its replica. It may be repeated: the group gives the same
// answer until the member has caught up.
func (s *Supervisor[P]) become(ctx context.Context) (none P, err error) {
	answer, err := s.cfg.Machine.Join(ctx)
	if err != nil {
		return none, err
	}
	if err := s.cfg.Machine.Forget(); err != nil {
		return none, err
	}
	if err := s.cfg.Machine.Note(answer); err != nil {
		return none, err
	}
	return s.cfg.Machine.Open(answer)
}

// runParts runs the parts until ctx ends, the role changes, or they fail.
func (s *Supervisor[P]) runParts(ctx context.Context, parts P) error {
	var none P
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.set(parts)
	defer s.set(none)
	done := make(chan error, 1)
	go func() { done <- parts.Run(ctx) }()
	for {
		select {
		case err := <-done:
			return err
		case <-s.changed:
			if s.cfg.Machine.Role() != identity.Manager {
				s.set(none) // requests hear at once that this is a worker
				cancel(errDemoted)
			}
		}
	}
}
