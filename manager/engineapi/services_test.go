package engineapi

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// filtersOf writes a filters parameter.
func filtersOf(pairs ...string) string {
	var b strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:[%q]", pairs[i], pairs[i+1])
	}
	return "filters=" + url.QueryEscape("{"+b.String()+"}")
}

const invalid = "rpc error: code = InvalidArgument desc = "

// refs are the ids that the refused specifications refer to.
type refs struct{ secret, config, other string }

// refusal is a request that Docker refuses.
type refusal struct {
	name   string
	change func(*swarm.ServiceSpec)
	status int
	// text is what it says, with OTHER for the id of the service "other"; empty where the wording is Go's or ours.
	text string
}

// refusedServices are specifications that are refused where there are a secret "pass", a config "conf", a network
// "onlyhere" of the engine and a service "other" with the ports 80 (ingress), 81 (host) and 30000/udp (ingress).
func refusedServices(refs refs) []refusal {
	negative, huge, minusOne := uint64(1<<63), uint64(maxReplicas+1), -time.Second
	port := func(published, target uint32, proto swarm.PortConfigProtocol, mode swarm.PortConfigPublishMode) swarm.PortConfig {
		return swarm.PortConfig{Protocol: proto, TargetPort: target, PublishedPort: published, PublishMode: mode}
	}
	return []refusal{
		{"no container", func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec = nil }, 400, "mismatched Runtime and *Spec fields"},
		{"a plugin", func(s *swarm.ServiceSpec) { s.TaskTemplate.Runtime = swarm.RuntimePlugin }, 400, "mismatched Runtime and *Spec fields"},
		{"an attachment", func(s *swarm.ServiceSpec) { s.TaskTemplate.Runtime = swarm.RuntimeNetworkAttachment }, 400, "unsupported runtime"},
		{"two modes", func(s *swarm.ServiceSpec) { s.Mode.Global = &swarm.GlobalService{} }, 400, "must specify only one service mode"},
		{"a service and a job", func(s *swarm.ServiceSpec) { s.Mode.GlobalJob = &swarm.GlobalJob{} }, 400, "must specify only one service mode"},
		{"a job that is updated", func(s *swarm.ServiceSpec) {
			s.Mode, s.UpdateConfig = swarm.ServiceMode{ReplicatedJob: &swarm.ReplicatedJob{}}, &swarm.UpdateConfig{}
		}, 400, invalid + "Jobs may not have an update config"},
		{"a global job that is updated", func(s *swarm.ServiceSpec) {
			s.Mode, s.UpdateConfig = swarm.ServiceMode{GlobalJob: &swarm.GlobalJob{}}, &swarm.UpdateConfig{Delay: -1}
		}, 400, invalid + "Jobs may not have an update config"},
		{"fewer than none at a time", func(s *swarm.ServiceSpec) {
			s.Mode = swarm.ServiceMode{ReplicatedJob: &swarm.ReplicatedJob{MaxConcurrent: &negative}}
		}, 400, invalid + "Maximum concurrent jobs must not be negative"},
		{"fewer completions than none", func(s *swarm.ServiceSpec) {
			s.Mode = swarm.ServiceMode{ReplicatedJob: &swarm.ReplicatedJob{TotalCompletions: &negative}}
		}, 400, invalid + "Total completed jobs must not be negative"},
		{"more at a time than can be", func(s *swarm.ServiceSpec) {
			s.Mode = swarm.ServiceMode{ReplicatedJob: &swarm.ReplicatedJob{MaxConcurrent: &huge}}
		}, 400, invalid + "Maximum concurrent jobs must be at most 1000000"},
		{"more completions than can be", func(s *swarm.ServiceSpec) {
			s.Mode = swarm.ServiceMode{ReplicatedJob: &swarm.ReplicatedJob{TotalCompletions: &huge}}
		}, 400, invalid + "Total completed jobs must be at most 1000000"},
		{"fewer than none", func(s *swarm.ServiceSpec) { s.Mode.Replicated.Replicas = &negative }, 400, invalid + "Number of replicas must be non-negative"},
		{"more than can be", func(s *swarm.ServiceSpec) { s.Mode.Replicated.Replicas = &huge }, 400, invalid + "Number of replicas must be at most 1000000"},
		{"name with a dot", func(s *swarm.ServiceSpec) { s.Name = "a.b" }, 400, invalid + "name must be valid as a DNS name component"},
		{"name ending in a dash", func(s *swarm.ServiceSpec) { s.Name = "a-" }, 400, invalid + "name must be valid as a DNS name component"},
		{"long name", func(s *swarm.ServiceSpec) { s.Name = strings.Repeat("a", 64) }, 400, invalid + "name must be 63 characters or fewer"},
		{"taken name", func(s *swarm.ServiceSpec) { s.Name = "other" }, 409, "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service other already exists"},
		{"too little CPU", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Resources = &swarm.ResourceRequirements{Limits: &swarm.Limit{NanoCPUs: 100}}
		}, 400, invalid + "invalid cpu value 1e-07: Must be at least 0.001"},
		{"too little memory", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: 1024}}
		}, 400, invalid + "invalid memory value 1024: Must be at least 4MiB"},
		{"restart condition", func(s *swarm.ServiceSpec) { s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: "often"} }, 400, `invalid RestartCondition: "often"`},
		{"restart delay", func(s *swarm.ServiceSpec) { s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Delay: &minusOne} }, 400, invalid + "TaskSpec: restart-delay cannot be negative"},
		{"restart window", func(s *swarm.ServiceSpec) { s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Window: &minusOne} }, 400, invalid + "TaskSpec: restart-window cannot be negative"},
		{"failure action", func(s *swarm.ServiceSpec) { s.UpdateConfig = &swarm.UpdateConfig{FailureAction: "cry"} }, 400, "unrecognized update failure action cry"},
		{"order", func(s *swarm.ServiceSpec) { s.RollbackConfig = &swarm.UpdateConfig{Order: "any"} }, 400, "unrecognized update order any"},
		{"update delay", func(s *swarm.ServiceSpec) { s.UpdateConfig = &swarm.UpdateConfig{Delay: -1} }, 400, invalid + "TaskSpec: update-delay cannot be negative"},
		{"update monitor", func(s *swarm.ServiceSpec) { s.UpdateConfig = &swarm.UpdateConfig{Monitor: -1} }, 400, invalid + "TaskSpec: update-monitor cannot be negative"},
		{"failure ratio", func(s *swarm.ServiceSpec) { s.UpdateConfig = &swarm.UpdateConfig{MaxFailureRatio: 1.5} }, 400, invalid + "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"},
		{"constraint", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.role=worker"}}
		}, 500, "rpc error: code = Unknown desc = constraint expected one operator from ==, !="},
		{"no image", func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "" }, 400, invalid + "ContainerSpec: image reference must be provided"},
		{"bad image", func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "UPPER" }, 400, invalid + `ContainerSpec: "UPPER" is not a valid repository/tag`},
		{"one mount point twice", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Mounts = []mount.Mount{{Type: "volume", Target: "/a"}, {Type: "tmpfs", Target: "/a"}}
		}, 400, invalid + "ContainerSpec: duplicate mount point: /a"},
		{"mount type", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Mounts = []mount.Mount{{Type: "floppy", Target: "/a"}}
		}, 400, `invalid MountType: "floppy"`},
		{"propagation", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Mounts = []mount.Mount{{Type: "bind", Source: "/a", Target: "/a", BindOptions: &mount.BindOptions{Propagation: "wide"}}}
		}, 400, `invalid MountPropagation: "wide"`},
		{"health interval", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Healthcheck = &container.HealthConfig{Interval: time.Microsecond}
		}, 400, invalid + "ContainerSpec: Interval in HealthConfig cannot be less than 1ms"},
		{"health retries", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Healthcheck = &container.HealthConfig{Retries: -1}
		}, 400, invalid + "ContainerSpec: Retries in HealthConfig cannot be negative"},
		{"template in env", func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Env = []string{"A={{.Nothing}}"} }, 400, ""},
		{"template in hostname", func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Hostname = "{{" }, 400, invalid + "expanding hostname failed: template: expansion:1: unclosed action"},
		{"template in a mount", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Mounts = []mount.Mount{{Type: "volume", Source: "{{.Task.Colour}}", Target: "/a"}}
		}, 400, ""},
		{"resolution mode", func(s *swarm.ServiceSpec) { s.EndpointSpec = &swarm.EndpointSpec{Mode: "anycast"} }, 400, `invalid resolution mode: "anycast"`},
		{"protocol", func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{port(1, 1, "icmp", "")}}
		}, 400, invalid + "invalid protocol value 'icmp'"},
		{"port out of range", func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{port(70000, 1, "", "")}}
		}, 400, invalid + "EndpointSpec: port 70000->1 is out of range: ports are 1 to 65535"},
		{"no target port", func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{port(1, 0, "", "")}}
		}, 400, invalid + "EndpointSpec: port 1->0 is out of range: ports are 1 to 65535"},
		{"dnsrr with ingress", func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Mode: "dnsrr", Ports: []swarm.PortConfig{port(90, 1, "", "")}}
		}, 400, invalid + "EndpointSpec: port published with ingress mode can't be used with dnsrr mode"},
		{"one port twice", func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{port(90, 1, "", ""), port(90, 2, "", "")}}
		}, 400, invalid + "EndpointSpec: duplicate published ports provided"},
		{"port of another service", func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{port(80, 1, "", "")}}
		}, 400, invalid + "port '80' is already in use by service 'other' (OTHER) as an ingress port"},
		{"allocated port of another service", func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{port(30000, 1, "udp", "host")}}
		}, 400, invalid + "port '30000' is already in use by service 'other' (OTHER) as an ingress port"},
		{"host port of another service", func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{port(81, 1, "", "")}}
		}, 400, invalid + "port '81' is already in use by service 'other' (OTHER) as a host-published port"},
		{"unknown network", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "nothing"}}
		}, 500, "network nothing not found"},
		{"network none", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "none"}}
		}, 404, "could not find the corresponding predefined swarm network: network none not found"},
		{"network of the engine", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "onlyhere"}}
		}, 403, "The network onlyhere cannot be used with services. Only networks scoped to the swarm can be used, such as those created with the overlay driver."},
		{"the ingress network", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "ingress"}}
		}, 400, invalid + `Service cannot be explicitly attached to the ingress network "ingress"`},
		{"secret without id", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{{SecretName: "pass"}}
		}, 400, invalid + "malformed secret reference"},
		{"secret without target", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{{SecretName: "pass", SecretID: refs.secret}}
		}, 400, invalid + "malformed secret reference, no target provided"},
		{"secrets in one place", func(s *swarm.ServiceSpec) {
			f := &swarm.SecretReferenceFileTarget{Name: "f"}
			s.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{{SecretName: "pass", SecretID: refs.secret, File: f}, {SecretName: "two", SecretID: "sec2", File: f}}
		}, 400, invalid + "secret references 'pass' and 'two' have a conflicting target: 'f'"},
		{"secrets that are not there", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{
				{SecretName: "a", SecretID: "1", File: &swarm.SecretReferenceFileTarget{Name: "a"}}, {SecretName: "b", SecretID: "2", File: &swarm.SecretReferenceFileTarget{Name: "b"}}}
		}, 400, invalid + "secrets not found: a, b"},
		{"secret of another name", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{{SecretName: "a", SecretID: refs.secret, File: &swarm.SecretReferenceFileTarget{Name: "a"}}}
		}, 400, invalid + "secret not found: a"},
		{"config for nothing", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Configs = []*swarm.ConfigReference{{ConfigName: "conf", ConfigID: refs.config}}
		}, 400, "invalid Config: either File or Runtime should be set"},
		{"config for two things", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Configs = []*swarm.ConfigReference{{ConfigName: "conf", ConfigID: refs.config, File: &swarm.ConfigReferenceFileTarget{Name: "c"}, Runtime: &swarm.ConfigReferenceRuntimeTarget{}}}
		}, 400, "invalid Config: cannot specify both File and Runtime"},
		{"config that is not there", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Configs = []*swarm.ConfigReference{{ConfigName: "c", ConfigID: "9", File: &swarm.ConfigReferenceFileTarget{Name: "c"}}}
		}, 400, invalid + "config not found: c"},
	}
}

