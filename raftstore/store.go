package raftstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	crand "crypto/rand"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"golang.org/x/sync/semaphore"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// Store is one member's replica of the tables. All methods may be called concurrently; those that write or read through the
// leader work while Run does.
type Store struct {
	cfg  Config
	log  *slog.Logger
	self uint64
	disk *disk
	// storage is raft's view of the log: what the disk has, in memory.
	storage *logStorage
	view    *view
	inbox   *inbox
	appends *queue[appendWork]
	applies *queue[applyWork]
	// applier is used by Open, then by its goroutine.
	applier *applier
	node    *raft.RawNode // given to the loop by Run

	boot    uint64
	seq     atomic.Uint64
	pending pendingProposals
	// room bounds the bytes of proposals under way.
	room *semaphore.Weighted

	committed atomic.Uint64
	heard     atomic.Pointer[map[uint64]bool]
	ledAt     atomic.Pointer[time.Time] // when this member last led, or heard the leader; nil before the first time

	streams   streams
	addresses addresses
	// sending counts snapshots under way to followers, for which the log is kept.
	sending atomic.Int32
	// keepEntries and keepSnapshots follow the cluster's settings; see settings.go.
	keepEntries, keepSnapshots atomic.Uint64
	unsent                     sync.Map // of *trouble.Log by raft id: snapshots that a follower did not take
	// snapMu makes writing and installing snapshots exclude each other.
	snapMu sync.Mutex

	started  atomic.Bool
	failOnce sync.Once
	failed   chan struct{}
	failure  error         // why failed was closed
	loopDone chan struct{} // the raft loop has ended
	// appendsDone and appliesDone: the appender and the applier have.
	appendsDone, appliesDone chan struct{}
	done                     chan struct{} // Run has ended
}

// Open reads the store in cfg.Dir, or creates it: with Bootstrap as the only member of a new group, otherwise as the empty store of
// the member cfg.RaftID, which the leader will fill. Errors about damaged files name the file and the offset. The store
// works once Run is called; a store that is never run must be closed.
func Open(cfg Config) (*Store, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	seal, err := newSealer(cfg.Key, cfg.OlderKeys...)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{
		cfg: cfg, log: cfg.Logger, inbox: newInbox(), appends: newQueue[appendWork](), applies: newQueue[applyWork](),
		room: semaphore.NewWeighted(maxProposalBytes), failed: make(chan struct{}), loopDone: make(chan struct{}), done: make(chan struct{}),
		appendsDone: make(chan struct{}), appliesDone: make(chan struct{}),
	}
	var seed [8]byte
	crand.Read(seed[:])
	s.boot = binary.BigEndian.Uint64(seed[:])
	if err := s.openDisk(seal); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := s.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), s.disk.close())
	}
	return s, nil
}

// openDisk opens or creates the directory; s.storage and s.applier are what it holds.
func (s *Store) openDisk(seal *sealer) error {
	if !Exists(s.cfg.Dir) {
		if err := s.createDisk(seal); err != nil {
			return err
		}
	}
	d, l, err := openDisk(s.cfg.Dir, seal, s.log)
	if err != nil {
		return err
	}
	if s.cfg.Bootstrap && l.blank() {
		// New, or a crash came between creating and bootstrapping.
		meta := snapshotMeta{Index: 1, Term: 1, Members: []protocol.Member{{RaftID: d.id.RaftID, NodeID: d.id.NodeID, Addr: s.cfg.Addr}}}
		if err := errors.Join(d.bootstrap(meta, confState(meta), cluster.NewState().Snapshot()), d.close()); err != nil {
			return err
		}
		if d, l, err = openDisk(s.cfg.Dir, seal, s.log); err != nil {
			return err
		}
	}
	if err := s.load(d, l); err != nil {
		return errors.Join(err, d.close())
	}
	return nil
}

func (s *Store) createDisk(seal *sealer) error {
	id := diskID{RaftID: s.cfg.RaftID, NodeID: s.cfg.NodeID, ClusterID: s.cfg.ClusterID}
	if id.RaftID == 0 && s.cfg.Bootstrap {
		id.RaftID = newRaftID()
	}
	if id.RaftID == 0 {
		return fmt.Errorf("%s holds no store: begin a new group, or join one and give the raft id", s.cfg.Dir)
	}
	d, err := createDisk(s.cfg.Dir, id, seal, s.log)
	if err != nil {
		return err
	}
	return d.close()
}

