package ingress

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// These tests build whole clusters out of network namespaces: hosts on a LAN,
// each with a Mesh of its own, containers on the hosts' bridges, clients on the
// LAN. Only the engine is replaced, by one that makes bridges and Docker's
// firewall rules.

// space is a network namespace with a thread inside it that runs what it is given.
type space struct {
	t     testing.TB
	name  string
	fd    netns.NsHandle
	calls chan func()
}

func newSpace(t testing.TB, name string) *space {
	t.Helper()
	s := &space{t: t, name: name, calls: make(chan func())}
	ready := make(chan error)
	var done sync.WaitGroup
	done.Go(func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.fd, err = netns.Get()
		}
		ready <- err
		for f := range s.calls {
			f()
		}
		if err == nil {
			s.fd.Close()
		}
	})
	if err := <-ready; err != nil {
		t.Fatalf("network namespace: %v", err)
	}
	t.Cleanup(func() {
		close(s.calls)
		done.Wait()
	})
	s.run("ip", "link", "set", "lo", "up")
	return s
}

// do runs f on the thread of the namespace.
func (s *space) do(f func() error) error {
	err := make(chan error, 1)
	s.calls <- func() { err <- f() }
	return <-err
}

// background runs f on another thread of the namespace until the returned
// function is called, which must make f return, and waits for it.
func (s *space) background(f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := netns.Set(s.fd)
		if err == nil {
			err = f(ctx)
		}
		ended <- err
	}()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			s.t.Errorf("%s: %v", s.name, err)
		}
	})
}

func (s *space) must(f func() error) {
	s.t.Helper()
	if err := s.do(f); err != nil {
		s.t.Fatalf("%s: %v", s.name, err)
	}
}

// output runs a command in the namespace.
func (s *space) output(name string, args ...string) (string, error) {
	var out []byte
	err := s.do(func() error {
		var err error
		out, err = exec.Command(name, args...).CombinedOutput()
		return err
	})
	if err != nil {
		err = fmt.Errorf("%s: %s %s: %w: %s", s.name, name, strings.Join(args, " "), err, out)
	}
	return string(out), err
}

func (s *space) run(name string, args ...string) string {
	s.t.Helper()
	out, err := s.output(name, args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// cable connects two namespaces by a veth pair.
func cable(a *space, aName string, b *space, bName string) {
	a.t.Helper()
	a.must(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = aName
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(b.fd)})
	})
	a.run("ip", "link", "set", aName, "up")
	b.run("ip", "link", "set", bName, "up")
}

const (
	ingressID = "ingressaaaaaaaaaaaaaaaaaa"
	backID    = "backendbbbbbbbbbbbbbbbbbb"
)

var (
	ingressSubnet = netip.MustParsePrefix("10.0.0.0/24")
	backSubnet    = netip.MustParsePrefix("10.0.1.0/24")
)

// cluster is a LAN with hosts, and what the cluster wants of them.
type cluster struct {
	t        testing.TB
	lan      *space
	hosts    []*host
	ports    []plan.PublishedPort
	virtuals []plan.Virtual
	dead     map[int]bool
	run      bool
	plugs    int
	next     int // last byte of the next container's address
}

type host struct {
	*space
	stop     func() // ends Run
	c        *cluster
	number   int
	underlay netip.Addr
	mesh     *Mesh
	engine   *bridges
	stateDir string
}

// options of a cluster.
type options struct {
	hosts int
	// bridgeFilter is bridge-nf-call-iptables, which Docker turns on.
	bridgeFilter bool
	// run has the meshes run by themselves, and so use plain ways.
	run bool
}

func newCluster(t testing.TB, o options) *cluster {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	c := &cluster{t: t, run: o.run, lan: newSpace(t, "lan"), dead: map[int]bool{}, next: 100}
	c.lan.run("ip", "link", "add", "lan", "type", "bridge")
	c.lan.run("ip", "link", "set", "lan", "up")
	for i := 1; i <= o.hosts; i++ {
		h := &host{c: c, number: i, underlay: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), engine: &bridges{made: map[string]BridgeNetwork{}}, stateDir: t.TempDir()}
		h.space = c.plug(fmt.Sprintf("h%d", i), h.underlay)
		h.engine.dockerFirewall(h.space, o.bridgeFilter)
		h.start()
		c.hosts = append(c.hosts, h)
	}
	return c
}

// plug puts a new machine on the LAN.
func (c *cluster) plug(name string, addr netip.Addr) *space {
	c.t.Helper()
	s := newSpace(c.t, name)
	c.plugs++
	port := fmt.Sprintf("p%d", c.plugs)
	cable(c.lan, port, s, "eth0")
	c.lan.run("ip", "link", "set", port, "master", "lan")
	s.run("ip", "addr", "add", addr.String()+"/24", "dev", "eth0")
	return s
}

