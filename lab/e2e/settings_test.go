package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"

	"github.com/miniswarm/miniswarm/lab"
)

// setting is a service with something set, and what its container has to show: paths into what the engine says of the
// container, each with a value in JSON. A setting that no container can have gives the words of the refusal instead.
type setting struct {
	name    string
	set     func(*swarm.ServiceSpec)
	shows   map[string]string
	refused string
	// newer is set for what the real Swarm of the engine at hand (20.10) does not know, so that there is nothing to compare
	// with.
	newer bool
	// meant says of differences to the real Swarm, by path, why they are meant.
	meant map[string]string
}

func spec(f func(*swarm.ContainerSpec)) func(*swarm.ServiceSpec) {
	return func(s *swarm.ServiceSpec) { f(s.TaskTemplate.ContainerSpec) }
}

func mounted(m mount.Mount) func(*swarm.ServiceSpec) {
	return spec(func(c *swarm.ContainerSpec) { c.Mounts = []mount.Mount{m} })
}

func to[T any](v T) *T { return &v }

const mib = 1 << 20

// settings is everything that service create can say of a container.
var settings = []setting{
	{name: "nothing", set: func(*swarm.ServiceSpec) {}, shows: map[string]string{"HostConfig.NetworkMode": `"default"`, "HostConfig.Privileged": `false`, "HostConfig.RestartPolicy.MaximumRetryCount": "0"}},
	{name: "entrypoint", set: spec(func(c *swarm.ContainerSpec) {
		c.Command, c.Args = []string{"/witness", "hold"}, []string{"127.0.0.1:7"}
	}),
		shows: map[string]string{"Config.Entrypoint": `["/witness","hold"]`, "Config.Cmd": `["127.0.0.1:7"]`}},
	{name: "args", set: spec(func(c *swarm.ContainerSpec) { c.Args = []string{"hold", "127.0.0.1:7"} }), shows: map[string]string{"Config.Entrypoint": `["/witness"]`, "Config.Cmd": `["hold","127.0.0.1:7"]`}},
	{name: "env", set: spec(func(c *swarm.ContainerSpec) { c.Env = []string{"A=1", "B={{.Service.Name}}", "C=x=y", "D"} }), shows: map[string]string{"Config.Env.0": `"A=1"`, "Config.Env.1": `"B=env"`, "Config.Env.2": `"C=x=y"`, "Config.Env.3": `"D"`}},
	{name: "identity", set: spec(func(c *swarm.ContainerSpec) {
		c.User, c.Groups, c.Dir, c.Hostname = "65534:65534", []string{"7", "8"}, "/tmp", "h-{{.Task.Slot}}"
	}), shows: map[string]string{"Config.User": `"65534:65534"`, "HostConfig.GroupAdd": `["7","8"]`, "Config.WorkingDir": `"/tmp"`, "Config.Hostname": `"h-1"`}},
	{name: "terminal", set: spec(func(c *swarm.ContainerSpec) { c.TTY, c.OpenStdin = true, true }), shows: map[string]string{"Config.Tty": "true", "Config.OpenStdin": "true"}},
	{name: "readonly", set: spec(func(c *swarm.ContainerSpec) { c.ReadOnly = true }), shows: map[string]string{"HostConfig.ReadonlyRootfs": "true"}},
	{name: "stop", set: spec(func(c *swarm.ContainerSpec) { c.StopSignal, c.StopGracePeriod = "SIGINT", to(7*time.Second) }), shows: map[string]string{"Config.StopSignal": `"SIGINT"`},
		meant: map[string]string{"Config.StopTimeout": "a person's docker stop, and the engine's own end, grant the period as well"}},
	{name: "health", set: spec(func(c *swarm.ContainerSpec) {
		c.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "/witness", "say", "ok"}, Interval: 2 * time.Second, Timeout: 3 * time.Second, Retries: 4, StartPeriod: 5 * time.Second}
	}), shows: map[string]string{"Config.Healthcheck": `{"Interval":2000000000,"Retries":4,"StartPeriod":5000000000,"Test":["CMD","/witness","say","ok"],"Timeout":3000000000}`}},
	{name: "healthless", set: spec(func(c *swarm.ContainerSpec) { c.Healthcheck = &container.HealthConfig{Test: []string{"NONE"}} }), shows: map[string]string{"Config.Healthcheck.Test": `["NONE"]`}},
	{name: "init", set: spec(func(c *swarm.ContainerSpec) { c.Init = to(true) }), shows: map[string]string{"HostConfig.Init": "true"}},
	{name: "noinit", set: spec(func(c *swarm.ContainerSpec) { c.Init = to(false) }), shows: map[string]string{"HostConfig.Init": "false"}},
	{name: "isolation", set: spec(func(c *swarm.ContainerSpec) { c.Isolation = container.IsolationDefault }), shows: map[string]string{"HostConfig.Isolation": `"default"`}},
	{name: "hyperv", set: spec(func(c *swarm.ContainerSpec) { c.Isolation = container.IsolationHyperV }), refused: `invalid isolation .hyperv. on linux`},
	{name: "hosts", set: spec(func(c *swarm.ContainerSpec) {
		c.Hosts = []string{"10.0.0.9 db alias", "10.0.0.10 cache", "fd00::1 six"}
	}), shows: map[string]string{"HostConfig.ExtraHosts": `["db:10.0.0.9","cache:10.0.0.10","six:fd00::1"]`}},
	{name: "dns", set: spec(func(c *swarm.ContainerSpec) {
		c.DNSConfig = &swarm.DNSConfig{Nameservers: []string{"10.9.9.9"}, Search: []string{"lan"}, Options: []string{"ndots:2"}}
	}), shows: map[string]string{"HostConfig.Dns": `["10.9.9.9"]`, "HostConfig.DnsSearch": `["lan"]`, "HostConfig.DnsOptions": `["ndots:2"]`}},
	{name: "ulimits", set: spec(func(c *swarm.ContainerSpec) { c.Ulimits = []*container.Ulimit{{Name: "nofile", Soft: 100, Hard: 200}} }), shows: map[string]string{"HostConfig.Ulimits": `[{"Hard":200,"Name":"nofile","Soft":100}]`}},
	{name: "sysctls", set: spec(func(c *swarm.ContainerSpec) { c.Sysctls = map[string]string{"net.core.somaxconn": "99"} }), shows: map[string]string{"HostConfig.Sysctls": `{"net.core.somaxconn":"99"}`}},
	{name: "capabilities", set: spec(func(c *swarm.ContainerSpec) {
		c.CapabilityAdd, c.CapabilityDrop = []string{"CAP_NET_ADMIN"}, []string{"CAP_CHOWN"}
	}), shows: map[string]string{"HostConfig.CapAdd": `["CAP_NET_ADMIN"]`, "HostConfig.CapDrop": `["CAP_CHOWN"]`}},
	{name: "oomscore", newer: true, set: spec(func(c *swarm.ContainerSpec) { c.OomScoreAdj = 7 }), shows: map[string]string{"HostConfig.OomScoreAdj": "7"}},
	{name: "credentials", set: spec(func(c *swarm.ContainerSpec) {
		c.Privileges = &swarm.Privileges{CredentialSpec: &swarm.CredentialSpec{File: "spec.json"}}
	}), refused: `credentialspec`},
	{name: "credregistry", set: spec(func(c *swarm.ContainerSpec) {
		c.Privileges = &swarm.Privileges{CredentialSpec: &swarm.CredentialSpec{Registry: "key"}}
	}), refused: `credentialspec`},
	{name: "selinux", set: spec(func(c *swarm.ContainerSpec) {
		c.Privileges = &swarm.Privileges{SELinuxContext: &swarm.SELinuxContext{Disable: true}}
	}), shows: map[string]string{"HostConfig.SecurityOpt": `["label=disable"]`}},
	{name: "selinuxlabels", set: spec(func(c *swarm.ContainerSpec) {
		c.Privileges = &swarm.Privileges{SELinuxContext: &swarm.SELinuxContext{User: "u", Role: "r", Type: "t", Level: "l"}}
	}), shows: map[string]string{"HostConfig.SecurityOpt": `["label=user:u","label=role:r","label=level:l","label=type:t"]`}},
	{name: "seccomp", newer: true, set: spec(func(c *swarm.ContainerSpec) {
		c.Privileges = &swarm.Privileges{NoNewPrivileges: true, AppArmor: &swarm.AppArmorOpts{Mode: swarm.AppArmorModeDisabled}, Seccomp: &swarm.SeccompOpts{Mode: swarm.SeccompModeUnconfined}}
	}), shows: map[string]string{"HostConfig.SecurityOpt": `["seccomp=unconfined","apparmor=unconfined","no-new-privileges=true"]`}},
	{name: "profile", newer: true, set: spec(func(c *swarm.ContainerSpec) {
		c.Privileges = &swarm.Privileges{Seccomp: &swarm.SeccompOpts{Mode: swarm.SeccompModeCustom, Profile: []byte(`{"defaultAction":"SCMP_ACT_ALLOW"}`)}}
	}), shows: map[string]string{"HostConfig.SecurityOpt": `["seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}"]`}},
	{name: "containerlabels", set: spec(func(c *swarm.ContainerSpec) {
		c.Labels = map[string]string{"own": "1", "com.docker.swarm.task.name": "forged"}
	}), shows: map[string]string{"Config.Labels.own": `"1"`, "Config.Labels.com\\.docker\\.swarm\\.service\\.name": `"containerlabels"`}},
	{name: "limits", set: func(s *swarm.ServiceSpec) {
		s.TaskTemplate.Resources = &swarm.ResourceRequirements{Limits: &swarm.Limit{NanoCPUs: 5e8, MemoryBytes: 64 * mib, Pids: 50}, Reservations: &swarm.Resources{NanoCPUs: 1e7, MemoryBytes: 8 * mib}}
	}, shows: map[string]string{"HostConfig.NanoCpus": "500000000", "HostConfig.Memory": "67108864", "HostConfig.PidsLimit": "50", "HostConfig.MemoryReservation": "0"}},
	{name: "generic", set: func(s *swarm.ServiceSpec) {
		s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{GenericResources: []swarm.GenericResource{
			{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "card", Value: 2}}, {DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "disk", Value: 3}}}}}
	}, shows: map[string]string{"Config.Env.0": `"DOCKER_RESOURCE_CARD=c1,c2"`, "Config.Env.1": `"DOCKER_RESOURCE_DISK=3"`},
		meant: map[string]string{"Config.Env.0": "Docker's order is chance", "Config.Env.1": "Docker's order is chance"}},
	{name: "logging", set: func(s *swarm.ServiceSpec) {
		s.TaskTemplate.LogDriver = &swarm.Driver{Name: "json-file", Options: map[string]string{"max-size": "1m", "tag": "{{.Name}}"}}
	}, shows: map[string]string{"HostConfig.LogConfig": `{"Config":{"max-size":"1m","tag":"{{.Name}}"},"Type":"json-file"}`}},
	{name: "nolog", set: func(s *swarm.ServiceSpec) { s.TaskTemplate.LogDriver = &swarm.Driver{Name: "none"} }, shows: map[string]string{"HostConfig.LogConfig.Type": `"none"`}},
	{name: "hostport", set: func(s *swarm.ServiceSpec) {
		s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{Protocol: "tcp", TargetPort: 8000, PublishedPort: 8765, PublishMode: "host"}}}
	}, shows: map[string]string{"HostConfig.PortBindings": `{"8000/tcp":[{"HostIp":"","HostPort":"8765"}]}`}},
	{name: "hostnetwork", set: func(s *swarm.ServiceSpec) {
		s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "host"}}
		s.TaskTemplate.ContainerSpec.Args = []string{"hold", "127.0.0.1:9"}
	}, shows: map[string]string{"HostConfig.NetworkMode": `"host"`}},
	{name: "bind", set: mounted(mount.Mount{Type: mount.TypeBind, Source: "/etc", Target: "/x", ReadOnly: true, BindOptions: &mount.BindOptions{Propagation: mount.PropagationPrivate, NonRecursive: true}}),
		shows: map[string]string{"HostConfig.Mounts": `[{"BindOptions":{"NonRecursive":true,"Propagation":"private"},"ReadOnly":true,"Source":"/etc","Target":"/x","Type":"bind"}]`}},
	{name: "bindplain", set: mounted(mount.Mount{Type: mount.TypeBind, Source: "/etc", Target: "/x"}), shows: map[string]string{"Mounts.0.Propagation": `"rprivate"`, "Mounts.0.RW": "true"}},
	{name: "bindmissing", set: mounted(mount.Mount{Type: mount.TypeBind, Source: "/not/there", Target: "/x"}), refused: `(does not exist|source path not found): /not/there`},
	{name: "bindrelative", set: mounted(mount.Mount{Type: mount.TypeBind, Source: "etc", Target: "/x"}), refused: `invalid bind mount source, must be an absolute path: etc`},
	{name: "targetrelative", set: mounted(mount.Mount{Type: mount.TypeVolume, Source: "v", Target: "x"}), refused: `invalid mount target, must be an absolute path: x`},
	{name: "volume", set: mounted(mount.Mount{Type: mount.TypeVolume, Source: "named-{{.Task.Slot}}", Target: "/v", VolumeOptions: &mount.VolumeOptions{NoCopy: true, Labels: map[string]string{"l": "{{.Service.Name}}"},
		DriverConfig: &mount.Driver{Name: "local", Options: map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}}}}),
		shows: map[string]string{"Mounts.0.Name": `"named-1"`, "Mounts.0.Driver": `"local"`, "Volume.Labels.l": `"volume"`, "Volume.Options.o": `"size=1m"`}},
	{name: "volumelabels", set: mounted(mount.Mount{Type: mount.TypeVolume, Source: "labelled", Target: "/v", VolumeOptions: &mount.VolumeOptions{Labels: map[string]string{"l": "1"}}}), shows: map[string]string{"Volume.Labels.l": `"1"`}},
	{name: "volumeplain", set: mounted(mount.Mount{Type: mount.TypeVolume, Source: "plain", Target: "/v", ReadOnly: true}), shows: map[string]string{"Mounts.0.RW": "false"}},
	{name: "subpath", newer: true, set: mounted(mount.Mount{Type: mount.TypeVolume, Source: "v", Target: "/v", VolumeOptions: &mount.VolumeOptions{Subpath: "part"}}), refused: `mount /v: volume-subpath requires API v1.45 or later`},
	{name: "anonymous", set: mounted(mount.Mount{Type: mount.TypeVolume, Target: "/v"}), shows: map[string]string{"Mounts.0.Type": `"volume"`}},
	{name: "nodriver", set: mounted(mount.Mount{Type: mount.TypeVolume, Source: "v", Target: "/v", VolumeOptions: &mount.VolumeOptions{DriverConfig: &mount.Driver{Name: "nothing"}}}), refused: `missing plugin on 1 node`},
	{name: "tmpfs", set: mounted(mount.Mount{Type: mount.TypeTmpfs, Target: "/t", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: mib, Mode: 0o700}}),
		shows: map[string]string{"HostConfig.Mounts": `[{"Target":"/t","TmpfsOptions":{"Mode":448,"SizeBytes":1048576},"Type":"tmpfs"}]`}},
	{name: "npipe", set: mounted(mount.Mount{Type: mount.TypeNamedPipe, Source: `\\.\pipe\x`, Target: `\\.\pipe\x`}), refused: `npipe|named pipe`},
}

