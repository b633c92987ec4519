package lb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"
)

// Mode says what is balanced.
type Mode int

const (
	TCP  Mode = iota // connections
	HTTP             // HTTP/1.1 requests
)

func (m Mode) String() string {
	if m == HTTP {
		return "http"
	}
	return "tcp"
}

// Policy says which of the backends that are up gets the next connection or request.
type Policy int

const (
	// LeastOfTwo draws two backends at random and takes the one with fewer connections (requests in HTTP mode) under way.
	LeastOfTwo Policy = iota
	// RoundRobin takes the backends in turn.
	RoundRobin
)

func (p Policy) String() string {
	if p == RoundRobin {
		return "round-robin"
	}
	return "least-of-two"
}

// ParsePolicy reads "least-of-two" or "round-robin".
func ParsePolicy(s string) (Policy, error) {
	for _, p := range []Policy{LeastOfTwo, RoundRobin} {
		if s == p.String() {
			return p, nil
		}
	}
	return LeastOfTwo, fmt.Errorf("policy must be least-of-two or round-robin, not %q", s)
}

// Check says how backends are watched. Zero values mean the defaults.
type Check struct {
	Interval time.Duration // from the start of one check to the start of the next; 500 ms
	Timeout  time.Duration // of one check; 400 ms, or 2 s when Path is set
	Rise     int           // successes in a row until a backend that is down is up; 2
	Fall     int           // failures in a row until a backend that is up is down; 2
	Path     string        // such as "/healthz": HTTP GET, which must answer 2xx or 3xx; empty for a TCP connection
}

// Config describes a Balancer. Listen or Listener must be set; the rest has defaults.
type Config struct {
	// Listen is the TCP address to listen on, such as ":80".
	Listen string
	// Listener is used instead of Listen when set. Run owns it.
	Listener net.Listener
	// Source tells the backends and their changes. When nil, SetBackends does.
	Source Source

	Mode   Mode
	Policy Policy
	Check  Check

	// DialTimeout is how long one backend may take to accept a connection; 250 ms when zero.
	DialTimeout time.Duration
	// Patience is how long a client is kept waiting for a backend after the first one failed it; 5 s when zero. It spans the
	// time in which a cluster notices a death and reroutes.
	Patience time.Duration
	// PeerTimeout is about how long a backend's machine may be silent on an idle connection until that is given up; 3 s when
	// zero, whole seconds at least.
	PeerTimeout time.Duration
	// Reuse, in HTTP mode, is after about how many requests a connection to a backend is closed and made anew; 50 when
	// zero. A routing mesh behind the backends chooses a replica per connection: connections that lived for ever would leave
	// new replicas without work.
	Reuse int
	// FirstByteTimeout, in HTTP mode, gives up on a backend that has not begun to answer a repeatable request by then and
	// asks another, without marking the slow one down. Zero means to wait for as long as the backend is up.
	FirstByteTimeout time.Duration
	// Grace is how long connections or requests under way may take to finish once Run's context has ended; 10 s when zero,
	// none when negative.
	Grace time.Duration

	// Log gets a line for every change of a backend's state; nil means silence.
	Log *slog.Logger
	// Dial connects to backends; nil means a net.Dialer that probes idle connections as PeerTimeout says.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Seed makes LeastOfTwo repeatable; zero means a random one.
	Seed uint64
}

// withDefaults returns the configuration with all values filled in, or says what is wrong with it.
func (c Config) withDefaults() (Config, error) {
	if c.Listen == "" && c.Listener == nil {
		return c, errors.New("load balancer: no address to listen on: give one such as :80")
	}
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{
		{&c.DialTimeout, 250 * time.Millisecond},
		{&c.Patience, 5 * time.Second},
		{&c.PeerTimeout, 3 * time.Second},
		{&c.Grace, 10 * time.Second},
		{&c.Check.Interval, 500 * time.Millisecond},
		{&c.Check.Timeout, c.Check.defaultTimeout()},
	} {
		if *d.value == 0 {
			*d.value = d.fallback
		}
	}
	if c.DialTimeout < 0 || c.Patience < 0 || c.PeerTimeout < 0 || c.FirstByteTimeout < 0 || c.Check.Interval < 0 || c.Check.Timeout < 0 {
		return c, errors.New("load balancer: a timeout or interval is negative")
	}
	if c.Check.Rise == 0 {
		c.Check.Rise = 2
	}
	if c.Check.Fall == 0 {
		c.Check.Fall = 2
	}
	if c.Reuse == 0 {
		c.Reuse = 50
	}
	if c.Reuse < 0 {
		return c, errors.New("load balancer: reuse must be at least 1")
	}
	if c.Check.Rise < 0 || c.Check.Fall < 0 {
		return c, errors.New("load balancer: rise and fall must be at least 1")
	}
	if c.Check.Path != "" && !strings.HasPrefix(c.Check.Path, "/") {
		return c, fmt.Errorf("load balancer: check path %q must begin with a slash", c.Check.Path)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Dial == nil {
		dialer := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: c.PeerTimeout / 3, Interval: c.PeerTimeout / 3, Count: 3,
		}}
		c.Dial = dialer.DialContext
	}
	return c, nil
}

func (c Check) defaultTimeout() time.Duration {
	if c.Path != "" {
		return 2 * time.Second
	}
	return 400 * time.Millisecond
}
