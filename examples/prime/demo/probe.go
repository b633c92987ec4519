package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

const (
	probeInterval = 25 * time.Millisecond
	probeTimeout  = time.Second
	pageTimeout   = 2 * time.Second
	// answerPatience is how long a service that has just been started may take to answer.
	answerPatience = 10 * time.Second
)

// probe connects to each of some addresses at short intervals, and remembers which connections came to nothing, by the
// time they were begun. The kernel of the replica's host accepts a connection, however busy the replica is: what counts
// is whether the mesh led somewhere alive. One that is refused has met a replica that runs but does not listen yet,
// because the service has no health check that would say so.
type probe struct {
	end context.CancelFunc
	all sync.WaitGroup

	mu    sync.Mutex // guards what follows
	died  time.Time  // what is counted from; nothing is before it is known
	begun int
	lost  int           // came to nothing
	last  time.Duration // from died to the beginning of the last of those
	early int           // refused
}

// startProbe begins to connect. The probe ends with ctx or with stop.
func startProbe(ctx context.Context, addresses []string) *probe {
	ctx, end := context.WithCancel(ctx)
	p := &probe{end: end}
	for _, a := range addresses {
		p.all.Go(func() {
			tick := time.NewTicker(probeInterval)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
					p.all.Go(func() { p.connect(ctx, a) })
				}
			}
		})
	}
	return p
}

func (p *probe) connect(ctx context.Context, address string) {
	began := time.Now()
	dialer := net.Dialer{Timeout: probeTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		_ = conn.Close() // nothing was said on it
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.died.IsZero() || began.Before(p.died) {
		return
	}
	p.begun++
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		p.early++
	case err != nil:
		p.lost++
		p.last = max(p.last, began.Sub(p.died))
	}
}

// since says when the failure was that is probed for.
func (p *probe) since(died time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.died = died
}

// stop ends the probe and waits for it.
func (p *probe) stop() {
	p.end()
	p.all.Wait()
}

// recovered is the time from the failure to the beginning of the last connection that came to nothing; zero when none did.
func (p *probe) recovered() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

func fetch(ctx context.Context, client *http.Client, u string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", u, resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// answers waits until an address answers.
func answers(ctx context.Context, u string) error {
	client := &http.Client{Timeout: pageTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	for deadline := time.Now().Add(answerPatience); ; {
		err := fetch(ctx, client, u)
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not as told: %s does not answer: %w", u, err)
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// sleep waits for d or the end of ctx, which it returns.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
