package identity

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// cfssl is an external CA as a CFSSL server is one: it does what the request says, and wants to see a node's certificate.
type cfssl struct {
	*httptest.Server
	t  *testing.T
	ca *CA

	mu     sync.Mutex
	forge  func(*x509.Certificate)          // guarded by mu; changes what is signed
	answer func(w http.ResponseWriter) bool // guarded by mu; answers itself if it returns true
	asked  []cfsslRequest                   // guarded by mu
	// clients is the root that clients' certificates must be of, any if nil; nor need they have one if anybody may ask. Guarded by mu.
	clients *Root
	anybody bool
}

func newCFSSL(t *testing.T, cert, key []byte) *cfssl {
	t.Helper()
	e := &cfssl{t: t, ca: must(LoadCA(cert, key, CAConfig{}))}
	e.Server = httptest.NewUnstartedServer(http.HandlerFunc(e.sign))
	keyPEM, csrPEM, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: must(newSerial(rand.Reader)), Subject: pkix.Name{CommonName: "ca"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}
	own := e.issue(template, must(parseRequest(csrPEM)).PublicKey)
	e.TLS = &tls.Config{Certificates: []tls.Certificate{must(tls.X509KeyPair(own, keyPEM))}, ClientAuth: tls.RequireAnyClientCert}
	e.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		e.mu.Lock()
		defer e.mu.Unlock()
		switch {
		case e.anybody:
			return &tls.Config{Certificates: e.TLS.Certificates, ClientAuth: tls.RequestClientCert}, nil
		case e.clients == nil:
			return nil, nil
		}
		return &tls.Config{Certificates: e.TLS.Certificates, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: e.clients.pool}, nil
	}
	e.Config.ErrorLog = log.New(io.Discard, "", 0)
	e.StartTLS()
	t.Cleanup(e.Close)
	return e
}

func (e *cfssl) issue(template *x509.Certificate, key any) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: must(x509.CreateCertificate(rand.Reader, template, e.ca.cert, key, e.ca.key))})
}

