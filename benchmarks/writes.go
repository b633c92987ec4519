package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/raftstore"
)

// writes is one group of members and what clients do to it. The module benchmarks/etcd does the same to etcd.
type writes struct {
	Members int
	Clients []int
	Seconds float64
	Dir     string
}

// point is one measurement.
type point struct {
	Clients   int
	PerSecond float64
	P50, P99  time.Duration
	CPUMicros float64 // of processor time an update
}

func writesFlags(f *flag.FlagSet) func(context.Context, *table) error {
	members := f.String("members", "1,3", "sizes of the groups")
	clients := f.String("clients", "1,16,256", "how many `clients` at once")
	seconds := f.Float64("seconds", 3, "length of one measurement in `seconds`")
	rounds := f.Int("rounds", 3, "how many `times`, the systems taking turns")
	dir := f.String("dir", "", "`directory` on the disk to measure; the system's temporary one by default")
	etcdTLS := f.Bool("etcd-tls", true, "TLS between etcd's members, as between ours")
	return func(ctx context.Context, out *table) (err error) {
		counts, err := numbers(*clients)
		if err != nil {
			return err
		}
		groups, err := numbers(*members)
		if err != nil {
			return err
		}
		etcd, remove, err := buildEtcd(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, remove()) }()
		// By members, clients and system: the measurements of all rounds.
		all := map[string][]point{}
		key := func(system string, members, clients int) string { return fmt.Sprint(system, members, ",", clients) }
		for range *rounds {
			for _, n := range groups {
				var ours, theirs []point
				if err := inChild(ctx, "writes", writes{n, counts, *seconds, *dir}, &ours); err != nil {
					return err
				}
				cmd := exec.CommandContext(ctx, etcd, "-members", strconv.Itoa(n), "-clients", *clients, "-seconds", fmt.Sprint(*seconds), "-dir", *dir, fmt.Sprintf("-tls=%v", *etcdTLS))
				if err := outputOf(cmd, &theirs); err != nil {
					return err
				}
				for i, c := range counts {
					all[key("ours", n, c)] = append(all[key("ours", n, c)], ours[i])
					all[key("etcd", n, c)] = append(all[key("etcd", n, c)], theirs[i])
				}
			}
		}
		for _, n := range groups {
			for _, c := range counts {
				ours, theirs := middle(all[key("ours", n, c)]), middle(all[key("etcd", n, c)])
				out.add(fmt.Sprintf("%d members, %d clients", n, c), "miniswarm "+ours.String(), "etcd "+theirs.String(), fmt.Sprintf("%.2fx etcd", ours.PerSecond/theirs.PerSecond))
			}
		}
		return nil
	}
}

func (p point) String() string {
	return fmt.Sprintf("%.0f/s (p50 %.2f ms, p99 %.1f ms, cpu %.0f µs)", p.PerSecond, p.P50.Seconds()*1e3, p.P99.Seconds()*1e3, p.CPUMicros)
}

// middle is the round with the median rate.
func middle(rounds []point) point {
	sorted := slices.SortedFunc(slices.Values(rounds), func(a, b point) int { return int(a.PerSecond - b.PerSecond) })
	return sorted[len(sorted)/2]
}

func numbers(list string) ([]int, error) {
	var out []int
	for _, text := range strings.Split(list, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q is no list of numbers such as 1,16,256", list)
		}
		out = append(out, n)
	}
	return out, nil
}

// buildEtcd builds the module benchmarks/etcd, which is in the source tree only.
func buildEtcd(ctx context.Context) (binary string, remove func() error, err error) {
	if _, err := os.Stat("benchmarks/etcd/go.mod"); err != nil {
		return "", nil, fmt.Errorf("the peer is built from source; run this in the repository: %w", err)
	}
	dir, err := os.MkdirTemp("", "miniswarm-bench-")
	if err != nil {
		return "", nil, err
	}
	remove = func() error { return os.RemoveAll(dir) }
	binary = filepath.Join(dir, "etcd")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", binary, ".")
	cmd.Dir, cmd.Env = "benchmarks/etcd", append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		return "", nil, errors.Join(fmt.Errorf("build etcd's server: %w\n%s", err, said), remove())
	}
	return binary, remove, nil
}

