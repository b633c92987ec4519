#!/bin/sh
# shellcheck shell=dash
# The first process of a lab host, started in new mount, pid, net, uts and ipc namespaces: boot.sh NAME DIR
# It makes the namespaces look like a host of their own, says "ready" on descriptor 3, and then stays, as pid 1,
# the parent of whoever lost theirs. Killing it ends every process of the host.
set -eu
name=$1 dir=$2

# What is mounted here stays here; what the machine unmounts goes away here too.
mount --make-rslave /
mount -t proc proc /proc
echo "$name" >/proc/sys/kernel/hostname

# A copy of a mounted network namespace under /run would keep it alive after the machine has removed it.
cut -d' ' -f5 /proc/self/mountinfo | grep '^/run/' | sort -r | while read -r at; do
	umount -l "$at" 2>/dev/null || true
done
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs /run
mkdir -m 1777 /run/lock
[ -L /var/run ] || mount --bind /run /var/run

# /sys shows the devices of the network namespace that mounted it. The file systems mounted inside it move over.
mkdir /run/sys
mount --rbind /sys /run/sys
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
for sub in fs/cgroup fs/bpf kernel/security kernel/debug kernel/tracing; do
	if cut -d' ' -f5 /proc/self/mountinfo | grep -qx "/run/sys/$sub"; then
		mount --rbind "/run/sys/$sub" "/sys/$sub"
	fi
done
umount -R -l /run/sys
rmdir /run/sys

# An /etc of its own over the machine's, kept on the host's disk: hosts, resolv.conf, machine-id, docker/.
mount -t overlay -o "lowerdir=/etc,upperdir=$dir/etc/upper,workdir=$dir/etc/work" overlay /etc

# Where the daemon's state has a disk of its own, it is one that the rest of the machine does not see.
if [ -e "$dir/miniswarm.img" ]; then mount -o loop "$dir/miniswarm.img" "$dir/miniswarm"; fi

ln -s "$dir/miniswarm.sock" /run/miniswarm.sock
ulimit -n 1048576 2>/dev/null || true

echo ready >&3
exec 3>&-
while :; do
	sleep 86400 &
	wait $!
done
