package raftstore

import (
	"net"
	"sync"
)

// streams are the open incoming connections: one of each peer, the latest.
//
// Two machines that are the same member, because a disk was copied, would take the connection from each other without end. A
// member that was restarted never comes back as what it was before; so if one run of a member is replaced by another
// and then calls again, both live. The one that came later is the copy, as far as anybody can tell, and is refused while the
// other is connected.
type streams struct {
	mu     sync.Mutex // guards all below
	peers  map[uint64]*peerStream
	closed bool
}

// peerStream is what is known of one peer's connections.
type peerStream struct {
	conn net.Conn // nil while there is none
	boot string   // the run of the member that conn comes from, or came from last
	// replaced is the run that was connected when boot came, copied the run that is refused.
	replaced, copied string
}

// refuses says whether a run of a member is a copy of the one that is connected.
func (s *streams) refuses(from uint64, boot string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[from]
	return p != nil && p.conn != nil && boot != "" && boot == p.copied && boot != p.boot
}

// add notes the connection and closes the one that it replaces. copied is the run that is refused from now on, empty for none;
// stopped says that the store has ended.
func (s *streams) add(from uint64, boot string, conn net.Conn) (stopped bool, copied string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return true, ""
	}
	if s.peers == nil {
		s.peers = map[uint64]*peerStream{}
	}
	p := s.peers[from]
	if p == nil {
		p = &peerStream{boot: boot}
		s.peers[from] = p
	}
	if p.conn != nil {
		p.conn.Close()
	}
	if boot != p.boot {
		if p.conn != nil && boot != "" && boot == p.replaced {
			p.copied, copied = p.boot, p.boot
		}
		p.replaced = p.boot
	}
	p.conn, p.boot = conn, boot
	return false, copied
}

func (s *streams) remove(from uint64, conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.peers[from]; p != nil && p.conn == conn {
		p.conn = nil
	}
}

// close ends all streams.
func (s *streams) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, p := range s.peers {
		if p.conn != nil {
			p.conn.Close()
		}
	}
}