// TestContainerSettings holds the containers of services to what was asked for, and to those that the real Docker Swarm of
// the engine at hand makes of the same services. The hosts have generic resources to give.
func TestContainerSettings(t *testing.T) {
	c := ownLab(t, "settings", lab.Options{Nodes: 2, EngineArgs: []string{"--node-generic-resource", "card=c1", "--node-generic-resource", "card=c2", "--node-generic-resource", "disk=3"}})
	c.managers = []string{"vm1"}
	c.form(t)
	host, err := c.Host("vm2")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.engine("vm2").SwarmInit(t.Context(), swarm.InitRequest{ListenAddr: "0.0.0.0:2377", AdvertiseAddr: host.Addr.String()}); err != nil {
		t.Fatal(err)
	}
	newest := c.swarm("vm1")
	if err := client.WithVersion("1.51")(newest); err != nil {
		t.Fatal(err)
	}
	ours, theirs := &side{swarm: c.swarm("vm1"), engine: c.engine("vm1"), newer: newest}, &side{swarm: c.engine("vm2"), engine: c.engine("vm2")}
	for _, s := range settings {
		for _, side := range []*side{ours, theirs} {
			if side == theirs && s.newer {
				continue
			}
			one := swarm.ServiceSpec{Annotations: swarm.Annotations{Name: s.name}, TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: c.witness + ":1"},
				RestartPolicy: &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionNone}}}
			s.set(&one)
			side.create(t, one, s.newer)
		}
	}
	for _, s := range settings {
		t.Run(s.name, func(t *testing.T) {
			mine := ours.outcome(t, s.name)
			if s.refused != "" {
				if mine.refusal == "" || !regexp.MustCompile(s.refused).MatchString(mine.refusal) {
					t.Errorf("refused with %q, want %s; it shows %v", mine.refusal, s.refused, mine.shown["Config.Image"])
				}
			} else if mine.refusal != "" {
				t.Fatalf("refused: %s", mine.refusal)
			}
			for path, want := range s.shows {
				if got := mine.at(path); got != want {
					t.Errorf("%s is %s, want %s", path, got, want)
				}
			}
			if s.newer {
				return
			}
			for _, d := range differences(mine, theirs.outcome(t, s.name), s.meant) {
				t.Error(d)
			}
		})
	}
}