func (h *host) start() {
	h.t.Helper()
	h.must(func() (err error) {
		h.mesh, err = New(Config{Engine: h.engine, StateDir: h.stateDir, Logger: slog.New(slog.NewTextHandler(h.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("host", h.name)})
		return err
	})
	if h.c.run {
		h.stop = h.background(h.mesh.Run)
	}
	h.t.Cleanup(h.close)
}

// close ends the host's process, so to speak.
func (h *host) close() {
	if h.stop != nil {
		h.stop()
	}
	h.do(func() error {
		if h.mesh == nil {
			return nil
		}
		defer func() { h.mesh = nil }()
		return h.mesh.Close()
	})
}

func (h *host) gateway(network netip.Prefix) netip.Addr {
	b := network.Addr().As4()
	b[3] = byte(h.number)
	return netip.AddrFrom4(b)
}

func (c *cluster) node(h *host) plan.Node {
	return plan.Node{
		ID: h.name, Underlay: h.underlay, Alive: !c.dead[h.number],
		Gateways: map[string]netip.Addr{ingressID: h.gateway(ingressSubnet), backID: h.gateway(backSubnet)},
	}
}

// input is what the cluster wants of one host.
func (c *cluster) input(self *host) plan.Input {
	in := plan.Input{
		ProbeKey: []byte("test"),
		Self:     c.node(self),
		Networks: []plan.Network{
			{ID: ingressID, Name: "ingress", VNI: 4096, Subnet: ingressSubnet, Ingress: true},
			{ID: backID, Name: "back", VNI: 4097, Subnet: backSubnet},
		},
		Ports: c.ports, Virtuals: c.virtuals,
	}
	for _, h := range c.hosts {
		if h != self {
			in.Peers = append(in.Peers, c.node(h))
		}
	}
	return in
}

// apply brings all living hosts to what the cluster wants.
func (c *cluster) apply() {
	c.t.Helper()
	for _, h := range c.hosts {
		if !c.dead[h.number] {
			c.applyTo(h)
		}
	}
}

func (c *cluster) applyTo(h *host) {
	c.t.Helper()
	h.must(func() error { return h.mesh.Apply(c.t.Context(), c.input(h)) })
}

// container is a namespace on a host's bridges, with a server on port 8000.
type container struct {
	*space
	host *host
	addr netip.Addr // on the ingress network
	back netip.Addr // on the other one
	task plan.Backend
}

// container starts a replica on host number n. Its default route is by the network
// "via".
func (c *cluster) container(n int, via string) *container {
	c.t.Helper()
	h := c.hosts[n-1]
	c.next++
	ct := &container{host: h, space: newSpace(c.t, fmt.Sprintf("c%d", c.next))}
	ct.addr = netip.AddrFrom4([4]byte{10, 0, 0, byte(c.next)})
	ct.back = netip.AddrFrom4([4]byte{10, 0, 1, byte(c.next)})
	ct.task = plan.Backend{TaskID: ct.name, NodeID: h.name, Addr: ct.addr}
	for i, a := range []struct {
		network string
		addr    netip.Addr
		subnet  netip.Prefix
	}{{ingressID, ct.addr, ingressSubnet}, {backID, ct.back, backSubnet}} {
		dev, port := fmt.Sprintf("eth%d", i), fmt.Sprintf("v%s-%d", ct.name, i)
		cable(h.space, port, ct.space, dev)
		h.run("ip", "link", "set", port, "master", plan.BridgeName(a.network))
		ct.run("ip", "link", "set", dev, "mtu", "1450")
		ct.run("ip", "addr", "add", a.addr.String()+"/24", "dev", dev)
		if a.network == via {
			ct.run("ip", "route", "add", "default", "via", h.gateway(a.subnet).String())
		}
	}
	ct.serve(8000)
	return ct
}

// serve answers each line over TCP, and each datagram, with "name client-address".
func (ct *container) serve(port int) {
	ct.t.Helper()
	var l net.Listener
	var p net.PacketConn
	ct.must(func() (err error) {
		if l, err = net.Listen("tcp4", fmt.Sprintf(":%d", port)); err == nil {
			p, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", port))
		}
		return err
	})
	var wg sync.WaitGroup
	ct.t.Cleanup(func() { l.Close(); p.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				stop := context.AfterFunc(ct.t.Context(), func() { conn.Close() })
				defer stop()
				who := conn.RemoteAddr().(*net.TCPAddr).IP
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					fmt.Fprintf(conn, "%s %s\n", ct.name, who)
				}
			})
		}
	})
	wg.Go(func() {
		for b := make([]byte, 100); ; {
			_, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			fmt.Fprintf(connTo{p, from}, "%s %s", ct.name, from.(*net.UDPAddr).IP)
		}
	})
}

type connTo struct {
	p  net.PacketConn
	to net.Addr
}

