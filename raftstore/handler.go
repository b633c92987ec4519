package raftstore

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// Handler serves the paths under [protocol.PathRaft] that members send to: the stream of messages and snapshots. It must
// be reachable by managers of the cluster only; whoever serves it checks certificates. Streams end with [Store.Run].
func (s *Store) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathStream, s.serveStream)
	mux.HandleFunc("POST "+pathSnapshot, s.serveSnapshot)
	mux.HandleFunc("GET "+protocol.PathEpoch, s.serveEpoch)
	return mux
}

// serveEpoch tells which life of the cluster this member is of.
func (s *Store) serveEpoch(w http.ResponseWriter, _ *http.Request) {
	epoch, known := s.Epoch()
	if !known {
		http.Error(w, "this member has no tables yet", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(protocol.EpochAnswer{Epoch: epoch}) // an error means that the caller is gone
}

// caller reads who sends and checks that this member is meant. It has answered if ok is false.
func (s *Store) caller(w http.ResponseWriter, r *http.Request) (m protocol.Member, ok bool) {
	from, err := strconv.ParseUint(r.Header.Get(headerFrom), 16, 64)
	to, terr := strconv.ParseUint(r.Header.Get(headerTo), 16, 64)
	if err != nil || terr != nil || from == 0 || r.Header.Get(HeaderNode) == "" {
		http.Error(w, "the headers "+headerFrom+" and "+headerTo+" must name members, and "+HeaderNode+" a node", http.StatusBadRequest)
		return m, false
	}
	if slices.Contains(s.view.membership().removed, from) {
		http.Error(w, "the managers go on without this member: it was removed, or the cluster was recovered without it", http.StatusGone)
		return m, false
	}
	if status, why := s.compareEpoch(r.Header.Get(headerEpoch)); why != "" {
		http.Error(w, why, status)
		return m, false
	}
	if why := s.impostor(from, r.Header.Get(HeaderNode), certifiedSince(r)); why != "" {
		http.Error(w, why, http.StatusForbidden)
		return m, false
	}
	if to != s.self {
		http.Error(w, fmt.Sprintf("this is member %x, not %x", s.self, to), http.StatusMisdirectedRequest)
		return m, false
	}
	return protocol.Member{RaftID: from, NodeID: r.Header.Get(HeaderNode), Addr: r.Header.Get(headerAddr)}, true
}

// certificateSlack is how much older than it is a certificate may look: its beginning is set back by an hour, and clocks may be nearly as
// far apart.
const certificateSlack = 2 * time.Hour

// certifiedSince gives the beginning of the caller's certificate, zero where there is none.
func certifiedSince(r *http.Request) time.Time {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return time.Time{}
	}
	return r.TLS.PeerCertificates[0].NotBefore
}

// impostor says why a node is not the member that it says it is. One that this member has not heard of yet may be its new leader, also if
// the node is a worker by what is known here: it may have been promoted since. But a manager that was demoted may have kept its
// certificate, which may be valid for months, and make up a member. It is told by this: what is known here is from a leader just now that
// is itself known here (one that is not knows of members that this one has yet to hear of, itself for one), or the certificate was
// issued before the node was last seen as a worker. A promotion brings another. One that was removed is told by a certificate from
// before what is known here of the cluster, with which the node would be known: it may live for longer than the cluster remembers the
// removal, if --cert-expiry was longer once.
func (s *Store) impostor(from uint64, node string, since time.Time) (why string) {
	if m, ok := s.view.membership().member(from); ok {
		if m.NodeID != node {
			return fmt.Sprintf("member %x is not of node %s", from, node)
		}
		return ""
	}
	snap, age, known := s.Stale()
	_, led := s.view.membership().member(s.Leadership().LeaderID)
	fresh := led && known && age < s.cfg.Tick*time.Duration(s.cfg.ElectionTicks)
	// What a clock that was ahead has written says nothing.
	predates := func(at time.Time) bool {
		return !since.IsZero() && at.Before(s.cfg.Now()) && since.Add(certificateSlack).Before(at)
	}
	switch n := snap.Node(node); {
	case n == nil:
		// The cluster was changed last by the removal, or later.
		if c := snap.Cluster(); c != nil && predates(c.UpdatedAt) {
			return "node " + node + " was removed"
		}
	case n.Role == swarm.NodeRoleWorker:
		if fresh || predates(n.UpdatedAt) {
			return "node " + node + " is a worker"
		}
	}
	return ""
}

// compareEpoch refuses a caller whose tables are of another life of the cluster than this member's: see [cluster.NextEpoch].
func (s *Store) compareEpoch(header string) (status int, why string) {
	own, known := s.Epoch()
	if header == "" || !known {
		return 0, ""
	}
	epoch, err := strconv.ParseUint(header, 16, 64)
	switch {
	case err != nil:
		return http.StatusBadRequest, "the header " + headerEpoch + " is no epoch"
	case epoch < own:
		return http.StatusGone, fmt.Sprintf("the cluster was recovered without this member at %s", cluster.EpochTime(own).Format(time.RFC3339))
	case epoch > own:
		return http.StatusConflict, fmt.Sprintf("this manager is of the cluster as it was before it was recovered at %s", cluster.EpochTime(epoch).Format(time.RFC3339))
	}
	return 0, ""
}

func (s *Store) serveStream(w http.ResponseWriter, r *http.Request) {
	from, ok := s.caller(w, r)
	if !ok {
		return
	}
	if r.Header.Get("Upgrade") != protocol.UpgradeStream {
		w.Header().Set("Upgrade", protocol.UpgradeStream)
		http.Error(w, "messages are sent after an upgrade to "+protocol.UpgradeStream, http.StatusUpgradeRequired)
		return
	}
	if s.streams.refuses(from.RaftID, r.Header.Get(headerBoot)) {
		http.Error(w, "another machine is this member already: one is a copy of the other's disk; leave the swarm on the copy and join again", http.StatusConflict)
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "the connection cannot be upgraded: HTTP/1.1 is needed", http.StatusHTTPVersionNotSupported)
		return
	}
	defer conn.Close()
	stopped, copied := s.streams.add(from.RaftID, r.Header.Get(headerBoot), conn)
	if stopped {
		return
	}
	if copied != "" {
		s.log.Error("two machines are the same manager; the one that came later is refused", "member", hexID(from.RaftID), "node", from.NodeID, "addr", from.Addr)
	}
	defer s.streams.remove(from.RaftID, conn)
	s.addresses.meet(s, from)
	conn.SetDeadline(time.Now().Add(writeTimeout))
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", protocol.UpgradeStream); err != nil {
		return
	}
	conn.SetDeadline(time.Time{})
	err = s.receiveAll(rw.Reader, from.RaftID)
	s.log.Debug("stream from manager ended", "member", hexID(from.RaftID), "node", from.NodeID, "err", err)
}

