package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/api/types/system"

	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/agent/docker/fake"
)

// fakeDaemon answers the Engine API on a unix socket as a cluster of three nodes whose tasks run at once.
type fakeDaemon struct {
	socket string

	mu       sync.Mutex // guards what follows
	member   bool
	stuck    bool // new tasks stay pending
	version  uint64
	services []swarm.Service
	networks []network.Summary
	secrets  []swarm.Secret
	configs  []swarm.Config
	tokens   swarm.JoinTokens
	spec     swarm.Spec
	root     swarm.TLSInfo
	rotating int // answers until a rotation is over
	nodes    []swarm.Node
	disturb  func(*swarm.Node) error // before each update of a node
	engine   *fake.Engine            // of all nodes; has the one container that every task is seen to have

	unlockKey string
	locked    bool // as after a restart
	worker    bool // no manager runs here
}

// dialSocket connects to a unix socket whatever is asked for.
func dialSocket(socket string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
}

// startFake serves a fake daemon until the test ends.
func startFake(t testing.TB, dir string) *fakeDaemon {
	t.Helper()
	f := &fakeDaemon{socket: filepath.Join(dir, "d.sock"), version: 10, tokens: swarm.JoinTokens{Worker: "SWMTKN-1-worker", Manager: "SWMTKN-1-manager"}}
	for i := 1; i <= 3; i++ {
		n := swarm.Node{ID: fmt.Sprintf("node%021d", i), Status: swarm.NodeStatus{State: swarm.NodeStateReady, Addr: fmt.Sprintf("10.0.0.%d", i)},
			Spec:        swarm.NodeSpec{Availability: swarm.NodeAvailabilityActive, Role: swarm.NodeRoleWorker},
			Description: swarm.NodeDescription{Hostname: fmt.Sprintf("vm%d", i), Engine: swarm.EngineDescription{EngineVersion: "20.10.24"}}}
		if i == 1 {
			n.Spec.Role, n.ManagerStatus = swarm.NodeRoleManager, &swarm.ManagerStatus{Leader: true, Reachability: swarm.ReachabilityReachable, Addr: "10.0.0.1:2377"}
		}
		f.nodes = append(f.nodes, n)
	}
	f.root = swarm.TLSInfo{TrustRoot: "root 0", CertIssuerPublicKey: []byte("root 0")}
	f.engine = fake.New()
	f.engine.SetImage("any", fake.Program{})
	id, err := f.engine.Create(t.Context(), &docker.Container{Name: "c", Config: container.Config{Image: "any"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.engine.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: f.routes()}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(ln) }()
	t.Cleanup(func() { _ = server.Close(); <-done })
	return f
}

var fakeVersion = types.Version{Version: "20.10.24", APIVersion: "1.51", MinAPIVersion: "1.12", Components: []types.ComponentVersion{
	{Name: "Engine", Version: "20.10.24", Details: map[string]string{"GoVersion": "go1.19", "Os": "linux", "Arch": "amd64", "GitCommit": ""}},
	{Name: "miniswarm", Version: "9.9", Details: map[string]string{"GoVersion": "go1.26"}}}}

// refusal is an error with the status it is answered with.
type refusal struct {
	code int
	text string
}

func (r refusal) Error() string { return r.text }

func (f *fakeDaemon) routes() http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range map[string]func(*http.Request) (any, error){
		"GET /info":                            f.info,
		"GET /version":                         func(*http.Request) (any, error) { return fakeVersion, nil },
		"POST /swarm/init":                     f.init,
		"POST /swarm/join":                     f.join,
		"POST /swarm/leave":                    f.leave,
		"GET /swarm":                           f.inspect,
		"POST /swarm/update":                   f.update,
		"POST /swarm/unlock":                   f.unlock,
		"GET /swarm/unlockkey":                 f.showUnlockKey,
		"GET /nodes":                           func(*http.Request) (any, error) { return f.nodes, nil },
		"GET /nodes/{id}":                      f.node,
		"GET /services":                        f.listServices,
		"POST /services/create":                f.createService,
		"GET /services/{id}":                   f.service,
		"POST /services/{id}/update":           f.updateService,
		"GET /tasks":                           f.tasks,
		"GET /tasks/{id}":                      f.task,
		"POST /nodes/{id}/update":              f.updateNode,
		"GET /networks":                        func(*http.Request) (any, error) { return f.networks, nil },
		"GET /networks/{id}":                   f.network,
		"DELETE /networks/{id}":                f.removeNetwork,
		"POST /networks/create":                f.createNetwork,
		"DELETE /services/{id}":                f.removeService,
		"GET /secrets":                         func(*http.Request) (any, error) { return f.secrets, nil },
		"GET /secrets/{id}":                    f.secret,
		"POST /secrets/create":                 f.createSecret,
		"POST /secrets/{id}/update":            func(*http.Request) (any, error) { return struct{}{}, nil },
		"DELETE /secrets/{id}":                 func(*http.Request) (any, error) { return struct{}{}, nil },
		"GET /configs":                         func(*http.Request) (any, error) { return f.configs, nil },
		"GET /configs/{id}":                    f.config,
		"POST /configs/create":                 f.createConfig,
		"POST /configs/{id}/update":            func(*http.Request) (any, error) { return struct{}{}, nil },
		"POST /miniswarm/plan":                 f.plan,
		"GET /miniswarm/services/{id}/explain": f.explainService,
		"GET /miniswarm/tasks/{id}/explain":    f.explainTask,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			f.mu.Lock()
			defer f.mu.Unlock()
			v, err := h(r)
			w.Header().Set("Content-Type", "application/json")
			if err != nil {
				code := http.StatusInternalServerError
				if r, ok := err.(refusal); ok {
					code = r.code
				}
				w.WriteHeader(code)
				v = map[string]string{"message": err.Error()}
			}
			_ = json.NewEncoder(w).Encode(v)
		})
	}
	mux.HandleFunc("/miniswarm/tasks/{id}/engine/{rest...}", f.window)
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Api-Version", "1.51")
		fmt.Fprint(w, "OK")
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1.") {
			_, rest, _ := strings.Cut(r.URL.Path[1:], "/")
			r.URL.Path = "/" + rest
		}
		mux.ServeHTTP(w, r)
	})
}

