package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

func TestFiveMembersGoOnWithThree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(5)
		g.leader().mustPut("a")
		dead := []*member{g.leader(), g.follower()}
		for _, m := range dead {
			m.kill()
		}
		g.leader().mustPut("b")
		for _, m := range dead {
			m.restart()
		}
		g.settle()
		if got := g.members[4].Snapshot().Len(cluster.KindConfig); got != 2 {
			t.Errorf("a restarted member has %d objects, want 2", got)
		}
	})
}

func TestAMinorityChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(3)
		old := g.leader()
		old.mustPut("a")
		var others []uint64
		for _, m := range g.members {
			if m != old {
				others = append(others, m.self)
			}
		}
		g.net.Partition([]uint64{old.self}, others)

		err := old.put("lost") // it believes to lead until its majority has been silent for an election timeout
		if !errors.Is(err, ErrLeadershipLost) {
			t.Errorf("a write to the cut off leader: %v, want %v", err, ErrLeadershipLost)
		}
		var notLeader *ErrNotLeader
		if err := old.put("refused"); !errors.As(err, &notLeader) || notLeader.Leader != 0 {
			t.Errorf("a write to a member that was cut off: %v", err)
		}
		if old.Snapshot().Config("a") == nil {
			t.Error("the cut off member does not serve what it has")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := old.Read(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a linearizable read on a member that was cut off: %v", err)
		}
		leader := g.leader()
		leader.mustPut("b")
		term := leader.Status().Term

		g.net.Partition()
		g.settle()
		if now := g.leader(); now != leader || now.Status().Term != term {
			t.Error("the member that came back disturbed the leader")
		}
		for _, m := range g.members {
			if s := m.Snapshot(); s.Config("b") == nil || s.Config("refused") != nil {
				t.Errorf("%s does not have what the majority has", m.cfg.NodeID)
			}
		}
	})
}

func TestAFollowerFarBehindGetsASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, func(c *Config) { c.SnapshotEvery, c.KeepEntries = 20, 5 })
		g.grow(3)
		slow := g.follower()
		w := slow.Watch(1000)
		defer w.Close()
		var others []uint64
		for _, m := range g.members {
			if m != slow {
				others = append(others, m.self)
			}
		}
		g.net.Partition([]uint64{slow.self}, others)
		for i := range 100 {
			g.leader().mustPut(fmt.Sprint("a", i))
		}
		g.net.Partition()
		g.settle()
		if slow.Status().SnapshotIndex < 50 {
			t.Errorf("the snapshot of the follower has index %d: it did not get one", slow.Status().SnapshotIndex)
		}
		for range w.Events() {
		}
		if !errors.Is(w.Err(), ErrLagged) {
			t.Errorf("a watch across a snapshot ended with %v, want %v", w.Err(), ErrLagged)
		}
		// What it got is on its disk as well.
		slow.kill()
		slow = slow.restart()
		g.settle()
		if got := slow.Snapshot().Len(cluster.KindConfig); got != 100 {
			t.Errorf("the follower has %d objects after a restart, want 100", got)
		}
	})
}

func TestDiskAndMemoryStayBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, func(c *Config) { c.SnapshotEvery, c.KeepEntries = 100, 20 })
		g.grow(1)
		m := g.leader()
		big := config("big", 10<<10)
		largest := int64(0)
		for i := range 600 { // 6 MB of log over segments of 256 KB
			action := cluster.Update
			if i == 0 {
				action = cluster.Create
			}
			if _, err := m.Propose(t.Context(), &cluster.Txn{Changes: []cluster.Change{{Action: action, Kind: cluster.KindConfig, ID: "big", Object: big}}}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			largest = max(largest, m.Status().DiskBytes)
		}
		st := m.Status()
		if largest > 4<<20 {
			t.Errorf("the directory grew to %d bytes", largest)
		}
		if st.LogEntries > 121 || st.SnapshotIndex < 500 {
			t.Errorf("%d entries in memory, snapshot at %d", st.LogEntries, st.SnapshotIndex)
		}
		m.kill()
		if got := m.restart(); len(got.Snapshot().Config("big").Spec.Data) != 10<<10 {
			t.Error("the object is gone after a restart")
		}
	})
}

func TestLeadershipIsToldWithItsTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(3)
		first := g.leader()
		changes := first.LeaderChanges()
		now := <-changes
		if !now.Leader || now.LeaderID != first.self || now.LeaderNodeID != first.cfg.NodeID || now.LeaderAddr != first.cfg.Addr {
			t.Errorf("leadership is %+v", now)
		}
		if err := first.TransferLeadership(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		later := <-changes
		for later.LeaderID == 0 {
			later = <-changes
		}
		if later.FormerNodeID != "" {
			t.Errorf("a member that led follows another: former is %q", later.FormerNodeID)
		}
		if later.Leader || later.Term <= now.Term || later.LeaderNodeID == first.cfg.NodeID {
			t.Errorf("leadership is %+v after it was handed over", later)
		}
		var notLeader *ErrNotLeader
		if err := first.put("a"); !errors.As(err, &notLeader) || notLeader.Addr != later.LeaderAddr {
			t.Errorf("a write to a follower: %v, want the leader's address %s", err, later.LeaderAddr)
		}
		if err := first.stop(); err != nil {
			t.Fatal(err)
		}
		for l := range changes {
			if l.Leader {
				t.Errorf("leadership is %+v on a member that stopped", l)
			}
		}
	})
}

// TestANewLeaderKnowsSinceWhenTheFormerOneIsSilent: not only since it leads itself.
func TestANewLeaderKnowsSinceWhenTheFormerOneIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(3)
		old := g.leader()
		old.mustPut("a")
		time.Sleep(10 * time.Second)
		var others []uint64
		for _, m := range g.members {
			if m != old {
				others = append(others, m.self)
			}
		}
		cut := time.Now()
		g.net.Partition([]uint64{old.self}, others)
		for {
			time.Sleep(50 * time.Millisecond)
			if now := g.leader(); now != old && now.Leadership().Leader {
				l := now.Leadership()
				if l.FormerNodeID != old.cfg.NodeID || l.FormerHeard.After(cut.Add(100*time.Millisecond)) || l.FormerHeard.Before(cut.Add(-200*time.Millisecond)) {
					t.Errorf("former is %q, heard %s after it was cut off", l.FormerNodeID, l.FormerHeard.Sub(cut))
				}
				return
			}
		}
	})
}

func TestMembersComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(1)
		leader := g.leader()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := leader.RemoveMember(ctx, leader.self); !errors.Is(err, ErrQuorum) {
			t.Errorf("removing the only member: %v, want %v", err, ErrQuorum)
		}
		if err := leader.RemoveMember(ctx, 12345); !errors.Is(err, ErrNoMember) {
			t.Errorf("removing nobody: %v, want %v", err, ErrNoMember)
		}
		absent, err := leader.AddMember(ctx, protocol.Member{NodeID: "absent", Addr: "absent:1"})
		if err != nil || !absent.Learner || absent.RaftID == 0 {
			t.Fatalf("%+v, %v", absent, err)
		}
		again, err := leader.AddMember(ctx, protocol.Member{NodeID: "absent", Addr: "absent:2"})
		if err != nil || again.RaftID != absent.RaftID || again.Addr != "absent:2" {
			t.Errorf("adding a member again gave %+v, %v", again, err)
		}
		leader.mustPut("a") // a learner that never comes does not stop anybody
		if err := leader.RemoveMember(ctx, absent.RaftID); err != nil {
			t.Error(err)
		}
		g.join("n2")
		g.join("n3")
		leader.mustPut("b")
		g.settle()

		// With one of three gone, the other two cannot lose another.
		dead := g.follower()
		alive := g.members[slices.IndexFunc(g.members, func(m *member) bool { return m != dead && m != leader })]
		dead.kill()
		time.Sleep(3 * time.Second)
		if err := leader.RemoveMember(ctx, alive.self); !errors.Is(err, ErrQuorum) {
			t.Errorf("removing a member that is needed: %v, want %v", err, ErrQuorum)
		}
		if err := leader.RemoveMember(ctx, dead.self); err != nil {
			t.Errorf("removing the dead member: %v", err)
		}
		dead.restart()
		if err := dead.g.members[len(g.members)-1].gone(); !errors.Is(err, ErrRemoved) {
			t.Errorf("a removed member that came back ended with %v, want %v", err, ErrRemoved)
		}

		// The leader itself goes by way of another leader.
		var notLeader *ErrNotLeader
		if err := leader.RemoveMember(ctx, leader.self); !errors.As(err, &notLeader) {
			t.Fatalf("the leader removing itself: %v", err)
		}
		if err := alive.RemoveMember(ctx, leader.self); err != nil {
			t.Fatal(err)
		}
		if err := leader.gone(); !errors.Is(err, ErrRemoved) {
			t.Errorf("the former leader ended with %v, want %v", err, ErrRemoved)
		}
		alive.mustPut("c")
		if got := alive.Status().Members; len(got) != 1 || got[0].NodeID != alive.cfg.NodeID {
			t.Errorf("members at the end: %+v", got)
		}
	})
}