// otherPorts are the ports of the service "other".
var otherPorts = []swarm.PortConfig{{Protocol: "tcp", TargetPort: 80, PublishedPort: 80, PublishMode: "ingress"}, {Protocol: "tcp", TargetPort: 81, PublishedPort: 81, PublishMode: "host"}}

func TestServicesThatAreRefused(t *testing.T) {
	w := newWorld(t)
	secret, config := &cluster.Secret{}, &cluster.Config{}
	secret.ID, secret.Spec.Name = "sec1", "pass"
	config.ID, config.Spec.Name = "conf1", "conf"
	other := aService("other1", "other", 1)
	other.Spec.EndpointSpec = &swarm.EndpointSpec{Ports: otherPorts}
	other.Endpoint.Ports = []swarm.PortConfig{{Protocol: "udp", TargetPort: 53, PublishedPort: 30000, PublishMode: "ingress"}}
	w.control.put(t, append(aCluster(), secret, config, other)...)
	w.engine.add(networkNamed("onlyhere", nil))
	for _, c := range refusedServices(refs{"sec1", "conf1", "other1"}) {
		t.Run(c.name, func(t *testing.T) {
			spec := serviceSpec("web")
			c.change(&spec)
			a := w.do("POST", "/services/create", spec)
			text := strings.ReplaceAll(c.text, "OTHER", "other1")
			if a.status != c.status || text != "" && a.message() != text {
				t.Errorf("\n got %d %q\nwant %d %q", a.status, a.message(), c.status, text)
			}
		})
	}
	if n := w.control.snapshot().Len(cluster.KindService); n != 1 {
		t.Errorf("%d services", n)
	}
}

