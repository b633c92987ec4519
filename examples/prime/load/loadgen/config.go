package loadgen

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Balance says how a user picks the target of its next request.
type Balance int

const (
	// Sticky gives each user one target for life, users taking targets in turn: visitors whose DNS or bookmark
	// names one node.
	Sticky Balance = iota
	// RoundRobin makes each user go through the targets in turn, starting with a different one than its neighbour.
	RoundRobin
)

// ParseBalance reads "sticky" or "round-robin".
func ParseBalance(s string) (Balance, error) {
	for _, b := range []Balance{Sticky, RoundRobin} {
		if s == b.String() {
			return b, nil
		}
	}
	return Sticky, fmt.Errorf("balance must be sticky or round-robin, not %q", s)
}

func (b Balance) String() string {
	if b == RoundRobin {
		return "round-robin"
	}
	return "sticky"
}

// Config describes a crowd. Targets and Users must be set; the rest has the story's values when zero.
type Config struct {
	// Targets are base addresses such as "http://vm1" or "http://10.0.0.1:8000".
	Targets []string
	// Balance says which of them a user asks.
	Balance Balance
	// Users is the size of the crowd, and the limit of requests under way.
	Users int
	// SpawnRate is how many users start each second; 0 starts all at once.
	SpawnRate float64
	// ThinkMin and ThinkMax bound a user's wait between an answer and the next question; both zero means 1 s and 5 s.
	// Negative values in both mean no wait at all, which makes this a benchmark instead of a crowd.
	ThinkMin, ThinkMax time.Duration
	// Timeout ends a request that has no complete answer by then; 0 means 10 s, negative none.
	Timeout time.Duration
	// NewConnections makes every request use a connection of its own. Otherwise users keep theirs alive, as browsers do:
	// a balancer of connections then sees a user only once.
	NewConnections bool
	// Seed makes the questions and waits repeatable.
	Seed uint64
	// FirstPhase names the phase that a run begins with; empty means "load".
	FirstPhase string
	// Live, when set, is called every LiveInterval (1 s when zero) with what happened since the last call. It is called
	// from one goroutine, and delays only the next call when it is slow.
	Live         func(Live)
	LiveInterval time.Duration
	// Transport makes what one user (0..Users-1) sends its requests through; nil means a transport of its own over TCP. If
	// what it returns has a CloseIdleConnections method, that is called when the user leaves.
	Transport func(user int) http.RoundTripper
}

// withDefaults returns the configuration with all values filled in, or says what is wrong with it.
func (c Config) withDefaults() (Config, error) {
	if c.Users < 1 {
		return c, fmt.Errorf("load: %d users: at least 1 is needed", c.Users)
	}
	if len(c.Targets) == 0 {
		return c, errors.New("load: no target: name at least one, such as http://127.0.0.1:8000")
	}
	targets := make([]string, len(c.Targets))
	for i, t := range c.Targets {
		u, err := url.Parse(t)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return c, fmt.Errorf("load: target %q is not an address such as http://127.0.0.1:8000", t)
		}
		targets[i] = strings.TrimRight(t, "/")
	}
	c.Targets = targets
	if c.SpawnRate < 0 {
		return c, fmt.Errorf("load: spawn rate %g is negative", c.SpawnRate)
	}
	if c.ThinkMin == 0 && c.ThinkMax == 0 {
		c.ThinkMin, c.ThinkMax = time.Second, 5*time.Second
	}
	if c.ThinkMin < 0 && c.ThinkMax < 0 {
		c.ThinkMin, c.ThinkMax = 0, 0
	}
	if c.ThinkMin < 0 || c.ThinkMin > c.ThinkMax {
		return c, fmt.Errorf("load: think time from %s to %s is no range", c.ThinkMin, c.ThinkMax)
	}
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	if c.FirstPhase == "" {
		c.FirstPhase = "load"
	}
	if c.LiveInterval <= 0 {
		c.LiveInterval = time.Second
	}
	if c.Transport == nil {
		c.Transport = func(int) http.RoundTripper { return newTransport(c) }
	}
	return c, nil
}

// newTransport is one user's connections, never shared with another user and never through a proxy.
func newTransport(c Config) *http.Transport {
	dialer := &net.Dialer{Timeout: max(c.Timeout, 0)}
	return &http.Transport{
		DialContext:         dialer.DialContext,
		DisableKeepAlives:   c.NewConnections,
		DisableCompression:  true,
		MaxIdleConnsPerHost: 1,
	}
}
