package manager

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/identity"
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
