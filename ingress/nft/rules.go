package nft

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// TableName is the name of our tables: one of family ip, which all rules of the mesh are
// in, and one of family bridge, which keeps virtual addresses on their node.
const TableName = "miniswarm"

var (
	table       = &nftables.Table{Name: TableName, Family: nftables.TableFamilyIPv4}
	bridgeTable = &nftables.Table{Name: TableName, Family: nftables.TableFamilyBridge}
)

// Names of the sets and maps beside the ports' own.
const (
	setDispatch  = "dispatch"  // protocol . port : chain of the port
	setPublished = "published" // protocol . port
	setPeers     = "peers"     // device . MAC : mark
	setInside    = "inside"    // sources to masquerade
	setLoops     = "loops"     // source . backend to masquerade
	setGuarded   = "guarded"   // devices with route_localnet

	setVirtualDispatch = "virtual-dispatch" // virtual address : its chain
	setVirtuals        = "virtuals"         // virtual addresses
	setKept            = "kept"             // the same, of family bridge
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
		{Table: table, Name: setVirtualDispatch, IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeVerdict},
		{Table: table, Name: setVirtuals, KeyType: nftables.TypeIPAddr},
		{Table: bridgeTable, Name: setKept, KeyType: nftables.TypeIPAddr},
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
		return hooked(table, name, kind, hook, priority)
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
		{chain("enter", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, -110), append(virtualRules(onItsBridge()),
			rule{"published ports", match(localDestination(), loadPort(), []expr.Any{verdictOf(setDispatch)})})},
		{chain("enter-local", nftables.ChainTypeNAT, nftables.ChainHookOutput, -110), append(virtualRules(nil),
			rule{"published ports, from this node itself", match(localDestination(), loadPort(), []expr.Any{verdictOf(setDispatch)})})},
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
			{"no backend of a virtual address: reset", match(protocol(unix.IPPROTO_TCP), newConnection(),
				[]expr.Any{loadDestination(reg), inSet(setVirtuals), &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})},
			{"no backend of a virtual address: unreachable", match(protocol(unix.IPPROTO_UDP), newConnection(),
				[]expr.Any{loadDestination(reg), inSet(setVirtuals), &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3}})},
		}},
		{chain("source", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, 90), []rule{
			// By the address that this node has on the network of the backend.
			{"replies to clients of virtual addresses come through here", match(connectionMark(^uint32(0), plan.MarkVirtual), []expr.Any{&expr.Masq{}})},
			{"loopback and containers as clients", match(connectionMark(plan.MarkSideMask, plan.MarkEntry),
				[]expr.Any{loadSource(reg), inSet(setInside)}, sourceIs(base.Source))},
			{"a node as client of itself", match(connectionMark(plan.MarkSideMask, plan.MarkEntry),
				[]expr.Any{loadSource(reg), loadDestination(second), inSet(setLoops)}, sourceIs(base.Source))},
		}},
		keepChain(),
	}
	// The first comment carries a fingerprint of all of it, so that a table written
	// by another version of this program is recognised and made anew.
	first := &chains[0].rules[0]
	zones := baseChain{zoneChain(), []rule{{zoneComment, fromPeers(base)}}}
	first.comment = fmt.Sprintf("%s (%s)", first.comment, fingerprint(append(slices.Clone(chains), zones)))
	return chains
}

func hooked(in *nftables.Table, name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	return &nftables.Chain{Table: in, Name: name, Type: kind, Hooknum: hook, Priority: &priority, Policy: &accept}
}

// keepChain has every node answer for virtual addresses, each to its own containers only.
func keepChain() baseChain {
	return baseChain{hooked(bridgeTable, "keep", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, 0), []rule{
		{"virtual addresses are not asked for elsewhere", match(arpOut(), arpTarget(), []expr.Any{inSet(setKept), &expr.Verdict{Kind: expr.VerdictDrop}})},
		{"virtual addresses are not told elsewhere", match(arpOut(), arpSender(), []expr.Any{inSet(setKept), &expr.Verdict{Kind: expr.VerdictDrop}})},
	}}
}

func fingerprint(chains []baseChain) string {
	h := fnv.New32a()
	for _, s := range sharedSets() {
		fmt.Fprintln(h, s.Name, s.KeyType, s.DataType)
	}
	for _, c := range chains {
		fmt.Fprintln(h, c.chain.Name, *c.chain.Hooknum, *c.chain.Priority)
		for _, r := range slices.Concat(c.rules, portRules(plan.PortKey{Protocol: plan.TCP}, 1), portRules(plan.PortKey{Protocol: plan.UDP}, 1),
			portRules(plan.PortKey{Virtual: netip.IPv4Unspecified()}, 1)) {
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

// virtualRules send the connections to virtual addresses for which first holds to their
// chains. What comes back from there, has none, or comes from elsewhere, such as a container on
// another network, must not be taken for a published port: the address is this node's own.
func virtualRules(first []expr.Any) []rule {
	return []rule{
		{"virtual addresses", match(first, []expr.Any{loadDestination(reg), verdictOf(setVirtualDispatch)})},
		{"virtual addresses publish nothing", []expr.Any{loadDestination(reg), inSet(setVirtuals), &expr.Verdict{Kind: expr.VerdictAccept}}},
	}
}

// portName is the name of a port's, or a virtual address's, chain and of its map.
func portName(k plan.PortKey) string {
	if k.Virtual.IsValid() {
		return "virtual/" + k.Virtual.String()
	}
	return fmt.Sprintf("%s/%d", k.Protocol, k.Port)
}

func portChain(k plan.PortKey) *nftables.Chain {
	return &nftables.Chain{Table: table, Name: portName(k)}
}

func portMap(k plan.PortKey) *nftables.Set {
	s := &nftables.Set{Table: table, Name: portName(k), IsMap: true, KeyByteOrder: binaryutil.NativeEndian, KeyType: nftables.TypeMark, DataType: typeBackend}
	if k.Virtual.IsValid() {
		s.DataType = nftables.TypeIPAddr
	}
	return s
}

// portRules send the connections of a port, or of a virtual address, to its n slots in turn.
func portRules(k plan.PortKey, n int) []rule {
	to := func(mark uint32, nat *expr.NAT, first ...[]expr.Any) rule {
		nat.Type, nat.Family, nat.RegAddrMin = expr.NATTypeDestNAT, unix.NFPROTO_IPV4, reg
		return rule{fmt.Sprintf("slots: %d", n), match(append(first, []expr.Any{
			value(host32(mark)), markConnection(),
			&expr.Numgen{Register: reg, Modulus: uint32(n), Type: unix.NFT_NG_INCREMENTAL},
			mapped(portName(k)), nat,
		})...)}
	}
	switch {
	case k.Virtual.IsValid(): // the port stays
		return []rule{
			to(plan.MarkVirtual, &expr.NAT{}, protocol(unix.IPPROTO_TCP), firstOfTCP()),
			to(plan.MarkVirtual, &expr.NAT{}, protocol(unix.IPPROTO_UDP)),
		}
	case k.Protocol == plan.TCP:
		return []rule{to(plan.MarkEntry, &expr.NAT{RegProtoMin: second, Specified: true}, firstOfTCP())}
	}
	return []rule{to(plan.MarkEntry, &expr.NAT{RegProtoMin: second, Specified: true})}
}
