package ports

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// holder finds the process that has a port: the sockets bound to it by
// /proc/net, then the process that has one of them open. Zero if none is found.
func holder(k plan.PortKey) (pid int, name string) {
	inodes := map[string]bool{}
	for _, family := range []string{"", "6"} {
		// thread-self: the network namespace is that of the calling thread.
		f, err := os.Open("/proc/thread-self/net/" + k.Protocol.String() + family)
		if err != nil {
			continue
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			if inode, ok := socketInode(lines.Text(), k); ok {
				inodes["socket:["+inode+"]"] = true
			}
		}
		f.Close()
	}
	delete(inodes, "socket:[0]") // lingering connections belong to nobody
	if len(inodes) == 0 {
		return 0, ""
	}
	procs, err := filepath.Glob("/proc/[0-9]*/fd")
	if err != nil {
		return 0, ""
	}
	for _, dir := range procs {
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended, or is not ours to see
		}
		for _, fd := range fds {
			target, err := os.Readlink(filepath.Join(dir, fd.Name()))
			if err != nil || !inodes[target] {
				continue
			}
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
			if err != nil {
				continue
			}
			comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			if err != nil {
				continue
			}
			return pid, strings.TrimSpace(string(comm))
		}
	}
	return 0, ""
}

// socketInode reads a line of /proc/net/tcp: "sl local rem st ... inode". It is
// of use if its local port is k's.
func socketInode(line string, k plan.PortKey) (string, bool) {
	fields := strings.Fields(line)
	if len(fields) < 10 {
		return "", false
	}
	_, port, ok := strings.Cut(fields[1], ":")
	if !ok {
		return "", false
	}
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil || uint16(n) != k.Port {
		return "", false
	}
	return fields[9], true
}
