package lb

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// These tests pull the power cord of backends: from one moment on, their packets are dropped both ways. They need root
// and nft, and run in a network namespace of their own that nothing else can see, which ends with them: the test binary
// starts itself again in there.

// inOwnNetwork runs the calling test in a new network namespace and returns true in there, and false to the caller, for
// whom all is done.
func inOwnNetwork(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inNamespace) == t.Name() {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			t.Fatal(err)
		}
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("needs root, for a network namespace of its own")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), inNamespace+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("in its own network:\n%s", out)
	if err != nil {
		t.Fatal(err)
	}
	return false
}

// pullCord silences an address.
func pullCord(t *testing.T, ip string) {
	t.Helper()
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(fmt.Sprintf(`table ip cord {
		chain input { type filter hook input priority 0; ip saddr %[1]s drop; ip daddr %[1]s drop; }
	}`, ip))
	if out, err := nft.CombinedOutput(); err != nil {
		t.Fatalf("nft (apt-get install nftables): %v: %s", err, out)
	}
}

// listenAt listens on port 80 of an address of loopback.
func listenAt(t *testing.T, ip string) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", ip+":80")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// In HTTP mode clients lose nothing when a backend's machine loses power under load, and none waits long.
func TestPowerCordHTTP(t *testing.T) {
	if !inOwnNetwork(t) {
		return
	}
	ips := []string{"127.0.0.11", "127.0.0.12", "127.0.0.13"}
	var list Static
	for _, ip := range ips {
		ln := listenAt(t, ip)
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(5 * time.Millisecond)
			fmt.Fprint(w, ip)
		})}
		go func() { _ = server.Serve(ln) }()
		defer server.Close()
		list = append(list, ln.Addr().String())
	}
	b, address, _ := start(t, Config{Mode: HTTP, Source: list})
	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var answered, slowest, elsewhere atomic.Int64
	for i := range 20 {
		c := client(t)
		c.Transport.(*http.Transport).DisableKeepAlives = i%2 == 0
		clients.Go(func() {
			for ctx.Err() == nil {
				began := time.Now()
				status, body, err := fetch(context.WithoutCancel(ctx), c, "GET", "http://"+address+"/", "")
				if err != nil || status != 200 {
					t.Errorf("lost a request: %d %q, %v", status, body, err)
				}
				if body != ips[0] {
					elsewhere.Add(1)
				}
				answered.Add(1)
				for took := time.Since(began).Microseconds(); ; {
					most := slowest.Load()
					if took <= most || slowest.CompareAndSwap(most, took) {
						break
					}
				}
			}
		})
	}
	eventually(t, "clients are served", func() bool { return answered.Load() > 500 })
	before := time.Duration(slowest.Load()) * time.Microsecond
	pullCord(t, ips[0])
	pulled := time.Now()
	eventually(t, "the death is known", func() bool { return stateOf(b, list[0]) == "down" })
	known := time.Since(pulled)
	at := elsewhere.Load()
	eventually(t, "clients are served by others", func() bool { return elsewhere.Load() > at+500 })
	cancel()
	clients.Wait()
	after := time.Duration(slowest.Load()) * time.Microsecond
	s := b.Stats()
	t.Logf("%d answered, %d sent again; death known after %v; slowest request %v before, %v with the death in it",
		answered.Load(), s.Resent, known, before, after)
	if s.Resent == 0 || after > 3*time.Second {
		t.Errorf("%d sent again, slowest %v; want some, and at most 3 s", s.Resent, after)
	}
}

// In TCP mode the connections to a machine that lost power end within seconds: those that wait for an answer because the
// kernel asks whether the peer is alive, those that have sent something because it must be acknowledged.
func TestPowerCordTCP(t *testing.T) {
	if !inOwnNetwork(t) {
		return
	}
	ln := listenAt(t, "127.0.0.11")
	defer ln.Close()
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			})
		}
	})
	_, address, _ := start(t, Config{Source: Static{ln.Addr().String()}})

	open := func() (net.Conn, *bufio.Reader) {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		reader := bufio.NewReader(conn)
		fmt.Fprintln(conn, "hello")
		if line, err := reader.ReadString('\n'); err != nil || line != "hello\n" {
			t.Fatalf("echo %q, %v", line, err)
		}
		return conn, reader
	}
	waiting, waitingReader := open()
	defer waiting.Close()
	sending, sendingReader := open()
	defer sending.Close()

	pullCord(t, "127.0.0.11")
	pulled := time.Now()
	fmt.Fprintln(sending, "is anybody there?")
	var readers sync.WaitGroup
	for name, reader := range map[string]*bufio.Reader{"waiting": waitingReader, "sending": sendingReader} {
		readers.Go(func() {
			_, err := reader.ReadByte()
			took := time.Since(pulled)
			t.Logf("%s: %v after %v", name, err, took)
			if !errors.Is(err, syscall.ECONNRESET) || took > 8*time.Second {
				t.Errorf("%s: %v after %v; want a reset within seconds", name, err, took)
			}
		})
	}
	readers.Wait()
	ln.Close()
}
