package raftstore

import "time"

// LeaderChanges subscribes to leadership until the store stops, which closes the channel. The present state is there at once. The
// channel holds one value, the latest: a reader that was away for two changes sees the second only, and tells by the term that
// it missed one.
func (s *Store) LeaderChanges() <-chan Leadership {
	changes, _ := s.view.leaderChanges()
	return changes
}

// Leadership is the present state.
func (s *Store) Leadership() Leadership {
	s.view.mu.Lock()
	defer s.view.mu.Unlock()
	return s.view.leadership
}

// wedgedTimeouts is after how many election timeouts a leader whose disk does not answer gives up leading.
const wedgedTimeouts = 3

// resign hands leadership over when the disk hangs: heartbeats would go on for ever, and no write ever end.
func (l *loop) resign() {
	if l.writes == 0 {
		l.progress = l.ticks
	}
	if l.ticks-l.progress < wedgedTimeouts*uint64(l.s.cfg.ElectionTicks) {
		return
	}
	l.progress = l.ticks
	to := l.successor()
	tell, lasting := l.hangs.Again(l.s.cfg.Now(), hexID(to))
	if to != 0 {
		if tell {
			l.s.log.Error("the disk does not answer, handing leadership over", "dir", l.s.cfg.Dir, "to", hexID(to), "since", lasting.Round(time.Second))
		}
		l.node.TransferLeader(to)
	} else if tell {
		l.s.log.Error("the disk does not answer, and there is no manager to hand leadership over to", "dir", l.s.cfg.Dir, "since", lasting.Round(time.Second))
	}
}

// diskAnswers notes that the disk has done a write.
func (l *loop) diskAnswers() {
	if was, lasted := l.hangs.Over(l.s.cfg.Now()); was {
		l.s.log.Info("the disk answers again", "dir", l.s.cfg.Dir, "after", lasted.Round(time.Second))
	}
}
