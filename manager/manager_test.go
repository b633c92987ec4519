package manager

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
)

// solo is one manager on loopback with a real store and real TLS.
type solo struct {
	t     *testing.T
	store *raftstore.Store
	m     *Manager
	ca    *identity.CA
	creds *identity.Store
	addr  string
}

const (
	soloNode    = "manager000000000000000001"
	soloCluster = "cluster000000000000000001"
)

func newSolo(t *testing.T) *solo {
	t.Helper()
	ca, err := identity.NewCA(identity.CAConfig{})
	if err != nil {
		t.Fatal(err)
	}
	s := &solo{t: t, ca: ca, creds: credentials(t, ca, soloNode, identity.Manager)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	s.store, err = raftstore.Open(raftstore.Config{Dir: t.TempDir(), NodeID: soloNode, ClusterID: soloCluster, Addr: s.addr, Bootstrap: true,
		Transport: raftstore.Alone(), Key: make([]byte, raftstore.KeySize), Logger: logger, Tick: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	s.m, err = New(Config{NodeID: soloNode, Addr: s.addr, Store: s.store, Credentials: s.creds, Logger: logger, Bootstrap: s.bootstrap, EngineAPI: http.NotFoundHandler()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	storeCtx, stopStore := context.WithCancel(context.WithoutCancel(ctx))
	server := &http.Server{Handler: s.m.Handler(), TLSConfig: identity.ServerTLS(s.creds, "http/1.1"), ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug)}
	done := make(chan error, 3)
	go func() { done <- s.store.Run(storeCtx) }()
	go func() { done <- s.m.Run(ctx) }()
	go func() { done <- server.ServeTLS(l, "", "") }()
	t.Cleanup(func() {
		cancel()
		server.Close()
		<-done
		<-done
		stopStore()
		<-done
	})
	s.await("the first objects", func(snap *cluster.Snapshot) bool { return snap.Cluster() != nil && s.m.Dispatcher() != nil })
	return s
}

func credentials(t *testing.T, ca *identity.CA, nodeID string, role identity.Role) *identity.Store {
	t.Helper()
	store, err := identity.NewStore(identity.StoreConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := identity.Found(ca, store, identity.Identity{NodeID: nodeID, ClusterID: soloCluster, Role: role}, 0); err != nil {
		t.Fatal(err)
	}
	return store
}

func (s *solo) bootstrap() *cluster.Txn {
	key, err := s.ca.KeyPEM()
	if err != nil {
		panic(err)
	}
	tokens, err := identity.NewJoinTokens(s.ca.Root().PEM(), nil)
	if err != nil {
		panic(err)
	}
	c := &cluster.Cluster{RootCA: s.ca.Root().PEM(), RootCAKey: key, JoinTokens: tokens}
	c.ID, c.Spec.Name, c.DefaultAddrPool, c.SubnetSize = soloCluster, cluster.ClusterName, []string{"10.0.0.0/8"}, 24
	limit := int64(5)
	c.Spec.Orchestration.TaskHistoryRetentionLimit = &limit
	ingress := &cluster.Network{}
	ingress.ID, ingress.Spec.Name, ingress.Spec.Ingress = "ingress000000000000000001", "ingress", true
	ingress.Spec.DriverConfiguration = &swarm.Driver{Name: "overlay"}
	return &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.CreateOf(c), cluster.CreateOf(newNode(soloNode, identity.Manager, "", "127.0.0.1")), cluster.CreateOf(ingress)}}
}

// await waits for a state of the store, event by event.
func (s *solo) await(what string, ok func(*cluster.Snapshot) bool) *cluster.Snapshot {
	s.t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for {
		if snap := s.store.Snapshot(); ok(snap) {
			return snap
		}
		select {
		case <-poll.C:
		case <-deadline.C:
			s.t.Fatalf("no %s within 10 s", what)
		}
	}
}

// session opens a session; nil after an error of the test.
func (s *solo) session(creds *identity.Store) net.Conn {
	s.t.Helper()
	conn, err := tls.Dial("tcp", s.addr, identity.ClientTLS(creds, identity.Manager, "", "http/1.1"))
	if err != nil {
		s.t.Error(err)
		return nil
	}
	s.t.Cleanup(func() { conn.Close() })
	req, _ := http.NewRequest(http.MethodGet, "https://"+s.addr+protocol.PathSession, nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", protocol.UpgradeStream)
	if err := req.Write(conn); err != nil {
		s.t.Error(err)
		return nil
	}
	answer := make([]byte, 0, 512)
	for !bytes.HasSuffix(answer, []byte("\r\n\r\n")) {
		var b [1]byte
		if _, err := io.ReadFull(conn, b[:]); err != nil {
			s.t.Errorf("answer to the upgrade: %v after %q", err, answer)
			return nil
		}
		answer = append(answer, b[0])
	}
	if !strings.HasPrefix(string(answer), "HTTP/1.1 101") {
		s.t.Errorf("the upgrade was answered with %q", answer)
		return nil
	}
	return conn
}

// agent is a worker that runs everything it is told at once.
func (s *solo) agent(creds *identity.Store) {
	s.t.Helper()
	s.agentAs(creds, &protocol.Hello{DataPlane: true})
}

// agentAs is an agent that introduces itself so.
func (s *solo) agentAs(creds *identity.Store, hello *protocol.Hello) {
	s.t.Helper()
	conn := s.session(creds)
	if conn == nil {
		return
	}
	enc := json.NewEncoder(conn)
	hello.Description.Resources = swarm.Resources{NanoCPUs: 4e9, MemoryBytes: 8 << 30}
	_ = enc.Encode(protocol.FromAgent{Hello: hello})
	go func() {
		dec := json.NewDecoder(conn)
		for seq := uint64(1); ; {
			var m protocol.ToAgent
			if dec.Decode(&m) != nil {
				return
			}
			if m.Assignments == nil {
				continue
			}
			st := &protocol.Status{Seq: seq}
			for _, t := range m.Assignments.Tasks {
				state := swarm.TaskStateRunning
				if cluster.Rank(t.DesiredState) > cluster.Rank(swarm.TaskStateRunning) {
					state = swarm.TaskStateShutdown
				}
				st.Tasks = append(st.Tasks, protocol.TaskStatus{ID: t.ID, Status: swarm.TaskStatus{State: state, Timestamp: time.Now()}})
			}
			seq++
			_ = enc.Encode(protocol.FromAgent{Status: st})
		}
	}()
	go func() {
		for {
			select {
			case <-s.t.Context().Done():
				return
			case <-time.After(200 * time.Millisecond):
				if enc.Encode(protocol.FromAgent{Heartbeat: &protocol.Heartbeat{}}) != nil {
					return
				}
			}
		}
	}()
}

func (s *solo) createService(id string, replicas uint64) {
	s.t.Helper()
	svc := &cluster.Service{}
	svc.ID, svc.Spec.Name = id, "web"
	svc.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "web:1"}
	svc.Spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: &replicas}
	svc.Spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{Protocol: swarm.PortConfigProtocolTCP, TargetPort: 8000, PublishedPort: 80, PublishMode: swarm.PortConfigPublishModeIngress}}}
	if _, err := s.store.Propose(s.t.Context(), &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.CreateOf(svc)}}); err != nil {
		s.t.Fatal(err)
	}
}

