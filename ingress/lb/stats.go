package lb

import "time"

// Stats is a Balancer at one moment. It marshals to JSON.
type Stats struct {
	Mode       string         `json:"mode"`
	Policy     string         `json:"policy"`
	Clients    int64          `json:"clients"`     // connections accepted so far
	Active     int64          `json:"active"`      // connections of clients open now
	Requests   int64          `json:"requests"`    // so far; 0 in TCP mode
	Resent     int64          `json:"resent"`      // requests sent again after a backend failed them
	TurnedAway int64          `json:"turned_away"` // connections or requests for which no backend did
	Backends   []BackendStats `json:"backends"`    // in their order
}

// BackendStats is one backend at one moment.
type BackendStats struct {
	Address         string    `json:"address"`
	State           string    `json:"state"` // unknown, up or down
	Since           time.Time `json:"since"`
	LastError       string    `json:"last_error,omitempty"` // why it is down, or what failed last
	Active          int64     `json:"active"`               // connections (requests in HTTP mode) under way
	Total           int64     `json:"total"`                // given to it so far, failed attempts included
	ConnectFailures int64     `json:"connect_failures"`
	CheckFailures   int64     `json:"check_failures"`
	Sent            int64     `json:"sent_bytes"`     // to it, by connections that have ended; TCP mode only
	Received        int64     `json:"received_bytes"` // from it, likewise
}

// Stats returns the current counts. They are read one after the other, while work goes on.
func (b *Balancer) Stats() Stats {
	s := Stats{
		Mode: b.cfg.Mode.String(), Policy: b.cfg.Policy.String(),
		Clients: b.clients.Load(), Active: b.active.Load(),
		Requests: b.requests.Load(), Resent: b.resent.Load(), TurnedAway: b.turnedAway.Load(),
		Backends: []BackendStats{},
	}
	for _, be := range b.pool.list() {
		s.Backends = append(s.Backends, be.stats())
	}
	return s
}

func (be *backend) stats() BackendStats {
	be.mu.Lock()
	defer be.mu.Unlock()
	s := BackendStats{
		Address: be.address, State: be.health.state.String(), Since: be.health.since,
		Active: be.active.Load(), Total: be.total.Load(),
		ConnectFailures: be.connectFailures.Load(), CheckFailures: be.checkFailures.Load(),
		Sent: be.sent.Load(), Received: be.received.Load(),
	}
	if be.health.lastErr != nil {
		s.LastError = be.health.lastErr.Error()
	}
	return s
}
