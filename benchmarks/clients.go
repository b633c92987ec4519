package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"syscall"
	"time"
)

const (
	// askEvery is the time between two requests of one client; each has clientsPerNode.
	askEvery       = 10 * time.Millisecond
	clientsPerNode = 4
	// askTimeout ends a request that met a dead replica; later means lost all the same.
	askTimeout = 2 * time.Second
	// stalled is how long only a request takes whose first packet was lost: TCP sends another after a second.
	stalled = 900 * time.Millisecond
)

// crowd are clients that ask without pause, half of them over a new connection for each request, half over one that
// they keep as long as it works.
type crowd struct {
	running sync.WaitGroup
	mu      sync.Mutex
	asked   []request // guarded by mu
}

type request struct {
	begun, ended time.Time
	fresh        bool // over a connection of its own
	err          error
}

// ask lets clients ask an address until ctx ends.
func (c *crowd) ask(ctx context.Context, url string) {
	for i := range clientsPerNode {
		fresh := i%2 == 0
		transport := &http.Transport{DisableKeepAlives: fresh, MaxIdleConnsPerHost: 1}
		client := &http.Client{Transport: transport, Timeout: askTimeout}
		c.running.Go(func() {
			defer transport.CloseIdleConnections()
			tick := time.NewTicker(askEvery)
			defer tick.Stop()
			for ctx.Err() == nil {
				r := request{begun: time.Now(), fresh: fresh}
				r.err = get(ctx, client, url)
				r.ended = time.Now()
				if ctx.Err() != nil {
					return
				}
				c.mu.Lock()
				c.asked = append(c.asked, r)
				c.mu.Unlock()
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
}

func get(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}

// losses is what clients lost when something failed.
type losses struct {
	Asked, Before int // requests in all, and how many failed that ended before anything was lost
	// Fresh and Kept are the requests that failed or stalled, by the kind of their connection; the times are when the
	// last of each began, from the failure on.
	Fresh, Kept         int
	LastFresh, LastKept time.Duration
	// Refused are connections that a living host refused: the replicas of the benchmark have no health check, so that
	// new ones count as running a moment before they listen.
	Refused int
}

// since counts what was lost from a moment on.
func (c *crowd) since(failed time.Time) (l losses) {
	l.Asked = len(c.asked)
	for _, r := range c.asked {
		switch {
		case r.err == nil && r.ended.Sub(r.begun) < stalled:
		case r.ended.Before(failed):
			l.Before++
		case errors.Is(r.err, syscall.ECONNREFUSED):
			l.Refused++
		case r.fresh:
			l.Fresh++
			l.LastFresh = max(l.LastFresh, r.begun.Sub(failed))
		default:
			l.Kept++
			l.LastKept = max(l.LastKept, r.begun.Sub(failed))
		}
	}
	return l
}

func (l losses) String() string {
	return fmt.Sprintf("%d requests; lost or stalled: %d on new connections, the last begun %.2f s after the failure; %d on kept ones, the last begun %.2f s after; %d refused by replicas that did not listen yet; %d before it",
		l.Asked, l.Fresh, l.LastFresh.Seconds(), l.Kept, l.LastKept.Seconds(), l.Refused, l.Before)
}

// failed counts the requests so far that failed, and gives one reason.
func (c *crowd) failed() (asked, failed int, example error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.asked {
		if r.err != nil {
			failed, example = failed+1, r.err
		}
	}
	return len(c.asked), failed, example
}
