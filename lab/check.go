package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// ErrUnsupported is returned, wrapped with what is missing and what to do, where a lab cannot run.
var ErrUnsupported = errors.New("no lab on this machine")

// tools are the programs a lab is made of and the Debian packages they come in.
var tools = []struct{ name, pkg string }{
	{"dockerd", "docker.io"},
	{"containerd", "containerd"},
	{"runc", "runc"},
	{"docker", "docker.io"},
	{"docker-registry", "docker-registry"},
	{"iptables", "iptables"},
	{"nft", "nftables"},
	{"ip", "iproute2"},
	{"nsenter", "util-linux"},
	{"setsid", "util-linux"},
	{"mount", "mount"},
	{"mkfs.ext4", "e2fsprogs"},
}

// Check reports what keeps a lab from running on this machine, all of it at once, and what to do about it.
func Check() error {
	if !linux {
		return fmt.Errorf("%w: hosts are made of Linux namespaces, and this is not Linux", ErrUnsupported)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: namespaces and engines need root; run it with sudo", ErrUnsupported)
	}
	var missing, pkgs []string
	for _, t := range tools {
		if _, err := lookTool(t.name); err != nil {
			missing = append(missing, t.name)
			if !strings.Contains(" "+strings.Join(pkgs, " ")+" ", " "+t.pkg+" ") {
				pkgs = append(pkgs, t.pkg)
			}
		}
	}
	if missing != nil {
		return fmt.Errorf("%w: %s not found; run scripts/setup.sh, or on Debian: apt-get install %s",
			ErrUnsupported, strings.Join(missing, ", "), strings.Join(pkgs, " "))
	}
	for _, sign := range []string{"cgroup.controllers", "devices"} { // one hierarchy, or one for each controller
		if _, err := os.Stat(filepath.Join(cgroupRoot, sign)); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%w: no control groups are mounted on %s, and engines need them; run scripts/setup.sh", ErrUnsupported, cgroupRoot)
}

// lookTool finds a program in the lab's own search path, whatever the caller's is.
func lookTool(name string) (string, error) {
	for _, dir := range filepath.SplitList(searchPath) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s not found in %s; run scripts/setup.sh", name, searchPath)
}