func (e *cfssl) sign(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var req cfsslRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil || r.URL.Path != "/sign" || r.Method != http.MethodPost {
		http.Error(w, "what?", http.StatusBadRequest)
		return
	}
	e.asked = append(e.asked, req)
	if e.answer != nil && e.answer(w) {
		return
	}
	block, _ := pem.Decode([]byte(req.Request))
	csr := must(x509.ParseCertificateRequest(block.Bytes))
	template := &x509.Certificate{SerialNumber: must(newSerial(rand.Reader)), Subject: pkix.Name{CommonName: req.Subject.CN}, DNSNames: req.Hosts,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(DefaultValidity), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for _, n := range req.Subject.Names {
		if n.O != "" {
			template.Subject.Organization = append(template.Subject.Organization, n.O)
		}
		if n.OU != "" {
			template.Subject.OrganizationalUnit = append(template.Subject.OrganizationalUnit, n.OU)
		}
	}
	if req.Profile == crossSignProfile {
		template.ExtKeyUsage, template.KeyUsage = nil, x509.KeyUsageCertSign
		for _, x := range req.Extensions {
			template.ExtraExtensions = append(template.ExtraExtensions, pkix.Extension{Id: []int{2, 5, 29, 19}, Critical: x.Critical, Value: must(hex.DecodeString(x.Value))})
		}
	}
	if e.forge != nil {
		e.forge(template)
	}
	key := csr.PublicKey
	if template.PublicKey != nil {
		key = template.PublicKey
	}
	var answer cfsslAnswer
	answer.Success, answer.Result.Certificate = true, string(e.issue(template, key))
	_ = json.NewEncoder(w).Encode(answer)
}

func (e *cfssl) set(forge func(*x509.Certificate), answer func(http.ResponseWriter) bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.forge, e.answer = forge, answer
}

// accept has it see certificates of that root only; nil is any.
func (e *cfssl) accept(root []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.clients = nil; root != nil {
		e.clients = must(ParseRoot(root))
	}
}

func (e *cfssl) spec(cert []byte) *swarm.ExternalCA {
	return &swarm.ExternalCA{Protocol: swarm.ExternalCAProtocolCFSSL, URL: e.URL + "/sign", CACert: string(cert)}
}

// TestAnExternalCAIsTriedOutFirst: a rotation to one that would not sign is refused, with the reason, instead of never ending.
func TestAnExternalCAIsTriedOutFirst(t *testing.T) {
	a := newAuthority(t)
	cert, key := operatorsRoot(t, time.Now().Add(2*year), false)
	e := newCFSSL(t, cert, key)
	begin := func(url string) error {
		return a.change(func(c *swarm.CAConfig) {
			c.SigningCACert, c.ExternalCAs = string(cert), []*swarm.ExternalCA{{Protocol: "CFSSL", URL: url, CACert: string(cert)}}
		})
	}
	const refused = "there must be at least one valid, reachable external CA corresponding to the desired CA certificate"
	for _, c := range []struct {
		name, url, words string
		forge            func(*x509.Certificate)
		clients          []byte // the root that clients' certificates must be of
	}{
		{name: "another path", url: e.URL + "/elsewhere", words: "it answers with 400 Bad Request: what?"},
		{name: "no TLS", url: strings.Replace(e.URL, "https", "http", 1) + "/sign", words: "invalid HTTP scheme"},
		{name: "another role", url: e.URL + "/sign", words: "instead of", forge: func(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{workerUnit} }},
		{name: "clients of its own root only", url: e.URL + "/sign", words: "it does not accept this manager's certificate", clients: cert},
	} {
		e.set(c.forge, nil)
		e.accept(c.clients)
		if err := begin(c.url); err == nil || !strings.HasPrefix(err.Error(), refused+": external CA "+c.url+": ") || !strings.Contains(err.Error(), c.words) || strings.Count(err.Error(), c.url) != 1 {
			t.Errorf("%s: %v, want %q", c.name, err, c.words)
		}
		if a.c.Rotation != nil {
			t.Fatalf("%s: the rotation has begun", c.name)
		}
	}
	// That of the present root among them, it signs.
	e.set(nil, nil)
	e.accept(append(append([]byte{}, cert...), a.c.RootCA...))
	if err := begin(e.URL + "/sign"); err != nil {
		t.Error(err)
	}
	// While it is away, what does not concern it can be changed all the same.
	e.Close()
	a.c = must(a.Complete(a.c))
	if err := a.change(func(c *swarm.CAConfig) { c.NodeCertExpiry = time.Hour }); err != nil {
		t.Error(err)
	}
	if err := a.change(func(c *swarm.CAConfig) { c.ExternalCAs = nil }); err == nil {
		t.Error("the only one that signs was given up")
	}
}

// TestAnExternalCAForTheManagersOwnRootIsTriedOut: once it is named nobody else signs, though the managers have the key.
func TestAnExternalCAForTheManagersOwnRootIsTriedOut(t *testing.T) {
	a := newAuthority(t)
	key := a.c.RootCAKey
	e, strange := newCFSSL(t, a.c.RootCA, key), newCFSSL(t, a.c.RootCA, key)
	strange.ca = must(NewCA(CAConfig{}))
	named := func(cas ...*swarm.ExternalCA) func(*swarm.CAConfig) {
		return func(c *swarm.CAConfig) { c.ExternalCAs = cas }
	}
	nobody := &swarm.ExternalCA{Protocol: swarm.ExternalCAProtocolCFSSL, URL: "https://127.0.0.1:1/x"}
	for what, words := range map[*swarm.ExternalCA]string{nobody: "connection refused", strange.spec(a.c.RootCA): "not signed by this cluster's root"} {
		const refused = "there must be at least one valid, reachable external CA corresponding to the current CA certificate: external CA "
		if err := a.change(named(what)); err == nil || !strings.HasPrefix(err.Error(), refused+what.URL) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want %q", what.URL, err, words)
		}
	}
	if err := a.change(named(e.spec(nil))); err != nil {
		t.Fatal(err)
	}
	if got := a.ProbeExternal(t.Context(), a.c); len(got) != 1 || got[0].URL != e.URL+"/sign" || got[0].Err != nil {
		t.Errorf("one that answers is found %+v", got)
	}
	// Named already, it may be away; another that comes to it must sign then.
	e.Close()
	if got := a.ProbeExternal(t.Context(), a.c); len(got) != 1 || got[0].Err == nil || strings.Contains(got[0].Err.Error(), "Head") {
		t.Errorf("one that is away is found %+v", got)
	}
	for what, edit := range map[string]func(*swarm.CAConfig){
		"another setting":     func(c *swarm.CAConfig) { c.NodeCertExpiry = 2 * DefaultValidity },
		"named with its root": named(e.spec(a.c.RootCA)),
		"none":                named(),
	} {
		was := *a.c
		if err := a.change(edit); err != nil {
			t.Errorf("%s, while it is away: %v", what, err)
		}
		a.c = &was
	}
	if err := a.change(named(e.spec(nil), nobody)); err == nil {
		t.Error("two of which none answers were accepted")
	}
	// A root that is brought with its key and with an external CA.
	cert, certKey := operatorsRoot(t, time.Now().Add(2*year), false)
	brought := func(ca *swarm.ExternalCA) func(*swarm.CAConfig) {
		return func(c *swarm.CAConfig) { bring(cert, certKey)(c); c.ExternalCAs = []*swarm.ExternalCA{ca} }
	}
	if err := a.change(brought(&swarm.ExternalCA{Protocol: "cfssl", URL: nobody.URL, CACert: string(cert)})); err == nil || !strings.Contains(err.Error(), "the desired CA certificate") {
		t.Errorf("with a new root: %v", err)
	}
	if err := a.change(brought(newCFSSL(t, cert, certKey).spec(cert))); err != nil || a.c.Rotation == nil {
		t.Errorf("with a new root, by one that signs: %v", err)
	}
}

