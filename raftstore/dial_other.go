//go:build !linux

package raftstore

import "syscall"

// setUserTimeout is a net.Dialer's Control; only Linux has the option.
func setUserTimeout(_, _ string, _ syscall.RawConn) error { return nil }
