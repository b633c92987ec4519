package raftstore

import (
	"bufio"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"crypto/x509"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// The tests here run members as processes of their own, so that SIGKILL is SIGKILL. A child is this test binary with
// childEnv set; it obeys one command a line and answers each with one line.

const childEnv = "RAFTSTORE_CHILD"

type childConfig struct {
	Dir, NodeID, Addr string
	RaftID            uint64
	Bootstrap         bool
	CA, CAKey         string
}

// childMain is a member; it never returns.
func childMain() {
	var c childConfig
	if err := json.Unmarshal([]byte(os.Getenv(childEnv)), &c); err != nil {
		panic(err)
	}
	ca := loadTestCA(c.CA, c.CAKey)
	s, err := Open(Config{Dir: c.Dir, NodeID: c.NodeID, Addr: c.Addr, RaftID: c.RaftID, Bootstrap: c.Bootstrap, Key: testKey,
		Transport: ca.transport(c.NodeID), SnapshotEvery: 200, KeepEntries: 50})
	if err != nil {
		panic(err)
	}
	ca.serve(c.NodeID, c.Addr, s.Handler())
	go func() { panic(s.Run(context.Background())) }()
	var out sync.Mutex
	var work sync.WaitGroup
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		tag, command, _ := strings.Cut(lines.Text(), " ")
		work.Go(func() {
			answer := childDo(s, strings.Fields(command))
			out.Lock()
			defer out.Unlock()
			fmt.Println(tag, answer)
		})
	}
	os.Exit(0)
}

func childDo(s *Store, f []string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	switch f[0] {
	case "put":
		if _, err := s.Propose(ctx, &cluster.Txn{Changes: []cluster.Change{cluster.CreateOf(config(f[1], 500))}}); err != nil {
			return "error " + err.Error()
		}
		return "ok"
	case "add":
		m, err := s.AddMember(ctx, protocol.Member{NodeID: f[1], Addr: f[2]})
		if err != nil {
			return "error " + err.Error()
		}
		return fmt.Sprint(m.RaftID)
	case "voters":
		return fmt.Sprint(len(s.voters()))
	case "leads":
		return fmt.Sprint(s.Leadership().Leader)
	case "has":
		snap, err := s.Read(ctx)
		if err != nil {
			return "error " + err.Error()
		}
		for _, id := range f[1:] {
			if snap.Config(id) == nil {
				return "lacks " + id
			}
		}
		return "ok"
	}
	return "error unknown command"
}

// child is a member in a process of its own.
type child struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	cfg   childConfig
	mu    sync.Mutex // guards all below
	seq   int
	calls map[string]chan string
	dead  bool
}

func startChild(t *testing.T, c childConfig) *child {
	t.Helper()
	env, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	p := &child{cmd: exec.Command(os.Args[0], "-test.run=^$"), cfg: c, calls: map[string]chan string{}}
	p.cmd.Env = append(os.Environ(), childEnv+"="+string(env))
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			tag, answer, _ := strings.Cut(lines.Text(), " ")
			p.answer(tag, answer)
		}
		p.mu.Lock()
		p.dead = true
		p.mu.Unlock()
		for tag := range p.calls {
			p.answer(tag, "error killed")
		}
	}()
	return p
}

func (p *child) answer(tag, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.calls[tag]; c != nil {
		c <- text
		delete(p.calls, tag)
	}
}

// do gives a command and waits for its answer.
func (p *child) do(format string, args ...any) string {
	p.mu.Lock()
	if p.dead {
		p.mu.Unlock()
		return "error killed"
	}
	p.seq++
	tag, c := fmt.Sprint(p.seq), make(chan string, 1)
	p.calls[tag] = c
	_, err := fmt.Fprintf(p.in, tag+" "+format+"\n", args...)
	p.mu.Unlock()
	if err != nil {
		return "error " + err.Error()
	}
	return <-c
}

