package identity

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestRenewCertificate(t *testing.T) {
	tc := newTestCluster(t, 0)
	worker := tc.join(Worker)
	id := worker.Current().Identity
	client := NewClient(ClientConfig{Now: tc.clock.now})
	_, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.RenewCertificate(t.Context(), tc.addr, worker, csr)
	if err != nil || resp.NodeID != id.NodeID || resp.Role != Worker {
		t.Fatalf("renewal: %+v, %v", resp, err)
	}
	tc.change(func() { tc.nodes[id.NodeID] = Manager })
	if resp, err = client.RenewCertificate(t.Context(), tc.addr, worker, csr); err != nil || resp.Role != Manager {
		t.Errorf("renewal after a promotion: %+v, %v", resp, err)
	}
	tc.change(func() { tc.removed[id.NodeID] = true })
	_, err = client.RenewCertificate(t.Context(), tc.addr, worker, csr)
	if !errors.Is(err, ErrRemoved) || !strings.Contains(err.Error(), tc.addr) {
		t.Errorf("renewal of a removed node: %v", err)
	}
	if _, err = client.RenewCertificate(t.Context(), tc.addr, newTestStore(t, tc.clock), csr); !errors.Is(err, ErrNotJoined) {
		t.Errorf("renewal of nothing: %v", err)
	}
}

// TestRenewCertificateRefusedInHandshake is about certificates that the manager does not even let in.
func TestRenewCertificateRefusedInHandshake(t *testing.T) {
	tc := newTestCluster(t, 0)
	worker := tc.join(Worker)
	_, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	stopped := &clock{} // this node's clock has stood still for a year
	slow := storeOf(t, worker.Current(), stopped)
	tc.clock.shift(DefaultValidity + 30*24*time.Hour)
	if _, err := Found(tc.ca, tc.store, tc.store.Current().Identity, 365*24*time.Hour); err != nil {
		t.Fatal(err)
	}
	for range 20 { // the reset that follows the alert must never hide it
		_, err = NewClient(ClientConfig{Now: stopped.now}).RenewCertificate(t.Context(), tc.addr, slow, csr)
		clock, ok := errors.AsType[*ClockError](err)
		if !ok || clock.Addr != tc.addr || clock.Remote.Sub(clock.Local).Round(24*time.Hour) != 120*24*time.Hour {
			t.Fatalf("error = %v, want both clocks", err)
		}
	}

	// The same, but the client does not notice that the server's certificate is not valid yet by its clock.
	careless := func(s *Store) error {
		conf := ClientTLS(s, Manager, "", "http/1.1")
		conf.VerifyConnection = nil
		_, err := NewClient(ClientConfig{Now: s.cfg.Now}).exchange(t.Context(), tc.addr, conf, http.MethodPost, IssuePath, []byte("{}"))
		return err
	}
	for range 20 {
		if err := careless(slow); err == nil || !strings.Contains(err.Error(), "120 days ahead") {
			t.Fatalf("error = %v, want both clocks", err)
		}
	}
	for range 20 {
		err := careless(newTestCluster(t, tc.clock.offset).store)
		if !errors.Is(err, ErrOtherCluster) && !errors.Is(err, ErrUnreachable) {
			t.Fatalf("error = %v, want another cluster or, if the reset was faster, a lost connection", err)
		}
	}
}

// TestIssuedCertificateIsChecked plays managers that answer a request with something else than was asked for.
func TestIssuedCertificateIsChecked(t *testing.T) {
	tc := newTestCluster(t, 0)
	stranger := newTestCluster(t, 0)
	_, otherCSR, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	_, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	sign := func(ca *CA, csr []byte, id Identity) string {
		cert, err := ca.Issue(csr, id, 0)
		if err != nil {
			t.Fatal(err)
		}
		return string(cert)
	}
	yearsAgo, err := LoadCA(tc.RootPEM(), must(tc.ca.KeyPEM()), CAConfig{Now: (&clock{offset: -year}).now})
	if err != nil {
		t.Fatal(err)
	}
	id := Identity{"node", testClusterID, Worker}
	for _, c := range []struct {
		name  string
		resp  IssueResponse
		words string
	}{
		{"good", IssueResponse{sign(tc.ca, csr, id), "node", Worker}, ""},
		{"nothing", IssueResponse{}, "is no certificate"},
		{"garbage", IssueResponse{"x", "node", Worker}, "it holds no PEM block"},
		{"another key", IssueResponse{sign(tc.ca, otherCSR, id), "node", Worker}, "for another key"},
		{"another node", IssueResponse{sign(tc.ca, csr, id), "other", Worker}, "issued certificate is for"},
		{"another role", IssueResponse{sign(tc.ca, csr, id), "node", Manager}, "issued certificate is for"},
		{"another cluster", IssueResponse{sign(tc.ca, csr, Identity{"node", "else", Worker}), "node", Worker}, "issued certificate is for"},
		{"another root", IssueResponse{sign(stranger.ca, csr, id), "node", Worker}, "not signed by this cluster's root CA"},
		{"expired", IssueResponse{sign(yearsAgo, csr, id), "node", Worker}, "clocks disagree"},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := tc.serve(tc.store, fixedIssuer{tc.RootPEM(), c.resp})
			_, err := NewClient(ClientConfig{}).RequestCertificate(t.Context(), addr, tc.ca.Root(), mustToken(t, tc.tokens.Worker), "", csr)
			if (c.words == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.words) {
				t.Errorf("error = %v, want %q", err, c.words)
			}
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

type fixedIssuer struct {
	root []byte
	resp IssueResponse
}

func (f fixedIssuer) RootPEM() []byte { return f.root }
func (f fixedIssuer) Issue(context.Context, IssueRequest, *Identity, string) (IssueResponse, error) {
	return f.resp, nil
}

// TestRequestCertificateRefusesImpostors: who has the root certificate, which is public, but no manager's key gets no token.
func TestRequestCertificateRefusesImpostors(t *testing.T) {
	tc := newTestCluster(t, 0)
	_, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	for name, store := range map[string]*Store{"worker": tc.join(Worker), "stranger": newTestCluster(t, 0).store} {
		t.Run(name, func(t *testing.T) {
			thief := &recordingIssuer{fixedIssuer: fixedIssuer{root: tc.RootPEM()}}
			addr := tc.serve(store, thief)
			token := mustToken(t, tc.tokens.Manager)
			root, err := NewClient(ClientConfig{}).FetchRoot(t.Context(), addr, token)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := NewClient(ClientConfig{}).RequestCertificate(t.Context(), addr, root, token, "", csr); err == nil {
				t.Error("no error")
			}
			if thief.got != "" {
				t.Error("the impostor was sent the token")
			}
		})
	}
}

type recordingIssuer struct {
	fixedIssuer
	got string
}

func (r *recordingIssuer) Issue(_ context.Context, req IssueRequest, _ *Identity, _ string) (IssueResponse, error) {
	r.got = req.Token
	return IssueResponse{}, nil
}

// follower is a manager that hands requests to the leader.
type follower struct {
	root   []byte
	store  *Store
	leader string
}

func (f follower) RootPEM() []byte { return f.root }
func (f follower) Issue(ctx context.Context, req IssueRequest, peer *Identity, addr string) (IssueResponse, error) {
	return NewClient(ClientConfig{}).ForwardIssue(ctx, f.leader, "", f.store, req, peer, addr)
}

func TestForwardedRequests(t *testing.T) {
	tc := newTestCluster(t, 0)
	second := tc.join(Manager)
	addr := tc.serve(second, follower{tc.RootPEM(), second, tc.addr})
	client := NewClient(ClientConfig{})
	nodes := len(tc.nodes)

	newcomer := newTestStore(t, tc.clock)
	id, err := Join(t.Context(), JoinConfig{Addrs: []string{addr}, Token: tc.tokens.Worker, Store: newcomer})
	if err != nil {
		t.Fatal(err)
	}
	if len(tc.nodes) != nodes+1 || tc.nodes[id.NodeID] != Worker {
		t.Errorf("nodes after joining through a follower: %v", tc.nodes)
	}
	_, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.RenewCertificate(t.Context(), addr, newcomer, csr)
	if err != nil || resp.NodeID != id.NodeID || resp.Role != Worker {
		t.Errorf("renewal through a follower: %+v, %v", resp, err)
	}
	rotated := must(NewToken(tc.RootPEM(), nil))
	_, err = client.RequestCertificate(t.Context(), addr, tc.ca.Root(), rotated, "", csr)
	if want := fmt.Sprintf("request certificate from %s: %s", addr, ErrInvalidToken); err == nil || err.Error() != want {
		t.Errorf("refusal through a follower: %v, want %s", err, want)
	}
	tc.change(func() { tc.removed[id.NodeID] = true })
	peer := Identity{id.NodeID, testClusterID, Worker}
	for name, c := range map[string]struct {
		as    *Store
		token string
		peer  *Identity
		words string
	}{
		"removed node":           {second, "", &peer, ErrRemoved.Error()},
		"worker forwards":        {tc.join(Worker), "", &Identity{"n", testClusterID, Manager}, "only managers may forward"},
		"worker forwards tokens": {tc.join(Worker), tc.tokens.Worker, nil, "only managers may forward"},
		"peer of elsewhere":      {second, "", &Identity{"n", "elsewhere", Manager}, "belongs to cluster elsewhere"},
		"nobody":                 {second, "", nil, ErrInvalidToken.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := client.ForwardIssue(t.Context(), tc.addr, "", c.as, IssueRequest{CSR: string(csr), Token: c.token}, c.peer, "10.9.8.7:6")
			if err == nil || !strings.Contains(err.Error(), c.words) {
				t.Errorf("error = %v, want %q", err, c.words)
			}
		})
	}
	_, err = impatient().ForwardIssue(t.Context(), closedPort(t), "", second, IssueRequest{}, nil, "")
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "forward certificate request to leader") {
		t.Errorf("leader gone: %v", err)
	}
}

