package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"
)

// within asks until the answer is nil or time is up, and then returns the last answer. It asks often at first and then
// ever less, so as not to be the load that it waits for.
func within(ctx context.Context, limit time.Duration, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for pause := 25 * time.Millisecond; ; pause = min(pause*5/4, 400*time.Millisecond) {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", limit, err)
		}
	}
}

// eventually waits for a condition, says how long that took, and ends the test when it takes longer than limit.
func eventually(t *testing.T, what string, limit time.Duration, check func() error) time.Duration {
	t.Helper()
	start := time.Now()
	if err := within(t.Context(), limit, check); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return time.Since(start)
}

// answer is what a witness replies.
type answer struct{ Replica, Client, Version, Line string }

// from is the address, without port, that the witness saw.
func (a answer) from() string {
	host, _, _ := net.SplitHostPort(a.Client)
	return host
}

// askLimit is how long a request may take.
const askLimit = 5 * time.Second

// ask sends one HTTP request over a connection of its own.
func ask(ctx context.Context, addr string) (a answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/", nil)
	if err != nil {
		return a, err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return a, fmt.Errorf("%s: %s", addr, resp.Status)
	}
	return a, json.NewDecoder(resp.Body).Decode(&a)
}

// askUDP sends datagrams from one socket until one is answered.
func askUDP(ctx context.Context, addr string) (a answer, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "udp", addr)
	if err != nil {
		return a, err
	}
	defer conn.Close()
	buf := make([]byte, 2048)
	for range 3 {
		if _, err = conn.Write([]byte("who")); err != nil {
			continue
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		var n int
		if n, err = conn.Read(buf); err == nil {
			return a, json.Unmarshal(buf[:n], &a)
		}
	}
	return a, err
}

// talk is a TCP connection to a witness that is kept.
type talk struct {
	conn net.Conn
	in   *bufio.Reader
}

func dialTalk(t *testing.T, addr string) *talk {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &talk{conn: conn, in: bufio.NewReader(conn)}
}

// say sends a line and waits for the answer to it.
func (k *talk) say(line string) (a answer, err error) {
	_ = k.conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintln(k.conn, line); err != nil {
		return a, err
	}
	got, err := k.in.ReadBytes('\n')
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(got, &a); err != nil {
		return a, err
	}
	if a.Line != line {
		return a, fmt.Errorf("asked %q, answered %q", line, a.Line)
	}
	return a, nil
}