func (c connTo) Write(b []byte) (int, error) { return c.p.WriteTo(b, c.to) }

const patience = 3 * time.Second

// dial connects from a namespace.
func (s *space) dial(network string, to string) (net.Conn, error) {
	var conn net.Conn
	err := s.do(func() (err error) {
		conn, err = net.DialTimeout(network, to, patience)
		return err
	})
	if err == nil {
		conn.SetDeadline(time.Now().Add(patience))
	}
	return conn, err
}

// ask sends a line or datagram over conn and reads who answered, and whom it saw.
func ask(conn net.Conn) (server, client string, err error) {
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		return "", "", err
	}
	b := make([]byte, 100)
	n, err := conn.Read(b)
	if err != nil {
		return "", "", err
	}
	server, client, _ = strings.Cut(strings.TrimSpace(string(b[:n])), " ")
	return server, client, nil
}

// get makes one connection and asks one question.
func (s *space) get(network, to string) (server, client string, err error) {
	conn, err := s.dial(network, to)
	if err != nil {
		return "", "", err
	}
	defer conn.Close()
	return ask(conn)
}

// survey makes n connections and returns how many each server answered. All must
// have seen the client as seen.
func (s *space) survey(network, to, seen string, n int) map[string]int {
	s.t.Helper()
	answers := map[string]int{}
	for range n {
		server, client, err := s.get(network, to)
		if err != nil {
			s.t.Fatalf("from %s to %s %s: %v", s.name, network, to, err)
		}
		if client != seen {
			s.t.Fatalf("from %s to %s %s: %s saw client %s, want %s", s.name, network, to, server, client, seen)
		}
		answers[server]++
	}
	return answers
}

// bridges stands for the engine: it makes bridges as Docker would.
type bridges struct {
	made map[string]BridgeNetwork
	// hangs is called by an engine that gives no answer, in which the time for one is over; nil for one that answers.
	hangs func()
}

var _ Networks = (*bridges)(nil)

func (b *bridges) List(context.Context) ([]BridgeNetwork, error) {
	if b.hangs != nil {
		b.hangs()
		return nil, fmt.Errorf("engine: %w", context.DeadlineExceeded)
	}
	var all []BridgeNetwork
	for _, n := range b.made {
		if _, err := netlink.LinkByName(n.Bridge); err == nil {
			all = append(all, n)
		}
	}
	return all, nil
}

// dockerRules are what Docker adds to its firewall for a network.
func dockerRules() []string {
	return []string{
		"FORWARD -o %[1]s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		"FORWARD -i %[1]s ! -o %[1]s -j ACCEPT",
		"FORWARD -i %[1]s -o %[1]s -j ACCEPT",
		"POSTROUTING -t nat -s %[2]s ! -o %[1]s -j MASQUERADE",
	}
}

func (b *bridges) Ensure(_ context.Context, n BridgeNetwork) error {
	b.made[n.ID] = n
	commands := []string{
		fmt.Sprintf("ip link add %s type bridge", n.Bridge),
		fmt.Sprintf("ip addr add %s/%d dev %s", n.Gateway, n.Subnet.Bits(), n.Bridge),
		fmt.Sprintf("ip link set %s up", n.Bridge),
	}
	for _, r := range dockerRules() {
		commands = append(commands, "iptables -w -A "+fmt.Sprintf(r, n.Bridge, n.Subnet))
	}
	for _, c := range commands {
		if out, err := exec.Command("sh", "-c", c).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", c, err, out)
		}
	}
	return nil
}

func (b *bridges) Remove(_ context.Context, n BridgeNetwork) error {
	delete(b.made, n.ID)
	l, err := netlink.LinkByName(n.Bridge)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, r := range dockerRules() {
		c := "iptables -w -D " + fmt.Sprintf(r, n.Bridge, n.Subnet)
		if out, err := exec.Command("sh", "-c", c).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", c, err, out)
		}
	}
	return netlink.LinkDel(l)
}

// dockerFirewall is what dockerd does to a machine before it makes any network.
func (b *bridges) dockerFirewall(s *space, bridgeFilter bool) {
	s.t.Helper()
	s.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
	s.run("sysctl", "-qw", fmt.Sprintf("net.bridge.bridge-nf-call-iptables=%d", map[bool]int{true: 1}[bridgeFilter]))
	s.run("iptables", "-w", "-P", "FORWARD", "DROP")
	s.run("iptables", "-w", "-t", "nat", "-P", "POSTROUTING", "ACCEPT")
	s.run("sh", "-c", "iptables -w -N DOCKER-USER || iptables -w -L DOCKER-USER") // one that is there is kept
	s.run("iptables", "-w", "-A", "DOCKER-USER", "-j", "RETURN")
	s.run("iptables", "-w", "-A", "FORWARD", "-j", "DOCKER-USER")
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }
