package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// hostAttr starts a process as the first one of a host: in namespaces of its own, away from the terminal.
func hostAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
}

// detachedAttr starts a process that a Ctrl-C at the terminal does not reach.
func detachedAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// groupAttr starts a process as the head of a group, so that killGroup reaches its children too.
func groupAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// keepDescriptors keeps what this program has inherited, a shell's pipe say, from being inherited by a host, which
// would hold it open for as long as it lives. What Go opens is closed on exec anyway.
func keepDescriptors() { _ = unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC) }

func killGroup(pid int) error { return unix.Kill(-pid, unix.SIGKILL) }

const (
	sigTerm = unix.SIGTERM
	sigKill = unix.SIGKILL
	sigStop = unix.SIGSTOP
	sigCont = unix.SIGCONT
)

// signalProcess sends a signal to exactly this process: the descriptor pins it before its start time is
// compared, so the pid cannot change hands in between. A process that has ended is no error.
func signalProcess(p process, sig syscall.Signal) error {
	if p.PID == 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !p.alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// tryLock takes the lock on an open file unless another holder has it.
func tryLock(f *os.File) (bool, error) {
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EWOULDBLOCK), errors.Is(err, unix.EINTR):
		return false, nil
	default:
		return false, err
	}
}

// hideLower marks a directory of an overlay's upper layer as replacing the one below it instead of joining it.
func hideLower(dir string) error {
	if err := unix.Setxattr(dir, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		return fmt.Errorf("mark %s as opaque for overlayfs: %w", dir, err)
	}
	return nil
}

// takeRoom makes a file as large as there is room.
func takeRoom(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	for size := int64(1 << 30); size >= 4<<10; {
		switch err := unix.Fallocate(int(f.Fd()), 0, end, size); {
		case err == nil:
			end += size
		case errors.Is(err, unix.ENOSPC):
			size /= 2
		case !errors.Is(err, unix.EINTR):
			return fmt.Errorf("fill %s: %w", path, err)
		}
	}
	return f.Sync()
}

// holdWrites makes every write on the file system that a directory is on wait, or lets them go on. One that is as it should
// be is left so.
func holdWrites(dir string, hold bool) error {
	const fiFreeze, fiThaw = 0xc0045877, 0xc0045878 // linux/fs.h: FIFREEZE, FITHAW
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	req, already := uint(fiThaw), error(unix.EINVAL)
	if hold {
		req, already = fiFreeze, unix.EBUSY
	}
	if err := unix.IoctlSetInt(int(f.Fd()), req, 0); err != nil && !errors.Is(err, already) {
		return fmt.Errorf("hold writes on %s: %w", dir, err)
	}
	return nil
}

const linux = true
