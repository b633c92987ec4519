package main

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/docker/docker/client"
	"github.com/docker/go-connections/sockets"
	"github.com/urfave/cli/v2"
)

// headerStale is what asks a manager for what it knows by itself, and what tells how old that is (docs/api.md).
const headerStale = "Miniswarm-Stale"

const flagStale = "stale"

// looking are the subcommands of Docker's nouns that only read, and take --stale among their own flags.
var looking = []string{"ls", "list", "ps", "inspect", "services", "explain"}

// staleAsked says whether a command of Docker's is to be answered by this manager alone, and gives its words without that flag.
func staleAsked(c *cli.Context, args []string) (bool, []string) {
	stale := c.Bool(flagStale)
	if !slices.Contains(looking, firstWord(args)) {
		return stale, args
	}
	return stale || slices.Contains(args, "--"+flagStale), slices.DeleteFunc(slices.Clone(args), func(a string) bool { return a == "--"+flagStale })
}

// staleTransport asks every question so that the manager answers by itself, and remembers what the last answer said of its age.
type staleTransport struct {
	http.RoundTripper

	mu  sync.Mutex
	age string // guarded by mu
}

func (s *staleTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set(headerStale, "true")
	resp, err := s.RoundTripper.RoundTrip(req)
	if err == nil {
		if age := resp.Header.Get(headerStale); age != "" {
			s.mu.Lock()
			s.age = age
			s.mu.Unlock()
		}
	}
	return resp, err
}

// tell says on w how old the answers were.
func (s *staleTransport) tell(w io.Writer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.age == "" {
		return
	}
	var index uint64
	var age string
	if _, err := fmt.Sscanf(s.age, "index=%d, age=%s", &index, &age); err != nil {
		return
	}
	if age == "unknown" {
		fmt.Fprintf(w, "As this manager knew it (index %d); it has not heard of a leader since it was started.\n", index)
		return
	}
	fmt.Fprintf(w, "As this manager knows it (index %d); it knew of a leader %s s ago.\n", index, age)
}

// newStaleClient gives a client of the daemon at host that is content with what the manager knows.
func newStaleClient(host string) (*client.Client, *staleTransport, error) {
	base := &http.Transport{}
	at, err := client.ParseHostURL(host)
	if err == nil {
		addr := at.Host
		if at.Scheme == "unix" {
			addr = at.Host + at.Path
		}
		err = sockets.ConfigureTransport(base, at.Scheme, addr)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("connect to the daemon at %s: %w", host, err)
	}
	stale := &staleTransport{RoundTripper: base}
	opts := []client.Opt{client.WithHTTPClient(&http.Client{Transport: stale}), client.WithAPIVersionNegotiation(), client.WithUserAgent("miniswarm/" + version)}
	if !strings.HasPrefix(host, "unix:") {
		opts = append(opts, client.WithHost(host))
	}
	cl, err := client.NewClientWithOpts(opts...)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to the daemon at %s: %w", host, err)
	}
	return cl, stale, nil
}
