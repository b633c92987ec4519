package e2e

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/lab"
)

// TestExternalCA has Debian's CFSSL, with the configuration of the example, sign for a cluster: from init on, while it is away, signs with
// another key or for moments only, and until it is given up and taken again. What runs is not touched.
func TestExternalCA(t *testing.T) {
	c := ownLab(t, "external", lab.Options{Nodes: 4})
	ca := newCFSSL(t, c, "vm4")
	own, spec := "-mutual-tls-ca=root.pem", "protocol=cfssl,url="+ca.url
	trusted := spec + ",cacert=" + ca.file("root.pem")

	ca.serve("root", own)
	c.says(t, "it does not accept this manager's certificate", "vm1", "init", "--external-ca", trusted)
	if info, err := c.swarm("vm1").Info(t.Context()); err != nil || info.Swarm.LocalNodeState != swarm.LocalNodeStateInactive {
		t.Fatalf("after an init that was refused the node is %s: %v", info.Swarm.LocalNodeState, err)
	}
	ca.serve("root")
	c.miniswarm(t, "vm1", "init", "--external-ca", trusted)
	c.managers = []string{"vm1"}
	ca.serve("root", own)
	join := func(role string) []string {
		return []string{"join", "--token", strings.TrimSpace(c.miniswarm(t, "vm1", "token", "-q", role)), c.addr("vm1", 2377)}
	}
	c.miniswarm(t, "vm2", join("manager")...)
	c.miniswarm(t, "vm3", join("worker")...)
	c.managers, c.workers = []string{"vm1", "vm2"}, []string{"vm3"}
	c.allReady(t)
	for host, unit := range map[string]string{"vm1": "swarm-manager", "vm2": "swarm-manager", "vm3": "swarm-worker"} {
		if cert := c.certificate(t, host); cert.Issuer.CommonName != "Example Swarm Root" || strings.Join(cert.Subject.OrganizationalUnit, " ") != unit {
			t.Errorf("%s has a certificate of %s as %s", host, cert.Issuer, cert.Subject)
		}
	}
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "w", "--replicas", "4", "--constraint", "node.hostname!=vm3", c.witness+":1")
	old := c.running(t, "w", 4)

	// Away: nothing that needs it happens, and nothing of it is left behind; the rest goes on.
	ca.stop()
	c.leave(t, "vm3")
	var joining sync.WaitGroup
	args := join("worker")
	joining.Go(func() { c.says(t, "external CA "+ca.url+": dial tcp", "vm3", args...) })
	c.miniswarm(t, "vm1", "update", "--task-history-limit", "4")
	c.says(t, "corresponding to the current CA certificate", "vm1", "ca", "--rotate")
	unrenewed := c.logged(t, "vm2", "certificate not renewed")
	c.miniswarm(t, "vm1", "node", "demote", "vm2")
	unrenewed()
	joining.Wait()
	c.allReady(t) // no node too many
	c.miniswarm(t, "vm1", "token", "--rotate", "worker")

	// Back, but with another root's key: that is no certificate. Then it is the right one, and what has waited happens.
	ca.serve("other", own)
	c.says(t, "its certificate is not usable", "vm1", "ca", "--rotate")
	ca.serve("root", own)
	c.managers, c.workers = []string{"vm1"}, []string{"vm2"}
	took := eventually(t, "the demoted manager has a worker's certificate", patience, func() error {
		if cert := c.certificate(t, "vm2"); cert.Subject.OrganizationalUnit[0] != "swarm-worker" {
			return fmt.Errorf("it is %s", cert.Subject)
		}
		return nil
	})
	t.Logf("external CA back -> demoted manager has its certificate: %.1f s", took.Seconds())

	// Certificates for two minutes, most of whose time is over: they are renewed every few seconds, again and again after an outage.
	ca.policy(`"expiry": "2160h"`, `"expiry": "62m"`)
	ca.serve("root", own)
	c.miniswarm(t, "vm3", join("worker")...)
	c.workers = []string{"vm2", "vm3"}
	c.logged(t, "vm3", "certificate renewed")()
	unrenewed = c.logged(t, "vm3", "certificate not renewed")
	ca.stop()
	unrenewed()
	ca.policy(`"expiry": "62m"`, `"expiry": "2160h"`)
	ca.serve("root", own)
	eventually(t, "the certificate is renewed for long", patience, func() error {
		if cert := c.certificate(t, "vm3"); time.Until(cert.NotAfter) < time.Hour {
			return fmt.Errorf("it is valid until %s", cert.NotAfter)
		}
		return nil
	})

	// Given up, which it has to certify. Taken again it must accept managers' certificates of the root before, which after another
	// rotation do not descend from its own any more.
	c.miniswarm(t, "vm1", "ca", "--rotate", "--quiet")
	ca.stop()
	c.miniswarm(t, "vm1", "ca", "--rotate", "--quiet")
	c.miniswarm(t, "vm1", "update", "--external-ca", "")
	c.leave(t, "vm3")
	c.workers = []string{"vm2", "vm3"}
	c.miniswarm(t, "vm3", join("worker")...)
	c.allReady(t)
	ca.serve("root", own)
	c.says(t, "it does not accept this manager's certificate", "vm1", "ca", "--rotate", "--ca-cert", ca.file("root.pem"), "--external-ca", spec)
	ca.write("clients.pem", c.miniswarm(t, "vm1", "ca")+ca.read("root.pem"))
	ca.serve("root", "-mutual-tls-ca=clients.pem")
	c.miniswarm(t, "vm1", "ca", "--rotate", "--quiet", "--ca-cert", ca.file("root.pem"), "--external-ca", spec)
	for _, host := range []string{"vm1", "vm2", "vm3"} {
		if cert := c.certificate(t, host); cert.Issuer.CommonName != "Example Swarm Root" {
			t.Errorf("after the last rotation %s has a certificate of %s", host, cert.Issuer)
		}
	}
	// Gone for good, but not its key.
	ca.stop()
	serial := c.certificate(t, "vm2").SerialNumber
	c.miniswarm(t, "vm1", "ca", "--rotate", "--ca-cert", ca.file("root.pem"), "--ca-key", ca.file("root-key.pem"), "--external-ca", "")
	c.leave(t, "vm3")
	c.workers = []string{"vm2", "vm3"}
	c.miniswarm(t, "vm3", join("worker")...)
	if now := c.certificate(t, "vm2"); now.SerialNumber.Cmp(serial) != 0 {
		t.Errorf("a certificate was renewed when the managers took the key: %s", now.Subject)
	}
	c.allReady(t)
	untouched(t, old, c.running(t, "w", 4))
}

