package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/api/types/system"

	"github.com/miniswarm/miniswarm/agent"
	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/ingress"
	"github.com/miniswarm/miniswarm/ingress/ping"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/node/doctor"
)

const (
	// managerLimit is how long a manager has to answer.
	managerLimit = 3 * time.Second
	// skewed is a difference of clocks that is worth a word, tooSkewed one by which new certificates may not be valid yet. The
	// difference is read from answers that name whole seconds.
	skewed, tooSkewed = 2 * time.Second, time.Minute
	// recently is how long a repair of the data plane is remembered.
	recently = 10 * time.Minute
	// rootSoon is how long before its end a root certificate is worth a word; late is how much of a certificate's life is left
	// when its renewal must have failed (it is tried from half of it on).
	rootSoon, late = 60 * 24 * time.Hour, 0.15
)

// Machine is what the doctor can look at with a configuration and no daemon.
func Machine(cfg Config) doctor.Machine {
	return doctor.Machine{StateDir: cfg.StateDir, DataPlane: cfg.DataPlane, EngineHost: cfg.Engine, Engine: func(ctx context.Context) (system.Info, error) {
		engine, err := docker.Open(cfg.Engine)
		if err != nil {
			return system.Info{}, err
		}
		defer engine.Close()
		return engine.Info(ctx)
	}}
}

// checkup looks at this node.
func (n *Node) checkup(ctx context.Context) doctor.Report {
	host, _ := os.Hostname()
	r := doctor.Report{Hostname: host, Version: n.cfg.Version, Time: time.Now()}
	r.Findings = Machine(n.cfg).Examine(ctx)
	state, failed := n.localState()
	m := n.current()
	removed, gone := errors.AsType[*agent.RemovedError](failed)
	switch {
	case gone && m != nil:
		r.Findings = append(r.Findings, doctor.Broken("swarm", fmt.Sprintf("'miniswarm leave --force' here; to take part again, then 'miniswarm join --token TOKEN %s' ('miniswarm token worker' on a manager prints the token)", m.another()),
			"%v; its tasks run elsewhere, and were stopped here", removed))
	case failed != nil:
		r.Findings = append(r.Findings, doctor.Broken("swarm", "see the daemon's log and docs/operations.md for this message; it is tried again by itself where the cause may pass", "%v", failed))
	case state == swarm.LocalNodeStateLocked:
		r.Findings = append(r.Findings, doctor.Broken("swarm", "miniswarm unlock, with the key that 'miniswarm unlock-key' prints on another manager; if the key was rotated while this manager was off or locked, with the one from before", "this manager is locked"))
	case state == swarm.LocalNodeStatePending:
		r.Findings = append(r.Findings, doctor.Bad("swarm", "ask again in a moment", "the daemon was just started, and takes up its part in the swarm"))
	case m == nil:
		r.Findings = append(r.Findings, doctor.Good("swarm", "this machine is part of no swarm"))
	default:
		r.Findings = append(r.Findings, doctor.Good("swarm", "%s", state))
	}
	if m != nil {
		r.NodeID, r.Role = m.nodeID, string(swarm.NodeRoleWorker)
		if m.managing() != nil || state == swarm.LocalNodeStateLocked {
			r.Role = string(swarm.NodeRoleManager)
		}
	}
	if m != nil && !gone && state != swarm.LocalNodeStateLocked { // the one has nobody to ask, the other no certificate to ask with
		r.Findings = slices.Concat(r.Findings, n.checkCertificates(time.Now()), m.checkAddress(), m.checkManagers(ctx))
	}
	if m != nil && failed == nil && state != swarm.LocalNodeStateLocked { // else its agent has ended, which has been said
		r.Findings = slices.Concat(r.Findings, m.checkSession(), m.checkDataPlane(ctx))
	}
	if m != nil {
		if g := m.managing(); g != nil {
			namePeers(g.store.Snapshot(), r.Findings)
		}
	}
	doctor.Sort(r.Findings)
	return r
}

