package nft

import (
	"testing"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What the library writes is taken for one transaction only if it is one: a part that stayed behind would be missing in the kernel.
func TestWritten(t *testing.T) {
	const newTable, newChain = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE, unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWCHAIN
	for _, c := range []struct {
		name  string
		write func(*nftables.Conn) error
		want  []netlink.HeaderType
		fails bool
	}{
		{"nothing", func(*nftables.Conn) error { return nil }, nil, false},
		{"a table and a chain", func(c *nftables.Conn) error {
			c.AddTable(table)
			c.AddChain(zoneChain())
			return nil
		}, []netlink.HeaderType{newTable, newChain}, false},
		{"two transactions", func(c *nftables.Conn) error {
			c.AddTable(table)
			err := c.Flush()
			c.AddChain(zoneChain())
			return err
		}, nil, true},
		{"a question", func(c *nftables.Conn) error {
			c.ListTables() // whatever comes of it
			c.AddTable(table)
			return nil
		}, nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := written(c.write)
			if (err != nil) != c.fails || len(got) != len(c.want) {
				t.Fatalf("%v, %v; want %v, an error %t", got, err, c.want, c.fails)
			}
			for i, m := range got {
				if m.Header.Type != c.want[i] || m.Header.Flags&netlink.Acknowledge == 0 || m.Header.Sequence != 0 || m.Header.PID != 0 {
					t.Errorf("message %d is %+v, want one of type %v that is acknowledged and has no number yet", i, m.Header, c.want[i])
				}
			}
		})
	}
}
