package identity

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

const (
	externalTimeout = 5 * time.Second
	// maxExternalBytes bounds an external CA's answer, as in Docker Swarm.
	maxExternalBytes = 256 << 10
	// crossSignProfile is the profile with which an external CA is asked to certify a CA, as in Docker Swarm.
	crossSignProfile = "CA"
)

// The JSON of CFSSL's signing endpoint, the one protocol of external CAs. Docker Swarm sends the same.
type (
	cfsslRequest struct {
		Hosts      []string         `json:"hosts"`
		Request    string           `json:"certificate_request"`
		Subject    cfsslSubject     `json:"subject"`
		Profile    string           `json:"profile"`
		Extensions []cfsslExtension `json:"extensions,omitempty"`
	}
	cfsslSubject struct {
		CN    string      `json:"CN"`
		Names []cfsslName `json:"names"`
	}
	cfsslName struct {
		O  string `json:"O,omitempty"`
		OU string `json:"OU,omitempty"`
	}
	cfsslExtension struct {
		ID       string `json:"id"`
		Critical bool   `json:"critical"`
		Value    string `json:"value"` // hex
	}
	cfsslAnswer struct {
		Success bool `json:"success"`
		Result  struct {
			Certificate string `json:"certificate"`
		} `json:"result"`
		Errors []struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
)

// externalURLs gives where certificates of root are signed. An external CA that names no certificate is one of the
// current root's.
func externalURLs(all []*swarm.ExternalCA, current, root []byte) (urls []string) {
	root = normalised(root)
	for _, e := range all {
		of := current
		if e.CACert != "" {
			of = []byte(e.CACert)
		}
		if strings.EqualFold(string(e.Protocol), string(swarm.ExternalCAProtocolCFSSL)) && bytes.Equal(normalised(of), root) {
			urls = append(urls, e.URL)
		}
	}
	return urls
}

// externalTLS is for connections to an external CA: its certificate must be of the root that it signs for, and it may ask for
// this manager's.
func (a *Authority) externalTLS(root *Root) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: root.pool, Time: a.cfg.Now,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c, err := a.cfg.Store.required()
			if err != nil {
				return nil, err
			}
			return c.tls, nil
		}}
}

// reachable makes sure that at least one of an external CA's URLs can be connected to.
func (a *Authority) reachable(ctx context.Context, urls []string, rootPEM []byte, which string) error {
	root, err := ParseRoot(rootPEM)
	if err != nil {
		return badRequest("%s", err)
	}
	for _, u := range urls {
		if err = a.dialExternal(ctx, u, root); err == nil {
			return nil
		}
		a.cfg.Logger.Warn("external CA is unreachable or invalid", "url", u, "err", err)
	}
	return badRequest("there must be at least one valid, reachable external CA corresponding to the %s CA certificate", which)
}

func (a *Authority) dialExternal(ctx context.Context, rawURL string, root *Root) error {
	u, err := url.Parse(rawURL)
	if err != nil {
		return err
	}
	if u.Scheme != "https" {
		return errors.New("invalid HTTP scheme")
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	ctx, cancel := context.WithTimeout(ctx, externalTimeout)
	defer cancel()
	d := tls.Dialer{Config: a.externalTLS(root)}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return err
	}
	return conn.Close()
}

// signExternally has an external CA certify the key of a request, and checks that it did no other thing than that: a
// certificate that says more than was asked for would be a node that nobody admitted.
func (a *Authority) signExternally(ctx context.Context, urls []string, root *Root, csrPEM []byte, id Identity) ([]byte, error) {
	csr, err := parseRequest(csrPEM)
	if err != nil {
		return nil, err
	}
	unit, err := unitOf(id.Role)
	if err != nil {
		return nil, err
	}
	chain, err := a.askExternal(ctx, urls, root, cfsslRequest{Hosts: namesOf(unit, id), Request: string(csrPEM),
		Subject: cfsslSubject{CN: id.NodeID, Names: []cfsslName{{O: id.ClusterID, OU: unit}}}})
	if err != nil {
		return nil, err
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		switch got, err := verifyChain(chain, root, a.cfg.Now(), usage); {
		case err != nil:
			return nil, fmt.Errorf("the external CA's certificate is not usable: %w", err)
		case got != id:
			return nil, fmt.Errorf("the external CA's certificate is for %+v instead of %+v", got, id)
		}
	}
	switch leaf := chain[0]; {
	case leaf.IsCA:
		return nil, errors.New("the external CA's certificate is a CA's instead of a node's")
	case !bytes.Equal(leaf.RawSubjectPublicKeyInfo, csr.RawSubjectPublicKeyInfo):
		return nil, errors.New("the external CA's certificate is for another key than the one requested")
	}
	return encodeCertificates(chain...), nil
}

