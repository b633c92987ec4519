package nft

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	links "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// mortal is the socket of a process that ends after some calls.
type mortal struct {
	socket
	calls int
}

var errEnded = errors.New("the process has ended")

func (m *mortal) SendMessages(all []netlink.Message) ([]netlink.Message, error) {
	if m.calls--; m.calls < 0 {
		return nil, errEnded
	}
	return m.socket.SendMessages(all)
}

func (m *mortal) Receive() ([]netlink.Message, error) {
	if m.calls--; m.calls < 0 {
		return nil, errEnded
	}
	return m.socket.Receive()
}

// entryNode connects a peer's namespace to this one, as the peer on device eth0 of sample, and has a replica here answer what it is sent.
// It returns how the peer connects to the replica.
func entryNode(t *testing.T) (dial func() (net.Conn, error)) {
	t.Helper()
	calls, ready := make(chan func()), make(chan error)
	var space netns.NsHandle
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			space, err = netns.Get()
		}
		ready <- err
		for f := range calls {
			f()
		}
	}()
	t.Cleanup(func() { close(calls) })
	there := func(f func() error) error {
		calls <- func() { ready <- f() }
		return <-ready
	}
	here := func(f func() error) error { return f() }
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	defer space.Close()
	attrs := links.NewLinkAttrs()
	attrs.Name = "eth0"
	if err := links.LinkAdd(&links.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: links.NsFd(space), PeerHardwareAddr: net.HardwareAddr{2, 1, 2, 3, 4, 5}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		on   func(func() error) error
		args string
	}{
		{here, "link set lo up"}, {here, "link set eth0 up"}, {here, "addr add 192.0.2.1/24 dev eth0"}, {here, "addr add 10.0.0.11/32 dev lo"},
		{there, "link set eth0 up"}, {there, "addr add 192.0.2.3/24 dev eth0"}, {there, "route add 10.0.0.0/24 via 192.0.2.1"},
	} {
		if err := c.on(func() error {
			out, err := exec.Command("ip", strings.Fields(c.args)...).CombinedOutput()
			if err != nil {
				return fmt.Errorf("ip %s: %w: %s", c.args, err, out)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp4", "10.0.0.11:8000")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for b := make([]byte, 1); ; {
					if _, err := conn.Read(b); err != nil {
						return
					}
					conn.Write(b)
				}
			}()
		}
	}()
	return func() (conn net.Conn, err error) {
		return conn, there(func() (err error) {
			conn, err = net.DialTimeout("tcp4", "10.0.0.11:8000", time.Second)
			return err
		})
	}
}

// A process may end at any moment at which it makes the table anew: what peers send passes all the same, and the next process finds
// a whole table or makes one.
func TestAProcessThatEndsWhileItMakesTheTableAnew(t *testing.T) {
	namespace(t)
	want := sample()
	dial := entryNode(t)
	if err := open(t).Apply(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	whole := nftList(t)
	long, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer long.Close()
	passes := func(when string) {
		t.Helper()
		fresh, err := dial()
		if err != nil {
			t.Fatalf("%s: a new connection: %v", when, err)
		}
		defer fresh.Close()
		for _, conn := range []net.Conn{long, fresh} {
			conn.SetDeadline(time.Now().Add(time.Second))
			if _, err := conn.Write([]byte("x")); err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			if _, err := conn.Read(make([]byte, 1)); err != nil {
				t.Fatalf("%s: from %s: %v\n%s", when, conn.LocalAddr(), err, nftList(t))
			}
		}
	}
	passes("at first")
	sent := false
	for calls := 0; ; calls++ {
		if out, err := exec.Command("nft", "insert rule ip miniswarm protect counter").CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		process := open(t)
		process.wire = &mortal{process.wire, calls}
		_, err := process.Verify(t.Context(), want)
		if err == nil {
			break
		}
		if !errors.Is(err, errEnded) {
			t.Fatal(err)
		}
		passes("half way")
		left := nftList(t) == whole
		if left != (calls > 0) {
			t.Errorf("after %d calls: the table is whole: %t\n%s", calls, left, nftList(t))
		}
		sent = sent || left
		next := open(t)
		if repaired, err := next.Verify(t.Context(), want); err != nil || repaired == left {
			t.Errorf("after %d calls: the next process: repaired %t, %v", calls, repaired, err)
		}
		passes("repaired")
		if err := errors.Join(process.Close(), next.Close()); err != nil {
			t.Error(err)
		}
	}
	if after := nftList(t); after != whole || !sent {
		t.Errorf("in the end, a transaction was sent %t:\n%s", sent, after)
	}
	passes("in the end")
}

// Of a transaction that the kernel refuses, and that has many answers, nothing stays in the table, and nothing in the socket
// that the next one would take for its own.
func TestATransactionThatIsRefused(t *testing.T) {
	namespace(t)
	table := open(t)
	first := sample()
	if err := table.Apply(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("nft", "flush map ip miniswarm "+setPeers).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	before := nftList(t)
	second := sample()
	second.Peers = []plan.PeerMark{{Device: "eth9", MAC: plan.MAC{2, 9}, Mark: plan.MarkServing | 9}} // so that some are deleted, which are not there
	second.Ports = append(second.Ports, plan.Port{PortKey: plan.PortKey{Protocol: plan.TCP, Port: 9999}})
	second.Normalize()
	if err := table.Apply(t.Context(), second); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("deleting what is not there: %v", err)
	}
	if after := nftList(t); after != before {
		t.Errorf("it has changed something:\n%s\nbefore:\n%s", after, before)
	}
	if err := table.Apply(t.Context(), second); err != nil {
		t.Error(err)
	}
	if repaired, err := open(t).Verify(t.Context(), second); repaired || err != nil {
		t.Errorf("after that: repaired %t, %v", repaired, err)
	}
}