// receiveAll reads messages until the stream ends, and says why it did.
func (s *Store) receiveAll(buffered *bufio.Reader, from uint64) error {
	r := bufio.NewReaderSize(buffered, 64<<10)
	frames := &frameReader{}
	for {
		m, err := frames.read(r)
		if err != nil {
			return err
		}
		if m.GetFrom() != from {
			return fmt.Errorf("a message of member %x came on the stream of %x", m.GetFrom(), from)
		}
		// Closing the stream makes the peer call again, and then it is told that it was removed.
		if err := s.Receive(m); err != nil {
			return err
		}
	}
}

// addresses tells the transport where members are. They come from the log; a newcomer that has none yet, because it was
// restarted before its first snapshot, takes them from those who call it. What callers say of themselves serves others too, when a
// member has moved and there is no leader to write that down.
//
// A caller that is no member as far as the log goes here may be one that came while this member was away, and the leader by now: only who
// answers it gets the entries that say so.
type addresses struct {
	mu    sync.Mutex // guards all below, and calls of SetMembers
	known []protocol.Member
	// settled is true once the log has told them.
	settled bool
	// strangers have called and are neither in the log nor removed by it, as yet.
	strangers []protocol.Member
	removed   []uint64
}

// follow takes over what the log says of members.
func (a *addresses) follow(s *Store, m *membership, settled bool) {
	a.mu.Lock()
	a.removed = m.removed
	a.mu.Unlock()
	a.set(s, m.members, settled)
}

func (a *addresses) set(s *Store, members []protocol.Member, settled bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if settled || !a.settled {
		for _, m := range a.known {
			if !settled && !has(members, m.RaftID) {
				members = append(slices.Clone(members), m)
			}
		}
		a.known, a.settled = members, settled
	}
	a.tellLocked(s)
}

// tellLocked gives the transport all whom this member may have to answer.
func (a *addresses) tellLocked(s *Store) {
	a.strangers = slices.DeleteFunc(a.strangers, func(m protocol.Member) bool {
		return has(a.known, m.RaftID) || slices.Contains(a.removed, m.RaftID)
	})
	s.cfg.Transport.SetMembers(slices.Concat(a.known, a.strangers))
}

// meet notes a caller.
func (a *addresses) meet(s *Store, m protocol.Member) {
	if m.NodeID == "" || m.Addr == "" {
		return
	}
	a.mu.Lock()
	settled, stranger := a.settled, !has(a.known, m.RaftID)
	if settled && stranger {
		// One of each node, the latest.
		a.strangers = append(slices.DeleteFunc(a.strangers, func(o protocol.Member) bool { return o.NodeID == m.NodeID }), m)
		a.tellLocked(s)
	}
	a.mu.Unlock()
	switch {
	case !settled:
		a.set(s, []protocol.Member{m}, false)
	case !stranger:
		s.cfg.Transport.Meet(m)
	}
}

func has(members []protocol.Member, raftID uint64) bool {
	return slices.ContainsFunc(members, func(o protocol.Member) bool { return o.RaftID == raftID })
}

func (s *Store) serveSnapshot(w http.ResponseWriter, r *http.Request) {
	from, ok := s.caller(w, r)
	if !ok {
		return
	}
	if err := s.receiveBody(w, r); err != nil {
		s.log.Warn("snapshot not received", "member", hexID(from.RaftID), "node", from.NodeID, "err", err)
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Store) receiveBody(w http.ResponseWriter, r *http.Request) error {
	control := http.NewResponseController(w)
	body := bufio.NewReaderSize(r.Body, 64<<10)
	next := func() ([]byte, error) {
		// A server may have no deadline for bodies; a sender that vanished must not be waited for. Not every
		// ResponseWriter can set one.
		if err := control.SetReadDeadline(time.Now().Add(snapshotTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return nil, err
		}
		chunk, err := readChunk(body)
		switch {
		case errors.Is(err, io.EOF):
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		case len(chunk) == 0:
			return nil, io.EOF
		}
		return chunk, nil
	}
	head, err := next()
	if err != nil {
		return fmt.Errorf("announcement of the snapshot: %w", err)
	}
	m := &raftpb.Message{}
	if err := proto.Unmarshal(head, m); err != nil {
		return fmt.Errorf("announcement of the snapshot: %w", err)
	}
	return s.ReceiveSnapshot(m, next)
}