// side is one of the two swarms.
type side struct {
	swarm, engine *client.Client
	newer         *client.Client // speaks the newest API, whatever the engine's is
	// notCreated has the words with which a service was refused, by name.
	notCreated map[string]string
}

func (s *side) create(t *testing.T, spec swarm.ServiceSpec, newer bool) {
	t.Helper()
	cl := s.swarm
	if newer {
		cl = s.newer
	}
	if _, err := cl.ServiceCreate(t.Context(), spec, swarm.ServiceCreateOptions{}); err != nil {
		if s.notCreated == nil {
			s.notCreated = map[string]string{}
		}
		s.notCreated[spec.Name] = err.Error()
	}
}

// outcome is what became of a service: the words of a refusal, or what the engine shows of its container, by path.
type outcome struct {
	refusal string
	state   swarm.TaskState
	tree    any
	shown   map[string]string
}

// outcome waits until a service's task runs or has been refused.
func (s *side) outcome(t *testing.T, service string) (o outcome) {
	t.Helper()
	if words := s.notCreated[service]; words != "" {
		return outcome{refusal: words}
	}
	eventually(t, "service "+service+" has a container or an error", patience, func() error {
		tasks, err := s.swarm.TaskList(t.Context(), swarm.TaskListOptions{Filters: filters.NewArgs(filters.Arg("service", service))})
		if err != nil || len(tasks) == 0 {
			return errors.Join(err, errors.New("no task"))
		}
		task := tasks[0]
		switch o.state = task.Status.State; {
		case o.state == swarm.TaskStateRunning:
			o.tree, err = s.inspect(t.Context(), task)
			return err
		case task.Status.Err != "":
			o.refusal = task.Status.Err
			return nil
		}
		return fmt.Errorf("it is %s", task.Status.State)
	})
	o.shown = map[string]string{}
	flatten("", o.tree, o.shown)
	return o
}