const notManager = `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`

func (f *fakeDaemon) info(*http.Request) (any, error) {
	info := system.Info{Name: "vm1", ServerVersion: "20.10.24", Swarm: swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive}}
	if f.member {
		info.Swarm = swarm.Info{LocalNodeState: swarm.LocalNodeStateActive, NodeID: f.nodes[0].ID, NodeAddr: "10.0.0.1", ControlAvailable: !f.worker, Managers: 1, Nodes: 3,
			RemoteManagers: []swarm.Peer{{NodeID: f.nodes[0].ID, Addr: "10.0.0.1:2377"}}, Cluster: &swarm.ClusterInfo{ID: "cluster1", Spec: f.spec}}
	}
	if f.locked {
		info.Swarm = swarm.Info{LocalNodeState: swarm.LocalNodeStateLocked, NodeAddr: "10.0.0.1"}
	}
	return info, nil
}

func (f *fakeDaemon) init(r *http.Request) (any, error) {
	if f.member {
		return nil, refusal{http.StatusServiceUnavailable, `This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.`}
	}
	var req swarm.InitRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return nil, err
	}
	f.member, f.spec = true, req.Spec
	f.spec.EncryptionConfig.AutoLockManagers = req.AutoLockManagers
	f.seal(false)
	return f.nodes[0].ID, nil
}

func (f *fakeDaemon) join(r *http.Request) (any, error) {
	var req swarm.JoinRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return nil, err
	}
	f.member = true
	return struct{}{}, nil
}

func (f *fakeDaemon) leave(r *http.Request) (any, error) {
	if r.FormValue("force") != "1" && r.FormValue("force") != "true" {
		return nil, refusal{http.StatusServiceUnavailable, "You are attempting to leave the swarm on a node that is participating as a manager. The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message."}
	}
	f.member = false
	return struct{}{}, nil
}

func (f *fakeDaemon) inspect(*http.Request) (any, error) {
	if !f.member {
		return nil, refusal{http.StatusServiceUnavailable, notManager}
	}
	if f.rotating > 0 {
		if f.rotating--; f.rotating == 0 {
			f.root.TrustRoot = string(f.root.CertIssuerPublicKey)
			for i := range f.nodes {
				f.nodes[i].Description.TLSInfo = f.root
			}
		}
	}
	info := swarm.ClusterInfo{ID: "cluster1", Spec: f.spec, Meta: swarm.Meta{Version: swarm.Version{Index: f.version}}, TLSInfo: f.root, RootRotationInProgress: f.rotating > 0}
	return swarm.Swarm{ClusterInfo: info, JoinTokens: f.tokens}, nil
}