// TestALeaderOfAMomentChangesMembers: raft makes an empty entry of a membership change that is proposed before the leader has applied an
// entry of its own term, and tells nobody. The new leader has applied entries of its term before, as a follower, but none since.
func TestALeaderOfAMomentChangesMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var slow atomic.Bool
		g := newGroup(t, 1, func(c *Config) {
			c.Hooks.At = func(p Point) error {
				if p == Apply && slow.Load() {
					time.Sleep(time.Second)
				}
				return nil
			}
		})
		g.grow(3)
		g.leader().mustPut("a")
		g.settle()
		next := g.follower()
		slow.Store(true)
		old := g.leader()
		wrote := make(chan error, 1)
		go func() { wrote <- old.put("b") }() // in next's log before it leads, and not applied
		time.Sleep(50 * time.Millisecond)
		if err := old.TransferLeadership(t.Context(), next.self); err != nil {
			t.Fatal(err)
		}
		for next.view.notLeader() != nil {
			time.Sleep(time.Millisecond)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := next.AddMember(ctx, protocol.Member{NodeID: "absent", Addr: "absent:1"}); err != nil {
			t.Error(err)
		}
		slow.Store(false)
		<-wrote // whatever became of it
		g.join("n4")
	})
}

func TestUpdateTriesAgainWhenOthersWereFaster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(1)
		m := g.leader()
		m.mustPut("a")
		calls := 0
		_, err := m.Update(t.Context(), func(s *cluster.Snapshot) (*cluster.Txn, error) {
			if calls++; calls == 1 {
				m.mustPut("b") // between reading and writing
			}
			c := *s.Config("a")
			return &cluster.Txn{Guards: []cluster.Guard{{Kind: cluster.KindConfig, Index: s.Index()}}, Changes: []cluster.Change{cluster.UpdateOf(&c)}}, nil
		})
		if err != nil || calls != 2 {
			t.Errorf("%d calls, %v; want success at the second", calls, err)
		}

		calls = 0
		_, err = m.Update(t.Context(), func(*cluster.Snapshot) (*cluster.Txn, error) {
			calls++
			return &cluster.Txn{Changes: []cluster.Change{{Action: cluster.Update, Kind: cluster.KindConfig, ID: "a", Version: 1, Object: config("a", 1)}}}, nil
		})
		if !errors.Is(err, cluster.ErrOutOfSequence) || calls != 1 {
			t.Errorf("%d calls, %v; want one and %v", calls, err, cluster.ErrOutOfSequence)
		}

		before := m.Status().Applied
		index, err := m.Update(t.Context(), func(s *cluster.Snapshot) (*cluster.Txn, error) { return nil, nil })
		if err != nil || index != m.Snapshot().Index() || m.Status().Applied != before {
			t.Errorf("an update without changes: index %d, %v", index, err)
		}
		own := errors.New("own")
		if _, err := m.Update(t.Context(), func(*cluster.Snapshot) (*cluster.Txn, error) { return nil, own }); !errors.Is(err, own) {
			t.Errorf("an error of the function's own came back as %v", err)
		}
		calls = 0
		_, err = m.Update(t.Context(), func(*cluster.Snapshot) (*cluster.Txn, error) {
			calls++
			m.mustPut(fmt.Sprint("busy", calls)) // others write without end
			return nil, own
		})
		if !errors.Is(err, own) || calls != 2 {
			t.Errorf("a refusal while others write: %d calls, %v; want two and its own error", calls, err)
		}
		var refused *cluster.TxnError
		if err := m.put("a"); !errors.As(err, &refused) || !errors.Is(err, cluster.ErrExists) {
			t.Errorf("a second object of one id: %v", err)
		}
		if _, err := m.Propose(t.Context(), &cluster.Txn{Changes: []cluster.Change{cluster.CreateOf(config("huge", MaxTxnBytes))}}); !errors.Is(err, ErrTooLarge) {
			t.Errorf("a transaction that is too large: %v", err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(own)
		if _, err := m.Propose(ctx, &cluster.Txn{Changes: []cluster.Change{cluster.CreateOf(config("late", 1))}}); err != nil && !errors.Is(err, own) {
			t.Errorf("a write that was given up: %v", err)
		}
	})
}

func TestAStoppedStoreLetsNobodyWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(1)
		m := g.leader()
		w := m.Watch(1)
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		for range w.Events() {
		}
		_, read := m.Read(t.Context())
		_, update := m.Update(t.Context(), func(*cluster.Snapshot) (*cluster.Txn, error) { return nil, nil })
		_, add := m.AddMember(t.Context(), protocol.Member{NodeID: "x", Addr: "x:1"})
		late := m.Watch(1)
		for what, err := range map[string]error{"watch": w.Err(), "read": read, "update": update, "late watch": late.Err()} {
			if !errors.Is(err, ErrStopped) {
				t.Errorf("%s: %v, want %v", what, err, ErrStopped)
			}
		}
		if put := m.put("a"); put == nil || add == nil {
			t.Errorf("put: %v, add: %v", put, add)
		}
		if m.Snapshot() == nil || m.Close() != nil || m.Run(t.Context()) == nil {
			t.Error("what is left of a stopped store is wrong")
		}
	})
}

func TestADiskThatFailsStopsTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(1)
		m := g.leader()
		m.mustPut("a")
		m.disk.wal.Close() // every write to the log fails from now on
		if err := m.put("b"); err == nil {
			t.Error("a write was acknowledged without a disk")
		}
		if err := m.gone(); err == nil || !strings.Contains(err.Error(), m.dir) {
			t.Errorf("the store ended with %v, want an error that names its directory", err)
		}
		if m.Snapshot().Config("b") != nil {
			t.Error("what was not stored is visible")
		}
	})
}

func TestALeaderWhoseDiskHangsResigns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(3)
		old := g.leader()
		hang := make(chan error) // nobody receives: the appender hangs as if in a sync
		meta := &raftpb.SnapshotMetadata{Index: proto.Uint64(1), Term: proto.Uint64(1), ConfState: raftpb.EnsureConfState(nil)}
		old.appends.push(appendWork{record: meta, recorded: hang})
		if err := old.put("a"); !errors.Is(err, ErrLeadershipLost) {
			t.Errorf("a write on a disk that hangs: %v, want %v", err, ErrLeadershipLost)
		}
		leader := g.leader()
		if leader == old {
			t.Fatal("the leader with the hanging disk still leads")
		}
		leader.mustPut("b")
		if leader.Snapshot().Config("a") == nil {
			t.Error("the write that a majority had is lost")
		}
		<-hang
		g.settle()
	})
}

// A manager that is alone cannot hand over. It says so now and then, and when it is over.
func TestADiskThatHangsLeavesTheLogReadable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer // the loop's alone until it has ended
		logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelInfo}))
		g := newGroup(t, 1, func(cfg *Config) { cfg.Logger = logger })
		g.grow(1)
		m := g.leader()
		hang := make(chan error)
		meta := &raftpb.SnapshotMetadata{Index: proto.Uint64(1), Term: proto.Uint64(1), ConfState: raftpb.EnsureConfState(nil)}
		m.appends.push(appendWork{record: meta, recorded: hang})
		if m.put("a") == nil {
			t.Error("a write on a disk that hangs was acknowledged")
		}
		time.Sleep(15 * time.Minute)
		<-hang
		m.mustPut("b")
		if err := m.stop(); err != nil {
			t.Error(err)
		}
		if n := strings.Count(log.String(), "the disk does not answer"); n != 3 {
			t.Errorf("told %d times in a quarter of an hour, want 3:\n%s", n, log.String())
		}
		if !strings.Contains(log.String(), "the disk answers again") {
			t.Errorf("not told that it is over:\n%s", log.String())
		}
	})
}

func TestReachableFollowsWhoIsHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(3)
		leader, dead := g.leader(), g.follower()
		time.Sleep(time.Second)
		if got := leader.Status().Reachable; len(got) != 3 || !got[dead.self] || !got[leader.self] {
			t.Errorf("reachable are %v", got)
		}
		dead.kill()
		time.Sleep(2 * time.Second)
		if got := leader.Status().Reachable; len(got) != 3 || got[dead.self] || !got[leader.self] {
			t.Errorf("reachable without %x are %v", dead.self, got)
		}
	})
}

func TestAnInterruptedBootstrapIsCompleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		cfg := g.config("n1", t.TempDir())
		cfg.Bootstrap = true
		seal, err := newSealer(testKey)
		if err != nil {
			t.Fatal(err)
		}
		// What a crash leaves right after the log was made.
		d, err := createDisk(cfg.Dir, diskID{RaftID: 77, NodeID: "n1"}, seal, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := d.close(); err != nil {
			t.Fatal(err)
		}
		m := g.start(cfg)
		g.leader()
		m.mustPut("a")
		if m.self != 77 {
			t.Errorf("the member has the raft id %x, want 77", m.self)
		}
		m.kill()
		if m = m.restart(); m.Snapshot() == nil {
			t.Error("no state")
		}
		g.leader()
		if m.Snapshot().Config("a") == nil {
			t.Error("what was stored is gone")
		}
	})
}

func TestStaleReadsSayHowOldTheyAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(3)
		g.leader().mustPut("a")
		g.settle()
		lonely := g.follower()
		for _, m := range g.members {
			if snap, age, known := m.Stale(); snap.Config("a") == nil || age > 300*time.Millisecond || !known {
				t.Errorf("%s, which has a leader: %v, %v", m.cfg.NodeID, age, known)
			}
		}
		var others []uint64
		for _, m := range g.members {
			if m != lonely {
				others = append(others, m.self)
			}
		}
		g.net.Partition([]uint64{lonely.self}, others)
		time.Sleep(time.Minute)
		g.leader().mustPut("b")
		snap, age, known := lonely.Stale()
		if snap.Config("a") == nil || snap.Config("b") != nil || age < 59*time.Second || age > 61*time.Second || !known {
			t.Errorf("cut off for a minute: age %v, %v", age, known)
		}
		lonely.kill()
		lonely = lonely.restart()
		time.Sleep(10 * time.Second)
		if snap, _, known := lonely.Stale(); snap == nil || known {
			t.Errorf("restarted while cut off: known %v", known)
		}
		g.net.Partition()
		g.settle()
	})
}

// TestADeposedLeaderRefusesNothing: it knows what has been, and refuses, or finds done, by that. Asked to, it must find out
// that it does not lead any more.
func TestADeposedLeaderRefusesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var frozen atomic.Pointer[string]
		g := newGroup(t, 1, func(c *Config) {
			c.Hooks.At = func(p Point) error {
				for who := frozen.Load(); p == Turn && who != nil && *who == c.NodeID; who = frozen.Load() {
					time.Sleep(10 * time.Millisecond)
				}
				return nil
			}
		})
		g.grow(3)
		old := g.leader()
		old.mustPut("a")
		frozen.Store(&old.cfg.NodeID)
		g.wait("another leader", func() bool {
			return slices.ContainsFunc(g.members, func(m *member) bool { return m != old && m.Leadership().Leader })
		})
		for _, m := range g.members {
			if m != old && m.Leadership().Leader {
				m.mustPut("b")
			}
		}
		refusal := errors.New("there is no b")
		time.AfterFunc(time.Second, func() { frozen.Store(nil) })
		_, err := old.Update(t.Context(), func(s *cluster.Snapshot) (*cluster.Txn, error) {
			if s.Config("b") == nil {
				return nil, refusal
			}
			return nil, nil
		})
		var notLeader *ErrNotLeader
		if !errors.As(err, &notLeader) {
			t.Errorf("an update by what has been: %v, want an ErrNotLeader", err)
		}
		g.settle()
	})
}