func TestIngressPortsNeedTheIngressNetwork(t *testing.T) {
	w := newWorld(t)
	spec := serviceSpec("web")
	spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80}}}
	w.refused("POST", "/services/create", spec, 400, "rpc error: code = FailedPrecondition desc = service needs ingress network, but no ingress network is present")
}

func TestNullsInASpecificationHurtNobody(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, aCluster()...)
	a := w.do("POST", "/services/create", `{"Name":"web","Labels":null,"TaskTemplate":{"ContainerSpec":{"Image":"app","Secrets":[null],"Configs":[null],"Ulimits":[null],"Mounts":[{"Target":"/a","Type":"volume","VolumeOptions":null}],
		"Healthcheck":null,"Privileges":{"CredentialSpec":null}},"Placement":{"Preferences":[null,{"Spread":null}],"Constraints":null},"Resources":{"Limits":null,"Reservations":{"GenericResources":[null,{}]}},
		"Networks":null,"RestartPolicy":{}},"Mode":{"Replicated":{}},"UpdateConfig":{},"RollbackConfig":null,"EndpointSpec":{"Ports":null}}`)
	if a.status != http.StatusCreated {
		t.Fatalf("%d %s", a.status, a.body)
	}
	svc := must[swarm.Service](w, 200, "GET", "/services/web", nil)
	if *svc.Spec.Mode.Replicated.Replicas != 1 || svc.Spec.EndpointSpec.Mode != "vip" || svc.Spec.UpdateConfig.FailureAction != "pause" || svc.Spec.UpdateConfig.Order != "stop-first" ||
		svc.Spec.TaskTemplate.RestartPolicy.Condition != "any" || svc.Spec.TaskTemplate.ContainerSpec.Isolation != "default" || svc.Spec.Labels == nil {
		t.Errorf("stored: %+v", svc.Spec)
	}
	w.control.put(t, aNode("node1", "vm1"))
	if a := w.do("GET", "/miniswarm/services/web/explain", nil); a.status != 200 {
		t.Errorf("explain: %d %s", a.status, a.body)
	}
}