func (f *fakeDaemon) update(r *http.Request) (any, error) {
	if r.FormValue("rotateWorkerToken") == "true" {
		f.tokens.Worker = "SWMTKN-1-rotated"
	}
	rotate := r.FormValue("rotateManagerUnlockKey") == "true"
	before := f.spec.CAConfig
	if err := json.NewDecoder(r.Body).Decode(&f.spec); err != nil {
		return nil, err
	}
	if ca := &f.spec.CAConfig; ca.ForceRotate != before.ForceRotate || ca.SigningCACert != "" {
		f.rotating = 4
		f.root.CertIssuerPublicKey = []byte(fmt.Sprintf("root %d%s", ca.ForceRotate, ca.SigningCACert))
		ca.SigningCACert, ca.SigningCAKey = "", ""
	}
	f.seal(rotate)
	return struct{}{}, nil
}

// seal gives the swarm an unlock key if it is to have one.
func (f *fakeDaemon) seal(rotate bool) {
	switch {
	case !f.spec.EncryptionConfig.AutoLockManagers:
		f.unlockKey = ""
	case rotate:
		f.unlockKey = "SWMKEY-1-second"
	case f.unlockKey == "":
		f.unlockKey = "SWMKEY-1-first"
	}
}

func (f *fakeDaemon) showUnlockKey(*http.Request) (any, error) {
	return swarm.UnlockKeyResponse{UnlockKey: f.unlockKey}, nil
}

func (f *fakeDaemon) unlock(r *http.Request) (any, error) {
	var req swarm.UnlockRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return nil, err
	}
	if req.UnlockKey != f.unlockKey {
		return nil, refusal{http.StatusUnauthorized, "swarm could not be unlocked: invalid key provided"}
	}
	f.locked = false
	return struct{}{}, nil
}

func (f *fakeDaemon) node(r *http.Request) (any, error) {
	for _, n := range f.nodes {
		if id := r.PathValue("id"); n.ID == id || n.Description.Hostname == id {
			return n, nil
		}
	}
	return nil, refusal{http.StatusNotFound, "node " + r.PathValue("id") + " not found"}
}

func (f *fakeDaemon) find(id string) (*swarm.Service, error) {
	for i := range f.services {
		if f.services[i].ID == id || f.services[i].Spec.Name == id {
			return &f.services[i], nil
		}
	}
	return nil, refusal{http.StatusNotFound, "service " + id + " not found"}
}

func (f *fakeDaemon) service(r *http.Request) (any, error) { return f.find(r.PathValue("id")) }

func (f *fakeDaemon) listServices(r *http.Request) (any, error) {
	if !f.member {
		return nil, refusal{http.StatusServiceUnavailable, notManager}
	}
	args, err := filters.FromJSON(r.FormValue("filters"))
	if err != nil {
		return nil, err
	}
	out := slices.DeleteFunc(slices.Clone(f.services), func(s swarm.Service) bool { return !args.MatchKVList("label", s.Spec.Labels) })
	for i := range out {
		n := uint64(len(f.tasksOf(&out[i])))
		out[i].ServiceStatus = &swarm.ServiceStatus{RunningTasks: n, DesiredTasks: n}
	}
	return out, nil
}

func (f *fakeDaemon) createService(r *http.Request) (any, error) {
	var spec swarm.ServiceSpec
	if err := json.NewDecoder(r.Body).Decode(&spec); err != nil {
		return nil, err
	}
	if _, err := f.find(spec.Name); err == nil {
		return nil, refusal{http.StatusConflict, "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service " + spec.Name + " already exists"}
	}
	if m := spec.Mode; m.Global == nil && m.ReplicatedJob == nil && m.GlobalJob == nil && (m.Replicated == nil || m.Replicated.Replicas == nil) {
		one := uint64(1)
		spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: &one}
	}
	f.version++
	s := swarm.Service{ID: fmt.Sprintf("service%018d", f.version), Meta: swarm.Meta{Version: swarm.Version{Index: f.version}}, Spec: spec}
	if spec.EndpointSpec != nil {
		s.Endpoint.Ports = spec.EndpointSpec.Ports
	}
	f.services = append(f.services, s)
	return swarm.ServiceCreateResponse{ID: s.ID}, nil
}

