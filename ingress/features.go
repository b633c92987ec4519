package ingress

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/ingress/conntrack"
	"github.com/miniswarm/miniswarm/ingress/nft"
)

// Feature is something that the data plane needs of the kernel.
type Feature struct {
	Name string
	// Err says why the kernel does not have it, nil if it does.
	Err error
	// Optional says that the data plane does without, and what is lost then; "" if it does not.
	Optional string
}

// Features tries what the data plane needs of the kernel, in a network namespace of its own that is gone afterwards: this
// machine's rules and devices are not touched. It needs root.
func Features() []Feature {
	result := make(chan []Feature)
	go func() {
		// The thread is never unlocked and ends with the goroutine, and the namespace with it.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			if errors.Is(err, unix.EPERM) {
				err = fmt.Errorf("%w: this needs root", err)
			}
			result <- []Feature{{Name: "network namespaces", Err: err}}
			return
		}
		result <- []Feature{
			{Name: "nftables", Err: tryTable()},
			{Name: "nftables on bridges", Err: tryBridgeTable(), Optional: "ARP about virtual addresses may leave the node, which costs a detour"},
			{Name: "zones of tracked connections", Err: tryZones(), Optional: "of two connections from one port of a client to one replica through two nodes one is lost"},
			{Name: "VXLAN devices", Err: tryLink(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vx"}, VxlanId: 1, Port: 4789})},
			{Name: "bridges", Err: tryLink(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br"}})},
			{Name: "connection tracking", Err: tryConntrack()},
		}
	}()
	return <-result
}

// tryTable makes what our table is made of: translation of destinations and maps from numbers to addresses.
func tryTable() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	t := conn.AddTable(&nftables.Table{Name: "try", Family: nftables.TableFamilyIPv4})
	conn.AddChain(&nftables.Chain{Name: "nat", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
	if err := conn.AddSet(&nftables.Set{Table: t, Name: "map", IsMap: true, KeyType: nftables.TypeInteger, DataType: nftables.TypeIPAddr}, nil); err != nil {
		return err
	}
	return conn.Flush()
}

func tryBridgeTable() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	b := conn.AddTable(&nftables.Table{Name: "try", Family: nftables.TableFamilyBridge})
	conn.AddChain(&nftables.Chain{Name: "filter", Table: b, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityFilter})
	return conn.Flush()
}

func tryZones() error {
	table, err := nft.Open()
	if err != nil {
		return err
	}
	defer table.Close()
	if !table.KeepsEntriesApart() {
		return errors.New("not in this kernel (CONFIG_NF_CONNTRACK_ZONES)")
	}
	return nil
}

func tryLink(link netlink.Link) error { return netlink.LinkAdd(link) }

func tryConntrack() error {
	conn, err := conntrack.Open()
	if err != nil {
		return err
	}
	return conn.Close()
}
