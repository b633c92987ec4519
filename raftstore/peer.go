package raftstore

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// httpPeer sends to one other member.
type httpPeer struct {
	t      *httpTransport
	member protocol.Member
	local  Local
	stop   context.CancelFunc
	wake   chan struct{}

	mu        sync.Mutex // guards all below
	addr      string     // where the member is tried at present
	messages  []*raftpb.Message
	bytes     int
	connected bool
	finishing bool
}

// queue takes a message and says whether it will be tried.
func (p *httpPeer) queue(m *raftpb.Message) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	size := messageSize(m)
	if !p.connected || len(p.messages) >= maxQueued || p.bytes+size > maxQueuedBytes {
		return false
	}
	p.messages = append(p.messages, m)
	p.bytes += size
	p.notify()
	return true
}

func (p *httpPeer) notify() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// messageSize is about what a message weighs.
func messageSize(m *raftpb.Message) int {
	n := 64
	for _, e := range m.Entries {
		n += 24 + len(e.Data)
	}
	return n
}

func (p *httpPeer) take() (msgs []*raftpb.Message, finishing bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	msgs, p.messages, p.bytes = p.messages, nil, 0
	return msgs, p.finishing
}

// finish lets the peer end when its queue is empty.
func (p *httpPeer) finish() {
	p.mu.Lock()
	p.finishing = true
	p.mu.Unlock()
	p.notify()
}

func (p *httpPeer) address() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addr
}

// tryElsewhere has the next attempt go to the other address that the member is known by, if there is one.
func (p *httpPeer) tryElsewhere() {
	met, moved := p.t.elsewhere(p.member)
	p.mu.Lock()
	defer p.mu.Unlock()
	if moved && p.addr == p.member.Addr {
		p.addr = met
	} else {
		p.addr = p.member.Addr
	}
}

func (p *httpPeer) setConnected(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.connected = on
	if !on {
		p.messages, p.bytes = nil, 0
	}
}