func (f *fakeDaemon) updateService(r *http.Request) (any, error) {
	s, err := f.find(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	f.version++
	s.Version.Index, s.Spec = f.version, swarm.ServiceSpec{}
	return swarm.ServiceUpdateResponse{}, json.NewDecoder(r.Body).Decode(&s.Spec)
}

func taskID(slot int, version uint64) string { return fmt.Sprintf("task%d%020d", slot, version) }

func (f *fakeDaemon) tasksOf(s *swarm.Service) []swarm.Task {
	var out []swarm.Task
	state := swarm.TaskStateRunning
	if f.stuck {
		state = swarm.TaskStatePending
	}
	problem := ""
	switch c := s.Spec.TaskTemplate.ContainerSpec; { // an image's name says what becomes of its containers
	case strings.HasPrefix(c.Image, "completes"):
		state = swarm.TaskStateComplete
	case strings.HasPrefix(c.Image, "fails"):
		state, problem = swarm.TaskStateFailed, "task: non-zero exit (1)"
	}
	if s.Spec.Mode.Replicated == nil || s.Spec.Mode.Replicated.Replicas == nil {
		return nil
	}
	for i := range int(*s.Spec.Mode.Replicated.Replicas) {
		out = append(out, swarm.Task{ID: taskID(i+1, f.version), ServiceID: s.ID, Slot: i + 1, NodeID: f.nodes[i%3].ID, Spec: s.Spec.TaskTemplate,
			DesiredState: swarm.TaskStateRunning, Status: swarm.TaskStatus{State: state, Err: problem, Timestamp: time.Now()}})
	}
	return out
}

func (f *fakeDaemon) tasks(r *http.Request) (any, error) {
	args, err := filters.FromJSON(r.FormValue("filters"))
	if err != nil {
		return nil, err
	}
	out := []swarm.Task{}
	if args.Contains("node") {
		return out, nil // as of a node that was drained
	}
	for i := range f.services {
		if args.Contains("service") && !args.ExactMatch("service", f.services[i].ID) && !args.ExactMatch("service", f.services[i].Spec.Name) {
			continue
		}
		out = append(out, f.tasksOf(&f.services[i])...)
	}
	return out, nil
}

func (f *fakeDaemon) task(r *http.Request) (any, error) {
	for i := range f.services {
		for _, t := range f.tasksOf(&f.services[i]) {
			if t.ID == r.PathValue("id") {
				return t, nil
			}
		}
	}
	return nil, refusal{http.StatusNotFound, "task " + r.PathValue("id") + " not found"}
}

// explainTask has every id for a task's, but the names of services.
func (f *fakeDaemon) explainTask(r *http.Request) (any, error) {
	if _, err := f.find(r.PathValue("id")); err == nil {
		return nil, refusal{http.StatusNotFound, "task " + r.PathValue("id") + " not found"}
	}
	return map[string]any{"Text": "task " + r.PathValue("id")}, nil
}

func (f *fakeDaemon) updateNode(r *http.Request) (any, error) {
	for i := range f.nodes {
		if f.nodes[i].ID == r.PathValue("id") {
			if f.disturb != nil {
				if err := f.disturb(&f.nodes[i]); err != nil {
					return nil, err
				}
			}
			if r.FormValue("version") != fmt.Sprint(f.nodes[i].Version.Index) {
				return nil, refusal{http.StatusInternalServerError, "rpc error: code = Unknown desc = update out of sequence"}
			}
			f.nodes[i].Version.Index++
			f.nodes[i].Spec = swarm.NodeSpec{}
			return struct{}{}, json.NewDecoder(r.Body).Decode(&f.nodes[i].Spec)
		}
	}
	return nil, refusal{http.StatusNotFound, "node " + r.PathValue("id") + " not found"}
}

var containerName = regexp.MustCompile(`/containers/[^/]+/`)

// window shows the one container, whatever the path calls it.
func (f *fakeDaemon) window(w http.ResponseWriter, r *http.Request) {
	r.URL.Path = containerName.ReplaceAllString("/"+r.PathValue("rest"), "/containers/"+f.engine.Ids()[0]+"/")
	f.engine.Pass(w, r)
}

func (f *fakeDaemon) createNetwork(r *http.Request) (any, error) {
	var req network.CreateRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return nil, err
	}
	f.networks = append(f.networks, network.Summary{Name: req.Name, ID: "network-" + req.Name, Scope: "swarm", Driver: req.Driver, Labels: req.Labels})
	return network.CreateResponse{ID: "network-" + req.Name}, nil
}

