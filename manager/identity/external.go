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
	// maxBackdate bounds how long before now an external CA's certificate may begin, an hour for clocks that differ included: how old a
	// certificate is tells managers whether its node was promoted since, and a node when to renew.
	maxBackdate = 2 * time.Hour
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

// CheckExternalCAs refuses external CAs that speak another protocol than CFSSL's, in Docker's words.
func CheckExternalCAs(all []*swarm.ExternalCA) error {
	for _, e := range all {
		switch {
		case e == nil:
			return badRequest("invalid protocol: %q", "")
		case !strings.EqualFold(string(e.Protocol), string(swarm.ExternalCAProtocolCFSSL)):
			return badRequest("invalid protocol: %q", e.Protocol)
		}
	}
	return nil
}

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
// this manager's. A machine on which a cluster is recovered may have none.
func (a *Authority) externalTLS(root *Root) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: root.pool, Time: a.cfg.Now,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if c := a.cfg.Store.Current(); c != nil {
				return c.tls, nil
			}
			return &tls.Certificate{}, nil
		}}
}

// reachable makes sure that at least one of an external CA's URLs signs for this manager, as it would have to for nodes, with a
// certificate that nobody gets to see. Docker Swarm only connects; with TLS 1.3 that succeeds also where the CA does not accept
// this manager's certificate, and the rotation that follows waits for ever.
func (a *Authority) reachable(ctx context.Context, urls []string, rootPEM []byte, which string, expiry time.Duration) error {
	root, err := ParseRoot(rootPEM)
	if err != nil {
		return badRequest("%s", err)
	}
	text := "there must be at least one valid, reachable external CA corresponding to the " + which + " CA certificate"
	if len(urls) == 0 {
		return badRequest("%s", text)
	}
	own, err := a.cfg.Store.required()
	if err != nil {
		return err
	}
	_, csrPEM, err := NewRequest()
	if err != nil {
		return err
	}
	var why []error
	for _, u := range urls {
		if _, err := a.signExternally(ctx, []string{u}, root, csrPEM, own.Identity, expiry); err != nil {
			a.cfg.Logger.Warn("external CA is unreachable or invalid", "url", u, "err", err)
			why = append(why, err)
			continue
		}
		return nil
	}
	return badRequest("%s: %s", text, errors.Join(why...))
}

// signExternally has an external CA certify the key of a request, and checks that it did no other thing than that: a
// certificate that says more than was asked for would be a node that nobody admitted. expiry is the cluster's NodeCertExpiry.
func (a *Authority) signExternally(ctx context.Context, urls []string, root *Root, csrPEM []byte, id Identity, expiry time.Duration) ([]byte, error) {
	csr, err := parseRequest(csrPEM)
	if err != nil {
		return nil, err
	}
	unit, err := unitOf(id.Role)
	if err != nil {
		return nil, err
	}
	req := cfsslRequest{Hosts: namesOf(unit, id), Request: string(csrPEM),
		Subject: cfsslSubject{CN: id.NodeID, Names: []cfsslName{{O: id.ClusterID, OU: unit}}}}
	chain, err := a.askExternal(ctx, urls, root, req, func(chain []*x509.Certificate) error {
		for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
			switch got, err := verifyChain(chain, root, a.cfg.Now(), usage); {
			case err != nil:
				return fmt.Errorf("its certificate is not usable: %w", err)
			case got != id:
				return fmt.Errorf("its certificate is for %+v instead of %+v", got, id)
			}
		}
		switch leaf := chain[0]; {
		case a.cfg.Now().Sub(leaf.NotBefore) > maxBackdate:
			return fmt.Errorf("its certificate begins at %s: certificates may be set back by an hour (\"backdate\" in CFSSL's configuration), not more", stamp(leaf.NotBefore))
		case leaf.NotAfter.Sub(a.cfg.Now()) > RemovedFor(expiry):
			return fmt.Errorf("its certificate is valid until %s, longer than a node is remembered that was removed: shorten \"expiry\" in its configuration, or lengthen the swarm's --cert-expiry", stamp(leaf.NotAfter))
		case leaf.IsCA:
			return errors.New("its certificate is a CA's instead of a node's")
		case !bytes.Equal(leaf.RawSubjectPublicKeyInfo, csr.RawSubjectPublicKeyInfo):
			return errors.New("its certificate is for another key than the one requested")
		}
		return nil
	})
	if err != nil {
		return nil, err
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
	chain, err := a.askExternal(ctx, urls, root, req, func(chain []*x509.Certificate) error {
		opts := x509.VerifyOptions{Roots: root.pool, CurrentTime: a.cfg.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
		if signed := chain[0]; !signed.IsCA || !bytes.Equal(signed.RawSubject, other.cert.RawSubject) || !certifies(signed, other.key) {
			return fmt.Errorf("the cross-signed certificate is not one of the new root CA: the external CA needs a profile %q that signs CAs", crossSignProfile)
		} else if _, err := signed.Verify(opts); err != nil {
			return fmt.Errorf("the cross-signed certificate is not usable: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return encodeCertificates(chain[0]), nil
}

// askExternal sends a request to the URLs in turn until one signs what check has nothing against. The answer has at least one
// certificate.
func (a *Authority) askExternal(ctx context.Context, urls []string, root *Root, req cfsslRequest, check func([]*x509.Certificate) error) ([]*x509.Certificate, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: a.externalTLS(root), DisableKeepAlives: true}, Timeout: externalTimeout}
	var errs []error
	for _, u := range urls {
		chain, err := askCFSSL(ctx, client, u, body)
		if err == nil {
			err = check(chain)
		}
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
	if req.URL.Scheme != "https" {
		return nil, errors.New("invalid HTTP scheme: its URL must begin with https://")
	}
	resp, err := client.Do(req)
	if failed, ok := errors.AsType[*url.Error](err); ok {
		if failed.Timeout() {
			return nil, fmt.Errorf("it has not answered within %s", externalTimeout)
		}
		return nil, unreached(failed.Err) // the URL is named already
	} else if err != nil {
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
		return nil, fmt.Errorf("it answers with %s: %.200s", resp.Status, strings.Join(strings.Fields(string(raw)), " "))
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

// unreached says what can be done about a connection to an external CA that was not made.
func unreached(err error) error {
	var strange x509.UnknownAuthorityError
	var alert *net.OpError
	switch {
	case errors.As(err, &strange):
		return fmt.Errorf("its server certificate is not of the root CA that it is to sign for: %w", err)
	case errors.As(err, &alert) && alert.Op == "remote error": // package tls's name for what the other side had to object
		return fmt.Errorf("it does not accept this manager's certificate, which is of the swarm's present root CA (\"miniswarm ca\" prints it) until the CA has signed another; a new machine has none yet: %w", err)
	}
	return err
}
