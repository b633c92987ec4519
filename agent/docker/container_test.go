package docker

import (
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/go-connections/nat"
	"github.com/google/go-cmp/cmp"

	"github.com/miniswarm/miniswarm/cluster"
)

var vm1 = Node{ID: "node1", FixedAddresses: true, Description: swarm.NodeDescription{
	Hostname: "vm1", Platform: swarm.Platform{Architecture: "x86_64", OS: "linux"}}}

func webTask(spec swarm.ContainerSpec) *cluster.Task {
	if spec.Image == "" {
		spec.Image = "web:1"
	}
	t := &cluster.Task{Task: swarm.Task{ID: "task1", ServiceID: "svc1", Slot: 3, NodeID: "node1",
		Spec: swarm.TaskSpec{ContainerSpec: &spec}}}
	t.ServiceAnnotations = swarm.Annotations{Name: "web", Labels: map[string]string{"tier": "front"}}
	return t
}

func ptr[T any](v T) *T { return &v }

func TestTranslateMapsTheWholeSpec(t *testing.T) {
	task := webTask(swarm.ContainerSpec{
		Image: "web:1", Labels: map[string]string{"own": "1", LabelTaskID: "forged"},
		Command: []string{"/serve"}, Args: []string{"--fast"}, Hostname: "{{.Node.Hostname}}-{{.Task.Slot}}",
		Env: []string{"ID={{.Task.ID}}", "PLAIN=a=b", "INHERITED"}, Dir: "/srv", User: "65534", Groups: []string{"7"},
		Init: ptr(true), StopSignal: "SIGINT", StopGracePeriod: ptr(2500 * time.Millisecond), TTY: true, OpenStdin: true, ReadOnly: true,
		Healthcheck: &container.HealthConfig{Test: []string{"CMD", "/ok"}},
		Hosts:       []string{"10.0.0.9 db database", "broken"},
		DNSConfig:   &swarm.DNSConfig{Nameservers: []string{"9.9.9.9"}, Search: []string{"lan"}, Options: []string{"ndots:1"}},
		Sysctls:     map[string]string{"net.core.somaxconn": "99"}, CapabilityAdd: []string{"CAP_NET_ADMIN"}, CapabilityDrop: []string{"CAP_CHOWN"},
		Ulimits: []*container.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}}, OomScoreAdj: 5,
		Privileges: &swarm.Privileges{NoNewPrivileges: true, Seccomp: &swarm.SeccompOpts{Mode: swarm.SeccompModeUnconfined},
			AppArmor: &swarm.AppArmorOpts{Mode: swarm.AppArmorModeDisabled}, SELinuxContext: &swarm.SELinuxContext{User: "u", Level: "s0"}},
		Mounts: []mount.Mount{
			{Type: mount.TypeBind, Source: "/data/{{.Task.Slot}}", Target: "/data", ReadOnly: true},
			{Type: mount.TypeVolume, Source: "v-{{.Service.Name}}", Target: "/v", VolumeOptions: &mount.VolumeOptions{
				Labels: map[string]string{"t": "{{.Task.Name}}"}, DriverConfig: &mount.Driver{Name: "local", Options: map[string]string{"o": "{{.Node.ID}}"}}}},
			{Type: mount.TypeTmpfs, Target: "/tmp", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 1 << 20}},
		},
	})
	task.Spec.Resources = &swarm.ResourceRequirements{Limits: &swarm.Limit{NanoCPUs: 5e8, MemoryBytes: 64 << 20, Pids: 50},
		Reservations: &swarm.Resources{NanoCPUs: 1e9}}
	task.Spec.LogDriver = &swarm.Driver{Name: "json-file", Options: map[string]string{"max-size": "1m"}}
	task.GenericResources = []swarm.GenericResource{
		{NamedResourceSpec: &swarm.NamedGenericResource{Kind: "gpu", Value: "u1"}},
		{NamedResourceSpec: &swarm.NamedGenericResource{Kind: "gpu", Value: "u2"}},
		{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "SSD", Value: 3}},
	}
	task.Endpoint = &swarm.Endpoint{Ports: []swarm.PortConfig{
		{TargetPort: 80, PublishedPort: 8080, PublishMode: swarm.PortConfigPublishModeHost},
		{TargetPort: 53, Protocol: swarm.PortConfigProtocolUDP, PublishMode: swarm.PortConfigPublishModeHost},
		{TargetPort: 81, PublishedPort: 8081, PublishMode: swarm.PortConfigPublishModeIngress},
	}}

	got, err := Translate(task, vm1, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := &Container{
		Name: "web.3.task1",
		Config: container.Config{
			Image: "web:1", Entrypoint: []string{"/serve"}, Cmd: []string{"--fast"}, Hostname: "vm1-3",
			Env: []string{"ID=task1", "PLAIN=a=b", "INHERITED", "DOCKER_RESOURCE_SSD=3", "DOCKER_RESOURCE_GPU=u1,u2"},
			Labels: map[string]string{"own": "1", LabelTask: "", LabelTaskID: "task1", LabelTaskName: "web.3.task1", LabelNodeID: "node1",
				LabelServiceID: "svc1", LabelServiceName: "web"},
			WorkingDir: "/srv", User: "65534", Tty: true, OpenStdin: true, StopSignal: "SIGINT", StopTimeout: ptr(2),
			Healthcheck:  &container.HealthConfig{Test: []string{"CMD", "/ok"}},
			ExposedPorts: nat.PortSet{"80/tcp": {}, "53/udp": {}},
		},
		Host: container.HostConfig{
			Resources: container.Resources{NanoCPUs: 5e8, Memory: 64 << 20, PidsLimit: ptr(int64(50)),
				Ulimits: []*container.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}}},
			Mounts: []mount.Mount{
				{Type: mount.TypeBind, Source: "/data/3", Target: "/data", ReadOnly: true},
				{Type: mount.TypeVolume, Source: "v-web", Target: "/v", VolumeOptions: &mount.VolumeOptions{
					Labels: map[string]string{"t": "web.3.task1"}, DriverConfig: &mount.Driver{Name: "local", Options: map[string]string{"o": "node1"}}}},
				{Type: mount.TypeTmpfs, Target: "/tmp", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 1 << 20}},
			},
			PortBindings: nat.PortMap{"80/tcp": {{HostPort: "8080"}}, "53/udp": {{}}},
			LogConfig:    container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "1m"}},
			Init:         ptr(true), GroupAdd: []string{"7"}, ReadonlyRootfs: true,
			CapAdd: []string{"CAP_NET_ADMIN"}, CapDrop: []string{"CAP_CHOWN"}, Sysctls: map[string]string{"net.core.somaxconn": "99"},
			ExtraHosts: []string{"db:10.0.0.9"}, OomScoreAdj: 5,
			SecurityOpt: []string{"label=user:u", "label=level:s0", "seccomp=unconfined", "apparmor=unconfined", "no-new-privileges=true"},
			DNS:         []string{"9.9.9.9"}, DNSSearch: []string{"lan"}, DNSOptions: []string{"ndots:1"},
		},
	}
	if d := cmp.Diff(got, want); d != "" {
		t.Error(d)
	}
}