// A shorter --cert-expiry than an external CA's certificates live would have every renewal refused.
func TestAnExternalCASignsForTheExpiryThatIsAskedFor(t *testing.T) {
	a := newAuthority(t)
	cert, key := operatorsRoot(t, time.Now().Add(2*year), false)
	e := newCFSSL(t, cert, key)
	long := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(year) }
	e.set(long, nil)
	if err := a.change(func(c *swarm.CAConfig) {
		c.SigningCACert, c.ExternalCAs, c.NodeCertExpiry = string(cert), []*swarm.ExternalCA{e.spec(cert)}, year
	}); err != nil {
		t.Fatal(err)
	}
	a.c = must(a.Complete(a.c))
	shorten := func(c *swarm.CAConfig) { c.SigningCACert, c.NodeCertExpiry = "", DefaultValidity }
	if err := a.change(shorten); err == nil || !strings.Contains(err.Error(), "shorten \"expiry\"") {
		t.Errorf("shorter than its certificates live: %v", err)
	}
	e.set(nil, nil)
	if err := a.change(shorten); err != nil {
		t.Errorf("its certificates live as long: %v", err)
	}
}

// TestAMachineWithoutCertificateAsksAnExternalCA: a new one, on which a cluster is recovered.
func TestAMachineWithoutCertificateAsksAnExternalCA(t *testing.T) {
	cert, key := operatorsRoot(t, time.Now().Add(2*year), false)
	e := newCFSSL(t, cert, key)
	a := must(NewAuthority(AuthorityConfig{Store: must(NewStore(StoreConfig{Dir: t.TempDir()}))}))
	c := &cluster.Cluster{RootCA: cert}
	c.Spec.CAConfig.ExternalCAs = []*swarm.ExternalCA{e.spec(cert)}
	_, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Sign(t.Context(), c, csr, testIdentity); err == nil || !strings.Contains(err.Error(), "a new machine has none yet") {
		t.Errorf("by one that wants to see a certificate: %v", err)
	}
	e.mu.Lock()
	e.anybody = true
	e.mu.Unlock()
	if _, err := a.Sign(t.Context(), c, csr, testIdentity); err != nil {
		t.Error(err)
	}
}

func TestTheNextExternalCAIsAsked(t *testing.T) {
	a := newAuthority(t)
	cert, key := operatorsRoot(t, time.Now().Add(2*year), false)
	bad, good := newCFSSL(t, cert, key), newCFSSL(t, cert, key)
	bad.set(func(c *x509.Certificate) { c.Subject.CommonName = "x" }, nil)
	if err := a.change(func(c *swarm.CAConfig) {
		c.SigningCACert, c.ExternalCAs = string(cert), []*swarm.ExternalCA{bad.spec(cert), good.spec(cert)}
	}); err != nil {
		t.Fatal(err)
	}
	if _, verified := a.sign(cert); !verified[0] || len(bad.asked) != 2 || len(good.asked) != 2 {
		t.Errorf("asked %d and %d times", len(bad.asked), len(good.asked))
	}
}

