package probe

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// Peer is a neighbour to be probed.
type Peer struct {
	// Addr is its address on the ingress network.
	Addr netip.Addr
	// Device is the index of our device on the segment we share.
	Device int
	// Recognised says that we know its frames and lead replies back the plain way.
	Recognised bool
}

// Prober asks peers and answers those that ask. All methods are safe for
// concurrent use.
type Prober struct {
	log  *slog.Logger
	self netip.Addr
	key  []byte
	conn *net.UDPConn
	done chan struct{} // closed when the reader has ended

	mu      sync.Mutex // guards tracker and peers
	tracker Tracker
	peers   map[netip.Addr]Peer
}

// Listen starts to answer at self, this node's address on the ingress network, in
// the network namespace of the calling thread, until Close.
func Listen(ctx context.Context, log *slog.Logger, self netip.Addr, key []byte) (*Prober, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		// The device a datagram came in by: one that took another way proves nothing.
		return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1) }), err)
	}}
	conn, err := config.ListenPacket(ctx, "udp4", netip.AddrPortFrom(self, plan.ProbePort).String())
	if err != nil {
		return nil, fmt.Errorf("listen for probes of other nodes: %w", err)
	}
	p := &Prober{log: log, self: self, key: key, conn: conn.(*net.UDPConn), done: make(chan struct{}), peers: map[netip.Addr]Peer{}}
	go p.read()
	return p, nil
}

// Self is the address the Prober answers at.
func (p *Prober) Self() netip.Addr { return p.self }

// Close stops answering and waits for the reader.
func (p *Prober) Close() error {
	err := p.conn.Close()
	<-p.done
	return err
}

// Ask sends each of peers a question. From now on only they are answered.
func (p *Prober) Ask(peers []Peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.peers)
	known := map[netip.Addr]bool{}
	for _, peer := range peers {
		p.peers[peer.Addr], known[peer.Addr] = peer, true
		var b [8]byte
		rand.Read(b[:])
		m := message{kind: question, recognises: peer.Recognised, nonce: binary.BigEndian.Uint64(b[:])}
		p.tracker.ask(peer.Addr, m.nonce)
		p.sendLocked(peer.Addr, m)
	}
	p.tracker.keep(known)
}

// Proven says whether the plain way to a peer is proven now.
func (p *Prober) Proven(peer netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tracker.Proven(peer, time.Now())
}

func (p *Prober) sendLocked(to netip.Addr, m message) {
	if _, err := p.conn.WriteToUDPAddrPort(m.marshal(p.key, p.self, to), netip.AddrPortFrom(to, plan.ProbePort)); err != nil {
		// No way is no proof; there is nothing else to do about it.
		p.log.Debug("probe not sent", "peer", to, "err", err)
	}
}

// read ends when the connection is closed.
func (p *Prober) read() {
	defer close(p.done)
	b, oob := make([]byte, size+1), make([]byte, 128)
	for {
		n, oobn, _, from, err := p.conn.ReadMsgUDPAddrPort(b, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // such as a peer's "port unreachable"
		}
		p.receive(b[:n], from.Addr().Unmap(), device(oob[:oobn]))
	}
}

func (p *Prober) receive(b []byte, from netip.Addr, device int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	peer, ok := p.peers[from]
	if !ok || peer.Device != device {
		return
	}
	m, err := unmarshal(b, p.key, from, p.self)
	switch {
	case err != nil:
		p.log.Debug("datagram ignored", "peer", from, "err", err)
	case m.kind == question:
		p.sendLocked(from, message{kind: answer, recognises: peer.Recognised, nonce: m.nonce})
	default:
		p.tracker.hear(from, m, time.Now())
	}
}

// device reads the index of the receiving device out of the control messages.
func device(oob []byte) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, m := range messages {
		if m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= 4 {
			return int(binary.NativeEndian.Uint32(m.Data)) // struct in_pktinfo begins with it
		}
	}
	return 0
}
