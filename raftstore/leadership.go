package raftstore

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