// A constraint that asks for what no node can have is accepted, as in Swarm, and not in silence.
func TestHopelessConstraintIsWarnedOf(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, aCluster()...)
	spec := serviceSpec("web")
	spec.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.labels.zone==a", "node.foo==1", "node.ip!=10.0.0.0/8", "engine.labels.x!=y"}}
	want := []string{"no node can ever match the constraint node.foo==1: node.foo is not something a constraint can ask for"}
	if got := must[swarm.ServiceCreateResponse](w, 201, "POST", "/services/create", spec).Warnings; !slices.Equal(got, want) {
		t.Errorf("create warns %q", got)
	}
	update := func(query string) []string {
		at := must[swarm.Service](w, 200, "GET", "/services/web", nil).Version.Index
		return must[swarm.ServiceUpdateResponse](w, 200, "POST", fmt.Sprintf("/services/web/update?version=%d%s", at, query), spec).Warnings
	}
	if got := update(""); !slices.Equal(got, want) {
		t.Errorf("update warns %q", got)
	}
	if got := update("&rollback=previous"); got != nil {
		t.Errorf("rollback warns of the specification that it leaves: %q", got)
	}
	spec.TaskTemplate.Placement.Constraints = spec.TaskTemplate.Placement.Constraints[:1]
	if got := update(""); got != nil {
		t.Errorf("a label that no node has yet: %q", got)
	}
}

