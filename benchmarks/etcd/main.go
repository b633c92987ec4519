// Command etcd measures committed updates a second of etcd's own server, embedded, for comparison with package
// raftstore: 1 KB values, every commit on disk, the clients calling the server in this process (no gRPC between them).
//
// It is a module of its own, so that what etcd's server links is no part of miniswarm.
//
//	go run . -members 3 -clients 1,16,256 -seconds 3
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"
)

// point is one measurement, as package main of the benchmarks reads it.
type point struct {
	Clients   int
	PerSecond float64
	P50       time.Duration
	P99       time.Duration
	CPUMicros float64 // of processor time an update
}

func main() {
	members := flag.Int("members", 3, "how many `members`, all in this process")
	clients := flag.String("clients", "1,16,256", "how many `clients` at once, one measurement each")
	seconds := flag.Float64("seconds", 3, "length of a measurement in `seconds`")
	secure := flag.Bool("tls", true, "TLS between the members, as raftstore has")
	dir := flag.String("dir", "", "`directory` for the data, on a disk; a temporary one by default")
	flag.Parse()
	if err := run(*members, *clients, *seconds, *secure, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "etcd:", err)
		os.Exit(1)
	}
}

func run(members int, clients string, seconds float64, secure bool, dir string) (err error) {
	tmp, err := os.MkdirTemp(dir, "miniswarm-bench-etcd-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	group, err := start(members, secure, tmp)
	if err != nil {
		return err
	}
	defer func() {
		for _, e := range group {
			e.Close()
		}
	}()
	leader := group[0]
	for _, e := range group {
		if e.Server.Leader() == e.Server.MemberID() {
			leader = e
		}
	}
	var points []point
	for _, text := range strings.Split(clients, ",") {
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("-clients: %w", err)
		}
		p, err := measure(leader, n, time.Duration(seconds*float64(time.Second)))
		if err != nil {
			return err
		}
		points = append(points, p)
	}
	return json.NewEncoder(os.Stdout).Encode(points)
}

// start runs the members and waits until all serve.
func start(members int, secure bool, dir string) ([]*embed.Etcd, error) {
	scheme := "http"
	if secure && members > 1 {
		scheme = "https"
	}
	var configs []*embed.Config
	var initial []string
	for i := range members {
		c := embed.NewConfig()
		c.Name, c.Dir, c.LogLevel = fmt.Sprint("m", i), filepath.Join(dir, fmt.Sprint(i)), "fatal"
		c.PeerAutoTLS, c.SelfSignedCertValidity = scheme == "https", 1
		peer, err := free(scheme)
		if err != nil {
			return nil, err
		}
		client, err := free("http")
		if err != nil {
			return nil, err
		}
		c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
		c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
		initial = append(initial, c.Name+"="+peer.String())
		configs = append(configs, c)
	}
	var group []*embed.Etcd
	for _, c := range configs {
		c.InitialCluster = strings.Join(initial, ",")
		e, err := embed.StartEtcd(c)
		if err != nil {
			return nil, fmt.Errorf("start %s: %w", c.Name, err)
		}
		group = append(group, e)
	}
	for _, e := range group {
		select {
		case <-e.Server.ReadyNotify():
		case <-time.After(time.Minute):
			return nil, errors.New("no leader within a minute")
		}
	}
	return group, nil
}

func free(scheme string) (url.URL, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return url.URL{}, err
	}
	defer l.Close()
	return url.URL{Scheme: scheme, Host: l.Addr().String()}, nil
}

// measure lets n clients update a key each, again and again.
func measure(leader *embed.Etcd, n int, length time.Duration) (point, error) {
	ctx := context.Background()
	value := make([]byte, 1024)
	latencies, failures := make([][]time.Duration, n), make([]error, n)
	var work sync.WaitGroup
	begun, cpu := time.Now(), processorTime()
	for i := range n {
		key := fmt.Appendf(nil, "object%020d", i)
		work.Go(func() {
			for t := time.Now(); t.Sub(begun) < length; {
				if _, err := leader.Server.Put(ctx, &pb.PutRequest{Key: key, Value: value}); err != nil {
					failures[i] = err
					return
				}
				now := time.Now()
				latencies[i] = append(latencies[i], now.Sub(t))
				t = now
			}
		})
	}
	work.Wait()
	took, used := time.Since(begun), processorTime()-cpu
	if err := errors.Join(failures...); err != nil {
		return point{}, err
	}
	all := slices.Sorted(slices.Values(slices.Concat(latencies...)))
	return point{n, float64(len(all)) / took.Seconds(), all[len(all)/2], all[len(all)*99/100], float64(used.Microseconds()) / float64(len(all))}, nil
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