func writesChild(ctx context.Context, args []byte) (_ any, err error) {
	w, err := argsOf[writes](args)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(w.Dir, "miniswarm-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	g, err := newGroup(ctx, w.Members, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.end()) }()
	var points []point
	for _, n := range w.Clients {
		p, err := measureWrites(ctx, g.members[0], n, time.Duration(w.Seconds*float64(time.Second)))
		if err != nil {
			return nil, err
		}
		points = append(points, p)
	}
	return points, nil
}

// measureWrites lets n clients update an object of 1 KB each, again and again.
func measureWrites(ctx context.Context, leader *raftstore.Store, n int, length time.Duration) (point, error) {
	changes := make([]cluster.Change, n)
	for i := range changes {
		o := &cluster.Config{}
		o.ID = fmt.Sprintf("object%020d-%d", i, n)
		o.Spec.Name, o.Spec.Data = o.ID, make([]byte, 1024)
		if _, err := leader.Propose(ctx, &cluster.Txn{Changes: []cluster.Change{cluster.CreateOf(o)}}); err != nil {
			return point{}, err
		}
		changes[i] = cluster.UpdateOf(o)
		changes[i].Version = 0
	}
	latencies, failures := make([][]time.Duration, n), make([]error, n)
	var work sync.WaitGroup
	begun, cpu := time.Now(), processorTime()
	for i, c := range changes {
		work.Go(func() {
			for t := time.Now(); t.Sub(begun) < length; {
				if _, err := leader.Propose(ctx, &cluster.Txn{Changes: []cluster.Change{c}}); err != nil {
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

// group is several members in this process that talk over TLS on the loopback. The first one leads.
type group struct {
	dir     string
	ca      *authority
	members []*raftstore.Store
	stops   []func() error
}

func newGroup(ctx context.Context, n int, dir string) (_ *group, err error) {
	ca, err := newAuthority()
	if err != nil {
		return nil, err
	}
	g := &group{dir: dir, ca: ca}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.end())
		}
	}()
	for range n {
		if err := g.join(ctx); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// join adds a member, the first of all or one more, and waits until it votes.
func (g *group) join(ctx context.Context) (err error) {
	i := len(g.members)
	cfg := raftstore.Config{Dir: filepath.Join(g.dir, fmt.Sprint(i)), NodeID: fmt.Sprint("node", i), Bootstrap: i == 0, Key: make([]byte, raftstore.KeySize)}
	if cfg.Addr, err = freeAddr(); err != nil {
		return err
	}
	if i > 0 {
		m, err := g.members[0].AddMember(ctx, protocol.Member{NodeID: cfg.NodeID, Addr: cfg.Addr})
		if err != nil {
			return err
		}
		cfg.RaftID, cfg.Peers = m.RaftID, g.members[0].Status().Members
	}
	if err := g.start(ctx, cfg, g.ca); err != nil {
		return err
	}
	return g.await(ctx, i+1)
}

// await waits until that many members vote, and the first one leads.
func (g *group) await(ctx context.Context, voters int) error {
	if err := leads(ctx, g.members[0]); err != nil {
		return err
	}
	for {
		n := 0
		for _, m := range g.members[0].Status().Members {
			if !m.Learner {
				n++
			}
		}
		if n == voters {
			return nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (g *group) start(ctx context.Context, cfg raftstore.Config, ca *authority) error {
	certificate, err := ca.issue(cfg.NodeID)
	if err != nil {
		return err
	}
	cfg.Transport = ca.transport(certificate)
	store, err := raftstore.Open(cfg)
	if err != nil {
		return err
	}
	server, err := ca.serve(cfg.Addr, certificate, store.Handler())
	if err != nil {
		return errors.Join(err, store.Close())
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- store.Run(running) }()
	g.members = append(g.members, store)
	g.stops = append(g.stops, func() error {
		stop()
		return errors.Join(<-ended, server.Close())
	})
	return nil
}

// end stops the members, the leader last.
func (g *group) end() error {
	var errs []error
	for _, stop := range slices.Backward(g.stops) {
		errs = append(errs, stop())
	}
	return errors.Join(errs...)
}
