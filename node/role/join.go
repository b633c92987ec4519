package role

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/identity"
)

const (
	joinPatience = 15 * time.Second
	joinPause    = 200 * time.Millisecond
	// joinAttempt bounds what one manager may take, so that one that hangs does not use up the patience for all.
	joinAttempt = 5 * time.Second
)

// Join asks the leader, found by way of any of the managers, to make this node a member of the raft group or to take
// note of its new address, for 15 seconds at the most. An election in between is waited out, and managers is asked again in each round. The
// client proves who this node is; its idle connections are closed afterwards. A refusal is an [identity.StatusError].
func Join(ctx context.Context, client *http.Client, managers func() []protocol.ManagerAddr, join protocol.JoinRequest) (*protocol.JoinResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, joinPatience)
	defer cancel()
	defer client.CloseIdleConnections()
	body, err := json.Marshal(join)
	if err != nil {
		return nil, err
	}
	last := errors.New("no other manager is known")
	for {
		for _, m := range managers() {
			answer, leader, err := askMembership(ctx, client, m.Addr, body)
			if answer == nil && leader != "" {
				answer, _, err = askMembership(ctx, client, leader, body)
			}
			if answer != nil {
				return answer, nil
			}
			var final *identity.StatusError
			if errors.As(err, &final) && final.Status < 500 {
				return nil, err
			}
			last = err
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), last)
		case <-time.After(joinPause):
		}
	}
}

// askMembership sends one request. A manager that does not lead names the leader instead of answering.
func askMembership(ctx context.Context, client *http.Client, addr string, body []byte) (answer *protocol.JoinResponse, leader string, err error) {
	ctx, cancel := context.WithTimeout(ctx, joinAttempt)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+protocol.PathMembers, bytes.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, "", fmt.Errorf("ask manager %s: %w", addr, err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		answer = new(protocol.JoinResponse)
		if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
			return nil, "", fmt.Errorf("answer of manager %s: %w", addr, err)
		}
		return answer, "", nil
	case http.StatusMisdirectedRequest:
		return nil, resp.Header.Get(protocol.HeaderLeader), fmt.Errorf("manager %s does not lead", addr)
	}
	var refusal struct{ Message string }
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if json.Unmarshal(raw, &refusal) != nil {
		refusal.Message = string(raw)
	}
	return nil, "", &identity.StatusError{Status: resp.StatusCode, Message: fmt.Sprintf("manager %s: %s", addr, refusal.Message)}
}