// inspect gives what the engine says of a task's container and its volume, without ids.
func (s *side) inspect(ctx context.Context, task swarm.Task) (any, error) {
	_, raw, err := s.engine.ContainerInspectWithRaw(ctx, task.Status.ContainerStatus.ContainerID, false)
	if err != nil {
		return nil, err
	}
	var all struct {
		Config, HostConfig map[string]any
		Mounts             []map[string]any
	}
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, err
	}
	tree := map[string]any{"Config": all.Config, "HostConfig": all.HostConfig, "Mounts": all.Mounts}
	for _, m := range all.Mounts {
		if name, ok := m["Name"].(string); ok {
			v, err := s.engine.VolumeInspect(ctx, name)
			if err != nil {
				return nil, err
			}
			tree["Volume"] = struct {
				Driver          string
				Labels, Options map[string]string
			}{v.Driver, v.Labels, v.Options}
		}
	}
	text, err := json.Marshal(tree)
	if err != nil {
		return nil, err
	}
	id := task.Status.ContainerStatus.ContainerID
	said := strings.NewReplacer(id, "CONTAINER", id[:12], "CONTAINER", task.ID, "TASK", task.ServiceID, "SERVICE", task.NodeID, "NODE").Replace(string(text))
	said = regexp.MustCompile(`/vm[12]/`).ReplaceAllString(said, "/HOST/")
	said = regexp.MustCompile(`"Hostname":"vm[12]"`).ReplaceAllString(said, `"Hostname":"HOST"`)
	said = regexp.MustCompile(`[0-9a-f]{64}`).ReplaceAllString(said, "VOLUME")
	var out any
	if err := json.Unmarshal([]byte(said), &out); err != nil {
		return nil, err
	}
	return out, nil
}