func (s *Store) load(d *disk, l *loaded) error {
	if s.cfg.RaftID != 0 && s.cfg.RaftID != d.id.RaftID {
		return fmt.Errorf("%s belongs to member %x, not to %x", s.cfg.Dir, d.id.RaftID, s.cfg.RaftID)
	}
	if s.cfg.NodeID != d.id.NodeID {
		return fmt.Errorf("%s belongs to node %s, not to %s", s.cfg.Dir, d.id.NodeID, s.cfg.NodeID)
	}
	if s.cfg.ClusterID != "" && d.id.ClusterID != "" && s.cfg.ClusterID != d.id.ClusterID {
		return fmt.Errorf("%s belongs to cluster %s, not to %s", s.cfg.Dir, d.id.ClusterID, s.cfg.ClusterID)
	}
	s.disk, s.self = d, d.id.RaftID
	d.synced = s.cfg.Timings.Sync
	state, meta := cluster.NewState(), snapshotMeta{Members: s.cfg.Peers}
	if index := l.snapshot.GetIndex(); index > 0 {
		var err error
		if meta, state, err = loadSnapshot(snapDir(d.dir), l.snapshot.GetTerm(), index, d.seal); err != nil {
			return err
		}
	}
	conf := l.snapshot.GetConfState()
	memory, err := l.storage(conf)
	if err != nil {
		return err
	}
	s.storage = &logStorage{MemoryStorage: memory, want: func() { s.applies.push(applyWork{wanted: true}) }}
	s.applier = newApplier(s, state, meta, raftpb.EnsureConfState(conf))
	if index := l.snapshot.GetIndex(); index > 0 {
		return d.purge(index, s.keepSnapshots.Load())
	}
	return nil
}

// start makes the raft node and the view.
func (s *Store) start() error {
	a := s.applier
	s.view = newView(a.snapshot, a.index, a.term, a.membership())
	node, err := raft.NewRawNode(&raft.Config{
		ID:                        s.self,
		ElectionTick:              s.cfg.ElectionTicks,
		HeartbeatTick:             s.cfg.HeartbeatTicks,
		Storage:                   s.storage,
		Applied:                   a.index,
		AsyncStorageWrites:        true,
		MaxSizePerMsg:             maxMessageBytes,
		MaxCommittedSizePerReady:  maxApplyBytes,
		MaxInflightMsgs:           maxInflightMsgs,
		MaxInflightBytes:          maxInflightBytes,
		CheckQuorum:               true,
		PreVote:                   true,
		DisableProposalForwarding: true,
		StepDownOnRemoval:         true,
		Logger:                    raftLogger{s.log},
	})
	if err != nil {
		return err
	}
	s.node = node
	return nil
}

// newRaftID draws an id that was surely never used: 63 bits, above 0, as in Swarm.
func newRaftID() uint64 {
	var b [8]byte
	crand.Read(b[:])
	return binary.BigEndian.Uint64(b[:])>>1 + 1
}