func (f *fakeDaemon) network(r *http.Request) (any, error) {
	for _, n := range f.networks {
		if id := r.PathValue("id"); n.ID == id || n.Name == id {
			return n, nil
		}
	}
	return nil, refusal{http.StatusNotFound, "network " + r.PathValue("id") + " not found"}
}

func (f *fakeDaemon) removeNetwork(r *http.Request) (any, error) {
	for _, svc := range f.services {
		if slices.ContainsFunc(svc.Spec.TaskTemplate.Networks, func(n swarm.NetworkAttachmentConfig) bool { return n.Target == r.PathValue("id") }) {
			return nil, refusal{http.StatusBadRequest, "rpc error: code = FailedPrecondition desc = network " + r.PathValue("id") + " is in use by service " + svc.ID}
		}
	}
	all := len(f.networks)
	f.networks = slices.DeleteFunc(f.networks, func(n network.Summary) bool { return n.ID == r.PathValue("id") })
	if len(f.networks) == all {
		return nil, refusal{http.StatusNotFound, "network " + r.PathValue("id") + " not found"}
	}
	return struct{}{}, nil
}

func (f *fakeDaemon) removeService(r *http.Request) (any, error) {
	s, err := f.find(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	id := s.ID
	f.services = slices.DeleteFunc(f.services, func(s swarm.Service) bool { return s.ID == id })
	return struct{}{}, nil
}

func (f *fakeDaemon) secret(r *http.Request) (any, error) {
	for _, s := range f.secrets {
		if id := r.PathValue("id"); s.ID == id || s.Spec.Name == id {
			return s, nil
		}
	}
	return nil, refusal{http.StatusNotFound, "secret " + r.PathValue("id") + " not found"}
}

func (f *fakeDaemon) createSecret(r *http.Request) (any, error) {
	var spec swarm.SecretSpec
	if err := json.NewDecoder(r.Body).Decode(&spec); err != nil {
		return nil, err
	}
	f.secrets = append(f.secrets, swarm.Secret{ID: "secret-" + spec.Name, Spec: spec})
	return swarm.SecretCreateResponse{ID: "secret-" + spec.Name}, nil
}

func (f *fakeDaemon) config(r *http.Request) (any, error) {
	for _, c := range f.configs {
		if id := r.PathValue("id"); c.ID == id || c.Spec.Name == id {
			return c, nil
		}
	}
	return nil, refusal{http.StatusNotFound, "config " + r.PathValue("id") + " not found"}
}

func (f *fakeDaemon) createConfig(r *http.Request) (any, error) {
	var spec swarm.ConfigSpec
	if err := json.NewDecoder(r.Body).Decode(&spec); err != nil {
		return nil, err
	}
	f.configs = append(f.configs, swarm.Config{ID: "config-" + spec.Name, Spec: spec})
	return swarm.ConfigCreateResponse{ID: "config-" + spec.Name}, nil
}

// plan gives the names of what it is asked about.
func (f *fakeDaemon) plan(r *http.Request) (any, error) {
	var req planRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return nil, err
	}
	var b strings.Builder
	for _, n := range req.Networks {
		fmt.Fprintln(&b, "network", n.Name)
	}
	for _, s := range req.Services {
		fmt.Fprintln(&b, "service", s.Spec.Name)
	}
	for _, id := range req.Remove {
		fmt.Fprintln(&b, "remove", id)
	}
	return map[string]string{"Text": b.String()}, nil
}

func (f *fakeDaemon) explainService(r *http.Request) (any, error) {
	s, err := f.find(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	return map[string]any{"Service": s, "Text": "one replica more:\n  it would go to vm2 now\n\n"}, nil
}
