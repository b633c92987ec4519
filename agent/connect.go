package agent

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

const (
	// stagger is how long an attempt to reach a manager goes on alone before the next one is asked too. A manager whose
	// machine has died does not even refuse; the others must not wait for it.
	stagger = 200 * time.Millisecond
	// askAgain is how long after a manager knew no leader it is asked again, while others have yet to answer. They may be dead,
	// which takes connectLimit to find out, and by then a leader that was elected meanwhile has called this node down.
	askAgain = 300 * time.Millisecond
	// connectLimit bounds one attempt: connection, handshake, answer.
	connectLimit = 3 * time.Second
	// maxRefusal bounds how much of a refusal is read.
	maxRefusal = 4 << 10
)

// stream is an upgraded connection.
type stream struct {
	net.Conn
	r *bufio.Reader // has what was read beyond the answer's head
}

func (s *stream) Read(p []byte) (int, error) { return s.r.Read(p) }

// CloseWrite says that no more will be written; reading goes on.
func (s *stream) CloseWrite() error { return closeWrite(s.Conn) }

func closeWrite(conn net.Conn) error {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// notLeader is the answer of a manager that does not lead.
type notLeader struct {
	addr, leader string
}

func (e *notLeader) Error() string {
	if e.leader == "" {
		return fmt.Sprintf("manager %s knows no leader", e.addr)
	}
	return fmt.Sprintf("manager %s is not the leader; %s is", e.addr, e.leader)
}

// unready is the refusal of a manager that cannot take sessions at present.
type unready struct{ error }

func (e *unready) Unwrap() error { return e.error }

// refusal is why one manager gave no session, in words that name it.
type refusal struct {
	addr string
	error
}

func (e *refusal) Unwrap() error { return e.error }

// refusals are the errors in what connectAny returned, by the managers' addresses.
func refusals(err error) map[string]error {
	all := map[string]error{}
	joined, _ := err.(interface{ Unwrap() []error })
	if joined == nil {
		return nil
	}
	for _, err := range joined.Unwrap() {
		if r, ok := errors.AsType[*refusal](err); ok {
			all[r.addr] = r.error
		}
	}
	return all
}

// leaderless says whether a manager that answered so may know a leader in a moment.
func leaderless(err error) bool {
	if nl, ok := errors.AsType[*notLeader](err); ok {
		return nl.leader == ""
	}
	_, ok := errors.AsType[*unready](err)
	return ok
}

// dialFunc opens a connection to a manager's cluster port.
type dialFunc func(ctx context.Context, addr string) (net.Conn, error)

// connectAny asks managers in the given order until one takes the session: each a little later than the one before, at once
// when an earlier one has refused, and the leader that a follower names before all others. Who knows no leader is asked again until
// everybody has answered or is given up.
func connectAny(ctx context.Context, dial dialFunc, addrs []string) (s *stream, addr string, err error) {
	type outcome struct {
		addr string
		s    *stream
		err  error
		// again says that the manager had answered before.
		again bool
	}
	ctx, cancel := context.WithCancel(ctx)
	outcomes := make(chan outcome)
	pending, silent, asked := 0, 0, map[string]bool{} // silent ones have not answered at all
	put := func(addr string, again bool) {
		pending++
		go func() {
			s, err := open(ctx, dial, addr, protocol.PathSession)
			outcomes <- outcome{addr, s, err, again}
		}()
	}
	ask := func(addr string) {
		if !asked[addr] {
			asked[addr] = true
			silent++
			put(addr, false)
		}
	}
	defer func() {
		cancel()
		for ; pending > 0; pending-- {
			if o := <-outcomes; o.s != nil {
				_ = o.s.Close()
			}
		}
	}()
	var errs []error
	queue, waiting := addrs, []string(nil)
	for {
		for pending == 0 && len(queue) > 0 {
			ask(queue[0])
			queue = queue[1:]
		}
		if pending == 0 {
			return nil, "", errors.Join(errs...)
		}
		var later, again <-chan time.Time
		if len(queue) > 0 {
			later = time.After(stagger)
		} else if silent > 0 && len(waiting) > 0 {
			again = time.After(askAgain)
		}
		select {
		case <-later:
			ask(queue[0])
			queue = queue[1:]
		case <-again:
			for _, addr := range waiting {
				put(addr, true)
			}
			waiting = nil
		case o := <-outcomes:
			pending--
			if o.err == nil {
				return o.s, o.addr, nil
			}
			if !o.again {
				silent--
				errs = append(errs, &refusal{o.addr, o.err})
			}
			if leaderless(o.err) {
				waiting = append(waiting, o.addr)
			}
			if nl, ok := errors.AsType[*notLeader](o.err); ok && nl.leader != "" {
				ask(nl.leader)
			} else if len(queue) > 0 {
				ask(queue[0])
				queue = queue[1:]
			}
		}
	}
}

// open asks one manager for a session, or for the stream at another path.
func open(ctx context.Context, dial dialFunc, addr, path string) (*stream, error) {
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	conn, err := dial(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("reach manager %s: %w", addr, err)
	}
	unblock := context.AfterFunc(ctx, func() { _ = conn.Close() })
	s, err := upgrade(conn, addr, path)
	if !unblock() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return s, nil
}

func upgrade(conn net.Conn, addr, path string) (*stream, error) {
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", path, addr, protocol.UpgradeStream)
	if err != nil {
		return nil, fmt.Errorf("ask manager %s for a session: %w", addr, err)
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, fmt.Errorf("ask manager %s for a session: %w", addr, err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusSwitchingProtocols:
		return &stream{conn, r}, nil
	case http.StatusMisdirectedRequest:
		return nil, &notLeader{addr: addr, leader: resp.Header.Get(protocol.HeaderLeader)}
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	err = fmt.Errorf("manager %s refuses a session: %s", addr, cmp.Or(strings.TrimSpace(string(text)), resp.Status))
	if resp.StatusCode == http.StatusServiceUnavailable {
		return nil, &unready{err}
	}
	return nil, err
}