func (n *Node) checkCertificates(now time.Time) []doctor.Finding {
	c := n.credentials.Current()
	if c == nil {
		return nil
	}
	var out []doctor.Finding
	from, until := c.Validity()
	day := until.UTC().Format(time.DateOnly)
	switch left := until.Sub(now); {
	case left <= 0:
		out = append(out, doctor.Broken("certificate", "bring a manager within reach and look at this node's log; else leave and join again", "the node's certificate expired on %s", day))
	case left < time.Duration(late*float64(until.Sub(from))):
		out = append(out, doctor.Bad("certificate", "look in the log why it was not renewed: the managers must be reachable", "the node's certificate expires on %s, in %s", day, left.Round(time.Minute)))
	default:
		out = append(out, doctor.Good("certificate", "the node's is valid until %s", day))
	}
	root := rootExpiry(c.Root.PEM())
	switch left := root.Sub(now); {
	case root.IsZero():
	case left <= 0:
		out = append(out, doctor.Broken("root certificate", "miniswarm ca --rotate", "the cluster's root certificate expired on %s", root.UTC().Format(time.DateOnly)))
	case left < rootSoon:
		out = append(out, doctor.Bad("root certificate", "miniswarm ca --rotate", "the cluster's root certificate expires on %s", root.UTC().Format(time.DateOnly)))
	default:
		out = append(out, doctor.Good("root certificate", "valid until %s", root.UTC().Format(time.DateOnly)))
	}
	return out
}

// checkAddress looks whether this machine has the address at which others look for it.
func (m *member) checkAddress() []doctor.Finding {
	const check = "address"
	host := m.state.host()
	if m.has() {
		return []doctor.Finding{doctor.Good(check, "this machine has the address that it advertises, %s", host)}
	}
	return []doctor.Finding{doctor.Bad(check, "let it be if a router forwards that address here; else start the daemon with --advertise-addr and an address of this machine (and --data-path-addr), which moves the node there",
		"this machine does not have the address that it advertises, %s", host)}
}

func (m *member) checkSession() []doctor.Finding {
	st := m.agent.Status()
	if why := m.refusal(); why != "" {
		return []doctor.Finding{doctor.Broken("session", "on the copy 'miniswarm leave --force', and join again there", "%s", why)}
	}
	if why := m.estrangement(); why != "" {
		return []doctor.Finding{doctor.Broken("session", cureStranger, "%s", why)}
	}
	if st.Leader == "" {
		return []doctor.Finding{doctor.Broken("session", "see what is said about the managers; its containers go on, and nothing about them changes",
			"this node has no session with a leader%s", since(st.Heard))}
	}
	return []doctor.Finding{doctor.Good("session", "with the leader %s, heard %s ago", st.Leader, time.Since(st.Heard).Round(time.Millisecond))}
}

// checkManagers asks every other manager's cluster port, which also tells the time.
func (m *member) checkManagers(ctx context.Context) []doctor.Finding {
	all := slices.DeleteFunc(m.others(), func(a protocol.ManagerAddr) bool { return a.Addr == "" })
	if len(all) == 0 {
		return nil
	}
	leader := ""
	if g := m.managing(); g != nil {
		_, leader, _ = g.manager.Leader()
	}
	addr := m.agent.Status().Leader
	type answer struct {
		skew time.Duration
		err  error
	}
	answers := make(chan struct {
		protocol.ManagerAddr
		answer
	}, len(all))
	for _, a := range all {
		go func() {
			skew, err := m.askManager(ctx, a)
			answers <- struct {
				protocol.ManagerAddr
				answer
			}{a, answer{skew, err}}
		}()
	}
	var out []doctor.Finding
	reached := 0
	var apart *identity.ClockError // with one of them: the same is wrong with all
	for range all {
		a := <-answers
		if wrong, ok := errors.AsType[*identity.ClockError](a.err); ok {
			apart = wrong
			continue
		}
		if identity.Estranged(a.err) {
			out = append(out, doctor.Broken("managers", cureStranger, "manager %s takes this node for a stranger: %v", a.Addr, a.err))
			continue
		}
		if a.err != nil {
			out = append(out, doctor.Broken("managers", "is the machine up, its daemon running, and "+a.Addr+" (TCP) open between them? 'miniswarm doctor' there tells more; if all managers have other addresses now, 'miniswarm rejoin ADDRESS' with one of them", "manager %s does not answer: %v", a.Addr, a.err))
			continue
		}
		reached++
		if a.NodeID == leader || leader == "" && a.Addr == addr {
			out = append(out, clock("this machine's", a.skew))
		}
	}
	if apart != nil {
		out = append(out, doctor.Broken("clock", ntp+"; certificates are refused until then", "%v", apart))
	}
	if reached > 0 {
		out = append(out, doctor.Good("managers", "%d of %d others answer on the cluster port", reached, len(all)))
	}
	return out
}

// ntp is what to do about clocks that differ.
const ntp = "have both machines' clocks kept by NTP (chrony, systemd-timesyncd)"