func attachment(id, name string, ingress bool, addr string) swarm.NetworkAttachment {
	n := swarm.Network{ID: id, Spec: swarm.NetworkSpec{Ingress: ingress, DriverConfiguration: &swarm.Driver{Name: "overlay"}}}
	n.Spec.Name = name
	return swarm.NetworkAttachment{Network: n, Addresses: []string{addr}}
}

func TestTranslateNetworks(t *testing.T) {
	both := []swarm.NetworkAttachment{attachment("net1", "ingress", true, "10.0.0.7/24"), attachment("net2", "app_default", false, "10.0.1.7/24")}
	predefinedHost := attachment("net3", "host", false, "")
	predefinedHost.Network.Spec.DriverConfiguration.Name = "host"
	names := map[string]string{"net1": "ingress", "net2": "app_default-net2"}
	loose := map[string]string{"net.ipv4.conf.all.rp_filter": "2"}
	noAddresses := vm1
	noAddresses.FixedAddresses = false

	for _, tt := range []struct {
		name        string
		node        Node
		attachments []swarm.NetworkAttachment
		mode        container.NetworkMode
		want        []Connection
		sysctls     map[string]string
	}{
		{name: "none: the engine's default", node: vm1},
		{name: "ingress alone", node: vm1, attachments: both[:1], mode: "ingress", want: []Connection{
			{"ingress", network.EndpointSettings{GwPriority: 1, IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: "10.0.0.7"}}}}},
		{name: "several", node: vm1, attachments: both, mode: "ingress", sysctls: loose, want: []Connection{
			{"ingress", network.EndpointSettings{GwPriority: 1, IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: "10.0.0.7"}}},
			{"app_default-net2", network.EndpointSettings{Aliases: []string{"api"}, IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: "10.0.1.7"}}}}},
		{name: "without the data plane", node: noAddresses, attachments: both[1:], mode: "app_default-net2", want: []Connection{
			{"app_default-net2", network.EndpointSettings{Aliases: []string{"api"}}}}},
		{name: "the machine's own", node: vm1, attachments: []swarm.NetworkAttachment{predefinedHost}, mode: "host"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			task := webTask(swarm.ContainerSpec{})
			task.NetworksAttachments = tt.attachments
			task.Spec.Networks = []swarm.NetworkAttachmentConfig{{Target: "net2", Aliases: []string{"api"}}}
			got, err := Translate(task, tt.node, names)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(got.Networks, tt.want); d != "" {
				t.Error(d)
			}
			if got.Host.NetworkMode != tt.mode {
				t.Errorf("network mode %q, want %q", got.Host.NetworkMode, tt.mode)
			}
			if d := cmp.Diff(got.Host.Sysctls, tt.sysctls); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestTranslateRefuses(t *testing.T) {
	bind := func(m mount.Mount) swarm.ContainerSpec { return swarm.ContainerSpec{Mounts: []mount.Mount{m}} }
	for want, spec := range map[string]swarm.ContainerSpec{
		"invalid bind mount source, must be an absolute path: data":                                         bind(mount.Mount{Type: "bind", Source: "data", Target: "/d"}),
		"invalid volume mount source, must not be an absolute path: /data":                                  bind(mount.Mount{Type: "volume", Source: "/data", Target: "/d"}),
		"invalid tmpfs source, source must be empty":                                                        bind(mount.Mount{Type: "tmpfs", Source: "x", Target: "/d"}),
		"invalid mount target, must be an absolute path: d":                                                 bind(mount.Mount{Type: "bind", Source: "/data", Target: "d"}),
		"invalid npipe source, source must not be empty":                                                    bind(mount.Mount{Type: "npipe", Target: "/d"}),
		"invalid mount type: odd":                                                                           bind(mount.Mount{Type: "odd", Target: "/d"}),
		"invalid bind mount source, must be an absolute path: vm1":                                          bind(mount.Mount{Type: "bind", Source: "{{.Node.Hostname}}", Target: "/d"}),
		`expanding env failed: expanding env "A={{.Nope}}": template: expansion:1`:                          {Env: []string{"A={{.Nope}}"}},
		"expanding hostname failed":                                                                         {Hostname: "{{"},
		`expanding mounts failed: expanding mount source "{{.Service.Labels.nope}}": template: expansion:1`: bind(mount.Mount{Type: "bind", Source: "{{.Service.Labels.nope}}", Target: "/d"}),
	} {
		_, err := Translate(webTask(spec), vm1, nil)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	owner := &swarm.SecretReferenceFileTarget{Name: "s", UID: "app", GID: "0"}
	err := Validate(webTask(swarm.ContainerSpec{Secrets: []*swarm.SecretReference{{SecretID: "id", SecretName: "s", File: owner}}}))
	if err == nil || err.Error() != `secret s: uid "app", gid "0": must be numbers` {
		t.Errorf("an owner by name: %v", err)
	}
	plugin := webTask(swarm.ContainerSpec{})
	plugin.Spec.Runtime = swarm.RuntimePlugin
	if err := Validate(plugin); err == nil {
		t.Error("a plugin task was accepted")
	}
}

func TestTemplates(t *testing.T) {
	for in, want := range map[string]string{
		"{{.Service.ID}}/{{.Service.Name}}":                     "svc1/web",
		`{{index .Service.Labels "tier"}}`:                      "front",
		"{{.Node.ID}} {{.Node.Hostname}}":                       "node1 vm1",
		"{{.Node.Platform.OS}}/{{.Node.Platform.Architecture}}": "linux/x86_64",
		"{{.Task.ID}} {{.Task.Name}} {{.Task.Slot}}":            "task1 web.3.task1 3",
		`{{join "-" .Node.ID .Task.ID "x"}}`:                    "node1-task1-x",
	} {
		got, err := Translate(webTask(swarm.ContainerSpec{Env: []string{"V=" + in}}), vm1, nil)
		if err != nil {
			t.Errorf("%s: %v", in, err)
		} else if got.Config.Env[0] != "V="+want {
			t.Errorf("%s: got %s, want V=%s", in, got.Config.Env[0], want)
		}
	}
	global := webTask(swarm.ContainerSpec{Env: []string{"V={{.Task.Slot}}"}})
	global.Slot = 0
	got, err := Translate(global, vm1, nil)
	if err != nil || got.Config.Env[0] != "V=node1" || got.Name != "web.node1.task1" {
		t.Errorf("global task: %+v, %v", got, err)
	}
	job := webTask(swarm.ContainerSpec{Env: []string{"V={{.Task.Slot}}"}})
	job.Slot, job.Numbered = 0, true
	if got, err = Translate(job, vm1, nil); err != nil || got.Config.Env[0] != "V=0" || got.Name != "web.0.task1" {
		t.Errorf("the first task of a replicated job: %+v, %v", got, err)
	}
}

func TestPinned(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	for ref, want := range map[string]bool{
		"web": false, "web:1": false, "reg:5000/web:1": false, digest: true, strings.Repeat("b", 64): true,
		"web:1@" + digest: true, "reg:5000/web@" + digest: true, "::": false,
	} {
		if got := pinned(ref); got != want {
			t.Errorf("%s: %v, want %v", ref, got, want)
		}
	}
}

func TestImagesAreNamedAsPeopleDo(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	for image, want := range map[string]string{"web": "web:latest", "docker.io/library/web:2": "web:2", "r.example:5000/a/web": "r.example:5000/a/web:latest",
		"web:1@sha256:" + id: "web:1@sha256:" + id, id: id, "sha256:" + id: "sha256:" + id} {
		c, err := Translate(webTask(swarm.ContainerSpec{Image: image}), vm1, nil)
		if err != nil || c.Config.Image != want {
			t.Errorf("%s became %s, %v; want %s", image, c.Config.Image, err, want)
		}
	}
}

func TestWhatANodeDoesNotAllowIsRejected(t *testing.T) {
	labels := map[string]string{cluster.LabelPrivileged: "true", cluster.LabelDevices: "/dev/a:/dev/b:r", cluster.LabelGPUs: "all"}
	task := webTask(swarm.ContainerSpec{Labels: labels})
	for _, tt := range []struct {
		allowed cluster.Allowance
		err     string
	}{
		{cluster.Allowance{}, "this node does not allow privileged containers, devices, GPUs"},
		{cluster.Allowance{Privileged: true, GPUs: true}, "this node does not allow devices"},
		{cluster.Allowance{Privileged: true, Devices: true, GPUs: true}, ""},
	} {
		n := vm1
		n.Allowed = tt.allowed
		c, err := Translate(task, n, nil)
		if tt.err != "" {
			if err == nil || err.Error() != tt.err {
				t.Errorf("%v: %v, want %s", tt.allowed, err, tt.err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		r := c.Host.Resources
		if !c.Host.Privileged || len(r.Devices) != 1 || r.Devices[0].PathInContainer != "/dev/b" || len(r.DeviceRequests) != 1 || r.DeviceRequests[0].Count != -1 {
			t.Errorf("privileged %v, %+v", c.Host.Privileged, r)
		}
	}
	if _, err := Translate(webTask(swarm.ContainerSpec{Labels: map[string]string{cluster.LabelGPUs: "0"}}), vm1, nil); err == nil || !strings.Contains(err.Error(), cluster.LabelGPUs) {
		t.Errorf("a malformed label: %v", err)
	}
	if _, err := Translate(webTask(swarm.ContainerSpec{Isolation: container.IsolationHyperV}), vm1, nil); err == nil || err.Error() != "invalid isolation 'hyperv' on linux" {
		t.Errorf("isolation: %v", err)
	}
}