func (p *child) kill() {
	_ = p.cmd.Process.Kill() // it may be dead already
	_ = p.cmd.Wait()
}

func (ca *testCA) pem() (cert, key string) {
	der, err := x509.MarshalECPrivateKey(ca.key)
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})), string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
}

func loadTestCA(cert, key string) *testCA {
	cb, _ := pem.Decode([]byte(cert))
	kb, _ := pem.Decode([]byte(key))
	c, err := x509.ParseCertificate(cb.Bytes)
	if err != nil {
		panic(err)
	}
	k, err := x509.ParseECPrivateKey(kb.Bytes)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(c)
	return &testCA{k, c, pool}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s: not within 30 s", what)
}

// TestKilledLeadersLoseNothing kills the leader's process while clients write, again and again.
func TestKilledLeadersLoseNothing(t *testing.T) {
	ca := newTestCA(t)
	cert, key := ca.pem()
	fresh := func(node string) childConfig {
		return childConfig{Dir: t.TempDir(), NodeID: node, Addr: freeAddr(t), CA: cert, CAKey: key}
	}
	first := fresh("n1")
	first.Bootstrap = true
	members := []*child{startChild(t, first)}
	var mu sync.Mutex // guards members
	leader := func() *child {
		mu.Lock()
		defer mu.Unlock()
		for _, m := range members {
			if m.do("leads") == "true" {
				return m
			}
		}
		return nil
	}
	for len(members) < 3 {
		c := fresh(fmt.Sprint("n", len(members)+1))
		var id string
		eventually(t, "a leader that adds a member", func() bool {
			l := leader()
			if l == nil {
				return false
			}
			id = l.do("add %s %s", c.NodeID, c.Addr)
			return !strings.HasPrefix(id, "error")
		})
		if _, err := fmt.Sscan(id, &c.RaftID); err != nil {
			t.Fatal(err)
		}
		members = append(members, startChild(t, c))
		eventually(t, "a new voter", func() bool { return members[len(members)-1].do("voters") == fmt.Sprint(len(members)) })
	}

	stop := make(chan struct{})
	var clients sync.WaitGroup
	var acked []string
	var ackedMu sync.Mutex // guards acked and latest
	var latest time.Time   // when the latest acknowledged write was begun
	for i := range 4 {
		clients.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				l := leader()
				if l == nil {
					time.Sleep(5 * time.Millisecond)
					continue
				}
				begun := time.Now()
				if id := fmt.Sprintf("w%d-%d", i, n); l.do("put %s", id) == "ok" {
					ackedMu.Lock()
					acked, latest = append(acked, id), begun
					ackedMu.Unlock()
				}
			}
		})
	}
	for range 4 {
		time.Sleep(300 * time.Millisecond)
		var dead *child
		eventually(t, "a leader to kill", func() bool { dead = leader(); return dead != nil })
		mu.Lock()
		for i, m := range members {
			if m == dead {
				members = append(members[:i:i], members[i+1:]...)
			}
		}
		mu.Unlock()
		dead.kill()
		killed := time.Now()
		eventually(t, "a write after the leader's end", func() bool {
			ackedMu.Lock()
			defer ackedMu.Unlock()
			return latest.After(killed)
		})
		t.Logf("next write acknowledged %v after the kill", time.Since(killed))
		back := startChild(t, dead.cfg)
		mu.Lock()
		members = append(members, back)
		mu.Unlock()
	}
	close(stop)
	clients.Wait()
	for _, m := range members {
		for rest := acked; len(rest) > 0; rest = rest[min(200, len(rest)):] {
			if got := m.do("has %s", strings.Join(rest[:min(200, len(rest))], " ")); got != "ok" {
				t.Fatalf("%s %s, which was acknowledged", m.cfg.NodeID, got)
			}
		}
	}
	t.Logf("%d writes acknowledged", len(acked))
	if len(acked) < 20 {
		t.Error("the test says little with so few writes")
	}
}