// clock judges how far a machine's clock is ahead of the leader's.
func clock(whose string, ahead time.Duration) doctor.Finding {
	const check = "clock"
	word := "ahead of"
	if ahead < 0 {
		word = "behind"
	}
	switch d := ahead.Abs().Round(100 * time.Millisecond); {
	case d >= tooSkewed:
		return doctor.Broken(check, ntp+"; certificates are refused until then", "%s clock is %s %s the leader's", whose, d, word)
	case d >= skewed:
		return doctor.Bad(check, ntp, "%s clock is %s %s the leader's", whose, d, word)
	}
	return doctor.Good(check, "as the leader's, within %s", skewed)
}

// askManager says whether a manager answers, and how far this machine's clock is ahead of its.
func (m *member) askManager(ctx context.Context, a protocol.ManagerAddr) (ahead time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, managerLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+a.Addr+"/healthz", nil)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	resp, err := m.transports.to(a.NodeID).RoundTrip(req)
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	said, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return 0, fmt.Errorf("its answer tells no time: %w", err)
	}
	middle := began.Add(time.Since(began) / 2)
	return middle.Sub(said.Add(500 * time.Millisecond)), nil // it names the second that has begun
}

// checkDataPlane reads the kernel's tables back. What differs from the cluster's is repaired on the way, as it would have been in a
// moment.
func (m *member) checkDataPlane(ctx context.Context) []doctor.Finding {
	const check = "data plane"
	if m.mesh == nil {
		if !m.node.cfg.DataPlane {
			return []doctor.Finding{doctor.Good(check, "switched off by --no-data-plane: this node serves no published ports and no overlay networks")}
		}
		return []doctor.Finding{doctor.Bad(check, "stop the other daemon if this one is to have it", "%v", ingress.ErrTaken)}
	}
	repairedBefore := m.mesh.Stats()
	repaired, err := m.mesh.Verify(ctx)
	routing, stats := m.agent.Status().Routing, m.mesh.Stats()
	rules := "find out who changes nftables rules, devices or routes that are not theirs (a firewall's reload with 'flush ruleset'?) and leave the tables called miniswarm out"
	var out []doctor.Finding
	switch {
	case err != nil && !ingress.Waiting(err):
		out = append(out, doctor.Broken(check, "see what the message says; it is tried again by itself", "the kernel does not agree with the cluster and cannot be repaired: %v", err))
	case routing.Err != nil:
		out = append(out, doctor.Broken(check, "see what the message says; it is tried again by itself", "%v", routing.Err))
	case !routing.Applied:
		out = append(out, doctor.Broken(check, "it is applied as soon as there is a session with a leader", "the cluster's routes are not applied yet"))
	case repaired:
		out = append(out, doctor.Bad(check, rules, "the kernel differed from what the cluster wants, and was repaired just now"))
	case repairedBefore.Repairs > 0 && time.Since(repairedBefore.RepairedAt) < recently:
		out = append(out, doctor.Bad(check, rules, "the kernel was changed by somebody else and repaired, %d times since the daemon started, last %s ago", stats.Repairs, time.Since(stats.RepairedAt).Round(time.Second)))
	default:
		out = append(out, doctor.Good(check, "the kernel has what the cluster wants: %d published ports, %d endpoints, %d networks", stats.Ports, stats.Backends, stats.Networks))
	}
	return append(out, m.checkPeers(ctx, stats)...)
}

// checkOfPeers names the check whose findings name other nodes.
const checkOfPeers = "peers"

// checkPeers asks the other nodes by their addresses on the ingress network, the way that traffic between nodes goes.
func (m *member) checkPeers(ctx context.Context, stats ingress.Stats) []doctor.Finding {
	if len(stats.Gateways) == 0 {
		return nil
	}
	var addrs []netip.Addr
	for _, a := range stats.Gateways {
		addrs = append(addrs, a)
	}
	answered, err := ping.Answering(ctx, addrs)
	if err != nil {
		return []doctor.Finding{doctor.Bad(checkOfPeers, "run the daemon as root", "%v", err)}
	}
	var silent []string
	for id, a := range stats.Gateways {
		if !answered[a] {
			silent = append(silent, id)
		}
	}
	if len(silent) > 0 {
		slices.Sort(silent)
		return []doctor.Finding{doctor.Bad(checkOfPeers, "open the data path port (4789/udp unless init was told another) between all nodes, and see that the machines are up",
			"%d of %d nodes do not answer on the ingress network: %s", len(silent), len(addrs), strings.Join(silent, ", "))}
	}
	return []doctor.Finding{doctor.Good(checkOfPeers, "%d other nodes answer on the ingress network (%d of them without VXLAN)", len(addrs), stats.Peers[ingress.WayPlain])}
}