// says makes sure that a command fails with these words.
func (c *testCluster) says(t *testing.T, words, host string, args ...string) {
	t.Helper()
	if out, err := c.tryMiniswarm(t, host, args...); err == nil || !strings.Contains(err.Error(), words) {
		t.Errorf("miniswarm %s on %s: %v, want %q\n%s", strings.Join(args, " "), host, err, words, out)
	}
}

// leave has a worker leave the cluster and be forgotten.
func (c *testCluster) leave(t *testing.T, host string) {
	t.Helper()
	c.miniswarm(t, host, "leave")
	c.forget(t, host)
	c.workers = nil
}

// certificate is the one that a host's daemon has now.
func (c *testCluster) certificate(t *testing.T, host string) *x509.Certificate {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(c.Dir(), host, "miniswarm", "certificates", "swarm-node.crt"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// logged gives a function that waits until a daemon has logged a message since now.
func (c *testCluster) logged(t *testing.T, host, message string) (wait func()) {
	t.Helper()
	h, err := c.Host(host)
	if err != nil {
		t.Fatal(err)
	}
	count := func() int {
		text, err := os.ReadFile(h.DaemonLog)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(text), `msg="`+message+`"`)
	}
	before := count()
	return func() {
		t.Helper()
		eventually(t, host+" logs "+message, patience, func() error {
			if count() == before {
				return errors.New("not yet")
			}
			return nil
		})
	}
}

// cfssl is an external CA on a host.
type cfssl struct {
	t               *testing.T
	c               *testCluster
	dir, host, addr string
	url             string // of its signing endpoint
	log             lockedBuffer
	end             func() // nil while it does not run
}

// newCFSSL makes the CA's keys with the commands and the files of the example, and those of another root.
func newCFSSL(t *testing.T, c *testCluster, host string) *cfssl {
	t.Helper()
	for _, program := range []string{"cfssl", "cfssljson"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%s is missing (scripts/setup.sh test installs golang-cfssl): %v", program, err)
		}
	}
	e := &cfssl{t: t, c: c, dir: t.TempDir(), host: host, addr: c.addr(host, 8888)}
	e.url = "https://" + e.addr + "/api/v1/cfssl/sign"
	if err := os.CopyFS(e.dir, os.DirFS("../../examples/external-ca")); err != nil {
		t.Fatal(err)
	}
	hostname, _, _ := net.SplitHostPort(e.addr)
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", `
		cfssl gencert -initca root.json | cfssljson -bare root
		cfssl gencert -initca root.json | cfssljson -bare other
		cfssl gencert -ca root.pem -ca-key root-key.pem -config config.json -hostname "$1" server.json | cfssljson -bare server`, "sh", hostname)
	cmd.Dir = e.dir
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make the external CA's keys: %v\n%s", err, said)
	}
	t.Cleanup(func() {
		e.stop()
		if t.Failed() {
			t.Logf("cfssl said:\n%s", &e.log)
		}
	})
	return e
}

func (e *cfssl) file(name string) string { return filepath.Join(e.dir, name) }

func (e *cfssl) read(name string) string {
	e.t.Helper()
	text, err := os.ReadFile(e.file(name))
	if err != nil {
		e.t.Fatal(err)
	}
	return string(text)
}

func (e *cfssl) write(name, text string) {
	e.t.Helper()
	if err := os.WriteFile(e.file(name), []byte(text), 0o600); err != nil {
		e.t.Fatal(err)
	}
}

// policy changes its configuration.
func (e *cfssl) policy(from, to string) {
	e.t.Helper()
	e.write("config.json", strings.Replace(e.read("config.json"), from, to, 1))
}

// serve has it sign with the key of a root from now on.
func (e *cfssl) serve(root string, flags ...string) {
	e.t.Helper()
	e.stop()
	ctx, cancel := context.WithCancel(context.WithoutCancel(e.t.Context()))
	ended := make(chan error, 1)
	hostname, port, _ := net.SplitHostPort(e.addr)
	argv := append([]string{"sh", "-c", `cd "$1"; shift; exec cfssl serve "$@"`, "sh", e.dir, "-address=" + hostname, "-port=" + port, "-config=config.json",
		"-ca=" + root + ".pem", "-ca-key=" + root + "-key.pem", "-tls-cert=server.pem", "-tls-key=server-key.pem"}, flags...)
	go func() { ended <- e.c.Exec(ctx, e.host, argv, lab.Stdio{Out: &e.log, Err: &e.log}) }()
	e.end = func() {
		cancel()
		<-ended
	}
	eventually(e.t, "cfssl listens", patience, func() error {
		conn, err := net.DialTimeout("tcp", e.addr, time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
}

func (e *cfssl) stop() {
	if e.end != nil {
		e.end()
		e.end = nil
	}
}