// crossSignExternally has the external CA of root certify the root of another CA.
func (a *Authority) crossSignExternally(ctx context.Context, urls []string, root *Root, other *CA) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: other.cert.RawSubject}, other.key)
	if err != nil {
		return nil, err
	}
	req := cfsslRequest{Request: string(pem.EncodeToMemory(&pem.Block{Type: pemRequest, Bytes: der})), Profile: crossSignProfile,
		Subject: cfsslSubject{CN: other.cert.Subject.CommonName}}
	for i, unit := range other.cert.Subject.OrganizationalUnit {
		name := cfsslName{OU: unit}
		if i < len(other.cert.Subject.Organization) {
			name.O = other.cert.Subject.Organization[i]
		}
		req.Subject.Names = append(req.Subject.Names, name)
	}
	for _, e := range other.cert.Extensions { // CFSSL takes none from the request itself
		if e.Id.String() == "2.5.29.19" { // basic constraints: that it is a CA
			req.Extensions = append(req.Extensions, cfsslExtension{ID: e.Id.String(), Critical: e.Critical, Value: hex.EncodeToString(e.Value)})
		}
	}
	chain, err := a.askExternal(ctx, urls, root, req)
	if err != nil {
		return nil, err
	}
	signed := chain[0]
	opts := x509.VerifyOptions{Roots: root.pool, CurrentTime: a.cfg.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	if _, err := signed.Verify(opts); err != nil {
		return nil, fmt.Errorf("the cross-signed certificate is not usable: %w", err)
	}
	if !signed.IsCA || !bytes.Equal(signed.RawSubject, other.cert.RawSubject) || !certifies(signed, other.key) {
		return nil, errors.New("the cross-signed certificate is not one of the new root CA")
	}
	return encodeCertificates(signed), nil
}

// askExternal sends a request to the URLs in turn until one signs. The answer has at least one certificate.
func (a *Authority) askExternal(ctx context.Context, urls []string, root *Root, req cfsslRequest) ([]*x509.Certificate, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: a.externalTLS(root), DisableKeepAlives: true}, Timeout: externalTimeout}
	var errs []error
	for _, u := range urls {
		chain, err := askCFSSL(ctx, client, u, body)
		if err == nil {
			return chain, nil
		}
		errs = append(errs, fmt.Errorf("external CA %s: %w", u, err))
	}
	return nil, &StatusError{http.StatusServiceUnavailable, errors.Join(errs...).Error()}
}

func askCFSSL(ctx context.Context, client *http.Client, target string, body []byte) ([]*x509.Certificate, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxExternalBytes))
	if err != nil {
		return nil, err
	}
	var got cfsslAnswer
	switch err := json.Unmarshal(raw, &got); {
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("it answers with %s: %.200s", resp.Status, raw)
	case err != nil:
		return nil, fmt.Errorf("its answer is no JSON as CFSSL sends it: %w", err)
	case !got.Success && len(got.Errors) > 0:
		return nil, fmt.Errorf("it refuses to sign: %s", got.Errors[0].Message)
	case !got.Success:
		return nil, errors.New("it refuses to sign")
	}
	chain, err := parseCertificates([]byte(got.Result.Certificate))
	if err != nil {
		return nil, fmt.Errorf("what it sends as a certificate: %w", err)
	}
	return chain, nil
}
