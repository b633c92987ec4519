//go:build !linux

package lb

import (
	"net"
	"time"
)

// limitUnacknowledged does nothing here: a dead backend's connections end when the kernel loses patience.
func limitUnacknowledged(net.Conn, time.Duration) {}

// canRead is not known here; the connection is then ended without delivering what may still be in it.
func canRead(net.Conn) bool { return false }