func TestServiceUpdateAndRollback(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, aCluster()...)
	spec := serviceSpec("web")
	created := w.do("POST", "/services/create", spec, headerRegistryAuth, "auth1")
	if created.status != 201 || !strings.HasSuffix(created.body, `"Warnings":null}`) {
		t.Fatalf("%d %s", created.status, created.body)
	}
	get := func() swarm.Service { return must[swarm.Service](w, 200, "GET", "/services/web", nil) }
	stored := func() *cluster.Service { return w.control.snapshot().ServiceNamed("web") }
	update := func(query string) string {
		return fmt.Sprintf("/services/web/update?version=%d%s", get().Version.Index, query)
	}
	if stored().RegistryAuth != "auth1" || strings.Contains(w.do("GET", "/services/web", nil).body, "auth1") {
		t.Error("the registry's credentials are to be stored and not shown")
	}

	w.refused("POST", "/services/web/update", spec, 400, `invalid service version '': strconv.ParseUint: parsing "": invalid syntax`)
	w.refused("POST", "/services/web/update?version=x", spec, 400, `invalid service version 'x': strconv.ParseUint: parsing "x": invalid syntax`)
	w.refused("POST", "/services/web/update?version=999", spec, 500, "rpc error: code = Unknown desc = update out of sequence")
	w.refused("POST", "/services/nothing/update?version=1", spec, 404, "service nothing not found")
	w.refused("POST", update("&rollback=sideways"), spec, 500, "unrecognized rollback option sideways")
	w.refused("POST", update("&registryAuthFrom=moon"), spec, 400, "invalid registryAuthFrom 'moon'")
	w.refused("POST", update("&registryAuthFrom=previous-spec"), spec, 500, "service does not have a previous spec")
	w.refused("POST", update("&rollback=previous"), spec, 400, "rpc error: code = FailedPrecondition desc = service "+get().ID+" does not have a previous spec")
	renamed := serviceSpec("other")
	w.refused("POST", update(""), renamed, 501, "rpc error: code = Unimplemented desc = renaming services is not supported")
	global := serviceSpec("web")
	global.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
	w.refused("POST", update(""), global, 501, "rpc error: code = Unimplemented desc = service mode change is not allowed")

	before := get().Version.Index
	spec.TaskTemplate.ContainerSpec.Image = "app:2"
	if a := w.do("POST", update(""), spec); a.status != 200 || a.body != `{"Warnings":null}` {
		t.Fatalf("%d %s", a.status, a.body)
	}
	s := stored()
	if s.Spec.TaskTemplate.ContainerSpec.Image != "app:2" || s.PreviousSpec.TaskTemplate.ContainerSpec.Image != "app:1" || s.SpecVersion.Index != before || s.RegistryAuth != "auth1" {
		t.Errorf("after the update: %+v", s)
	}
	if a := w.do("POST", update(""), spec, headerRegistryAuth, "auth2"); a.status != 200 || stored().RegistryAuth != "auth2" || stored().PreviousRegistryAuth != "auth1" {
		t.Errorf("new credentials: %d, %q, %q", a.status, stored().RegistryAuth, stored().PreviousRegistryAuth)
	}
	if a := w.do("POST", update("&registryAuthFrom=previous-spec"), spec); a.status != 200 || stored().RegistryAuth != "auth1" {
		t.Errorf("credentials of the previous spec: %d %q", a.status, stored().RegistryAuth)
	}

	spec.TaskTemplate.ContainerSpec.Image = "app:3"
	must[swarm.ServiceUpdateResponse](w, 200, "POST", update(""), spec)
	version := stored().SpecVersion
	must[swarm.ServiceUpdateResponse](w, 200, "POST", update("&rollback=previous"), spec)
	s = stored()
	if s.Spec.TaskTemplate.ContainerSpec.Image != "app:2" || s.PreviousSpec.TaskTemplate.ContainerSpec.Image != "app:3" || s.PreviousSpecVersion != version ||
		s.UpdateStatus.State != swarm.UpdateStateRollbackStarted || s.UpdateStatus.Message != "manually requested rollback" {
		t.Errorf("after the rollback: %+v %+v", s, s.UpdateStatus)
	}
	must[swarm.ServiceUpdateResponse](w, 200, "POST", update("&rollback=previous"), spec)
	if got := stored().Spec.TaskTemplate.ContainerSpec.Image; got != "app:3" {
		t.Errorf("after rolling the rollback back: %s", got)
	}
}

