package raftstore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"github.com/miniswarm/miniswarm/trouble"
)

// inbox is what reaches the raft loop from other goroutines.
type inbox struct {
	mu sync.Mutex // guards all below
	inboxItems
	closed bool
	wake   chan struct{}
}

type inboxItems struct {
	remote    []*raftpb.Message // from peers
	local     []*raftpb.Message // from the appender and the applier
	appended  int               // appends that are done
	proposals []*proposal
	reads     []*readRequest
	confs     []*confRequest
	calls     []func(*loop)
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

// put changes the items under the lock and wakes the loop. It reports false when the loop has ended.
func (in *inbox) put(change func(*inboxItems)) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return false
	}
	change(&in.inboxItems)
	select {
	case in.wake <- struct{}{}:
	default:
	}
	return true
}

func (in *inbox) take() inboxItems {
	in.mu.Lock()
	defer in.mu.Unlock()
	items := in.inboxItems
	in.inboxItems = inboxItems{}
	return items
}

// close refuses further items and gives those that were left.
func (in *inbox) close() inboxItems {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	return in.inboxItems
}

// loop owns the raft node. It only decides: writing the log, applying entries and sending are others' work, so that it
// answers heartbeats whatever the disk does.
//
// Storage writes are asynchronous in raft's sense: messages to followers leave while the leader's own disk is still
// writing the same entries (raft thesis, 10.2.1), and while the disk writes one batch the next one collects.
type loop struct {
	s    *Store
	node *raft.RawNode

	role  role
	ticks uint64
	heard map[uint64]uint64 // tick of the last message of each peer
	// leaderHeard is when the leader that this member follows was last heard from.
	leaderHeard time.Time
	writes      int // appends with entries handed to the appender and not done
	// held are proposals that wait for the disk, so that they share the next write.
	held []*proposal
	// caughtUp is true for a leader once an entry of its own term is applied. Raft makes an empty entry of a membership change that
	// comes before, and nobody hears of that.
	caughtUp bool
	reads    readRounds
	confs    []*confRequest
	// rollCalls are those that wait for answers.
	rollCalls []*rollCall
	// confPending is true while a membership change is in the log and not applied: raft takes one at a time.
	confPending bool
	// progress is the tick at which the disk was last known to work.
	progress uint64
	hangs    trouble.Log // the disk, while this member leads
	// eager is the tick until which this member, whose leader's process has ended, stands for election without waiting.
	eager  uint64
	runoff runoff
	// stopping is the tick at which to stop waiting for another leader, 0 while the store is not to stop.
	stopping uint64
}

// maxWrites is how many appends may be under way before further proposals wait to be written together.
const maxWrites = 2

func newLoop(s *Store) *loop {
	l := &loop{s: s, node: s.node, heard: map[uint64]uint64{}, reads: readRounds{boot: s.boot}}
	l.role.term = s.node.BasicStatus().GetTerm()
	s.view.setRole(l.role)
	return l
}

func (l *loop) run(ctx context.Context) {
	ticker := time.NewTicker(l.s.cfg.Tick)
	defer ticker.Stop()
	defer l.refuse()
	defer func() {
		switch v := recover().(type) {
		case nil:
		case impossible:
			l.s.fail(fmt.Errorf("%s: %w", l.s.cfg.Dir, v))
		default:
			panic(v)
		}
	}()
	stop := ctx.Done()
	l.elect()
	for {
		select {
		case <-l.s.inbox.wake:
		case <-ticker.C:
			l.tick()
		case <-stop:
			if l.s.crashed(ctx) || !l.beginStop() {
				return
			}
			stop = nil
		case <-l.s.failed:
			return
		}
		_ = l.s.at(Turn)
		l.step(l.s.inbox.take())
		l.work()
		if l.stopping > 0 && (!l.role.leads || l.ticks >= l.stopping) {
			return
		}
	}
}

// elect spares a group of one the wait for its own election.
func (l *loop) elect() {
	m := l.s.view.membership().members
	if len(m) == 1 && m[0].RaftID == l.s.self && !m[0].Learner {
		_ = l.node.Campaign() // refused only when there is nothing to win
		l.work()
	}
}

