package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

const (
	// attachLimit is how long a container waits for its place on a network (swarm-semantics.md, 5.6).
	attachLimit = 20 * time.Second
	// leaderPatience is how long a leader is looked for meanwhile; an election takes 1 to 2 s.
	leaderPatience = 5 * time.Second
)

// Attached is a place for one container on this node's part of a network of the swarm.
type Attached struct {
	// Network is the engine's name of the network.
	Network string
	// Address is the container's.
	Address netip.Addr
	// Resolver is where the container finds the names of the network; invalid on a node without a name server.
	Resolver netip.Addr
	// Done says that the container is there, or will never be, in which case the place is given up. It must be called.
	Done func()
}

// AttachError is the managers' refusal to attach a container.
type AttachError struct {
	// Status is the HTTP status: 404 where the network is none of the swarm, 403 where it is not for containers of people's
	// own.
	Status int
	Text   string
}

func (e *AttachError) Error() string { return e.Text }

// StatusCode is the HTTP status.
func (e *AttachError) StatusCode() int { return e.Status }

// Attach asks the cluster for a place on a network for a container of this node that belongs to no service, and makes
// the engine's network. The request's ID is the agent's to choose. The place is held until the engine has no container
// with the address any more, at least until Done. A refusal is an [*AttachError].
func (a *Agent) Attach(ctx context.Context, req protocol.AttachRequest) (*Attached, error) {
	if a.cfg.Mesh == nil {
		return nil, &AttachError{http.StatusNotImplemented, "this node has no data plane, so that its containers cannot reach networks of the swarm"}
	}
	ctx, cancel := context.WithTimeout(ctx, attachLimit)
	defer cancel()
	req.ID = cluster.NewID(rand.Reader)
	a.attachments.begin(req.ID)
	at, err := a.attach(ctx, req)
	if err != nil {
		a.attachments.settle(req.ID)
		return nil, err
	}
	at.Done = func() { a.attachments.settle(req.ID) }
	return at, nil
}

// settleLimit bounds how long those who removed containers wait until the managers know.
const settleLimit = 2 * time.Second

// SettleAttachments waits until the managers have taken back the places of containers that the engine does not have any
// more, so that who removed one can go on and remove the network. It gives up after a moment: the places are taken back
// all the same.
func (a *Agent) SettleAttachments(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	var ending []*runner
	for _, id := range a.attachments.gone(ctx) {
		if r := a.worker.runnerOf(id); r != nil {
			ending = append(ending, r)
		}
	}
	a.attachments.look()
	for _, r := range ending {
		select {
		case <-r.done:
		case <-ctx.Done():
		}
	}
}

func (a *Agent) attach(ctx context.Context, req protocol.AttachRequest) (*Attached, error) {
	if err := a.askForPlace(ctx, req); err != nil {
		return nil, err
	}
	r, err := a.worker.await(ctx, req.ID)
	if errors.Is(err, errNoPart) {
		return nil, fmt.Errorf("attaching to network failed: %w", err) // no managers' logs say more
	}
	if err != nil {
		return nil, fmt.Errorf("attaching to network failed, make sure your network options are correct and check manager logs: %w", err)
	}
	place := r.ctl.(*attachment)
	name, gateway, _ := place.part()
	at := &Attached{Network: name, Address: place.address()}
	if a.cfg.Names != nil {
		at.Resolver = gateway.Addr()
	}
	return at, nil
}

// errTakenBack says that the managers gave a place and took it away before it could be used.
var errTakenBack = errors.New("the managers have taken the place on the network back")

// errNoPart says that there is a place, and what keeps this node's engine from having the network.
var errNoPart = errors.New("this node's part of the network could not be made")

// await gives the runner of an attachment once its network is made.
func (w *worker) await(ctx context.Context, taskID string) (*runner, error) {
	trouble := "" // what the node tries again and again
	for {
		w.mu.Lock()
		r, changed := w.tasks[taskID], w.changed
		w.mu.Unlock()
		if r != nil {
			r.mu.Lock()
			st, leaving := r.status, r.leaving
			changed, trouble = r.moved, st.Err
			r.mu.Unlock()
			switch {
			case leaving:
				return nil, errTakenBack
			case cluster.Terminal(st.State):
				return nil, fmt.Errorf("%w: %s", errNoPart, st.Err)
			case !cluster.Before(st.State, swarm.TaskStateReady):
				return r, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if err := context.Cause(ctx); trouble == "" || !errors.Is(err, context.DeadlineExceeded) {
				return nil, err
			}
			return nil, fmt.Errorf("%w: %s", errNoPart, trouble)
		}
	}
}

// askForPlace asks the leader until it has an answer. Asking twice for the same does no harm.
func (a *Agent) askForPlace(ctx context.Context, req protocol.AttachRequest) error {
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("attach to network %s: %w", req.Network, err)
	}
	deadline := time.Now().Add(leaderPatience)
	for {
		errs := []error{errors.New("no manager is known")}
		addrs, _ := a.candidates()
		for i := 0; i < len(addrs); i++ {
			err := a.postAttachment(ctx, addrs[i], body)
			if _, refused := errors.AsType[*AttachError](err); err == nil || refused {
				return err
			}
			if nl, ok := errors.AsType[*notLeader](err); ok && nl.leader != "" && nl.leader != addrs[i] && i < maxAsked {
				addrs = append(addrs, nl.leader)
			}
			errs[0] = err
		}
		if !time.Now().Before(deadline) || !pauseFor(ctx, 2*minReconnect) {
			return fmt.Errorf("attach to network %s: %w", req.Network, errors.Join(errs...))
		}
	}
}

// maxAsked bounds how many managers are asked in one round, however much they disagree about who leads.
const maxAsked = 16

// postAttachment asks one manager.
func (a *Agent) postAttachment(ctx context.Context, addr string, body []byte) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, connectLimit)
			defer cancel()
			return a.cfg.Dial(ctx, addr)
		}}}
	// The connection is encrypted by whoever dials.
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+protocol.PathAttach, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("ask manager %s: %w", addr, err)
	}
	post.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(post)
	if err != nil {
		return fmt.Errorf("ask manager %s: %w", addr, err)
	}
	defer resp.Body.Close()
	var said struct{ Message string }
	_ = json.NewDecoder(io.LimitReader(resp.Body, maxRefusal)).Decode(&said)
	switch {
	case resp.StatusCode == http.StatusNoContent:
		return nil
	case resp.StatusCode == http.StatusMisdirectedRequest:
		return &notLeader{addr: addr, leader: resp.Header.Get(protocol.HeaderLeader)}
	case resp.StatusCode == http.StatusServiceUnavailable:
		return fmt.Errorf("manager %s: %s", addr, said.Message)
	}
	return &AttachError{resp.StatusCode, said.Message}
}