// Who lets a paused update go on and then finds that it was no good can still go back to what was there before it.
func TestAPausedUpdateThatGoesOnKeepsTheWayBack(t *testing.T) {
	w := newWorld(t)
	svc := aService("svc1", "web", 1)
	before := serviceSpec("web")
	svc.PreviousSpec, svc.PreviousRegistryAuth, svc.RegistryAuth = &before, "auth0", "auth1"
	svc.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "app:2", Isolation: "default"}
	svc.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStatePaused}
	w.control.put(t, append(aCluster(), svc)...)
	stored := func() *cluster.Service { return w.control.snapshot().Service("svc1") }
	update := func(spec swarm.ServiceSpec) {
		t.Helper()
		must[swarm.ServiceUpdateResponse](w, 200, "POST", fmt.Sprintf("/services/web/update?version=%d", stored().Version.Index), spec)
	}
	update(must[swarm.Service](w, 200, "GET", "/services/web", nil).Spec)
	if s := stored(); s.PreviousSpec.TaskTemplate.ContainerSpec.Image != "app:1" || s.PreviousRegistryAuth != "auth0" || s.UpdateStatus != nil || s.SpecVersion.Index == 0 {
		t.Errorf("after going on: %+v", s)
	}
	update(stored().Spec) // nothing is paused: as in Docker
	if s := stored(); s.PreviousSpec.TaskTemplate.ContainerSpec.Image != "app:2" || s.PreviousRegistryAuth != "auth1" {
		t.Errorf("after an update to the same: %+v", s.PreviousSpec)
	}
}

func TestAnUpdateThatLeavesThePortsIsNotHeldUpByThem(t *testing.T) {
	w := newWorld(t)
	a, b := aService("a", "a", 1), aService("b", "b", 1)
	for _, s := range []*cluster.Service{a, b} {
		s.Spec.EndpointSpec = &swarm.EndpointSpec{Mode: "vip", Ports: []swarm.PortConfig{{Protocol: "tcp", TargetPort: 80, PublishedPort: 80, PublishMode: "ingress"}}}
	}
	w.control.put(t, append(aCluster(), a, b)...)
	spec := b.Spec
	spec.Labels = map[string]string{"k": "v"}
	must[swarm.ServiceUpdateResponse](w, 200, "POST", fmt.Sprintf("/services/b/update?version=%d", w.control.snapshot().Service("b").Version.Index), spec)
}