// step feeds raft with what has arrived.
func (l *loop) step(in inboxItems) {
	if l.writes -= in.appended; in.appended > 0 || l.writes == 0 {
		l.progress = l.ticks
	}
	if in.appended > 0 {
		l.diskAnswers()
	}
	for _, m := range in.local {
		l.noteApplied(m)
		_ = l.node.Step(m)
	}
	for _, m := range in.remote {
		l.heard[m.GetFrom()] = l.ticks
		l.answered(m.GetFrom())
		if m.GetFrom() == l.role.leader {
			l.leaderHeard = time.Now()
		}
		_ = l.node.Step(m) // an error means that raft has no use for the message
	}
	for _, call := range in.calls {
		call(l)
	}
	l.held = append(l.held, in.proposals...)
	if len(l.held) > 0 && l.writes < maxWrites {
		l.propose(l.held)
		l.held = nil
	}
	l.reads.waiting = append(l.reads.waiting, in.reads...)
	l.reads.next(l.node)
	l.confs = append(l.confs, in.confs...)
	l.changeMembers()
}

// noteApplied watches the applier's answers for what permits membership changes.
func (l *loop) noteApplied(m *raftpb.Message) {
	if m.GetType() != raftpb.MsgStorageApplyResp {
		return
	}
	for _, e := range m.Entries {
		if e.GetType() != raftpb.EntryNormal {
			l.confPending = false
		}
		if l.role.leads && e.GetTerm() == l.role.term {
			l.caughtUp = true
		}
	}
}

// work takes from raft what is to be done and hands it out.
func (l *loop) work() {
	for l.node.HasReady() {
		rd := l.node.Ready()
		l.follow(rd)
		l.reads.answer(rd.ReadStates)
		l.reads.next(l.node)
		var out []*raftpb.Message
		for _, m := range rd.Messages {
			switch m.GetTo() {
			case raft.LocalAppendThread:
				if len(m.Entries) > 0 {
					l.writes++
				}
				l.s.appends.push(appendWork{m: m})
			case raft.LocalApplyThread:
				l.s.applies.push(applyWork{m: m})
			default:
				out = append(out, m)
			}
		}
		l.send(out)
	}
}

// follow notes the outcome of elections.
func (l *loop) follow(rd raft.Ready) {
	r := l.role
	if !raft.IsEmptyHardState(rd.HardState) {
		r.term = rd.GetTerm()
		l.s.committed.Store(rd.GetCommit())
	}
	if rd.SoftState != nil {
		l.noteCandidacy(rd.SoftState)
		if r.leader != rd.Lead {
			if r.leader != 0 {
				r.former, r.formerHeard = "", time.Time{}
				if m, ok := l.s.view.membership().member(r.leader); ok && !r.leads {
					r.former, r.formerHeard = m.NodeID, l.leaderHeard
				}
			}
			l.leaderHeard = time.Now() // the one that comes, by the message that told of it
		}
		r.leader, r.leads = rd.Lead, rd.RaftState == raft.StateLeader
	}
	if r == l.role {
		return
	}
	was := l.role
	l.role = r
	if was.leads && (!r.leads || r.term != was.term) {
		l.deposed()
	}
	if r.leads != was.leads || r.leader != was.leader || r.term != was.term {
		l.s.log.Info("raft role or term changed", "term", r.term, "leader", hexID(r.leader), "leads", r.leads)
	}
	if r.leads && (!was.leads || r.term != was.term) {
		l.caughtUp = false
		l.noteReachable() // those who voted
	}
	l.s.view.setRole(r)
}

// deposed ends what only a leader can finish.
func (l *loop) deposed() {
	l.caughtUp, l.confPending = false, false
	l.s.pending.failAll(ErrLeadershipLost)
	for _, c := range l.confs {
		c.end(ErrLeadershipLost)
	}
	l.confs = nil
	l.failRollCalls(&ErrNotLeader{})
}

