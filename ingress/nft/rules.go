package nft

import (
	"fmt"
	"hash/fnv"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// TableName is the name of our table, of family ip. All rules of the mesh are in it.
const TableName = "miniswarm"

var table = &nftables.Table{Name: TableName, Family: nftables.TableFamilyIPv4}

// Names of the sets and maps beside the ports' own.
const (
	setDispatch  = "dispatch"  // protocol . port : chain of the port
	setPublished = "published" // protocol . port
	setPeers     = "peers"     // device . MAC : mark
	setInside    = "inside"    // sources to masquerade
	setLoops     = "loops"     // source . backend to masquerade
	setGuarded   = "guarded"   // devices with route_localnet
)

var (
	typePort      = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	typeNeighbour = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr)
	typeLoop      = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)
	typeBackend   = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
)

// sharedSets are the sets that exist once.
func sharedSets() []*nftables.Set {
	return []*nftables.Set{
		{Table: table, Name: setDispatch, IsMap: true, Concatenation: true, KeyType: typePort, DataType: nftables.TypeVerdict},
		{Table: table, Name: setPublished, Concatenation: true, KeyType: typePort},
		{Table: table, Name: setPeers, IsMap: true, Concatenation: true, KeyType: typeNeighbour, DataType: nftables.TypeMark},
		{Table: table, Name: setInside, Interval: true, KeyByteOrder: binaryutil.BigEndian, KeyType: nftables.TypeIPAddr},
		{Table: table, Name: setLoops, Concatenation: true, KeyType: typeLoop},
		{Table: table, Name: setGuarded, KeyByteOrder: binaryutil.NativeEndian, KeyType: nftables.TypeIFName},
	}
}

func sharedSet(name string) *nftables.Set {
	for _, s := range sharedSets() {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// baseChain is a chain that hooks into the kernel, with its rules.
type baseChain struct {
	chain *nftables.Chain
	rules []rule
}

// baseChains are the rules that are the same whatever is published. Their order
// against other people's chains is by priority: translation comes just before
// Docker's own (-100 and 100), marking before translation, guarding first of all.
func baseChains(base plan.Base) []baseChain {
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
		accept := nftables.ChainPolicyAccept
		return &nftables.Chain{Table: table, Name: name, Type: kind, Hooknum: hook, Priority: &priority, Policy: &accept}
	}
	untracked := []rule{
		{"what is in them is tracked", match(udpTo(base.VXLANPort), []expr.Any{&expr.Notrack{}})},
		// Docker would masquerade what leaves an address of its network.
		{"probes travel as they are", match(destinationIn(base.Ingress), udpTo(plan.ProbePort), []expr.Any{&expr.Notrack{}})},
	}
	chains := []baseChain{
		{chain("untracked", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -300), untracked},
		{chain("untracked-local", nftables.ChainTypeFilter, nftables.ChainHookOutput, -300), untracked},
		{chain("classify", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -150), []rule{
			{"replies go back through the entry node", match(
				connection(reply), connectionMark(plan.MarkSideMask, plan.MarkServing),
				[]expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: reg}, markPacket()},
			)},
			{"remember the entry node", match(
				destinationIn(base.Ingress), connection(original), loadNeighbour(), []expr.Any{mapped(setPeers), markConnection()},
			)},
			{"loopback addresses do not come from outside", match(
				destinationIn(netip.MustParsePrefix("127.0.0.0/8")),
				[]expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg}, inSet(setGuarded), &expr.Verdict{Kind: expr.VerdictDrop}},
			)},
		}},
		{chain("enter", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, -110), []rule{
			{"published ports", match(localDestination(), loadPort(), []expr.Any{verdictOf(setDispatch)})},
		}},
		{chain("enter-local", nftables.ChainTypeNAT, nftables.ChainHookOutput, -110), []rule{
			{"published ports, from this node itself", match(localDestination(), loadPort(), []expr.Any{verdictOf(setDispatch)})},
		}},
		{chain("protect", nftables.ChainTypeFilter, nftables.ChainHookForward, -10), []rule{
			{"containers are reached by published ports only", match(
				destinationIn(base.Ingress), connection(original), notFrom(base.Bridge),
				notConnectionMark(plan.MarkMask, plan.MarkOurs), []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}},
			)},
		}},
		{chain("refuse", nftables.ChainTypeFilter, nftables.ChainHookInput, -10), []rule{
			{"no backend: reset", match(protocol(unix.IPPROTO_TCP), newConnection(), loadPort(),
				[]expr.Any{inSet(setPublished), &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})},
			{"no backend: unreachable", match(protocol(unix.IPPROTO_UDP), newConnection(), loadPort(),
				[]expr.Any{inSet(setPublished), &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3}})},
		}},
		{chain("source", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, 90), []rule{
			{"loopback and containers as clients", match(connectionMark(plan.MarkSideMask, plan.MarkEntry),
				[]expr.Any{loadSource(reg), inSet(setInside)}, sourceIs(base.Source))},
			{"a node as client of itself", match(connectionMark(plan.MarkSideMask, plan.MarkEntry),
				[]expr.Any{loadSource(reg), loadDestination(second), inSet(setLoops)}, sourceIs(base.Source))},
		}},
	}
	// The first comment carries a fingerprint of all of it, so that a table written
	// by another version of this program is recognised and made anew.
	first := &chains[0].rules[0]
	first.comment = fmt.Sprintf("%s (%s)", first.comment, fingerprint(chains))
	return chains
}

func fingerprint(chains []baseChain) string {
	h := fnv.New32a()
	for _, s := range sharedSets() {
		fmt.Fprintln(h, s.Name, s.KeyType, s.DataType)
	}
	for _, c := range chains {
		fmt.Fprintln(h, c.chain.Name, *c.chain.Hooknum, *c.chain.Priority)
		for _, r := range append(c.rules, portRule(plan.PortKey{Protocol: plan.TCP}, 1), portRule(plan.PortKey{Protocol: plan.UDP}, 1)) {
			fmt.Fprintln(h, r.comment)
			for _, e := range r.exprs {
				// A rule that cannot be marshalled fails when it is written.
				b, _ := expr.Marshal(byte(table.Family), e)
				h.Write(b)
			}
		}
	}
	return fmt.Sprintf("%08x", h.Sum32())
}

// portName is the name of a port's chain and of its map.
func portName(k plan.PortKey) string { return fmt.Sprintf("%s/%d", k.Protocol, k.Port) }

func portChain(k plan.PortKey) *nftables.Chain {
	return &nftables.Chain{Table: table, Name: portName(k)}
}

func portMap(k plan.PortKey) *nftables.Set {
	return &nftables.Set{Table: table, Name: portName(k), IsMap: true, KeyByteOrder: binaryutil.NativeEndian, KeyType: nftables.TypeMark, DataType: typeBackend}
}

// portRule sends the connections of a port to its n slots in turn.
func portRule(k plan.PortKey, n int) rule {
	var first []expr.Any
	if k.Protocol == plan.TCP {
		first = firstOfTCP()
	}
	return rule{fmt.Sprintf("slots: %d", n), match(first, []expr.Any{
		value(host32(plan.MarkEntry)), markConnection(),
		&expr.Numgen{Register: reg, Modulus: uint32(n), Type: unix.NFT_NG_INCREMENTAL},
		mapped(portName(k)),
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg, RegProtoMin: second, Specified: true},
	})}
}
