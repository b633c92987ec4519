package compose

import "strings"

// Fate is what becomes of a key.
type Fate string

// The fates.
const (
	// Honoured as by docker stack deploy.
	Honoured Fate = "honoured"
	// Added: Docker refuses or ignores it, here it has its meaning.
	Added Fate = "added"
	// Ignored, and named with file and line.
	Ignored Fate = "ignored"
	// Refused with file and line, because leaving it out would make another application of it.
	Refused Fate = "refused"
)

// Key is a key of Compose files.
type Key struct {
	// Path is the key with * for a name that the file chooses and [] for an item of a list.
	Path string
	Fate Fate
	// Words say what it becomes, or why it is ignored or what to do instead.
	Words string
	// unknown: Docker's schema refuses the key, so that it may not get there.
	unknown bool
}

const (
	noSetting = "services have no such setting"
	oneHost   = "it is about containers of one machine"
	local     = "it is about development on one machine"
)

// Keys has every key that is looked at, by section. A key that is not here is Docker's loader's to accept or refuse.
var Keys = []Key{
	{Path: "version", Fate: Honoured, Words: "any version, or none: it changes nothing"},
	{Path: "name", Fate: Added, Words: "the stack's name where the command line gives none", unknown: true},
	{Path: "include", Fate: Added, Words: "files that come before this one; their paths are relative to themselves", unknown: true},
	{Path: "models", Fate: Ignored, Words: "nothing here runs models", unknown: true},

	{Path: "services.*.image", Fate: Honoured, Words: "required"},
	{Path: "services.*.command", Fate: Honoured},
	{Path: "services.*.entrypoint", Fate: Honoured},
	{Path: "services.*.environment", Fate: Honoured, Words: "a key without a value takes it from the environment of the command"},
	{Path: "services.*.env_file", Fate: Honoured, Words: "also as objects with `path` and `required`"},
	{Path: "services.*.labels", Fate: Honoured, Words: "labels of the containers"},
	{Path: "services.*.hostname", Fate: Honoured},
	{Path: "services.*.extra_hosts", Fate: Honoured, Words: "as a map and as a list of `HOST:IP` or `HOST=IP`"},
	{Path: "services.*.dns", Fate: Honoured},
	{Path: "services.*.dns_search", Fate: Honoured},
	{Path: "services.*.healthcheck", Fate: Honoured, Words: "all of it, `start_interval` and `disable` too"},
	{Path: "services.*.logging", Fate: Honoured},
	{Path: "services.*.networks", Fate: Honoured, Words: "`aliases` and `driver_opts`"},
	{Path: "services.*.ports", Fate: Honoured, Words: "both forms, `published` also as a string"},
	{Path: "services.*.volumes", Fate: Honoured, Words: "both forms"},
	{Path: "services.*.secrets", Fate: Honoured, Words: "`mode` also as a string of octal digits"},
	{Path: "services.*.configs", Fate: Honoured, Words: "`mode` also as a string of octal digits"},
	{Path: "services.*.stop_grace_period", Fate: Honoured},
	{Path: "services.*.stop_signal", Fate: Honoured},
	{Path: "services.*.tty", Fate: Honoured},
	{Path: "services.*.stdin_open", Fate: Honoured},
	{Path: "services.*.user", Fate: Honoured},
	{Path: "services.*.working_dir", Fate: Honoured},
	{Path: "services.*.read_only", Fate: Honoured},
	{Path: "services.*.init", Fate: Honoured},
	{Path: "services.*.isolation", Fate: Honoured},
	{Path: "services.*.sysctls", Fate: Honoured},
	{Path: "services.*.ulimits", Fate: Honoured},
	{Path: "services.*.cap_add", Fate: Honoured},
	{Path: "services.*.cap_drop", Fate: Honoured},
	{Path: "services.*.credential_spec", Fate: Honoured},
	{Path: "services.*.oom_score_adj", Fate: Honoured},
	{Path: "services.*.deploy", Fate: Honoured, Words: "all that Docker knows: mode, replicas, labels, endpoint_mode, update_config, rollback_config, resources, restart_policy, placement"},
	{Path: "services.*.deploy.resources.reservations.devices", Fate: Added, Words: "devices with the capability gpu, as `gpus`", unknown: true},

	{Path: "services.*.depends_on", Fate: Added, Words: "the order of deployment; the conditions `service_started`, `service_healthy`, `service_completed_successfully` are waited for"},
	{Path: "services.*.depends_on.*.restart", Fate: Ignored, Words: "an update of one service does not restart another", unknown: true},
	{Path: "services.*.cpus", Fate: Added, Words: "deploy.resources.limits.cpus", unknown: true},
	{Path: "services.*.mem_limit", Fate: Added, Words: "deploy.resources.limits.memory", unknown: true},
	{Path: "services.*.mem_reservation", Fate: Added, Words: "deploy.resources.reservations.memory", unknown: true},
	{Path: "services.*.pids_limit", Fate: Added, Words: "deploy.resources.limits.pids", unknown: true},
	{Path: "services.*.scale", Fate: Added, Words: "deploy.replicas", unknown: true},
	{Path: "services.*.profiles", Fate: Added, Words: "the service is deployed with `--profile` or COMPOSE_PROFILES only", unknown: true},
	{Path: "services.*.extends", Fate: Added, Words: "a service of the same or of another file", unknown: true},
	{Path: "services.*.restart", Fate: Honoured, Words: "deploy.restart_policy, where that is not given: always and unless-stopped are any, no is none where a dependency waits for the end, on-failure is itself"},
	{Path: "services.*.tmpfs", Fate: Added, Words: "mounts of type tmpfs, with `size=`"},
	{Path: "services.*.shm_size", Fate: Added, Words: "a tmpfs of that size on /dev/shm"},
	{Path: "services.*.group_add", Fate: Added, Words: "groups of the container's process", unknown: true},
	{Path: "services.*.dns_opt", Fate: Added, Words: "options of the container's resolver", unknown: true},
	{Path: "services.*.security_opt", Fate: Added, Words: "no-new-privileges, seccomp=unconfined, apparmor=unconfined; others are ignored"},
	{Path: "services.*.privileged", Fate: Added, Words: "the container label miniswarm.privileged: only nodes that allow it get such tasks"},
	{Path: "services.*.devices", Fate: Added, Words: "the container label miniswarm.devices: only nodes that allow it get such tasks"},
	{Path: "services.*.gpus", Fate: Added, Words: "the container label miniswarm.gpus: only nodes that allow it get such tasks", unknown: true},

	{Path: "services.*.build", Fate: Ignored, Words: "build the image and push it to a registry first: docker compose build --push"},
	{Path: "services.*.container_name", Fate: Ignored, Words: "a service's containers are named SERVICE.SLOT.TASK, as there may be many"},
	{Path: "services.*.expose", Fate: Ignored, Words: "services on one network reach all ports of each other"},
	{Path: "services.*.links", Fate: Ignored, Words: "services on one network reach each other by name"},
	{Path: "services.*.external_links", Fate: Ignored, Words: "put both services on one external network"},
	{Path: "services.*.network_mode", Fate: Ignored, Words: "for the host's network: networks: {host: {}} with the network host declared as external with name: host"},
	{Path: "services.*.cgroupns_mode", Fate: Ignored, Words: noSetting, unknown: false},
	{Path: "services.*.cgroup", Fate: Ignored, Words: noSetting, unknown: true},
	{Path: "services.*.cgroup_parent", Fate: Ignored, Words: noSetting},
	{Path: "services.*.domainname", Fate: Ignored, Words: noSetting},
	{Path: "services.*.ipc", Fate: Ignored, Words: noSetting},
	{Path: "services.*.mac_address", Fate: Ignored, Words: "each task has an address of its own"},
	{Path: "services.*.pid", Fate: Ignored, Words: noSetting},
	{Path: "services.*.userns_mode", Fate: Ignored, Words: noSetting},
	{Path: "services.*.uts", Fate: Ignored, Words: noSetting, unknown: true},
	{Path: "services.*.memswap_limit", Fate: Ignored, Words: noSetting + "; memory is limited by mem_limit", unknown: true},
	{Path: "services.*.mem_swappiness", Fate: Ignored, Words: noSetting, unknown: true},
	{Path: "services.*.oom_kill_disable", Fate: Ignored, Words: noSetting, unknown: true},
	{Path: "services.*.cpu_shares", Fate: Ignored, Words: noSetting + "; use cpus or deploy.resources", unknown: true},
	{Path: "services.*.cpu_quota", Fate: Ignored, Words: noSetting + "; use cpus or deploy.resources", unknown: true},
	{Path: "services.*.cpu_period", Fate: Ignored, Words: noSetting + "; use cpus or deploy.resources", unknown: true},
	{Path: "services.*.cpu_count", Fate: Ignored, Words: noSetting + "; use cpus or deploy.resources", unknown: true},
	{Path: "services.*.cpu_percent", Fate: Ignored, Words: noSetting + "; use cpus or deploy.resources", unknown: true},
	{Path: "services.*.cpu_rt_period", Fate: Ignored, Words: noSetting, unknown: true},
	{Path: "services.*.cpu_rt_runtime", Fate: Ignored, Words: noSetting, unknown: true},
	{Path: "services.*.cpuset", Fate: Ignored, Words: noSetting, unknown: true},
	{Path: "services.*.blkio_config", Fate: Ignored, Words: noSetting, unknown: true},
	{Path: "services.*.device_cgroup_rules", Fate: Ignored, Words: noSetting + "; devices gives a container its devices", unknown: true},
	{Path: "services.*.storage_opt", Fate: Ignored, Words: noSetting, unknown: true},
	{Path: "services.*.runtime", Fate: Ignored, Words: noSetting, unknown: true},
	{Path: "services.*.annotations", Fate: Ignored, Words: noSetting + "; use labels", unknown: true},
	{Path: "services.*.label_file", Fate: Ignored, Words: "write the labels under labels", unknown: true},
	{Path: "services.*.umask", Fate: Ignored, Words: noSetting, unknown: true},
	{Path: "services.*.platform", Fate: Ignored, Words: "nodes are chosen by the platforms of the image; deploy.placement.constraints narrows them", unknown: true},
	{Path: "services.*.pull_policy", Fate: Ignored, Words: "a node pulls what it has not got, by the digest found when the stack is deployed", unknown: true},
	{Path: "services.*.pull_refresh_after", Fate: Ignored, Words: "a node pulls what it has not got, by the digest found when the stack is deployed", unknown: true},
	{Path: "services.*.attach", Fate: Ignored, Words: local, unknown: true},
	{Path: "services.*.develop", Fate: Ignored, Words: local, unknown: true},
	{Path: "services.*.models", Fate: Ignored, Words: "nothing here runs models", unknown: true},
	{Path: "services.*.provider", Fate: Ignored, Words: oneHost, unknown: true},
	{Path: "services.*.post_start", Fate: Ignored, Words: noSetting, unknown: true},
	{Path: "services.*.pre_start", Fate: Ignored, Words: noSetting, unknown: true},
	{Path: "services.*.pre_stop", Fate: Ignored, Words: noSetting + "; stop_signal and stop_grace_period let a process end in order", unknown: true},
	{Path: "services.*.use_api_socket", Fate: Ignored, Words: "mount the socket with volumes, where that is wanted", unknown: true},
	{Path: "services.*.volumes_from", Fate: Refused, Words: "name the volume under the top-level volumes, and in each service that shares it", unknown: true},
	{Path: "services.*.volume_driver", Fate: Refused, Words: "name the driver under the top-level volumes", unknown: true},

	{Path: "services.*.ports.[].host_ip", Fate: Ignored, Words: "a published port is open on every address of every node", unknown: true},
	{Path: "services.*.ports.[].name", Fate: Ignored, Words: "it is for people", unknown: true},
	{Path: "services.*.ports.[].app_protocol", Fate: Ignored, Words: "it is for people", unknown: true},
	{Path: "services.*.volumes.[].bind.create_host_path", Fate: Ignored, Words: "the source of a bind mount must exist on the node", unknown: true},
	{Path: "services.*.volumes.[].bind.recursive", Fate: Ignored, Words: noSetting, unknown: true},
	{Path: "services.*.volumes.[].bind.selinux", Fate: Ignored, Words: noSetting, unknown: true},
	{Path: "services.*.volumes.[].tmpfs.mode", Fate: Ignored, Words: noSetting, unknown: true},
	{Path: "services.*.volumes.[].volume.labels", Fate: Ignored, Words: "label the volume under the top-level volumes", unknown: true},
	{Path: "services.*.networks.*.ipv4_address", Fate: Ignored, Words: "addresses are given by the cluster"},
	{Path: "services.*.networks.*.ipv6_address", Fate: Ignored, Words: "addresses are given by the cluster"},
	{Path: "services.*.networks.*.link_local_ips", Fate: Ignored, Words: "addresses are given by the cluster", unknown: true},
	{Path: "services.*.networks.*.mac_address", Fate: Ignored, Words: "each task has an address of its own", unknown: true},
	{Path: "services.*.networks.*.interface_name", Fate: Ignored, Words: noSetting, unknown: true},
	{Path: "services.*.networks.*.gw_priority", Fate: Ignored, Words: noSetting, unknown: true},
	{Path: "services.*.networks.*.priority", Fate: Ignored, Words: noSetting, unknown: true},

	{Path: "networks.*", Fate: Honoured, Words: "name, driver (bridge is taken as overlay), driver_opts, internal, attachable, labels, external, ipam driver and subnets"},
	{Path: "networks.*.enable_ipv4", Fate: Ignored, Words: "overlay networks have IPv4 addresses", unknown: true},
	{Path: "networks.*.enable_ipv6", Fate: Ignored, Words: "overlay networks have IPv4 addresses", unknown: true},
	{Path: "networks.*.ipam.options", Fate: Ignored, Words: "the cluster gives the addresses", unknown: true},
	{Path: "networks.*.ipam.config.[].gateway", Fate: Ignored, Words: "the first address of the subnet is the gateway", unknown: true},
	{Path: "networks.*.ipam.config.[].ip_range", Fate: Ignored, Words: "the cluster gives the addresses", unknown: true},
	{Path: "networks.*.ipam.config.[].aux_addresses", Fate: Ignored, Words: "the cluster gives the addresses", unknown: true},
	{Path: "volumes.*", Fate: Honoured, Words: "name, driver, driver_opts, labels, external; each node makes its own volume of the name"},
	{Path: "secrets.*", Fate: Honoured, Words: "file, external, name, labels, driver, driver_opts, template_driver"},
	{Path: "secrets.*.environment", Fate: Added, Words: "the content of a variable of the command's environment", unknown: true},
	{Path: "configs.*", Fate: Honoured, Words: "file, external, name, labels, template_driver"},
	{Path: "configs.*.content", Fate: Added, Words: "the content itself, with variables", unknown: true},
	{Path: "configs.*.environment", Fate: Added, Words: "the content of a variable of the command's environment", unknown: true},
}

// keysByPath finds a key by its path.
var keysByPath = func() map[string]*Key {
	m := make(map[string]*Key, len(Keys))
	for i := range Keys {
		m[Keys[i].Path] = &Keys[i]
	}
	return m
}()

// chosen says whether the keys of a mapping are names that the file chooses; like is the mapping's path.
func chosen(like []string) bool {
	switch strings.Join(like, ".") {
	case "services", "networks", "volumes", "secrets", "configs", "services.*.networks", "services.*.depends_on":
		return true
	}
	return false
}
