package manager

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
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

// attach asks for a place as a node would.
func (s *solo) attach(creds *identity.Store, req protocol.AttachRequest) string {
	s.t.Helper()
	body, err := json.Marshal(req)
	if err != nil {
		s.t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: identity.ClientTLS(creds, identity.Manager, "", "http/1.1")}}
	defer client.CloseIdleConnections()
	resp, err := client.Post("https://"+s.addr+protocol.PathAttach, "application/json", bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	said, _ := io.ReadAll(resp.Body)
	return strings.TrimSpace(fmt.Sprintf("%d %s", resp.StatusCode, said))
}

func TestAttach(t *testing.T) {
	s := newSolo(t)
	worker := s.join(t)
	node := worker.Current().Identity.NodeID
	front, back := &cluster.Network{}, &cluster.Network{}
	front.ID, front.Spec.Name, front.Spec.Attachable = "front00000000000000000001", "front", true
	front.Spec.IPAMOptions = &swarm.IPAMOptions{Configs: []swarm.IPAMConfig{{Subnet: "10.9.0.0/29"}}} // the gateway, a node, four containers
	back.ID, back.Spec.Name = "back000000000000000000001", "back"
	if _, err := s.store.Propose(t.Context(), &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.CreateOf(front), cluster.CreateOf(back)}}); err != nil {
		t.Fatal(err)
	}
	first := cluster.NewID(rand.Reader)
	for range 2 { // it may be asked for again
		if got := s.attach(worker, protocol.AttachRequest{ID: first, Network: "front", ContainerID: "c1", Names: []string{"one"}, Address: "10.9.0.5"}); got != "204" {
			t.Fatalf("attach: %s", got)
		}
	}
	task := s.store.Snapshot().Task(first)
	if task == nil || task.NodeID != node || task.Spec.Runtime != swarm.RuntimeNetworkAttachment || task.Spec.NetworkAttachmentSpec.ContainerID != "c1" ||
		task.NetworksAttachments[0].Addresses[0] != "10.9.0.5/29" || s.store.Snapshot().Node(node).Attachments[front.ID] == "" {
		t.Errorf("it became %+v", task)
	}
	rpc := func(status int, code, text string) string {
		return fmt.Sprintf(`%d {"message":"rpc error: code = %s desc = %s"}`, status, code, text)
	}
	id := func() string { return cluster.NewID(rand.Reader) }
	for _, c := range []struct {
		as   *identity.Store
		req  protocol.AttachRequest
		want string
	}{
		{worker, protocol.AttachRequest{ID: id(), Network: "back"}, rpc(403, "PermissionDenied", "network back not manually attachable")},
		{worker, protocol.AttachRequest{ID: id(), Network: "nosuch"}, rpc(404, "NotFound", "network nosuch not found")},
		{worker, protocol.AttachRequest{ID: "web", Network: "front"}, rpc(400, "InvalidArgument", `attachment id \"web\" is not one of 25 characters of 0-9a-z`)},
		{worker, protocol.AttachRequest{ID: id(), Network: "front", Address: "x"}, rpc(400, "InvalidArgument", `invalid address \"x\"`)},
		{worker, protocol.AttachRequest{ID: id(), Network: "front", Address: "10.9.0.5"}, rpc(500, "Unavailable", "address 10.9.0.5 of network front is in use, or none of its own")},
		{s.creds, protocol.AttachRequest{ID: first, Network: "front"}, rpc(409, "AlreadyExists", "attachment id "+first+" is in use")}, // another node's
	} {
		if got := s.attach(c.as, c.req); got != c.want {
			t.Errorf("%+v: %s, want %s", c.req, got, c.want)
		}
		if s.store.Snapshot().Task(c.req.ID) != nil && c.req.ID != first {
			t.Errorf("%+v left a task", c.req)
		}
	}
	// As many as there are addresses, and none is lost by those that came in vain.
	for range 3 {
		if got := s.attach(worker, protocol.AttachRequest{ID: id(), Network: front.ID}); got != "204" {
			t.Fatalf("attach: %s", got)
		}
	}
	if got, want := s.attach(worker, protocol.AttachRequest{ID: id(), Network: "front"}), rpc(500, "Unavailable", "could not find an available IP on network front"); got != want {
		t.Errorf("a full network: %s, want %s", got, want)
	}
}

// A node whose connection breaks while it waits for an address asks again, perhaps before its former request is given up.
func TestAttachAgain(t *testing.T) {
	store, err := raftstore.Open(raftstore.Config{Dir: t.TempDir(), NodeID: soloNode, ClusterID: soloCluster, Addr: "127.0.0.1:1", Bootstrap: true,
		Transport: raftstore.Alone(), Key: make([]byte, raftstore.KeySize), Tick: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- store.Run(running) }()
	t.Cleanup(func() {
		stop()
		<-done
	})
	for l := range store.LeaderChanges() {
		if l.Leader {
			break
		}
	}
	m := &Manager{cfg: Config{Store: store, Logger: slog.New(slog.DiscardHandler)}} // nobody gives addresses
	s := &solo{t: t, store: store}
	front := &cluster.Network{}
	front.ID, front.Spec.Name, front.Spec.Attachable = "front00000000000000000001", "front", true
	node := newNode(soloNode, identity.Manager, "", "127.0.0.1")
	if _, err := store.Propose(t.Context(), &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.CreateOf(front), cluster.CreateOf(node)}}); err != nil {
		t.Fatal(err)
	}
	req := protocol.AttachRequest{ID: cluster.NewID(rand.Reader), Network: "front"}
	ask := func(ctx context.Context) chan error {
		answer := make(chan error, 1)
		go func() { answer <- m.attach(ctx, soloNode, req) }()
		return answer
	}
	ctx, broken := context.WithCancel(t.Context())
	first := ask(ctx)
	task := s.await("the task", func(snap *cluster.Snapshot) bool { return snap.Task(req.ID) != nil }).Task(req.ID)
	second := ask(t.Context())
	broken()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the request that broke: %v", err)
	}
	again := s.await("the task again", func(snap *cluster.Snapshot) bool {
		now := snap.Task(req.ID)
		return now != nil && now.Version != task.Version
	}).Task(req.ID)
	placed := *again
	placed.Status.State = swarm.TaskStateAssigned
	if _, err := store.Propose(t.Context(), &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.UpdateOf(&placed)}}); err != nil {
		t.Fatal(err)
	}
	if err := <-second; err != nil {
		t.Errorf("the request that stayed: %v", err)
	}
	// Nobody fills the store.
	var many []cluster.Change
	for range maxAttachments - 1 {
		one := placed
		one.ID, one.Version = cluster.NewID(rand.Reader), swarm.Version{}
		many = append(many, cluster.CreateOf(&one))
	}
	if _, err := store.Propose(t.Context(), &cluster.Txn{Time: time.Now(), Changes: many}); err != nil {
		t.Fatal(err)
	}
	req.ID = cluster.NewID(rand.Reader)
	var refused *attachError
	if err := <-ask(t.Context()); !errors.As(err, &refused) || refused.status != http.StatusTooManyRequests {
		t.Errorf("one more than a node may have: %v", err)
	}
}