// Run works until ctx is done or the store cannot go on, and returns why: nil in the first case. It may be called once.
//
// Shutting down goes in this order. A leader hands leadership to the member that is furthest, so that the others need not wait
// for an election; new writes are refused meanwhile. The raft loop ends. What raft has handed out is still
// written and applied, and its writers get their results. Then the connections end, the log is closed, and whoever still waits
// is told [ErrStopped].
func (s *Store) Run(ctx context.Context) error {
	if !s.started.CompareAndSwap(false, true) {
		return errors.New("run store: it runs already or has run")
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	s.cfg.Transport.Attach(s)
	s.addresses.follow(s, s.view.membership(), s.applier.index > 0)
	var transport, workers sync.WaitGroup
	transport.Go(func() {
		if err := s.cfg.Transport.Run(background); err != nil {
			s.fail(fmt.Errorf("transport: %w", err))
		}
	})
	workers.Go(s.runAppends)
	workers.Go(s.runApplies)

	newLoop(s).run(ctx)

	close(s.loopDone)
	s.appends.notify()
	s.applies.notify()
	workers.Wait()
	s.streams.close()
	stop()
	transport.Wait()
	err := s.end(ctx)
	stopped := ErrStopped
	if err != nil {
		stopped = fmt.Errorf("%w: %w", ErrStopped, err)
	}
	s.view.stop(stopped)
	close(s.done)
	return err
}

// end closes the log and says how Run ended.
func (s *Store) end(ctx context.Context) error {
	if s.crashed(ctx) {
		if s.cfg.Hooks.Crashed != nil {
			s.cfg.Hooks.Crashed()
		}
		return errors.Join(ErrCrash, s.disk.close())
	}
	err := s.disk.close()
	select {
	case <-s.failed:
		return fmt.Errorf("run store: %w", s.failure) // what closing says after that is a consequence
	default:
	}
	if err != nil {
		return fmt.Errorf("run store: %w", err)
	}
	return nil
}

// fail stops the store for a reason that cannot be repaired by going on.
func (s *Store) fail(err error) {
	s.failOnce.Do(func() {
		s.failure = err
		close(s.failed)
	})
}

func (s *Store) hasFailed() bool {
	select {
	case <-s.failed:
		return true
	default:
		return false
	}
}

// Close releases a store that was opened and never run. After Run it does nothing.
func (s *Store) Close() error {
	if !s.started.CompareAndSwap(false, true) {
		return nil
	}
	s.view.stop(ErrStopped)
	close(s.loopDone)
	close(s.done)
	return s.disk.close()
}

// Snapshot is the latest state that this member has applied. On a follower, and on a leader that was deposed without
// knowing it yet, it may be older than what others have acknowledged. It waits for the transaction that is being applied at
// the moment, if any, and never for disk or network; writers do not wait for those who hold snapshots.
func (s *Store) Snapshot() *cluster.Snapshot { return s.applier.snapshot() }

// Status describes the member and the group as it sees it.
type Status struct {
	RaftID uint64
	NodeID string
	// Term is raft's, Leader the raft id of the leader or 0; IsLeader says whether it is this member.
	Term         uint64
	Leader       uint64
	LeaderNodeID string
	LeaderAddr   string
	IsLeader     bool
	// Applied and Committed are log indices.
	Applied, Committed uint64
	// Members are in the order of their raft ids.
	Members []protocol.Member
	// Reachable has the members that were heard from within an election timeout, this one included. Followers hear from
	// the leader only.
	Reachable map[uint64]bool
	// SnapshotIndex is the log index of the stored snapshot, LogEntries the number of entries in memory, DiskBytes what
	// the directory takes: the log and the snapshots together.
	SnapshotIndex           uint64
	LogEntries              uint64
	DiskBytes               int64
	LogBytes, SnapshotBytes int64
}

// Members are the members in the order of their raft ids. It costs nothing; the slice must not be changed.
func (s *Store) Members() []protocol.Member { return s.view.membership().members }

// Reachable says whether a member was heard from within an election timeout, as [Status] does for all; it costs nothing.
func (s *Store) Reachable(raftID uint64) bool {
	heard := s.heard.Load()
	return heard != nil && (*heard)[raftID]
}

// Status is cheap enough to be asked every second, but it looks through the directory.
func (s *Store) Status() Status {
	v := s.view
	v.mu.Lock()
	st := Status{
		RaftID: s.self, NodeID: s.cfg.NodeID, Term: v.role.term, Leader: v.leadership.LeaderID, LeaderNodeID: v.leadership.LeaderNodeID,
		LeaderAddr: v.leadership.LeaderAddr, IsLeader: v.role.leads, Applied: v.applied, Members: slices.Clone(v.members.members),
	}
	v.mu.Unlock()
	st.Committed = max(s.committed.Load(), st.Applied)
	st.Reachable = map[uint64]bool{}
	if heard := s.heard.Load(); heard != nil {
		for id, ok := range *heard {
			st.Reachable[id] = ok
		}
	}
	st.SnapshotIndex = s.snapshotIndex()
	first, _ := s.storage.FirstIndex() // MemoryStorage never fails here
	last, _ := s.storage.LastIndex()
	st.LogEntries = last + 1 - first
	st.LogBytes, st.SnapshotBytes = s.disk.sizes()
	st.DiskBytes = st.LogBytes + st.SnapshotBytes
	return st
}

// Responds waits until the raft loop has taken a turn. An error says that it did not within ctx, or has ended.
func (s *Store) Responds(ctx context.Context) error {
	turned := make(chan struct{})
	if !s.inbox.put(func(in *inboxItems) { in.calls = append(in.calls, func(*loop) { close(turned) }) }) {
		return ErrStopped
	}
	select {
	case <-turned:
		return nil
	case <-s.done:
		return ErrStopped
	case <-ctx.Done():
		return fmt.Errorf("the raft loop does not take a turn: %w", context.Cause(ctx))
	}
}

// snapshotIndex is the index of the latest stored snapshot.
func (s *Store) snapshotIndex() uint64 {
	snap, err := s.storage.MemoryStorage.Snapshot()
	if err != nil {
		return 0 // MemoryStorage never fails here
	}
	return snap.GetMetadata().GetIndex()
}
