package raftstore

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// appendWork is one thing for the appender to do: what raft wants written, or the record of a snapshot that this member
// has taken, or another key to seal with. A record goes the same way because a snapshot counts only when the log says that its
// entries were committed, which raft has handed out before; a key, so that it is known what was sealed before.
type appendWork struct {
	m *raftpb.Message

	record   *raftpb.SnapshotMetadata
	recorded chan error

	rekey   []byte
	rekeyed chan rekeyed
}

// runAppends writes what raft hands out to the log, in order. Everything that has come together while the disk was busy
// is written with one sync. Answers leave only after that. Any error ends the store: after a failed sync nobody can
// say what the disk holds, and trying again would pretend otherwise.
func (s *Store) runAppends() {
	defer close(s.appendsDone)
	for {
		select {
		case <-s.appends.wake:
		case <-s.failed:
			return
		case <-s.loopDone:
		}
		if err := s.append(s.appends.take()); errors.Is(err, ErrStopped) {
			return // in the middle of installing a snapshot, which the next start completes
		} else if err != nil {
			s.fail(err)
			return
		}
		select {
		case <-s.loopDone:
			if s.appends.len() == 0 {
				return
			}
			s.appends.notify()
		default:
		}
	}
}

// append works through a batch in runs that can be written together.
func (s *Store) append(batch []appendWork) error {
	var run []*raftpb.Message
	flush := func() error {
		if len(run) == 0 {
			return nil
		}
		defer func() { run = nil }()
		return s.write(run)
	}
	for _, w := range batch {
		switch {
		case w.record != nil:
			if err := flush(); err != nil {
				return err
			}
			err := s.disk.record(w.record)
			w.recorded <- err
			if err != nil {
				return err
			}
		case w.rekey != nil:
			if err := flush(); err != nil {
				return err
			}
			w.rekeyed <- s.useKey(w.rekey)
		case w.m.Snapshot != nil:
			// It takes the place of everything before it.
			if err := flush(); err != nil {
				return err
			}
			if err := s.write([]*raftpb.Message{w.m}); err != nil {
				return err
			}
		default:
			run = append(run, w.m)
		}
	}
	return flush()
}

// write saves the entries and the latest hard state of some appends and then delivers their responses.
func (s *Store) write(batch []*raftpb.Message) error {
	var state *raftpb.HardState
	var entries []*raftpb.Entry
	var writes int
	for _, m := range batch {
		if m.Term != nil {
			state = &raftpb.HardState{Term: proto.Uint64(m.GetTerm()), Vote: proto.Uint64(m.GetVote()), Commit: proto.Uint64(m.GetCommit())}
		}
		if len(m.Entries) > 0 {
			writes++
			entries = append(entries, m.Entries...)
		}
	}
	if err := s.at(Append); err != nil {
		return fmt.Errorf("write-ahead log %s: %w", walDir(s.cfg.Dir), err)
	}
	if snap := batch[0].Snapshot; snap != nil {
		if err := s.install(snap, state, entries); err != nil {
			return err
		}
	} else if err := s.disk.save(state, entries); err != nil {
		return err
	}
	if err := s.at(Appended); err != nil {
		return fmt.Errorf("write-ahead log %s: %w", walDir(s.cfg.Dir), err)
	}
	if state != nil {
		if err := s.storage.SetHardState(state); err != nil {
			return fmt.Errorf("raft storage: %w", err)
		}
	}
	var toSelf, toPeers []*raftpb.Message
	for _, m := range batch {
		if err := s.storage.Append(m.Entries); err != nil {
			return fmt.Errorf("raft storage: %w", err)
		}
		for _, r := range m.Responses {
			if r.GetTo() == s.self {
				toSelf = append(toSelf, r)
			} else {
				toPeers = appendResponse(toPeers, r)
			}
		}
	}
	if len(toPeers) > 0 {
		s.cfg.Transport.Send(toPeers)
	}
	if len(toSelf) > 0 || writes > 0 {
		s.inbox.put(func(in *inboxItems) {
			in.local = append(in.local, toSelf...)
			in.appended += writes
		})
	}
	return nil
}

// appendResponse adds r, in place of the previous response where that says less: an acknowledgement covers all entries
// up to its index.
func appendResponse(out []*raftpb.Message, r *raftpb.Message) []*raftpb.Message {
	if n := len(out); n > 0 && acknowledges(r) && acknowledges(out[n-1]) &&
		r.GetTo() == out[n-1].GetTo() && r.GetTerm() == out[n-1].GetTerm() && r.GetIndex() >= out[n-1].GetIndex() {
		out[n-1] = r
		return out
	}
	return append(out, r)
}

func acknowledges(m *raftpb.Message) bool {
	return m.GetType() == raftpb.MsgAppResp && !m.GetReject()
}

// install puts a snapshot that came from the leader in the place of log and tables. Its file is on disk already. The record
// and the hard state that makes it count are durable before anything older is deleted.
func (s *Store) install(snap *raftpb.Snapshot, state *raftpb.HardState, entries []*raftpb.Entry) error {
	s.snapMu.Lock()
	defer s.snapMu.Unlock()
	meta := snap.GetMetadata()
	// It may have begun to arrive before the key changed.
	if err := s.disk.reseal(meta.GetTerm(), meta.GetIndex()); err != nil {
		return err
	}
	if err := s.disk.record(meta); err != nil {
		return err
	}
	if err := s.disk.save(state, entries); err != nil {
		return err
	}
	// Of a hard state that only commits more the log does not write at once; here it must, or the record does not count.
	if err := s.disk.sync(); err != nil {
		return err
	}
	if err := s.storage.ApplySnapshot(snap); err != nil && !errors.Is(err, raft.ErrSnapOutOfDate) {
		return fmt.Errorf("raft storage: %w", err)
	}
	// The tables follow before raft hears that the snapshot is in place: it counts as applied then.
	restored := make(chan struct{})
	s.applies.push(applyWork{restore: meta, restored: restored})
	select {
	case <-restored:
		return nil
	case <-s.appliesDone:
		return ErrStopped
	}
}