func running(snap *cluster.Snapshot, service string) (n int) {
	for t := range snap.TasksOfService(service) {
		if t.Running() {
			n++
		}
	}
	return n
}

func TestAServiceRunsScalesAndShrinks(t *testing.T) {
	s := newSolo(t)
	worker := s.join(t)
	s.agent(s.creds)
	s.agent(worker)
	s.await("two ready nodes", func(snap *cluster.Snapshot) bool {
		ready := 0
		for n := range snap.Nodes() {
			if n.Status.State == swarm.NodeStateReady {
				ready++
			}
		}
		return ready == 2
	})
	s.createService("web-service", 4)
	snap := s.await("four replicas", func(snap *cluster.Snapshot) bool { return running(snap, "web-service") == 4 })
	before := map[string]bool{}
	perNode := map[string]int{}
	for task := range snap.TasksOfService("web-service") {
		before[task.ID] = true
		perNode[task.NodeID]++
	}
	if perNode[soloNode] != 2 {
		t.Errorf("four replicas on two nodes are spread %v", perNode)
	}
	s.scale("web-service", 12)
	snap = s.await("twelve replicas", func(snap *cluster.Snapshot) bool { return running(snap, "web-service") == 12 })
	for id := range before {
		if task := snap.Task(id); task == nil || !task.Running() {
			t.Errorf("scaling up touched task %s", id)
		}
	}
	s.scale("web-service", 1)
	s.await("one replica and nothing else", func(snap *cluster.Snapshot) bool {
		n := 0
		for range snap.TasksOfService("web-service") {
			n++
		}
		return running(snap, "web-service") == 1 && n == 1
	})
	id := ""
	for task := range s.store.Snapshot().TasksOfService("web-service") {
		id = task.ID
	}
	if got := s.m.Decisions(id); len(got) == 0 {
		t.Errorf("nothing is remembered about why task %s was placed", id)
	}
}