func TestAnExternalCASignsAndIsChecked(t *testing.T) {
	a := newAuthority(t)
	old := a.c.RootCA
	cert, key := operatorsRoot(t, time.Now().Add(2*year), false)
	e := newCFSSL(t, cert, key)
	away := &swarm.ExternalCA{Protocol: swarm.ExternalCAProtocolCFSSL, URL: "https://127.0.0.1:1/sign", CACert: string(cert)}
	other := &swarm.ExternalCA{Protocol: swarm.ExternalCAProtocolCFSSL, URL: "https://127.0.0.1:2/sign"}
	err := a.change(func(c *swarm.CAConfig) {
		c.SigningCACert, c.ExternalCAs = string(cert), []*swarm.ExternalCA{away, other, e.spec(cert)}
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(a.c.Rotation.RootCAKey) != 0 || !strings.Contains(a.log.String(), "external CA is unreachable") || strings.Contains(a.log.String(), ":2/") {
		t.Errorf("the log: %s", a.log.String())
	}
	if _, verified := a.sign(old, cert); !verified[0] || !verified[1] {
		t.Errorf("signed during the rotation, it descends from the old root: %v, from the new: %v", verified[0], verified[1])
	}
	if asked := e.asked[1]; asked.Subject.CN != testIdentity.NodeID || strings.Join(asked.Hosts, " ") != workerUnit+" "+testIdentity.NodeID || asked.Profile != "" {
		t.Errorf("it was asked for %+v", asked)
	}
	a.c = must(a.Complete(a.c))
	if len(a.c.RootCAKey) != 0 {
		t.Error("the key of the old root is kept for the new one")
	}
	if _, verified := a.sign(old, cert); verified[0] || !verified[1] {
		t.Errorf("signed after it, it descends from the old root: %v, from the new: %v", verified[0], verified[1])
	}

	_, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	_, otherCSR, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	strange := must(NewCA(CAConfig{}))
	says := func(text string) func(http.ResponseWriter) bool {
		return func(w http.ResponseWriter) bool { _, _ = io.WriteString(w, text); return true }
	}
	for name, tc := range map[string]struct {
		forge  func(*x509.Certificate)
		answer func(http.ResponseWriter) bool
		words  string
	}{
		"another node":   {func(c *x509.Certificate) { c.Subject.CommonName = "x" }, nil, "is for {NodeID:x"},
		"another role":   {func(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{managerUnit} }, nil, "Role:manager} instead of"},
		"two roles":      {func(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{workerUnit, managerUnit} }, nil, "not a node certificate"},
		"a CA's":         {func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, nil, "is a CA's"},
		"another key":    {func(c *x509.Certificate) { c.PublicKey = must(parseRequest(otherCSR)).PublicKey }, nil, "for another key"},
		"too long":       {func(c *x509.Certificate) { c.NotAfter = time.Now().Add(DefaultValidity + 8*24*time.Hour) }, nil, "longer than a node is remembered that was removed"},
		"set back":       {func(c *x509.Certificate) { c.NotBefore = time.Now().Add(-3 * time.Hour) }, nil, "may be set back by an hour"},
		"expired":        {func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, nil, "not usable: clocks disagree"},
		"for servers":    {func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, nil, "not usable"},
		"another root":   {nil, says(string(must(json.Marshal(map[string]any{"success": true, "result": map[string]any{"certificate": string(must(strange.Issue(csr, testIdentity, 0)))}})))), "not signed by this cluster's root"},
		"a refusal":      {nil, says(`{"success":false,"errors":[{"code":5100,"message":"policy"}]}`), "it refuses to sign: policy"},
		"no reason":      {nil, says(`{"success":false}`), "it refuses to sign"},
		"nothing":        {nil, says(`{"success":true,"result":{"certificate":""}}`), "it holds no PEM block"},
		"no JSON":        {nil, says(`<html>`), "no JSON as CFSSL sends it"},
		"another status": {nil, func(w http.ResponseWriter) bool { http.Error(w, "busy", http.StatusTooManyRequests); return true }, "429 Too Many Requests: busy"},
	} {
		e.set(tc.forge, tc.answer)
		if cert, err := a.Sign(t.Context(), a.c, csr, testIdentity); err == nil || !strings.Contains(err.Error(), tc.words) {
			t.Errorf("%s: %v, want %q; signed:\n%s", name, err, tc.words, cert)
		}
	}
	e.set(nil, nil)

	if err := a.change(func(c *swarm.CAConfig) { c.ExternalCAs = nil }); err == nil || !strings.Contains(err.Error(), "corresponding to the current CA certificate") {
		t.Errorf("giving up the only signer: %v", err)
	}
	third, thirdKey := operatorsRoot(t, time.Now().Add(2*year), true)
	f := newCFSSL(t, third, thirdKey)
	if err := a.change(func(c *swarm.CAConfig) {
		c.SigningCACert, c.ExternalCAs = string(third), []*swarm.ExternalCA{e.spec(cert), f.spec(third)}
	}); err == nil ||
		err.Error() != "rotating from one external CA to a different external CA is not supported" {
		t.Errorf("from one to another: %v", err)
	}
	// Back to a root of the managers' own, which the external CA has to certify.
	if err := a.change(func(c *swarm.CAConfig) { c.ForceRotate++ }); err != nil {
		t.Fatal(err)
	}
	if _, verified := a.sign(cert, a.c.Rotation.RootCA); !verified[0] || !verified[1] {
		t.Errorf("on the way back it descends from the old root: %v, from the new: %v", verified[0], verified[1])
	}
	if err := a.change(bring(cert, key)); err != nil || a.c.Rotation != nil || len(a.c.RootCAKey) == 0 {
		t.Errorf("taking the external CA's key over: %v", err)
	}
	a.c.RootCAKey, a.c.Spec.CAConfig.ExternalCAs = nil, nil
	if _, err := a.Sign(t.Context(), a.c, csr, testIdentity); !errors.As(err, new(*StatusError)) {
		t.Errorf("with nobody to sign: %v", err)
	}
}
