package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

// ClientConfig configures a Client. The zero value is good for production.
type ClientConfig struct {
	Now         func() time.Time                                                  // nil: time.Now
	Dial        func(ctx context.Context, network, addr string) (net.Conn, error) // nil: net.Dialer
	DialTimeout time.Duration                                                     // for TCP and for TLS each; 0: 5 s
	Timeout     time.Duration                                                     // for a whole request; 0: 15 s
}

// Client is the newcomer's and the node's side of the certificate authority. It writes nothing to disk. Its errors name
// the address and tell apart what a person would do something different about: [ErrUnreachable], [ErrNotManager],
// [ErrOtherCluster], [ErrInvalidToken], [*ClockError] and other [*StatusError]s.
type Client struct{ cfg ClientConfig }

// NewClient returns a client, which holds no connections.
func NewClient(cfg ClientConfig) *Client {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	if cfg.DialTimeout <= 0 {
		cfg.DialTimeout = 5 * time.Second
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 15 * time.Second
	}
	return &Client{cfg}
}

// FetchRoot downloads the root certificate from the manager at addr (host:port) and returns it if it is the one that token was
// made for. The connection is trusted for nothing else.
func (c *Client) FetchRoot(ctx context.Context, addr string, token Token) (*Root, error) {
	root, err := c.fetchRoot(ctx, addr, token)
	if err != nil {
		return nil, fmt.Errorf("download root CA certificate from %s: %w", addr, err)
	}
	return root, nil
}

func (c *Client) fetchRoot(ctx context.Context, addr string, token Token) (*Root, error) {
	answer, err := c.exchange(ctx, addr, c.anonymousTLS(), http.MethodGet, RootPath, nil)
	if err != nil {
		return nil, err
	}
	root, err := ParseRoot(answer.body)
	if err != nil {
		return nil, fmt.Errorf("%w: what it serves at %s is no certificate", ErrNotManager, RootPath)
	}
	if !token.matchesRoot(root.pem) {
		return nil, fmt.Errorf("%w than the join token: its root CA has digest %s, the token is for %s; "+
			"take the token from a manager of that cluster", ErrOtherCluster, root.Digest(), token.RootDigest())
	}
	return root, nil
}

// RequestCertificate asks the manager at addr, which must be certified by root, to admit a newcomer with token and to
// certify the key of csrPEM. The certificate in the answer has been checked. To ask again with the same request is safe: see
// [NodeIDFor].
func (c *Client) RequestCertificate(ctx context.Context, addr string, root *Root, token Token,
	availability swarm.NodeAvailability, csrPEM []byte,
) (IssueResponse, error) {
	var server Identity
	conf := c.anonymousTLS()
	conf.VerifyConnection = func(cs tls.ConnectionState) (err error) {
		server, err = verifyChain(cs.PeerCertificates, root, c.cfg.Now(), x509.ExtKeyUsageServerAuth)
		if err == nil && server.Role != Manager {
			err = fmt.Errorf("%w: it is node %s, a %s", ErrNotManager, server.NodeID, server.Role)
		}
		return err
	}
	req := IssueRequest{CSR: string(csrPEM), Token: token.String(), Availability: availability}
	resp, err := c.issue(ctx, addr, conf, req, root, &server)
	if err != nil {
		return IssueResponse{}, fmt.Errorf("request certificate from %s: %w", addr, err)
	}
	return resp, nil
}

// RenewCertificate asks the manager at addr for a new certificate for the node whose current one is in store, for the key of
// csrPEM. Its role may differ from the current one, which may have expired: see [RenewProtocol].
func (c *Client) RenewCertificate(ctx context.Context, addr string, store *Store, csrPEM []byte) (IssueResponse, error) {
	own, err := store.required()
	if err != nil {
		return IssueResponse{}, fmt.Errorf("renew certificate at %s: %w", addr, err)
	}
	req := IssueRequest{CSR: string(csrPEM), NodeID: own.Identity.NodeID}
	resp, err := c.issue(ctx, addr, ClientTLS(store, Manager, "", RenewProtocol, "http/1.1"), req, own.Root, &own.Identity)
	if err == nil && resp.NodeID != own.Identity.NodeID {
		err = fmt.Errorf("asked for a certificate for node %s and got one for node %s", own.Identity.NodeID, resp.NodeID)
	}
	if err != nil {
		return IssueResponse{}, fmt.Errorf("renew certificate at %s: %w", addr, err)
	}
	return resp, nil
}

// ForwardIssue passes a request that a follower received on to the leader at addr, whose node id may be given. The arguments
// are those of [Issuer.Issue], store holds the follower's own credentials. Refusals come back as the leader's [*StatusError].
func (c *Client) ForwardIssue(ctx context.Context, addr, leaderID string, store *Store,
	req IssueRequest, peer *Identity, from string,
) (IssueResponse, error) {
	req.Forwarded = &Forwarded{Peer: peer, Addr: from}
	answer, err := c.post(ctx, addr, ClientTLS(store, Manager, leaderID, "http/1.1"), req)
	var resp IssueResponse
	if err == nil {
		resp, err = decodeIssued(answer)
	}
	if refusal, ok := errors.AsType[*StatusError](err); ok {
		return IssueResponse{}, refusal // the newcomer reads the same words, whichever manager it asked
	}
	if err != nil {
		return IssueResponse{}, fmt.Errorf("forward certificate request to leader %s: %w", addr, err)
	}
	return resp, nil
}

