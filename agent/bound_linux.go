package agent

import (
	"crypto/tls"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// bound makes the kernel give a TCP connection up when what was sent stays unacknowledged for that long. A leader whose
// machine has lost power closes nothing; the kernel alone would keep trying for a quarter of an hour.
func bound(conn net.Conn, limit time.Duration) {
	if s, ok := conn.(*stream); ok {
		conn = s.Conn
	}
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	// Best effort: without it a dead leader is noticed by its missing answers.
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(limit.Milliseconds()))
	})
}
