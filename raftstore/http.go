package raftstore

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// HTTPTransportConfig is what a transport over the cluster port works with.
type HTTPTransportConfig struct {
	// TLS gives the configuration for connections to the member on that node; it must make sure that the peer is that node.
	TLS func(nodeID string) *tls.Config
	// Dial opens a TCP connection, for tests; nil means the system's.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Logger may be nil.
	Logger *slog.Logger
}

// NewHTTPTransport gives the transport that production uses. Each member holds one connection to each other member: an HTTP/1.1
// upgrade to [protocol.UpgradeStream] on the peer's cluster port, then length-prefixed messages in one direction; the peer
// sends on a connection of its own. [Store.Handler] is the other end. A snapshot travels as the body of a POST on a
// further connection, so that it does not hold up heartbeats.
//
// Each peer has a queue. It is bounded: what does not fit or cannot be sent at once is dropped and reported, as raft
// repeats what matters. A lost connection is opened again at once and then with growing pauses up to half a second.
func NewHTTPTransport(cfg HTTPTransportConfig) Transport {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = dialer().DialContext
	}
	return &httpTransport{cfg: cfg, peers: map[uint64]*httpPeer{}, met: map[string]string{}}
}

// The transport's constants.
const (
	dialTimeout     = 2 * time.Second
	writeTimeout    = 10 * time.Second // for one message or chunk
	minBackoff      = 30 * time.Millisecond
	maxBackoff      = 500 * time.Millisecond
	maxQueuedBytes  = 64 << 20
	maxQueued       = 8192
	maxFrame        = MaxTxnBytes + 4<<20
	snapshotTimeout = 30 * time.Second // without any progress

	pathStream   = protocol.PathRaft + "/stream"
	pathSnapshot = protocol.PathRaft + "/snapshot"

	// HeaderNode names the node of the member that calls. Whoever serves [Store.Handler] checks it by the certificate.
	HeaderNode = "Miniswarm-Raft-Node"

	headerFrom = "Miniswarm-Raft-From"
	headerAddr = "Miniswarm-Raft-Addr"
	headerTo   = "Miniswarm-Raft-To"
	headerBoot = "Miniswarm-Raft-Boot"
	// headerEpoch is missing where the caller has no tables yet.
	headerEpoch = "Miniswarm-Raft-Epoch"
)

// userTimeout is how long the kernel keeps trying to send to a peer that does not acknowledge. Without it a peer that
// lost its network for a while would be reached again only with TCP's own growing pauses.
const userTimeout = 3 * time.Second

func dialer() *net.Dialer {
	return &net.Dialer{Timeout: dialTimeout, Control: setUserTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 2 * time.Second, Interval: time.Second, Count: 3}}
}

type httpTransport struct {
	cfg HTTPTransportConfig

	mu      sync.Mutex // guards all below
	members []protocol.Member
	peers   map[uint64]*httpPeer
	met     map[string]string // addresses of members by node, as told by Meet
	ctx     context.Context   // nil unless Run runs
	local   Local
	work    sync.WaitGroup
}

func (t *httpTransport) Attach(local Local) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.local = local
}

func (t *httpTransport) Run(ctx context.Context) error {
	t.mu.Lock()
	t.ctx = ctx
	t.reconcileLocked()
	t.mu.Unlock()
	<-ctx.Done()
	t.mu.Lock()
	t.ctx = nil
	clear(t.peers)
	t.mu.Unlock()
	t.work.Wait()
	return nil
}

func (t *httpTransport) SetMembers(members []protocol.Member) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.members = members
	t.reconcileLocked()
}

func (t *httpTransport) Meet(m protocol.Member) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.met[m.NodeID] = m.Addr
}

// elsewhere gives the address that Meet told of a member if that is another than the given one.
func (t *httpTransport) elsewhere(m protocol.Member) (addr string, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	addr, ok = t.met[m.NodeID]
	return addr, ok && addr != m.Addr
}

// reconcileLocked makes the peers those that the members are.
func (t *httpTransport) reconcileLocked() {
	if t.ctx == nil {
		return
	}
	self := t.local.Member().RaftID
	wanted := map[uint64]bool{}
	for _, m := range t.members {
		if m.RaftID == self {
			continue
		}
		wanted[m.RaftID] = true
		if p := t.peers[m.RaftID]; p != nil {
			if p.member.Addr == m.Addr && p.member.NodeID == m.NodeID {
				continue
			}
			p.stop()
		}
		ctx, stop := context.WithCancel(t.ctx)
		p := &httpPeer{t: t, member: m, local: t.local, stop: stop, wake: make(chan struct{}, 1), addr: m.Addr}
		t.peers[m.RaftID] = p
		t.work.Go(func() { p.run(ctx) })
	}
	for id, p := range t.peers {
		if !wanted[id] {
			// What was sent last, the news of its removal among it, may still leave.
			delete(t.peers, id)
			delete(t.met, p.member.NodeID)
			p.finish()
		}
	}
}

func (t *httpTransport) Send(msgs []*raftpb.Message) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range msgs {
		p := t.peers[m.GetTo()]
		switch {
		case m.GetType() == raftpb.MsgSnap && t.ctx == nil:
			t.local.SnapshotSent(m.GetTo(), ErrStopped)
		case m.GetType() == raftpb.MsgSnap:
			local, ctx := t.local, t.ctx
			t.work.Go(func() { local.SnapshotSent(m.GetTo(), t.sendSnapshot(ctx, local, p, m)) })
		case p == nil || !p.queue(m):
			t.local.Unreachable(m.GetTo())
		}
	}
}
