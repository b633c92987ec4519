package identity

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

func TestJoin(t *testing.T) {
	tc := newTestCluster(t, 0)
	for _, role := range []Role{Worker, Manager} {
		t.Run(string(role), func(t *testing.T) {
			s := tc.join(role)
			if tc.nodes[s.Current().Identity.NodeID] != role {
				t.Errorf("the manager knows %v", tc.nodes)
			}
			again, err := NewStore(s.cfg)
			if err != nil {
				t.Fatal(err)
			}
			loaded, err := again.Load()
			if err != nil || loaded.Identity != s.Current().Identity {
				t.Errorf("after a restart: %+v, %v", loaded, err)
			}
			if got := filesIn(t, s); !slices.Equal(got, []string{certFile, keyFile, rootFile}) {
				t.Errorf("files %v", got)
			}
		})
	}
}

const year = 365 * 24 * time.Hour

// TestJoinFailures shows what a person reads for each way of going wrong, and that nothing is left behind.
func TestJoinFailures(t *testing.T) {
	tc := newTestCluster(t, 0)
	other := newTestCluster(t, 0)
	ahead, behind := newTestCluster(t, year), newTestCluster(t, -year)
	rotated, err := NewToken(tc.ca.Root().PEM(), nil)
	if err != nil {
		t.Fatal(err)
	}
	notFound := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(notFound.Close)
	empty := tc.serve(newTestStore(t, tc.clock), tc)

	for _, c := range []struct {
		name  string
		addr  string
		token string
		is    error
		words []string
	}{
		{"truncated token", tc.addr, tc.tokens.Worker[:80], ErrMalformedToken, []string{"secret (last part) has 20 of 25 characters"}},
		{"rotated token", tc.addr, rotated.String(), ErrInvalidToken, []string{ErrInvalidToken.Error(), tc.addr}},
		{"token of another cluster", tc.addr, other.tokens.Worker, ErrOtherCluster,
			[]string{tc.addr, "it belongs to another cluster than the join token", tc.ca.Root().Digest(), other.ca.Root().Digest()}},
		{"nobody listens", closedPort(t), tc.tokens.Worker, ErrUnreachable, []string{"connection refused", "check the address"}},
		{"silence", blackHole, tc.tokens.Worker, ErrUnreachable, []string{blackHole, "no answer within", "firewall"}},
		{"unknown host", "manager.invalid:2377", tc.tokens.Worker, ErrUnreachable, []string{`"manager.invalid" cannot be resolved`}},
		{"plain HTTP", plainHTTP(t), tc.tokens.Worker, ErrNotManager, []string{"does not speak TLS", "2377"}},
		{"mute plain text", peer(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }), tc.tokens.Worker, ErrUnreachable, []string{"no TLS answer came within"}},
		{"hangs up", peer(t, func(net.Conn) {}), tc.tokens.Worker, ErrUnreachable, []string{"closed the connection during the TLS handshake"}},
		{"another HTTPS service", strings.TrimPrefix(notFound.URL, "https://"), tc.tokens.Worker, ErrNotManager, []string{"404 Not Found"}},
		{"a manager without certificate", empty, tc.tokens.Worker, ErrUnreachable, []string{"no certificate of its own yet"}},
		{"manager's clock a year ahead", ahead.addr, ahead.tokens.Worker, nil, []string{"clocks disagree", "365 days ahead", "valid from", ahead.addr}},
		{"manager's clock a year behind", behind.addr, behind.tokens.Worker, nil, []string{"clocks disagree", "365 days behind", "valid from", behind.addr}},
		{"not an address", "http://" + tc.addr, tc.tokens.Worker, nil, []string{"must be HOST or HOST:PORT"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newTestStore(t, &clock{})
			id, err := Join(t.Context(), JoinConfig{Addrs: []string{c.addr}, Token: c.token, Store: s, Client: impatient(), Attempts: 2, Pause: time.Millisecond})
			if err == nil {
				t.Fatalf("joined as %+v", id)
			}
			t.Log(err)
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("error does not match %q: %v", c.is, err)
			}
			if _, ok := errors.AsType[*ClockError](err); ok != strings.Contains(c.name, "clock") {
				t.Errorf("is a clock error: %v", ok)
			}
			for _, w := range c.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error does not say %q: %v", w, err)
				}
			}
			if s.Current() != nil || len(filesIn(t, s)) > 0 {
				t.Errorf("half joined: %v on disk", filesIn(t, s))
			}
			if entries, err := os.ReadDir(s.cfg.Dir); err != nil || len(entries) > 0 {
				t.Errorf("left in the state directory: %v, %v", entries, err)
			}
		})
	}
}

