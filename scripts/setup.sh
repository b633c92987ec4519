#!/bin/bash
# Installs what this project needs on a Debian machine and is missing, and nothing else:
#   scripts/setup.sh [demo|test|lint|bench]
# demo is what the lab runs on; test adds the C compiler of Go's race detector, Locust, Prometheus and CFSSL (an external CA); bench
# adds wrk and lint adds shellcheck.
# It is silent when nothing is missing, and needs root only when something is.
set -euo pipefail

what=${1:-demo}

say() { echo "setup: $*"; }
die() {
	say "$*" >&2
	exit 1
}

# Programs and the Debian packages they come in. The engine may as well come from Docker's own repository: only the
# programs count.
need=(
	dockerd:docker.io docker:docker.io containerd:containerd runc:runc docker-registry:docker-registry
	iptables:iptables nft:nftables ip:iproute2 nsenter:util-linux mount:mount mkfs.ext4:e2fsprogs modprobe:kmod
)
case $what in
demo) ;;
test) need+=(gcc:gcc git:git locust:python3-locust prometheus:prometheus cfssl:golang-cfssl) ;;
bench) need+=(wrk:wrk) ;;
lint) need=(gcc:gcc shellcheck:shellcheck) ;;
*) die "unknown set \"$what\"; use demo, test, lint or bench" ;;
esac
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

[ "$(uname -s)" = Linux ] || die "miniswarm's hosts are made of Linux namespaces; this is $(uname -s)"

missing=()
for entry in "${need[@]}"; do
	package=${entry#*:}
	if ! command -v "${entry%%:*}" >/dev/null && [[ " ${missing[*]} " != *" $package "* ]]; then
		missing+=("$package")
	fi
done
# The compiler alone does not link: it wants the C library's headers.
if [[ " ${need[*]} " == *" gcc:gcc "* ]] && ! [ -e /usr/include/stdlib.h ]; then
	missing+=(libc6-dev)
fi

# Packages with services start them when they are installed. A second engine would fight with nobody, but nobody
# asked for one: while this runs, Debian's own switch for that says no, and is then put back as it was.
policy=/usr/sbin/policy-rc.d
kept=
restore() {
	rm -f "$policy"
	if [ -n "$kept" ]; then mv "$kept" "$policy"; fi
}
forbid_services() {
	if [ -e "$policy" ]; then
		kept=$policy.before-miniswarm-setup
		mv "$policy" "$kept"
	fi
	trap restore EXIT
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
}

install_packages() {
	command -v apt-get >/dev/null || die "missing: $*. There is no apt-get here to install them with; install their counterparts by hand."
	[ "$(id -u)" = 0 ] || die "missing: $*. Run scripts/setup.sh $what as root to install them."
	say "installing $* (Debian packages; no service is started)"
	local log
	log=$(mktemp)
	forbid_services
	export DEBIAN_FRONTEND=noninteractive
	if ! { apt-get update -q && apt-get install -q -y --no-install-recommends "$@"; } >"$log" 2>&1 </dev/null; then
		tail -n 20 "$log" >&2
		die "apt-get could not install $*; the whole log is $log"
	fi
	rm -f "$log"
	# Installing also enables services for the next boot. Those that came with it just now stay off.
	if command -v systemctl >/dev/null && [ -d /run/systemd/system ]; then
		local unit units=()
		for unit in docker.service docker.socket containerd.service docker-registry.service prometheus.service; do
			if [[ " $* " == *" docker.io "* || " $* " == *" ${unit%.*} "* ]] && systemctl -q is-enabled "$unit" 2>/dev/null; then
				units+=("$unit")
			fi
		done
		if [ ${#units[@]} -gt 0 ]; then
			systemctl -q disable "${units[@]}"
			say "${units[*]} left stopped and disabled: the lab runs engines of its own (systemctl enable --now docker starts the machine's)"
		fi
	fi
}

# Engines need control groups. An init system mounts them; a machine without one may not have them.
mount_cgroups() {
	if [ -e /sys/fs/cgroup/cgroup.controllers ] || [ -d /sys/fs/cgroup/devices ]; then return; fi
	[ "$(id -u)" = 0 ] || die "no control groups are mounted on /sys/fs/cgroup. Run scripts/setup.sh $what as root."
	say "mounting control groups on /sys/fs/cgroup"
	mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup
}

if [ ${#missing[@]} -gt 0 ]; then install_packages "${missing[@]}"; fi
if [ "$what" != lint ]; then mount_cgroups; fi

if ! command -v go >/dev/null; then
	die "the go command is missing, and Debian's is too old: install the release that go.mod names ($(sed -n 's/^go //p' "$(dirname "$0")/../go.mod")) from https://go.dev/dl/ and put it on PATH"
fi
