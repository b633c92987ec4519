package lb

import (
	"context"
	"fmt"
	"net"
	"strconv"
)

// Source tells a Balancer which backends there are.
type Source interface {
	// Follow calls set with the complete list of host:port addresses, once at the beginning and again after each change, from
	// one goroutine, until ctx ends. It deals with trouble on its own and keeps what was last set meanwhile; an error
	// that it returns before ctx ends is final and ends the Balancer's Run. Returning nil means that nothing will change.
	Follow(ctx context.Context, set func(backends []string) error) error
}

// Static is a Source whose backends never change.
type Static []string

// Follow sets the list and returns.
func (s Static) Follow(_ context.Context, set func([]string) error) error { return set(s) }

// validBackends checks addresses and drops repetitions, keeping the order.
func validBackends(addresses []string) ([]string, error) {
	seen := make(map[string]bool, len(addresses))
	valid := make([]string, 0, len(addresses))
	for _, a := range addresses {
		host, port, err := net.SplitHostPort(a)
		if err != nil || host == "" {
			return nil, fmt.Errorf("backend %q is not an address such as vm1:80", a)
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, fmt.Errorf("backend %q: port must be a number from 1 to 65535", a)
		}
		if !seen[a] {
			seen[a] = true
			valid = append(valid, a)
		}
	}
	return valid, nil
}