func (s *solo) scale(id string, replicas uint64) {
	s.t.Helper()
	_, err := s.store.Update(s.t.Context(), func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		next := *snap.Service(id)
		next.Spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: &replicas}
		return &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.UpdateOf(&next)}}, nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// join makes a worker with the cluster's token, over the cluster port.
func (s *solo) join(t *testing.T) *identity.Store {
	t.Helper()
	store, err := identity.NewStore(identity.StoreConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	tokens := s.store.Snapshot().Cluster().JoinTokens
	id, err := identity.Join(t.Context(), identity.JoinConfig{Addrs: []string{s.addr}, Token: tokens.Worker, Store: store})
	if err != nil {
		t.Fatal(err)
	}
	if id.Role != identity.Worker || s.store.Snapshot().Node(id.NodeID) == nil {
		t.Fatalf("joined as %+v, known to the store: %v", id, s.store.Snapshot().Node(id.NodeID) != nil)
	}
	return store
}

func TestOnlyMembersGetIn(t *testing.T) {
	s := newSolo(t)
	worker := s.join(t)
	get := func(conf *tls.Config, method, path string) int {
		addr := "192.0.2.1:2377"
		if strings.HasSuffix(path, "?") {
			addr = "0.0.0.0:2377"
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: conf}}
		defer client.CloseIdleConnections()
		req, err := http.NewRequestWithContext(t.Context(), method, "https://"+s.addr+path, strings.NewReader(`{"Addr":"`+addr+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	anonymous := &tls.Config{InsecureSkipVerify: true}
	asWorker := identity.ClientTLS(worker, identity.Manager, "", "http/1.1")
	for _, c := range []struct {
		what         string
		conf         *tls.Config
		method, path string
		want         int
	}{
		{"a stranger opens a session", anonymous, http.MethodGet, protocol.PathSession, http.StatusForbidden},
		{"a stranger joins the raft group", anonymous, http.MethodPost, protocol.PathMembers, http.StatusForbidden},
		{"a worker joins the raft group", asWorker, http.MethodPost, protocol.PathMembers, http.StatusForbidden},
		{"a worker sends raft messages", asWorker, http.MethodPost, protocol.PathRaft + "/messages", http.StatusForbidden},
		{"a worker's session without upgrade", asWorker, http.MethodGet, protocol.PathSession, http.StatusUpgradeRequired},
		{"a stranger opens a stream", anonymous, http.MethodGet, protocol.PathStreams + "/id", http.StatusForbidden},
		{"a worker's stream without upgrade", asWorker, http.MethodGet, protocol.PathStreams + "/id", http.StatusUpgradeRequired},
		{"a worker asks the leader of a task", asWorker, http.MethodGet, protocol.PathEngine + "/miniswarm/tasks/t/engine/containers/c/json", http.StatusForbidden},
		{"a manager at no address joins the raft group", identity.ClientTLS(s.creds, identity.Manager, "", "http/1.1"), http.MethodPost, protocol.PathMembers + "?", http.StatusBadRequest},
		{"a stranger reads the root certificate", anonymous, http.MethodGet, identity.RootPath, http.StatusOK},
	} {
		if got := get(c.conf, c.method, c.path); got != c.want {
			t.Errorf("%s: status %d, want %d", c.what, got, c.want)
		}
	}
	wrong, err := identity.NewJoinTokens(s.ca.Root().PEM(), nil)
	if err != nil {
		t.Fatal(err)
	}
	store, err := identity.NewStore(identity.StoreConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	_, err = identity.Join(t.Context(), identity.JoinConfig{Addrs: []string{s.addr}, Token: wrong.Worker, Store: store})
	if !errors.Is(err, identity.ErrInvalidToken) {
		t.Errorf("joining with a rotated token: %v", err)
	}
}

// TestARemovedNodeHearsSo: whenever it comes, for otherwise it would go on with tasks that run elsewhere.
func TestARemovedNodeHearsSo(t *testing.T) {
	s := newSolo(t)
	worker := s.join(t)
	id := worker.Current().Identity.NodeID
	_, err := s.store.Update(t.Context(), func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		c := *snap.Cluster()
		c.Removed = map[string]time.Time{id: time.Now().Add(time.Hour)}
		return &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.UpdateOf(&c), cluster.RemoveOf(snap.Node(id))}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	conn := s.session(worker)
	if conn == nil {
		return
	}
	if err := json.NewEncoder(conn).Encode(protocol.FromAgent{Hello: &protocol.Hello{}}); err != nil {
		t.Fatal(err)
	}
	var m protocol.ToAgent
	if err := json.NewDecoder(conn).Decode(&m); err != nil || m.Leave == nil {
		t.Errorf("a removed node was answered %+v, %v", m, err)
	}
	_, err = identity.NewClient(identity.ClientConfig{}).RenewCertificate(t.Context(), s.addr, worker, nil)
	if err == nil || !strings.Contains(err.Error(), "removed") {
		t.Errorf("a removed node renewed its certificate: %v", err)
	}

	// The removal may be forgotten before the certificate has expired, where certificates lived longer once.
	if s.m.gone(s.creds.Current().Identity.NodeID) {
		t.Error("the leader itself counts as gone")
	}
	_, err = s.store.Update(t.Context(), func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		c := *snap.Cluster()
		c.Removed = nil
		return &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.UpdateOf(&c)}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !s.m.gone(id) {
		t.Error("a node that was removed long ago is let in with a certificate that lives on")
	}
}

// A member that has yet to connect and catch up is not lost.
func TestReachability(t *testing.T) {
	members := []protocol.Member{{RaftID: 1, NodeID: "votes"}, {RaftID: 2, NodeID: "lost"}, {RaftID: 3, NodeID: "learns", Learner: true}, {RaftID: 4, NodeID: "new", Learner: true}}
	reachable := func(id uint64) bool { return id == 1 || id == 3 }
	for node, want := range map[string]swarm.Reachability{"votes": swarm.ReachabilityReachable, "lost": swarm.ReachabilityUnreachable,
		"learns": swarm.ReachabilityReachable, "new": swarm.ReachabilityUnknown, "none": swarm.ReachabilityUnreachable} {
		if got := reachability(members, reachable, node); got != want {
			t.Errorf("%s is %s, want %s", node, got, want)
		}
	}
}
