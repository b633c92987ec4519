package node

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/node/role"
)

const dialTimeout = 2 * time.Second

// managerTransport connects to managers' cluster ports; nodeID may be empty for any manager.
func managerTransport(creds *identity.Store, nodeID string) *http.Transport {
	return &http.Transport{TLSClientConfig: identity.ClientTLS(creds, identity.Manager, nodeID, "http/1.1"), TLSHandshakeTimeout: 5 * time.Second,
		DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext, MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute}
}

// joinRaft has the leader make this node a member of the raft group, or take note of its new address: see [role.Join].
func (n *Node) joinRaft(ctx context.Context, managers func() []protocol.ManagerAddr, join protocol.JoinRequest) (*protocol.JoinResponse, error) {
	return role.Join(ctx, &http.Client{Transport: managerTransport(n.credentials, "")}, managers, join)
}