func TestAuthorise(t *testing.T) {
	tokens := must(NewJoinTokens([]byte("root"), nil))
	_, csrText, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	csr := string(csrText)
	fresh := must(NodeIDFor(csrText))
	peer := &Identity{"n1", testClusterID, Worker}
	for _, c := range []struct {
		name   string
		req    IssueRequest
		peer   *Identity
		want   Grant
		status int
	}{
		{"worker's token", IssueRequest{CSR: csr, Token: tokens.Worker}, nil, Grant{fresh, Worker, false}, 0},
		{"manager's token", IssueRequest{CSR: csr, Token: tokens.Manager, Availability: "drain"}, nil, Grant{fresh, Manager, false}, 0},
		{"certificate", IssueRequest{CSR: csr}, peer, Grant{"n1", Worker, true}, 0},
		{"certificate and own id", IssueRequest{CSR: csr, NodeID: "n1"}, peer, Grant{"n1", Worker, true}, 0},
		{"certificate and other's id", IssueRequest{CSR: csr, NodeID: "n2"}, peer, Grant{}, 403},
		{"token beats certificate", IssueRequest{CSR: csr, Token: tokens.Manager}, peer, Grant{fresh, Manager, false}, 0},
		{"token and an id", IssueRequest{CSR: csr, Token: tokens.Worker, NodeID: "n1"}, nil, Grant{}, 400},
		{"nothing", IssueRequest{CSR: csr}, nil, Grant{}, 400},
		{"wrong token", IssueRequest{CSR: csr, Token: goodToken}, nil, Grant{}, 400},
		{"bad availability", IssueRequest{CSR: csr, Token: tokens.Worker, Availability: "on"}, nil, Grant{}, 400},
		{"bad request", IssueRequest{CSR: "x", Token: tokens.Worker}, nil, Grant{}, 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Authorise(tokens, c.req, c.peer)
			refusal, _ := errors.AsType[*StatusError](err)
			if got != c.want || (err != nil) != (c.status != 0) || refusal != nil && refusal.Status != c.status {
				t.Errorf("Authorise = %+v, %v, want %+v or status %d", got, err, c.want, c.status)
			}
		})
	}
}

// TestHandlerBoundsItsInput: an anonymous peer cannot make a manager read without end, nor misunderstand.
func TestHandlerBoundsItsInput(t *testing.T) {
	tc := newTestCluster(t, 0)
	c := NewClient(ClientConfig{})
	for name, in := range map[string]struct {
		body   string
		status int
	}{
		"too large": {`{"CSR":"` + strings.Repeat("x", 1<<20) + `"}`, http.StatusRequestEntityTooLarge},
		"no JSON":   {"hello", http.StatusBadRequest},
		"empty":     {"", http.StatusBadRequest},
		"nothing":   {"{}", http.StatusBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.exchange(t.Context(), tc.addr, c.anonymousTLS(), http.MethodPost, IssuePath, []byte(in.body))
			refusal, ok := errors.AsType[*StatusError](err)
			if !ok || refusal.Status != in.status {
				t.Errorf("error = %v, want status %d", err, in.status)
			}
		})
	}
}

func TestErrorsOfTheIssuerKeepTheirStatus(t *testing.T) {
	tc := newTestCluster(t, 0)
	_, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		fail   error
		status int
	}{
		{errors.New("disk full"), 500},
		{fmt.Errorf("find leader: %w", &StatusError{503, "no leader"}), 503},
		{fmt.Errorf("propose: %w", context.DeadlineExceeded), 503},
	} {
		tc.change(func() { tc.fail = c.fail })
		_, err := NewClient(ClientConfig{}).RequestCertificate(t.Context(), tc.addr, tc.ca.Root(), mustToken(t, tc.tokens.Worker), "", csr)
		refusal, ok := errors.AsType[*StatusError](err)
		if !ok || refusal.Status != c.status || refusal.Message != c.fail.Error() {
			t.Errorf("error = %v, want status %d and %q", err, c.status, c.fail)
		}
	}
}

func TestClientReturnsTheCauseWhenCancelled(t *testing.T) {
	addr := peer(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) })
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("daemon stops")
	cancel(cause)
	if _, err := NewClient(ClientConfig{}).FetchRoot(ctx, addr, mustToken(t, goodToken)); !errors.Is(err, cause) {
		t.Errorf("error = %v, want the cause", err)
	}
}
