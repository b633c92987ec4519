package ports

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// free finds a port that nobody has.
func free(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func reserve(t *testing.T, k plan.PortKey) *Reservation {
	t.Helper()
	r, err := Reserve(k, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestAReservedPortIsTakenAndRefuses(t *testing.T) {
	port := free(t)
	for _, p := range []plan.Protocol{plan.TCP, plan.UDP} {
		reserve(t, plan.PortKey{Protocol: p, Port: port})
	}
	if _, err := net.Listen("tcp4", fmt.Sprintf(":%d", port)); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("listening on a reserved port: %v, want address in use", err)
	}
	if _, err := net.ListenPacket("udp4", fmt.Sprintf(":%d", port)); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("listening on a reserved UDP port: %v, want address in use", err)
	}
	if _, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connecting to a reserved port that nothing translates: %v, want refused", err)
	}
}

func TestTheHolderIsNamed(t *testing.T) {
	for _, c := range []struct {
		name   string
		listen func() (interface{ Close() error }, int, error)
		proto  plan.Protocol
	}{
		{"on one address", func() (interface{ Close() error }, int, error) {
			l, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				return nil, 0, err
			}
			return l, l.Addr().(*net.TCPAddr).Port, nil
		}, plan.TCP},
		{"on all, IPv6 included", func() (interface{ Close() error }, int, error) {
			l, err := net.Listen("tcp", ":0")
			if err != nil {
				return nil, 0, err
			}
			return l, l.Addr().(*net.TCPAddr).Port, nil
		}, plan.TCP},
		{"over UDP", func() (interface{ Close() error }, int, error) {
			l, err := net.ListenPacket("udp4", ":0")
			if err != nil {
				return nil, 0, err
			}
			return l, l.LocalAddr().(*net.UDPAddr).Port, nil
		}, plan.UDP},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, port, err := c.listen()
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			_, err = Reserve(plan.PortKey{Protocol: c.proto, Port: uint16(port)}, nil)
			var inUse *InUseError
			if !errors.As(err, &inUse) || inUse.PID != os.Getpid() || inUse.Process == "" || !errors.Is(err, syscall.EADDRINUSE) {
				t.Fatalf("error %v, want one that names process %d", err, os.Getpid())
			}
			if want := fmt.Sprintf("port %d/%s is in use by %s (pid %d)", port, c.proto, inUse.Process, os.Getpid()); !strings.Contains(err.Error(), want) {
				t.Errorf("error %q, want %q in it", err, want)
			}
		})
	}
}

// A server that ended leaves connections that linger; they do not count.
func TestLingeringConnectionsDoNotCount(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	client, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	server.Close() // first, so that the server's end lingers
	client.Close()
	l.Close()
	reserve(t, plan.PortKey{Protocol: plan.TCP, Port: uint16(l.Addr().(*net.TCPAddr).Port)})
}

func TestLockIsForOne(t *testing.T) {
	name := fmt.Sprintf("miniswarm-test-%d", os.Getpid())
	release, err := Lock(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(context.Background(), name); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second time: %v, want address in use", err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	again, err := Lock(context.Background(), name)
	if err != nil {
		t.Fatalf("after it was released: %v", err)
	}
	again()
}
