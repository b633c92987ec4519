package role

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/identity"
)

// Certifier is what the manager on this machine does for its own certificate.
type Certifier interface {
	Leader() (self bool, nodeID, addr string)
	// RenewHere certifies a key as the leader does.
	RenewHere(ctx context.Context, csrPEM []byte) (identity.IssueResponse, error)
	// RenewAlone certifies a key by what this manager has on disk, where nobody can come to lead because all certificates have expired.
	RenewAlone(csrPEM []byte) (identity.IssueResponse, error)
}

// Renewal says who may certify a key for this node.
type Renewal struct {
	Client *identity.Client
	Store  *identity.Store // this node's credentials
	Own    Certifier       // the manager on this machine, nil for none
	NodeID string          // this node, which is not asked
	Addr   string          // where others reach it
	// Managers are those that are known, and Leader is the address of the one with which this node had its last session, empty before the
	// first. It need not be among them: what this machine's log says may be of before a recovery, or of before its own removal.
	Managers []protocol.ManagerAddr
	Leader   string
	Expired  bool // this node's certificate has expired
}

// Certify has a key certified: by this machine's manager if it leads, else by any manager that can be reached. A manager
// whose certificate has expired may find that those of all others have expired as well, so that nobody leads.
func (r Renewal) Certify(ctx context.Context, csrPEM []byte) (identity.IssueResponse, error) {
	if r.Own != nil {
		if self, _, _ := r.Own.Leader(); self {
			return r.Own.RenewHere(ctx, csrPEM)
		}
	}
	var errs []error
	refused := false
	for _, a := range r.others() {
		resp, err := r.Client.RenewCertificate(ctx, a.Addr, r.Store, csrPEM)
		if err == nil {
			return resp, nil
		}
		errs = append(errs, err)
		if answer, ok := errors.AsType[*identity.StatusError](err); ok && answer.Status < 500 {
			refused = true
		}
	}
	if r.Own == nil || refused || !r.Expired {
		if len(errs) == 0 {
			errs = append(errs, errors.New("no manager is known that could renew the certificate"))
		}
		return identity.IssueResponse{}, errors.Join(errs...)
	}
	resp, err := r.Own.RenewAlone(csrPEM)
	if err != nil {
		err = errors.Join(append(errs, err)...)
	}
	return resp, err
}

// others are the managers to ask, in the order in which to ask them. The leader answers for itself; another manager may be the one whose
// machine is dead. This node's own would only point to the leader.
func (r Renewal) others() []protocol.ManagerAddr {
	all := slices.DeleteFunc(slices.Clone(r.Managers), func(a protocol.ManagerAddr) bool { return a.NodeID == r.NodeID })
	leads := func(a protocol.ManagerAddr) bool { return a.Addr == r.Leader }
	if r.Leader != "" && r.Leader != r.Addr && !slices.ContainsFunc(all, leads) {
		all = append(all, protocol.ManagerAddr{Addr: r.Leader})
	}
	place := func(a protocol.ManagerAddr) int {
		if leads(a) {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(all, func(a, b protocol.ManagerAddr) int { return cmp.Compare(place(a), place(b)) })
	return all
}
