package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

// ownRoot makes a root CA as an operator may bring one, with an RSA key.
func ownRoot(t *testing.T) (cert, key string) {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Example Root"}, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: time.Now().AddDate(5, 0, 0), KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	cert = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return cert, string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)}))
}

// TestRotateCA changes the root CA of a cluster that works: nobody notices but the nodes.
func TestRotateCA(t *testing.T) {
	c := onShared(t)
	ctx := t.Context()
	c.joinSpare(t)
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "w", "--replicas", "6", "--constraint", "node.hostname!=vm4",
		"--publish", "8080:8000", "--publish", "8081:8001", c.witness+":1")
	old := c.running(t, "w", 6)
	kept := dialTalks(t, 2, c.addr("vm1", 8081), c.addr("vm2", 8081), c.addr("vm3", 8081))
	token := strings.TrimSpace(c.miniswarm(t, "vm1", "token", "-q", "worker"))
	first := c.docker(t, "vm1", "swarm", "ca")
	p := startProbe(t, c.addr("vm1", 8080), c.addr("vm2", 8080), c.addr("vm3", 8080))

	began := time.Now()
	out := c.miniswarm(t, "vm1", "ca", "--rotate")
	t.Logf("rotated in %.1f s", time.Since(began).Seconds())
	second := c.docker(t, "vm1", "swarm", "ca")
	for _, words := range []string{"desired root digest: sha256:", "rotated TLS certificates: 4/4 nodes", "rotated CA certificates: 4/4 nodes", strings.TrimSpace(second)} {
		if !strings.Contains(out, words) {
			t.Errorf("the rotation did not print %q:\n%s", words, out)
		}
	}
	if second == first || !strings.HasPrefix(second, "-----BEGIN CERTIFICATE-----") {
		t.Errorf("after the rotation the root is %q", second)
	}
	if out := c.docker(t, "vm1", "node", "ls", "--format", "{{.Hostname}} {{.TLSStatus}}"); strings.Count(out, " Ready") != 4 {
		t.Errorf("after the rotation nodes are shown as\n%s", out)
	}
	if _, err := c.tryMiniswarm(t, "vm4", "leave"); err != nil {
		t.Error(err)
	}
	c.forget(t, "vm4")
	if out, err := c.tryMiniswarm(t, "vm4", "join", "--token", token, c.addr("vm1", 2377)); err == nil || !strings.Contains(err.Error()+out, "another cluster than the join token") {
		t.Errorf("joining with the token of before: %v %s", err, out)
	}
	c.joinSpare(t)

	// To a root of one's own, with Docker's command, while a node is off.
	if err := c.KillDaemon(ctx, "vm4"); err != nil {
		t.Fatal(err)
	}
	c.nodeState(t, "vm4", "Down")
	cert, key := ownRoot(t)
	c.docker(t, "vm1", "swarm", "ca", "--rotate", "--detach", "--ca-cert", writeFile(t, "root.pem", cert), "--ca-key", writeFile(t, "root.key", key))
	api := c.swarm("vm1")
	eventually(t, "the nodes that are there have certificates of the root that was brought", patience, func() error {
		sw, err := api.SwarmInspect(ctx)
		if err != nil {
			return err
		}
		if !sw.RootRotationInProgress || strings.TrimSpace(sw.TLSInfo.TrustRoot) != strings.TrimSpace(second) {
			return fmt.Errorf("the rotation is over although vm4 is off: %+v", sw.TLSInfo)
		}
		nodes, err := api.NodeList(ctx, swarm.NodeListOptions{})
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if has := bytes.Equal(n.Description.TLSInfo.CertIssuerPublicKey, sw.TLSInfo.CertIssuerPublicKey); has != (n.Description.Hostname != "vm4") {
				return fmt.Errorf("node %s has a certificate of the new root: %v", n.Description.Hostname, has)
			}
		}
		return nil
	})
	if err := c.StartDaemon(ctx, "vm4"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "every node trusts the root that was brought", patience, func() error {
		nodes, err := api.NodeList(ctx, swarm.NodeListOptions{})
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if n.Description.TLSInfo.TrustRoot != cert || n.Status.State != swarm.NodeStateReady {
				return fmt.Errorf("node %s is %s and trusts %s", n.Description.Hostname, n.Status.State, n.Description.TLSInfo.TrustRoot)
			}
		}
		return nil
	})
	c.leaveSpare(t)
	c.joinSpare(t) // with a new token once more
	c.leaveSpare(t)

	p.none(t, "while the root CA was rotated twice")
	untouched(t, old, c.running(t, "w", 6))
	if err := kept.alive(); err != nil {
		t.Error(err)
	}
	c.keepsToItself(t, key)
}

// keepsToItself makes sure that a secret in PEM is in no file that a daemon has written, its log included.
func (c *testCluster) keepsToItself(t *testing.T, secret string) {
	t.Helper()
	block, _ := pem.Decode([]byte(secret))
	line := []byte(strings.Split(secret, "\n")[10]) // of the private exponent: the modulus is in every certificate
	for _, h := range c.hosts {
		err := filepath.WalkDir(filepath.Join(c.Dir(), h.Name, "miniswarm"), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			content, err := os.ReadFile(path)
			if err == nil && (bytes.Contains(content, line) || bytes.Contains(content, block.Bytes[400:464])) {
				t.Errorf("%s holds a part of the root CA's key", path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		log, err := os.ReadFile(h.DaemonLog)
		if err != nil || bytes.Contains(log, line) || bytes.Contains(log, []byte("PRIVATE KEY")) {
			t.Errorf("the log of %s holds a key, or cannot be read: %v", h.Name, err)
		}
	}
}
