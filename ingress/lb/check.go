package lb

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// watchers keeps one watcher per backend, following the pool, until ctx ends.
func (b *Balancer) watchers(ctx context.Context) {
	running := map[*backend]*watcher{}
	for {
		current := map[*backend]bool{}
		for _, be := range b.pool.list() {
			current[be] = true
			if running[be] == nil {
				running[be] = startWatcher(ctx, func(ctx context.Context) { b.watch(ctx, be) })
			}
		}
		for be, w := range running {
			if !current[be] {
				w.stop()
				delete(running, be)
			}
		}
		select {
		case <-b.changed:
		case <-ctx.Done():
			for _, w := range running {
				w.stop()
			}
			return
		}
	}
}

// watcher is a goroutine of ours that can be stopped and waited for.
type watcher struct {
	cancel context.CancelFunc
	ended  chan struct{}
}

func startWatcher(ctx context.Context, run func(context.Context)) *watcher {
	ctx, cancel := context.WithCancel(ctx)
	w := &watcher{cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		run(ctx)
	}()
	return w
}

func (w *watcher) stop() {
	w.cancel()
	<-w.ended
}

// watch checks one backend until ctx ends. A first failure is followed up quickly: a node that died is known after one
// interval and Fall timeouts, not Fall intervals.
func (b *Balancer) watch(ctx context.Context, be *backend) {
	check := b.cfg.Check
	for {
		began := time.Now()
		err := b.probe(ctx, be.address)
		if ctx.Err() != nil {
			return
		}
		wait := check.Interval
		if be.checked(err) {
			wait /= 10
		}
		timer := time.NewTimer(max(0, wait-time.Since(began)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// probe checks an address once, as the configuration says.
func (b *Balancer) probe(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.Check.Timeout)
	defer cancel()
	conn, err := b.cfg.Dial(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	if b.cfg.Check.Path == "" {
		return closeAtOnce(conn)
	}
	return probeHTTP(ctx, conn, address, b.cfg.Check.Path)
}

// closeAtOnce ends a connection with a reset: nothing was said on it, and checks of many backends every half second should
// leave no closed connections waiting in the kernel.
func closeAtOnce(conn net.Conn) error {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // at worst it is closed the ordinary way
	}
	_ = conn.Close() // it was made, which is all that was asked
	return nil
}

// probeHTTP asks for path on conn, which it closes.
func probeHTTP(ctx context.Context, conn net.Conn, address, path string) error {
	defer conn.Close()
	once := &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableKeepAlives: true,
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return fmt.Errorf("check %s: %w", path, err)
	}
	req.Header.Set("User-Agent", "miniswarm-lb-check")
	resp, err := once.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("check %s: %w", path, err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10)) // the status decides
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return fmt.Errorf("check %s: status %s", path, resp.Status)
	}
	return nil
}
