package ingress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/ingress/plan"
	"github.com/miniswarm/miniswarm/ingress/probe"
	"github.com/miniswarm/miniswarm/trouble"
)

const (
	// verifyInterval is how often everything is read back without a reason.
	verifyInterval = 10 * time.Second
	// calm is how long to wait after somebody changed a rule for what follows, and
	// busy how long if there was such a change just before: engines that start many
	// containers change rules all the time.
	calm = 50 * time.Millisecond
	busy = time.Second
	// hurry is the interval of the first probes after the peers changed.
	hurry       = probe.Interval / 4
	hurryRounds = 12
)

// Run keeps the data plane as it was last applied, until ctx ends: it repairs
// what others change, at once where they change the machine's firewall rules and
// otherwise within ten seconds, and finds out which neighbours can be reached
// without VXLAN, and which suspect machines are dead. What concerns the network namespace
// it does on the calling goroutine. It returns nil when ctx ends; trouble is logged and
// tried again.
func (m *Mesh) Run(ctx context.Context) error {
	changes, stop, err := watchRules()
	if err != nil {
		return err
	}
	defer stop()
	r := &rounds{m: m}
	defer r.close()
	verify := time.NewTicker(verifyInterval)
	defer verify.Stop()
	probing := time.NewTimer(0)
	defer probing.Stop()
	s := &suspects{m: m, answered: map[netip.Addr]bool{}}
	asking := time.NewTimer(0)
	defer asking.Stop()
	var settle <-chan time.Time
	wait := calm
	var rules, all, asks trouble.Log
	var listing chan listed // an answer of the engine is awaited
	defer func() {
		if listing != nil {
			<-listing
		}
	}()
	for {
		select {
		case <-changes:
			if settle == nil {
				settle = time.After(wait)
				wait = busy
			}
		case <-settle:
			settle = nil
			disturbed, err := m.verifyRules(ctx)
			m.tell(ctx, &rules, slog.LevelError, "firewall rules are not as they should be", err)
			if !disturbed {
				wait = calm
			}
		case <-verify.C:
			wait = calm
			if listing == nil {
				listing = m.listAside(ctx)
			}
		case l := <-listing:
			listing = nil
			_, err := m.verify(ctx, l.bridges, l.err)
			if Waiting(err) {
				err = nil
			}
			m.tell(ctx, &all, slog.LevelError, "data plane is not as it should be", err)
		case <-probing.C:
			r.say(ctx, r.probe(ctx))
			probing.Reset(r.pause())
		case <-asking.C:
			pause, err := s.ask(ctx, time.Now())
			m.tell(ctx, &asks, slog.LevelWarn, "asking suspect machines", err)
			asking.Reset(pause)
		case <-ctx.Done():
			return nil
		}
	}
}

// tell writes a line about trouble that is met again and again, and one when it is over.
func (m *Mesh) tell(ctx context.Context, t *trouble.Log, level slog.Level, message string, err error) {
	switch {
	case ctx.Err() != nil:
	case err == nil:
		if was, lasted := t.Over(time.Now()); was {
			m.log.Info("over: "+message, "lasted", lasted.Round(time.Millisecond))
		}
	default:
		if tell, lasting := t.Again(time.Now(), err.Error()); tell {
			m.log.Log(ctx, level, message, "since", lasting.Round(time.Second), "err", err)
		}
	}
}

// listed is what the engine said about its networks.
type listed struct {
	bridges map[string]BridgeNetwork
	err     error
}

// listAside asks the engine, which may be slow, while the caller goes on. There is an
// answer at the latest when ctx ends.
func (m *Mesh) listAside(ctx context.Context) chan listed {
	answer := make(chan listed, 1)
	go func() {
		bridges, err := m.listBridges(ctx)
		answer <- listed{bridges, err}
	}()
	return answer
}

// verifyRules is the part of Verify that concerns firewall rules. Disturbed says
// that somebody else had changed some, not necessarily ours.
func (m *Mesh) verifyRules(ctx context.Context) (disturbed bool, err error) {
	if disturbed, err = m.verifyTable(ctx); !disturbed {
		return false, err
	}
	return true, errors.Join(err, m.firewall.check(ctx))
}

func (m *Mesh) verifyTable(ctx context.Context) (disturbed bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.applied {
		return false, nil
	}
	disturbed, err = m.table.Disturbed()
	if err != nil || !disturbed {
		return disturbed, err
	}
	repaired, err := m.table.Verify(ctx, m.want.Table)
	if repaired {
		m.stats.repaired()
		m.log.Warn("rules were changed by somebody else and are repaired")
	}
	return true, err
}

// watchRules signals when anybody, also we, changes nftables rules. stop ends it
// and waits.
func watchRules() (changes <-chan struct{}, stop func(), err error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err == nil {
		err = conn.JoinGroup(unix.NFNLGRP_NFTABLES)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("watch firewall rules: %w", err)
	}
	signal, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		for {
			_, err := conn.Receive()
			if err != nil && !errors.Is(err, unix.ENOBUFS) { // too many at once are changes as well
				return
			}
			select {
			case signal <- struct{}{}:
			default:
			}
		}
	}()
	return signal, func() { conn.Close(); <-done }, nil
}

