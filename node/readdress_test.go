package node

import (
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/node/doctor"
)

func TestReaddress(t *testing.T) {
	lo := loopback(t)
	base := state{ListenAddr: "0.0.0.0:2377", AdvertiseAddr: "127.0.0.1:2377", DataAddr: "127.0.0.1", Interface: lo}
	with := func(change func(*state)) state { s := base; change(&s); return s }
	for _, c := range []struct {
		name string
		cfg  Config
		st   state
		want state // without Flags
	}{
		{"nothing has changed", Config{}, base, base},
		{"the same flags, though init named other addresses", Config{AdvertiseAddr: "192.0.2.9"},
			with(func(s *state) { s.Flags.Advertise = "192.0.2.9" }), base},
		{"a new flag", Config{AdvertiseAddr: "192.0.2.9"}, base,
			with(func(s *state) { s.AdvertiseAddr, s.DataAddr, s.Interface = "192.0.2.9:2377", "192.0.2.9", "" })},
		{"a new flag, the overlay has its own address", Config{AdvertiseAddr: "192.0.2.9:4000"},
			with(func(s *state) { s.DataAddr = "192.0.2.1" }),
			with(func(s *state) { s.AdvertiseAddr, s.DataAddr, s.Interface = "192.0.2.9:4000", "192.0.2.1", "" })},
		{"another address to listen on, which was advertised", Config{ListenAddr: "192.0.2.9:4000"},
			with(func(s *state) { s.ListenAddr = s.AdvertiseAddr }),
			with(func(s *state) {
				s.ListenAddr, s.AdvertiseAddr, s.DataAddr, s.Interface = "192.0.2.9:4000", "192.0.2.9:4000", "192.0.2.9", ""
			})},
		{"a flag for the overlay", Config{DataPathAddr: "192.0.2.9"}, base, with(func(s *state) { s.DataAddr = "192.0.2.9" })},
		{"the interface has another address", Config{},
			with(func(s *state) {
				s.ListenAddr, s.AdvertiseAddr, s.DataAddr = "192.0.2.1:2377", "192.0.2.1:2377", "192.0.2.1"
			}),
			with(func(s *state) { s.ListenAddr = "127.0.0.1:2377" })},
		{"what it listened on is gone, what it advertises is here", Config{},
			with(func(s *state) { s.ListenAddr, s.DataAddr, s.Interface = "192.0.2.1:4000", "192.0.2.1", "" }),
			with(func(s *state) { s.ListenAddr = "127.0.0.1:4000" })},
		{"both are gone, and nobody knows whose they were", Config{},
			with(func(s *state) { s.ListenAddr, s.AdvertiseAddr, s.Interface = "192.0.2.1:2377", "192.0.2.8:2377", "" }),
			with(func(s *state) { s.ListenAddr, s.AdvertiseAddr, s.Interface = "192.0.2.1:2377", "192.0.2.8:2377", "" })},
		{"the interface is gone", Config{}, with(func(s *state) { s.AdvertiseAddr, s.Interface = "192.0.2.1:2377", "gone0" }),
			with(func(s *state) { s.AdvertiseAddr, s.Interface = "192.0.2.1:2377", "gone0" })},
		{"an address that never was the machine's", Config{}, with(func(s *state) { s.AdvertiseAddr, s.Interface = "192.0.2.1:2377", "" }),
			with(func(s *state) { s.AdvertiseAddr, s.Interface = "192.0.2.1:2377", "" })},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.cfg.Logger = slog.New(slog.DiscardHandler)
			n := &Node{cfg: c.cfg}
			got, before := c.st, c.st
			changed, err := n.readdress(&got)
			must(t, err)
			if changed != (got.AdvertiseAddr != before.AdvertiseAddr || got.ListenAddr != before.ListenAddr || got.DataAddr != before.DataAddr || got.Flags != before.Flags) {
				t.Errorf("changed: %v", changed)
			}
			if got.Flags != c.cfg.flags() {
				t.Errorf("remembers the flags %+v", got.Flags)
			}
			if got.ListenAddr != c.want.ListenAddr || got.AdvertiseAddr != c.want.AdvertiseAddr || got.DataAddr != c.want.DataAddr || got.Interface != c.want.Interface {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

// comesBack restarts a daemon that has ended, or ends it first, with another configuration.
func (c *nodes) comesBack(i int, change func(*Config)) (addr string) {
	c.t.Helper()
	must(c.t, c.stop[c.all[i]]())
	cfg := c.all[i].cfg
	change(&cfg)
	again, err := New(cfg)
	must(c.t, err)
	c.stop[again] = run(c.t, again)
	c.all[i] = again
	waitFor(c.t, "daemon that takes part", func() bool { return again.current() != nil })
	return again.current().state.AdvertiseAddr
}

// foundAt waits until everybody knows where a manager is.
func (c *nodes) foundAt(id, addr string) {
	c.t.Helper()
	waitFor(c.t, "manager at its new address", func() bool {
		snap, g := snapshot(c.t, c.leader()), parts(c.leader())
		return snap != nil && g != nil && snap.Node(id).ManagerAddr == addr && snap.Node(id).Status.State == swarm.NodeStateReady &&
			g.manager.Reachability(id) == swarm.ReachabilityReachable
	})
	waitFor(c.t, "worker that knows the address", func() bool {
		return slices.Contains(c.all[len(c.all)-1].Info().RemoteManagers, swarm.Peer{NodeID: id, Addr: addr})
	})
}

// TestManagersComeBackElsewhere: a node's id is who it is. The others, and the agents, learn where it is.
func TestManagersComeBackElsewhere(t *testing.T) {
	c := newNodes(t, 3, 1)
	for range 2 { // the leader, and then at once the one after it
		i := slices.Index(c.all, c.leader())
		id, addr := c.all[i].Info().NodeID, freePort(t)
		c.comesBack(i, func(cfg *Config) { cfg.ListenAddr = addr })
		c.foundAt(id, addr)
	}
	for _, stays := range []int{1, 0} { // so many are where they were; with none, the daemons have to be told
		want := []string{freePort(t), freePort(t), freePort(t)}
		for i := range want {
			must(t, c.stop[c.all[i]]())
		}
		var ids []string
		for i := range want {
			want[i] = c.comesBack(i, func(cfg *Config) {
				if i >= stays {
					cfg.ListenAddr = want[i]
				}
				if i > 0 && stays == 0 {
					cfg.ManagerAddrs = want[:1]
				}
			})
			ids = append(ids, c.all[i].Info().NodeID)
		}
		if stays == 0 {
			c.comesBack(3, func(cfg *Config) { cfg.ManagerAddrs = want[:1] })
		}
		for i, id := range ids {
			c.foundAt(id, want[i])
		}
	}
	c.voters(3)
}

// A router forwards the advertised address to the machine, and may not do so for the machine itself: its agent has a session with its own
// manager all the same, and the node is known by the address that it advertises.
func TestAnAddressThatIsTheRouters(t *testing.T) {
	n := newNode(t)
	run(t, n)
	id, err := n.Init(t.Context(), swarm.InitRequest{ListenAddr: freePort(t), AdvertiseAddr: "192.0.2.1"})
	must(t, err)
	waitFor(t, "a node that is ready", func() bool {
		snap := snapshot(t, n)
		return snap != nil && snap.Node(id).Status.State == swarm.NodeStateReady
	})
	if st := snapshot(t, n).Node(id).Status; st.Addr != "192.0.2.1" {
		t.Errorf("the node's status: %+v", st)
	}
	if r := n.checkup(t.Context()); !has(r.Findings, "address", doctor.Warning, "does not have the address that it advertises, 192.0.2.1") {
		t.Errorf("%+v", r.Findings)
	}
}

// The address of a machine changes while its daemon runs, as by DHCP. Nobody tells the daemon, and it takes up the new one.
func TestAnAddressThatChangesMeanwhile(t *testing.T) {
	t.Parallel()
	first := newNode(t)
	run(t, first)
	// All of 127.0.0.0/8 is this machine's, but no interface has it: as an address that is gone, through which nobody happens to be cut.
	_, port, err := net.SplitHostPort(freePort(t))
	must(t, err)
	id, err := first.Init(t.Context(), swarm.InitRequest{ListenAddr: "127.0.0.5:" + port})
	must(t, err)
	worker := newNode(t)
	run(t, worker)
	must(t, worker.Join(t.Context(), swarm.JoinRequest{ListenAddr: freePort(t), RemoteAddrs: []string{"127.0.0.5:" + port},
		JoinToken: snapshot(t, first).Cluster().JoinTokens.Worker}))
	before := first.current()
	must(t, before.remember(func(st *state) { st.Interface = loopback(t) }))
	now := "127.0.0.1:" + port
	waitFor(t, "a manager that is at its new address", func() bool {
		m := first.current()
		return m != nil && m != before && m.state.AdvertiseAddr == now && m.state.ListenAddr == now && m.state.DataAddr == "127.0.0.1"
	})
	// There is no other manager that could tell the worker.
	waitFor(t, "a worker that is told, as soon as somebody listens there", func() bool { return worker.Rejoin(t.Context(), now) == nil })
	waitFor(t, "the cluster knows it", func() bool {
		snap := snapshot(t, first)
		return snap != nil && snap.Node(id).ManagerAddr == now && snap.Node(id).Status.Addr == "127.0.0.1" &&
			slices.Contains(worker.Info().RemoteManagers, swarm.Peer{NodeID: id, Addr: now})
	})
}

// A machine that gets the address at which others look for it while its daemon runs is followed from then on, and served there.
func TestAnAddressThatComesLater(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	run(t, n)
	_, port, err := net.SplitHostPort(freePort(t))
	must(t, err)
	_, err = n.Init(t.Context(), swarm.InitRequest{ListenAddr: "127.0.0.1:" + port})
	must(t, err)
	before := n.current()
	must(t, before.remember(func(st *state) { st.Interface = "" })) // as if 127.0.0.1 had not been there
	waitFor(t, "an interface that is known", func() bool {
		st, err := loadState(n.cfg.StateDir)
		return err == nil && st.Interface == loopback(t)
	})
	if n.current() != before {
		t.Error("the node was moved though nothing was lost")
	}
	must(t, before.remember(func(st *state) { st.Interface, st.ListenAddr = "", "192.0.2.1:"+port }))
	waitFor(t, "a manager that listens where it is looked for", func() bool {
		m := n.current()
		return m != nil && m != before && m.state.ListenAddr == "127.0.0.1:"+port
	})
}

func TestWhatAnAddressGivesWayTo(t *testing.T) {
	addrs := func(all ...string) (ips []netip.Addr) {
		for _, a := range all {
			ips = append(ips, netip.MustParseAddr(a))
		}
		return ips
	}
	for _, c := range []struct {
		name          string
		lost          string
		found, beside []netip.Addr
		want          string // empty: none
		fresh         bool
	}{
		{"another from DHCP", "192.0.2.1", addrs("192.0.2.2"), addrs("127.0.0.1", "192.0.2.1"), "192.0.2.2", true},
		{"another beside one that wanders", "192.0.2.1", addrs("192.0.2.100", "192.0.2.2"), addrs("192.0.2.1", "192.0.2.100"), "192.0.2.2", true},
		{"only what was there before", "192.0.2.1", addrs("198.51.100.1"), addrs("192.0.2.1", "198.51.100.1"), "198.51.100.1", false},
		{"nothing is known of before", "192.0.2.1", addrs("198.51.100.1"), nil, "198.51.100.1", true},
		{"only the other family", "192.0.2.1", addrs("2001:db8::2"), addrs("192.0.2.1"), "", false},
		{"IPv6 where there is IPv4 as well", "2001:db8::1", addrs("192.0.2.1", "2001:db8::2"), addrs("192.0.2.1", "2001:db8::1"), "2001:db8::2", true},
		{"none", "192.0.2.1", nil, addrs("192.0.2.1"), "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, fresh, err := inPlaceOf(netip.MustParseAddr(c.lost), c.found, c.beside)
			if want, _ := netip.ParseAddr(c.want); got != want || fresh != c.fresh || (err != nil) != (c.want == "") {
				t.Errorf("%v, fresh %v, %v", got, fresh, err)
			}
		})
	}
}

// While a node takes its part up at another address it is not to say that it has none.
func TestAContainerThatComesWhileANodeMoves(t *testing.T) {
	for local, want := range map[swarm.LocalNodeState]string{swarm.LocalNodeStateActive: "try once more", swarm.LocalNodeStateInactive: textNever} {
		n := &Node{local: local}
		if _, err := n.Attach(t.Context(), protocol.AttachRequest{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", local, err, want)
		}
	}
}