func TestServiceListsAndLookups(t *testing.T) {
	w := newWorld(t)
	web, webber, glob := aService("aaa1", "web", 3), aService("aaa2", "webber", 1), aService("bbb1", "glob", 0)
	web.Spec.Labels = map[string]string{"tier": "front", "stack": "shop"}
	glob.Spec.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
	down := aNode("node2", "vm2")
	down.Status.State = swarm.NodeStateDown
	gone := aTask("t4", web, 3, "node1", swarm.TaskStateRunning)
	gone.DesiredState = swarm.TaskStateShutdown
	w.control.put(t, aNode("node1", "vm1"), down, web, webber, glob,
		aTask("t1", web, 1, "node1", swarm.TaskStateRunning), aTask("t2", web, 2, "node2", swarm.TaskStateRunning), aTask("t3", web, 3, "", swarm.TaskStatePending), gone,
		aTask("t5", glob, 0, "node1", swarm.TaskStateRunning), aTask("t6", glob, 0, "node2", swarm.TaskStateRunning))
	for _, c := range []struct{ query, want string }{
		{"", "aaa1 aaa2 bbb1"}, {filtersOf("name", "web"), "aaa1 aaa2"}, {filtersOf("name", "webb"), "aaa2"}, {filtersOf("id", "aaa"), "aaa1 aaa2"},
		{filtersOf("label", "tier"), "aaa1"}, {filtersOf("label", "tier=back"), ""}, {filtersOf("mode", "global"), "bbb1"}, {filtersOf("mode", "replicated"), "aaa1 aaa2"},
		{filtersOf("runtime", "plugin"), ""}, {filtersOf("runtime", "container", "name", "glob"), "bbb1"},
		{"filters=" + url.QueryEscape(`{"name":{"web":true}}`), "aaa1 aaa2"}, {"filters=" + url.QueryEscape(`{"label":["tier","stack=shop"]}`), "aaa1"}, {"filters=" + url.QueryEscape(`{"label":["tier","none"]}`), ""},
	} {
		var ids []string
		for _, s := range must[[]swarm.Service](w, 200, "GET", "/services?"+c.query, nil) {
			ids = append(ids, s.ID)
			if s.ServiceStatus != nil {
				t.Error("a status that nobody asked for")
			}
		}
		if got := strings.Join(ids, " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.query, got, c.want)
		}
	}
	w.refused("GET", "/services?"+filtersOf("colour", "red"), nil, 400, "invalid filter 'colour'")
	if a := w.do("GET", "/services?filters=nonsense", nil); a.status != 400 {
		t.Errorf("nonsense: %d %s", a.status, a.body)
	}
	w.refused("GET", "/services?status=maybe", nil, 400, `invalid value for status: maybe: strconv.ParseBool: parsing "maybe": invalid syntax`)
	var status []string
	for _, s := range must[[]swarm.Service](w, 200, "GET", "/services?status=true", nil) {
		status = append(status, fmt.Sprintf("%s %d/%d", s.ID, s.ServiceStatus.RunningTasks, s.ServiceStatus.DesiredTasks))
	}
	if got := strings.Join(status, ", "); got != "aaa1 1/3, aaa2 0/1, bbb1 1/1" {
		t.Errorf("status: %s", got)
	}
	for ref, want := range map[string]string{"aaa1": "aaa1", "web": "aaa1", "webber": "aaa2", "b": "bbb1"} {
		if s := must[swarm.Service](w, 200, "GET", "/services/"+ref, nil); s.ID != want {
			t.Errorf("%s: %s", ref, s.ID)
		}
	}
	w.refused("GET", "/services/aaa", nil, 400, "service aaa is ambiguous (2 matches found)")
	w.refused("GET", "/services/we", nil, 404, "service we not found")
	w.refused("DELETE", "/services/zzz", nil, 404, "service zzz not found")
	w.refused("GET", "/services/web?insertDefaults=x", nil, 400, `invalid value for insertDefaults: x: strconv.ParseBool: parsing "x": invalid syntax`)
	full := must[swarm.Service](w, 200, "GET", "/services/web?insertDefaults=true", nil).Spec
	if *full.TaskTemplate.ContainerSpec.StopGracePeriod != 10*time.Second || *full.TaskTemplate.RestartPolicy.Delay != 5*time.Second || full.UpdateConfig.Parallelism != 1 || full.EndpointSpec.Mode != "vip" {
		t.Errorf("defaults: %+v", full)
	}
	if bare := must[swarm.Service](w, 200, "GET", "/services/web", nil).Spec; bare.UpdateConfig != nil || bare.TaskTemplate.RestartPolicy != nil {
		t.Errorf("without defaults: %+v", bare)
	}
	if a := w.do("DELETE", "/services/web", nil); a.status != 200 || w.control.snapshot().Service("aaa1") != nil {
		t.Errorf("remove: %d", a.status)
	}
}

func TestOldClientsGetWhatTheyKnow(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, aCluster()...)
	spec := serviceSpec("web")
	spec.TaskTemplate.ContainerSpec.Sysctls = map[string]string{"a": "b"}
	spec.TaskTemplate.ContainerSpec.CapabilityAdd = []string{"CAP_X"}
	spec.TaskTemplate.Placement = &swarm.Placement{MaxReplicas: 3}
	a := w.do("POST", "/v1.28/services/create", spec)
	if a.status != 201 || !strings.Contains(a.body, `image app:1 could not be accessed on a registry to record\nits digest. Each node will access app:1 independently,\npossibly leading to different nodes running different\nversions of the image.\n`) {
		t.Errorf("%d %s", a.status, a.body)
	}
	c := w.control.snapshot().ServiceNamed("web").Spec.TaskTemplate
	if c.ContainerSpec.Sysctls != nil || c.ContainerSpec.CapabilityAdd != nil || c.Placement.MaxReplicas != 0 {
		t.Errorf("stored for an old client: %+v", c)
	}
}

func TestServiceWithoutANameGetsOne(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, aCluster()...)
	id := must[swarm.ServiceCreateResponse](w, 201, "POST", "/services/create", serviceSpec("")).ID
	if svc := w.control.snapshot().Service(id); !nameForm.MatchString(svc.Spec.Name) {
		t.Errorf("name %q", svc.Spec.Name)
	}
}