// rounds are the probes of Run.
type rounds struct {
	m       *Mesh
	prober  *probe.Prober
	key     []byte              // the prober's
	asked   map[netip.Addr]bool // the peers of the last round
	since   int                 // rounds since they changed
	failing trouble.Log
}

// say logs trouble: a bridge that the engine has yet to make is asked for every second.
func (r *rounds) say(ctx context.Context, err error) {
	if err == nil || ctx.Err() != nil {
		r.failing.Over(time.Now())
		return
	}
	r.m.tell(ctx, &r.failing, slog.LevelWarn, "looking for plain ways to neighbours", err)
}

func (r *rounds) close() {
	if r.prober != nil {
		r.prober.Close()
		r.prober = nil
	}
}

func (r *rounds) pause() time.Duration {
	if r.since < hurryRounds {
		return hurry
	}
	return probe.Interval
}

// probe takes the answers to the last round, lets the mesh use them, and asks
// again.
func (r *rounds) probe(ctx context.Context) error {
	m := r.m
	m.mu.Lock()
	defer m.mu.Unlock()
	r.since++
	self, ok := m.ingressGateway()
	key := m.input.ProbeKey
	if !ok || m.alwaysVXLAN || len(key) == 0 {
		r.close()
		return nil
	}
	if r.prober == nil || r.prober.Self() != self || !bytes.Equal(r.key, key) {
		r.close()
		r.key = key
		p, err := probe.Listen(ctx, m.log, self, key)
		if err != nil {
			return err
		}
		r.prober = p
	}
	direct, peers, err := m.neighbours(r.prober)
	if err != nil {
		return err
	}
	if !maps.Equal(direct, m.direct) {
		for id, d := range direct {
			if d.Proven != m.direct[id].Proven {
				m.log.Info("way to neighbour changes", "node", id, "device", d.Device, "vxlan", !d.Proven)
			}
		}
		m.direct = direct
		if _, err = m.reconcile(ctx); err != nil {
			return err
		}
	}
	asked := map[netip.Addr]bool{}
	for _, p := range peers {
		asked[p.Addr] = true
	}
	if !maps.Equal(asked, r.asked) {
		r.asked, r.since = asked, 0
	}
	r.prober.Ask(peers)
	return nil
}

// ingressGateway is this node's address on the ingress network.
func (m *Mesh) ingressGateway() (netip.Addr, bool) {
	for _, o := range m.want.Overlays {
		if o.Ingress {
			return o.Gateway, m.applied
		}
	}
	return netip.Addr{}, false
}

// neighbours finds the peers that share a segment with us, with what the prober
// knows of them, and whom to ask next.
func (m *Mesh) neighbours(p *probe.Prober) (map[string]plan.Direct, []probe.Peer, error) {
	var addrs []netip.Addr
	for _, n := range m.input.Peers {
		addrs = append(addrs, n.Underlay)
	}
	segments, err := m.kernel.Segments(addrs)
	if err != nil {
		return nil, nil, err
	}
	direct := map[string]plan.Direct{}
	var peers []probe.Peer
	for _, n := range m.input.Peers {
		gw, ok := n.Gateways[m.ingressID()]
		if !ok {
			continue
		}
		before, known := m.direct[n.ID]
		seg, near := segments[n.Underlay]
		switch {
		case near:
			d := plan.Direct{Device: seg.Device, MAC: seg.MAC, Proven: p.Proven(gw)}
			if d.MAC == (plan.MAC{}) && known && before.Device == d.Device {
				d.MAC = before.MAC // the kernel forgets, the peer's frames stay the same
			}
			d.Proven = d.Proven && d.MAC != (plan.MAC{})
			direct[n.ID] = d
			peers = append(peers, probe.Peer{Addr: gw, Device: seg.Index, Recognised: d.MAC != (plan.MAC{})})
		case known:
			// It still may have connections whose replies have to find back.
			before.Proven = false
			direct[n.ID] = before
		}
	}
	return direct, peers, nil
}

func (m *Mesh) ingressID() string {
	for _, o := range m.want.Overlays {
		if o.Ingress {
			return o.ID
		}
	}
	return ""
}

// recall takes over what a former process knew of neighbours.
func (m *Mesh) recall(ctx context.Context) error {
	if m.direct != nil {
		return nil
	}
	have, err := m.kernel.Read(ctx, plan.State{})
	if err != nil {
		return err
	}
	peers, err := m.table.Recall(ctx)
	if err != nil {
		return fmt.Errorf("recall neighbours: %w", err)
	}
	m.direct = plan.Recall(m.input, peers, have.Routes)
	return nil
}

// withDirect adds what is known of neighbours to peers. One that has moved, and whose former address this machine has now, is none.
func (m *Mesh) withDirect(peers []plan.Node) []plan.Node {
	out := make([]plan.Node, len(peers))
	for i, p := range peers {
		if d, ok := m.direct[p.ID]; ok && !m.alwaysVXLAN && p.Underlay != m.input.Self.Underlay {
			p.Direct = &d
		}
		out[i] = p
	}
	return out
}