// impatient waits half a second where a person's client waits five.
func impatient() *Client {
	return NewClient(ClientConfig{
		DialTimeout: 500 * time.Millisecond,
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == blackHole {
				<-ctx.Done() // as when a firewall drops the packets
				return nil, &net.OpError{Op: "dial", Net: network, Err: ctx.Err()}
			}
			if host, _, _ := net.SplitHostPort(addr); host == "manager.invalid" {
				return nil, &net.OpError{Op: "dial", Net: network, Err: &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}}
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	})
}

const blackHole = "192.0.2.1:2377"

// closedPort returns a loopback address at which nobody listens.
func closedPort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// peer serves plain TCP until the test ends.
func peer(t *testing.T, serve func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String()
}

func plainHTTP(t *testing.T) string {
	s := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func TestJoinSurvivesALostAnswer(t *testing.T) {
	tc := newTestCluster(t, 0)
	lossy := &losing{Issuer: tc, left: 2}
	addr := tc.serve(tc.store, lossy)
	s := newTestStore(t, tc.clock)
	id, err := Join(t.Context(), JoinConfig{Addrs: []string{addr}, Token: tc.tokens.Worker, Store: s, Pause: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if len(tc.nodes) != 2 || tc.nodes[id.NodeID] != Worker {
		t.Errorf("three attempts made the nodes %v, want the manager and %s", tc.nodes, id.NodeID)
	}
}

// losing does what it is asked and then loses the answer, as a leader does that dies.
type losing struct {
	Issuer
	left int
}

func (l *losing) Issue(ctx context.Context, req IssueRequest, peer *Identity, addr string) (IssueResponse, error) {
	resp, err := l.Issuer.Issue(ctx, req, peer, addr)
	if l.left > 0 {
		l.left--
		panic(http.ErrAbortHandler)
	}
	return resp, err
}

func TestJoinTriesEveryManager(t *testing.T) {
	tc := newTestCluster(t, 0)
	s := newTestStore(t, tc.clock)
	addrs := []string{closedPort(t), plainHTTP(t), tc.addr}
	if _, err := Join(t.Context(), JoinConfig{Addrs: addrs, Token: tc.tokens.Worker, Store: s, Pause: time.Millisecond}); err != nil {
		t.Error(err)
	}
	_, err := Join(t.Context(), JoinConfig{Addrs: addrs[:2], Token: tc.tokens.Worker, Store: s, Pause: time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), addrs[0]) || !strings.Contains(err.Error(), addrs[1]) {
		t.Errorf("error must tell of both addresses: %v", err)
	}
}

func TestJoinWaitsForALeader(t *testing.T) {
	tc := newTestCluster(t, 0)
	tc.fail = &StatusError{http.StatusServiceUnavailable, "The swarm does not have a leader."}
	_, err := Join(t.Context(), JoinConfig{Addrs: []string{tc.addr}, Token: tc.tokens.Worker, Store: newTestStore(t, tc.clock), Pause: time.Millisecond})
	if !errors.Is(err, tc.fail) {
		t.Errorf("error = %v, want the manager's words", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	gaveUp := errors.New("user pressed Ctrl-C")
	cancel(gaveUp)
	if _, err := Join(ctx, JoinConfig{Addrs: []string{tc.addr}, Token: tc.tokens.Worker, Store: newTestStore(t, tc.clock)}); !errors.Is(err, gaveUp) {
		t.Errorf("error = %v, want the cause", err)
	}
}

func TestIssueRefusals(t *testing.T) {
	tc := newTestCluster(t, 0)
	client := NewClient(ClientConfig{})
	token := mustToken(t, tc.tokens.Worker)
	_, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.RequestCertificate(t.Context(), tc.addr, tc.ca.Root(), token, "asleep", csr)
	if want := `invalid Availability: "asleep"`; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error = %v, want %q", err, want)
	}
	_, err = client.RequestCertificate(t.Context(), tc.addr, tc.ca.Root(), token, swarm.NodeAvailabilityDrain, []byte("no request"))
	if refusal, ok := errors.AsType[*StatusError](err); !ok || refusal.Status != http.StatusBadRequest {
		t.Errorf("error = %v, want status 400", err)
	}
	if _, err := client.RequestCertificate(t.Context(), tc.addr, tc.ca.Root(), token, swarm.NodeAvailabilityDrain, csr); err != nil {
		t.Error(err)
	}
}

func TestParseAddr(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1": "10.0.0.1:2377", "10.0.0.1:99": "10.0.0.1:99", "vm1": "vm1:2377", " vm1:5 ": "vm1:5",
		"::1": "[::1]:2377", "[::1]": "[::1]:2377", "[fe80::1]:7": "[fe80::1]:7",
		"": "", ":2377": "", "vm1:": "", "vm1:0": "", "vm1:65536": "", "vm1:http": "", "a:b:c": "", "https://vm1:1": "", "vm1/x": "",
	} {
		got, err := ParseAddr(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("ParseAddr(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
}
