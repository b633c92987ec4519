package lb

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// limitUnacknowledged makes the kernel end conn when what was sent on it stays unacknowledged for d; 0 leaves that to the
// kernel's own patience. It is not set on connections to backends that are up, because Linux counts the time in which
// a living but busy peer keeps its window closed as well.
func limitUnacknowledged(conn net.Conn, d time.Duration) {
	if raw := rawConn(conn); raw != nil {
		_ = raw.Control(func(fd uintptr) { // a connection closed meanwhile needs no limit
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
		})
	}
}

// canRead says whether conn can still be read from, now or later: it has data, or is open and has none yet.
func canRead(conn net.Conn) bool {
	raw := rawConn(conn)
	if raw == nil {
		return false
	}
	open := false
	_ = raw.Control(func(fd uintptr) { // a closed connection is not open
		n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		open = n > 0 || err == unix.EAGAIN || err == unix.EINTR
	})
	return open
}

func rawConn(conn net.Conn) syscall.RawConn {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}