// issue sends req and checks the certificate that comes back. issuer's cluster must be named in it; it is a pointer because a
// newcomer learns it only from the handshake.
func (c *Client) issue(ctx context.Context, addr string, conf *tls.Config,
	req IssueRequest, root *Root, issuer *Identity,
) (IssueResponse, error) {
	answer, err := c.post(ctx, addr, conf, req)
	if err != nil {
		return IssueResponse{}, err
	}
	resp, err := decodeIssued(answer)
	if err != nil {
		return IssueResponse{}, err
	}
	chain, err := parseCertificates([]byte(resp.Certificate))
	if err != nil {
		return IssueResponse{}, fmt.Errorf("issued certificate: %w", err)
	}
	id, err := verifyChain(chain, root, c.cfg.Now(), x509.ExtKeyUsageClientAuth)
	if clock, ok := errors.AsType[*ClockError](err); ok {
		clock.Addr, clock.Remote = addr, answer.date
	}
	if err != nil {
		return IssueResponse{}, fmt.Errorf("issued certificate: %w", err)
	}
	if want := (Identity{resp.NodeID, issuer.ClusterID, resp.Role}); id != want {
		return IssueResponse{}, fmt.Errorf("issued certificate is for %+v instead of %+v", id, want)
	}
	csr, err := parseRequest([]byte(req.CSR))
	if err != nil {
		return IssueResponse{}, err
	}
	if key, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || !key.Equal(chain[0].PublicKey) {
		return IssueResponse{}, errors.New("issued certificate is for another key than the one requested")
	}
	return resp, nil
}

func (c *Client) post(ctx context.Context, addr string, conf *tls.Config, req IssueRequest) (answer, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return answer{}, err
	}
	return c.exchange(ctx, addr, conf, http.MethodPost, IssuePath, body)
}

func decodeIssued(a answer) (IssueResponse, error) {
	var resp IssueResponse
	if err := json.Unmarshal(a.body, &resp); err != nil || resp.Certificate == "" {
		return IssueResponse{}, fmt.Errorf("%w: its answer to %s is no certificate", ErrNotManager, IssuePath)
	}
	return resp, nil
}

// anonymousTLS is for peers that are not verified, or not yet.
func (c *Client) anonymousTLS() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		NextProtos:         []string{"http/1.1"},
		Time:               c.cfg.Now,
		InsecureSkipVerify: true, // the callers compare digests or set VerifyConnection
	}
}

// answer is what a manager said.
type answer struct {
	body []byte
	date time.Time // the manager's clock; zero if it did not say
}

// exchange sends one request over a connection of its own and returns the answer if its status is 200.
func (c *Client) exchange(ctx context.Context, addr string, conf *tls.Config, method, path string, body []byte) (answer, error) {
	limited, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	got, err := c.roundTrip(limited, addr, conf, method, path, body)
	switch {
	case err == nil:
		return got, nil
	case ctx.Err() != nil: // the caller gave up; whatever failed failed for that
		return answer{}, context.Cause(ctx)
	}
	return answer{}, c.explain(ctx, err, addr, conf)
}

func (c *Client) roundTrip(ctx context.Context, addr string, conf *tls.Config, method, path string, body []byte) (answer, error) {
	conn, err := c.connect(ctx, addr, conf)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	transport := &http.Transport{
		DialTLSContext:    func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableKeepAlives: true,
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return answer{}, &talkError{err}
	}
	defer resp.Body.Close()
	const maxAnswerBytes = 1 << 20
	got := answer{}
	got.body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	if err != nil {
		return answer{}, &talkError{err}
	}
	if got.date, err = http.ParseTime(resp.Header.Get("Date")); err != nil {
		got.date = time.Time{}
	}
	if resp.StatusCode == http.StatusOK {
		return got, nil
	}
	var m message
	if json.Unmarshal(got.body, &m) != nil || m.Message == "" {
		return answer{}, fmt.Errorf("%w: it answers %s with %s", ErrNotManager, path, resp.Status)
	}
	return answer{}, &StatusError{resp.StatusCode, m.Message}
}

func (c *Client) connect(ctx context.Context, addr string, conf *tls.Config) (*tls.Conn, error) {
	dialing, cancel := context.WithTimeout(ctx, c.cfg.DialTimeout)
	defer cancel()
	raw, err := c.cfg.Dial(dialing, "tcp", addr)
	if err != nil {
		return nil, &dialError{err}
	}
	shaking, cancel := context.WithTimeout(ctx, c.cfg.DialTimeout)
	defer cancel()
	conn := tls.Client(raw, conf)
	if err := conn.HandshakeContext(shaking); err != nil {
		_ = raw.Close() // the handshake's error is the one that tells
		return nil, &handshakeError{err}
	}
	return conn, nil
}