func (l *loop) send(out []*raftpb.Message) {
	for _, m := range out {
		if m.GetType() == raftpb.MsgSnap {
			l.s.sending.Add(1)
		}
	}
	if len(out) > 0 {
		l.s.cfg.Transport.Send(out)
	}
}

func (l *loop) tick() {
	l.ticks++
	l.node.Tick()
	l.reads.tick(l.node)
	l.beEager()
	l.standAgain()
	l.expireRollCalls()
	l.noteReachable()
	l.noteLed()
	if l.role.leads {
		l.promote()
		l.changeMembers()
		l.resign()
	}
}

// gone reacts to the end of a peer's process. If that was the leader there is no point in waiting for its next heartbeat: the
// followers forget it, so that they may vote, and one of them stands. Where the leader lives and only this member lost it,
// the others know better and do not vote for this one (pre-vote), which then follows again.
func (l *loop) gone(id uint64) {
	delete(l.heard, id)
	l.noteReachable()
	if l.stopping > 0 && l.successor() == 0 {
		l.stopping = l.ticks // nobody is left to take over
	}
	if id != l.role.leader || l.role.leads {
		return
	}
	if err := l.node.ForgetLeader(); err != nil {
		return
	}
	l.eager = l.ticks + 1 + uint64(l.s.cfg.ElectionTicks/2)
}

// beEager stands for election now and then, at random so that two members do not always do so at once.
func (l *loop) beEager() {
	if l.eager < l.ticks || l.role.leader != 0 || l.stopping > 0 {
		return
	}
	if rand.IntN(2) == 0 {
		_ = l.node.Campaign() // refused only where there is nothing to win
	}
}

// reachable says whether a member was heard from within an election timeout.
func (l *loop) reachable(id uint64) bool {
	at, ok := l.heard[id]
	return id == l.s.self || ok && l.ticks-at <= uint64(l.s.cfg.ElectionTicks)
}

// noteReachable publishes who is reachable when that has changed.
func (l *loop) noteReachable() {
	now := map[uint64]bool{}
	same := true
	before := l.s.heard.Load()
	members := l.s.view.membership().members
	for _, m := range members {
		now[m.RaftID] = l.reachable(m.RaftID)
		same = same && before != nil && (*before)[m.RaftID] == now[m.RaftID]
	}
	if !same || before == nil || len(*before) != len(now) {
		l.s.heard.Store(&now)
	}
}

// noteLed publishes that there is a leader still.
func (l *loop) noteLed() {
	if at, heard := l.heard[l.role.leader]; l.role.leads || heard && at+1 >= l.ticks {
		now := time.Now()
		l.s.ledAt.Store(&now)
	}
}

// beginStop prepares to end and says whether there is something to wait for: as leader, that another member takes over.
func (l *loop) beginStop() bool {
	to := l.successor()
	if to == 0 {
		return false
	}
	l.stopping = l.ticks + uint64(l.s.cfg.ElectionTicks)
	l.node.TransferLeader(to)
	return true
}

// successor is the voter that is furthest among those that are reachable, 0 if there is none or this member does not lead.
func (l *loop) successor() uint64 {
	if !l.role.leads {
		return 0
	}
	best, match := uint64(0), uint64(0)
	l.node.WithProgress(func(id uint64, typ raft.ProgressType, pr tracker.Progress) {
		if id != l.s.self && typ == raft.ProgressTypePeer && l.reachable(id) && (best == 0 || pr.Match > match) {
			best, match = id, pr.Match
		}
	})
	return best
}

// refuse tells those who wait for the loop that it has ended.
func (l *loop) refuse() {
	in := l.s.inbox.close()
	for _, p := range slices.Concat(l.held, in.proposals) {
		p.end(proposalResult{err: ErrStopped})
	}
	for _, c := range slices.Concat(l.confs, in.confs) {
		c.end(ErrStopped)
	}
	for _, r := range slices.Concat(l.reads.all(), in.reads) {
		r.end(0, ErrStopped)
	}
	l.failRollCalls(ErrStopped)
}