// run keeps a connection to the peer until ctx ends.
func (p *httpPeer) run(ctx context.Context) {
	defer p.stop()
	backoff := minBackoff
	was := false // whether there was a connection before this attempt
	for ctx.Err() == nil {
		conn, err := p.connect(ctx)
		if err == nil {
			p.t.cfg.Logger.Debug("connected to manager", "node", p.member.NodeID, "addr", p.address())
			backoff, was = minBackoff, true
			p.setConnected(true)
			err = p.serve(ctx, conn)
			p.setConnected(false)
			conn.Close()
			if err == nil {
				return
			}
			p.local.Unreachable(p.member.RaftID)
			p.t.cfg.Logger.Debug("connection to manager lost", "node", p.member.NodeID, "addr", p.member.Addr, "err", err)
			continue // at once: it may be back already
		}
		if errors.Is(err, ErrRemoved) {
			p.t.cfg.Logger.Warn("a manager says that this one is not part of its group", "node", p.member.NodeID, "addr", p.member.Addr, "err", err)
			p.local.Removed()
			return
		}
		p.t.cfg.Logger.Debug("cannot connect to manager", "node", p.member.NodeID, "addr", p.address(), "err", err)
		p.tryElsewhere()
		if was {
			// It was there a moment ago and now is not: a process that ended, most likely.
			p.local.Gone(p.member.RaftID)
			was = false
		}
		if _, finishing := p.take(); finishing {
			return
		}
		select {
		case <-time.After(backoff/2 + rand.N(backoff)):
		case <-ctx.Done():
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// connect opens the stream.
func (p *httpPeer) connect(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
	defer cancel()
	conn, err := p.dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	req, err := p.request(ctx, http.MethodGet, pathStream, nil)
	if err == nil {
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", protocol.UpgradeStream)
		err = req.Write(conn)
	}
	if err == nil {
		err = readUpgrade(conn, req)
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func (p *httpPeer) dial(ctx context.Context) (net.Conn, error) {
	raw, err := p.t.cfg.Dial(ctx, "tcp", p.address())
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, p.t.cfg.TLS(p.member.NodeID))
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

func (p *httpPeer) request(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+p.address()+path, body)
	if err != nil {
		return nil, err
	}
	self := p.local.Member()
	req.Header.Set(headerFrom, strconv.FormatUint(self.RaftID, 16))
	req.Header.Set(HeaderNode, self.NodeID)
	req.Header.Set(headerAddr, self.Addr)
	req.Header.Set(headerBoot, strconv.FormatUint(p.local.Boot(), 16))
	req.Header.Set(headerTo, strconv.FormatUint(p.member.RaftID, 16))
	if epoch, known := p.local.Epoch(); known {
		req.Header.Set(headerEpoch, strconv.FormatUint(epoch, 16))
	}
	return req, nil
}

// readUpgrade reads the answer to the upgrade request. The peer sends nothing after it, so the reader has nothing left.
func readUpgrade(conn net.Conn, req *http.Request) error {
	resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 4096), req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return nil
	}
	return refusal(resp)
}

// refusal gives the error that a response other than success stands for.
func refusal(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if resp.StatusCode == http.StatusGone {
		return fmt.Errorf("%w: %s", ErrRemoved, bytes.TrimSpace(text))
	}
	return fmt.Errorf("the manager answers %s: %s", resp.Status, bytes.TrimSpace(text))
}

// serve writes messages to the connection until it breaks, or the peer is to be forgotten: nil.
func (p *httpPeer) serve(ctx context.Context, conn net.Conn) error {
	broken := make(chan error, 1)
	var reader sync.WaitGroup
	// The peer sends nothing. Reading tells at once when it goes away.
	reader.Go(func() {
		_, err := conn.Read(make([]byte, 1))
		if err == nil {
			err = errors.New("the manager sent what it should not")
		}
		broken <- err
	})
	defer reader.Wait()
	defer conn.Close()
	w := bufio.NewWriterSize(conn, 64<<10)
	frame := frameWriter{}
	for {
		select {
		case <-p.wake:
		case err := <-broken:
			return err
		case <-ctx.Done():
			return nil
		}
		msgs, finishing := p.take()
		conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		for _, m := range msgs {
			if err := frame.write(w, m); err != nil {
				return err
			}
		}
		if err := w.Flush(); err != nil {
			return err
		}
		if finishing {
			return nil
		}
	}
}

// sendSnapshot streams a stored snapshot to the peer as the body of one request:
//
//	chunk with the message that announces it, chunks of the snapshot, chunk of length 0
func (t *httpTransport) sendSnapshot(ctx context.Context, local Local, p *httpPeer, m *raftpb.Message) error {
	if p == nil {
		return fmt.Errorf("send snapshot: %w", ErrNoMember)
	}
	src, err := local.OpenSnapshot(m.GetSnapshot().GetMetadata().GetIndex())
	if err != nil {
		return fmt.Errorf("send snapshot: %w", err)
	}
	defer src.Close()
	head, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("send snapshot: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body := &snapshotBody{src: src, progress: time.AfterFunc(snapshotTimeout, cancel)}
	defer body.progress.Stop()
	if err := writeChunk(&body.buf, head); err != nil {
		return fmt.Errorf("send snapshot: %w", err)
	}
	req, err := p.request(ctx, http.MethodPost, pathSnapshot, body)
	if err != nil {
		return fmt.Errorf("send snapshot: %w", err)
	}
	once := &http.Transport{DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return p.dial(ctx) }, DisableKeepAlives: true}
	resp, err := once.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("send snapshot to %s: %w", p.member.Addr, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("send snapshot to %s: %w", p.member.Addr, refusal(resp))
	}
	return nil
}

// snapshotBody reads as the framed chunks of a snapshot.
type snapshotBody struct {
	src      SnapshotSource
	buf      bytes.Buffer
	ended    bool
	progress *time.Timer
}

func (b *snapshotBody) Read(out []byte) (int, error) {
	b.progress.Reset(snapshotTimeout)
	for b.buf.Len() == 0 {
		if b.ended {
			return 0, io.EOF
		}
		chunk, err := b.src.Next()
		if errors.Is(err, io.EOF) {
			b.ended, chunk = true, nil
		} else if err != nil {
			return 0, err
		}
		if err := writeChunk(&b.buf, chunk); err != nil {
			return 0, err
		}
	}
	return b.buf.Read(out)
}