// at gives the value at a path in JSON; the parts of the path are separated by dots, and a dot in a part is written \\.
func (o *outcome) at(path string) string {
	v := o.tree
	for _, key := range strings.Split(strings.ReplaceAll(path, `\.`, "\x00"), ".") {
		key = strings.ReplaceAll(key, "\x00", ".")
		switch x := v.(type) {
		case map[string]any:
			v = x[key]
		case []any:
			n, err := strconv.Atoi(key)
			if err != nil || n >= len(x) {
				return "nothing"
			}
			v = x[n]
		default:
			return "nothing"
		}
	}
	text, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// flatten writes the leaves of a JSON document with their paths. Nothing, an empty list and an empty object are the same:
// engines are not consistent about them, between versions and between containers.
func flatten(path string, v any, into map[string]string) {
	switch x := v.(type) {
	case map[string]any:
		for k, e := range x {
			flatten(strings.TrimPrefix(path+"."+k, "."), e, into)
		}
	case []any:
		for i, e := range x {
			flatten(path+"."+strconv.Itoa(i), e, into)
		}
	case nil:
	default:
		text, _ := json.Marshal(x)
		into[path] = string(text)
	}
}

// differences says in what our container differs from Docker's, or our refusal from Docker's.
func differences(ours, docker outcome, meant map[string]string) []string {
	var out []string
	if ours.refusal != docker.refusal || ours.state != docker.state {
		if meant["refusal"] == "" {
			out = append(out, fmt.Sprintf("state: miniswarm %s %q, Docker %s %q", ours.state, ours.refusal, docker.state, docker.refusal))
		}
	}
	keys := maps.Clone(ours.shown)
	maps.Copy(keys, docker.shown)
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if ours.shown[k] != docker.shown[k] && meant[k] == "" {
			out = append(out, fmt.Sprintf("%s: miniswarm %s, Docker %s", k, cmp.Or(ours.shown[k], "nothing"), cmp.Or(docker.shown[k], "nothing")))
		}
	}
	return out
}
