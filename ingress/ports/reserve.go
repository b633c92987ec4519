// Package ports reserves published ports on a node, so that no process of the
// node can take one later, and so that a process which has one already keeps its
// traffic and is named.
//
// A reservation is a bound socket that never listens: it costs nothing, accepts
// nothing, and a connection that the mesh does not translate is refused as if the
// socket were not there.
package ports

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// Reservation holds one port on all addresses of the node.
type Reservation struct {
	key plan.PortKey
	fd  int
}

// InUseError says who holds a port.
type InUseError struct {
	Port plan.PortKey
	// Process and PID name the holder; they are zero if it cannot be seen, because
	// it is in another PID namespace or belongs to the kernel.
	Process string
	PID     int
}

func (e *InUseError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("port %s is in use by a process that cannot be seen from here: stop it or publish another port", e.Port)
	}
	return fmt.Sprintf("port %s is in use by %s (pid %d): stop it or publish another port", e.Port, e.Process, e.PID)
}

// Is makes errors.Is(err, syscall.EADDRINUSE) true.
func (e *InUseError) Is(target error) bool { return target == syscall.EADDRINUSE }

// Reserve takes a port in the network namespace of the calling thread. An
// *InUseError names the process that has it. To find that process out means to look at
// all files that all processes have open; known is returned instead, if not nil.
func Reserve(k plan.PortKey, known *InUseError) (*Reservation, error) {
	kind := unix.SOCK_STREAM
	if k.Protocol == plan.UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("reserve port %s: %w", k, err)
	}
	if err := bind(fd, k); err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EADDRINUSE) {
			if known != nil {
				return nil, known
			}
			pid, name := holder(k)
			return nil, &InUseError{Port: k, PID: pid, Process: name}
		}
		return nil, fmt.Errorf("reserve port %s: %w", k, err)
	}
	return &Reservation{key: k, fd: fd}, nil
}

func bind(fd int, k plan.PortKey) error {
	if k.Protocol == plan.TCP {
		// Connections of a former holder that still linger must not prevent us.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
	} else if err := dropAll(fd); err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(k.Port)}); err != nil {
		return err
	}
	// From now on nobody shares the port: a server that sets SO_REUSEADDR, as most
	// do, could otherwise listen beside a socket that does not listen.
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0)
}

// dropAll keeps datagrams that are not translated out of the socket's memory.
func dropAll(fd int) error {
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop})
}

// Port is what is reserved.
func (r *Reservation) Port() plan.PortKey { return r.key }

// Close gives the port back.
func (r *Reservation) Close() error {
	if err := unix.Close(r.fd); err != nil {
		return fmt.Errorf("release port %s: %w", r.key, err)
	}
	return nil
}

// Lock takes name for this network namespace until the returned function is
// called or the process ends, however it ends. It returns an error that matches
// syscall.EADDRINUSE if another process has it.
func Lock(ctx context.Context, name string) (release func() error, err error) {
	// An abstract socket address belongs to the network namespace, and the kernel
	// gives it back by itself.
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", "@"+name)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return l.Close, nil
}
