package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/raftstore"
)

// restart is a manager with a large cluster that takes a snapshot, is started again, and is joined by another.
type restart struct {
	Services, Tasks, Clients int
	Dir                      string
}

type restartResult struct {
	// Before are writes with nothing beside them, Snapshot those while a snapshot is written, Join while a member joins.
	Before, Snapshot, Join writesBeside
	SnapshotBytes          int64
	// Opened is until the store has read its disk, Wrote until the next write is acknowledged, Decided until the leader's loop has
	// looked at everything and rests.
	Opened, Wrote, Decided time.Duration
}

// writesBeside are the writes of some clients while something else went on.
type writesBeside struct {
	Took         time.Duration
	Writes       int
	P99, Longest time.Duration
}

func (w writesBeside) String() string {
	return fmt.Sprintf("%.2f s, %.0f writes/s beside it, p99 %.1f ms, the longest %.1f ms", w.Took.Seconds(), float64(w.Writes)/w.Took.Seconds(), w.P99.Seconds()*1e3, w.Longest.Seconds()*1e3)
}

func restartFlags(f *flag.FlagSet) func(context.Context, *table) error {
	r := restart{}
	f.IntVar(&r.Services, "services", 1000, "how many `services`")
	f.IntVar(&r.Tasks, "tasks", 100_000, "how many `tasks` they have together")
	f.IntVar(&r.Clients, "clients", 16, "how many `clients` write meanwhile")
	f.StringVar(&r.Dir, "dir", "", "`directory` on the disk to measure; the system's temporary one by default")
	return func(ctx context.Context, out *table) error {
		var got restartResult
		if err := inChild(ctx, "restart", r, &got); err != nil {
			return err
		}
		what := fmt.Sprintf("%d services, %d tasks: ", r.Services, r.Tasks)
		out.add(what+fmt.Sprintf("%d clients alone", r.Clients), got.Before.String())
		out.add(what+"a snapshot of "+mib(got.SnapshotBytes)+" is written", got.Snapshot.String())
		out.add(what+"a new manager catches up and votes", got.Join.String())
		out.add(what+"a manager starts again", fmt.Sprintf("disk read after %.2f s, next write after %.2f s, everything looked at after %.2f s", got.Opened.Seconds(), got.Wrote.Seconds(), got.Decided.Seconds()))
		return nil
	}
}

func restartChild(ctx context.Context, args []byte) (_ any, err error) {
	r, err := argsOf[restart](args)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(r.Dir, "miniswarm-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	g, err := newGroup(ctx, 1, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.end()) }()
	if err := r.fill(ctx, g.members[0]); err != nil {
		return nil, err
	}
	var got restartResult
	load := func(until func(context.Context) error) (writesBeside, error) {
		return writeBeside(ctx, g.members[0], r.Clients, until)
	}
	if got.Before, err = load(func(ctx context.Context) error { return sleep(ctx, 2*time.Second) }); err != nil {
		return nil, err
	}
	if got.Snapshot, got.SnapshotBytes, err = r.snapshot(ctx, g.members[0], filepath.Join(dir, "0", "snap")); err != nil {
		return nil, err
	}
	// Its disk at this moment is what a crash would leave.
	crashed := filepath.Join(dir, "crashed")
	if err := os.CopyFS(crashed, os.DirFS(filepath.Join(dir, "0"))); err != nil {
		return nil, err
	}
	if err := r.again(ctx, crashed, &got); err != nil {
		return nil, err
	}
	got.Join, err = load(g.join)
	return got, err
}

// fill makes the cluster, with every task running.
func (r restart) fill(ctx context.Context, store *raftstore.Store) error {
	c := controlOf(store)
	defer c.watch.Close()
	changes := c.readyNodes(100)
	for i := range r.Services {
		changes = append(changes, cluster.CreateOf(c.newService(i, uint64(r.Tasks/r.Services))))
	}
	if err := c.put(ctx, changes); err != nil {
		return err
	}
	if err := c.settle(ctx); err != nil {
		return err
	}
	if n := assigned(store.Snapshot()); n != r.Tasks {
		return fmt.Errorf("%d tasks have a node, want %d", n, r.Tasks)
	}
	if _, err := c.report(ctx); err != nil {
		return err
	}
	return c.settle(ctx)
}

// snapshot has clients write until the store begins a snapshot by itself, and measures those that write while it is written.
func (r restart) snapshot(ctx context.Context, store *raftstore.Store, dir string) (w writesBeside, size int64, err error) {
	before := store.Status().SnapshotIndex
	var from time.Time
	var all []written
	_, err = writeBesideEach(ctx, store, r.Clients, &all, func(ctx context.Context) error {
		for {
			unfinished, err := filepath.Glob(filepath.Join(dir, "*.tmp"))
			switch {
			case err != nil:
				return err
			case len(unfinished) > 0 && from.IsZero():
				from = time.Now()
			case len(unfinished) == 0 && !from.IsZero() && store.Status().SnapshotIndex > before:
				return nil
			}
			if err := sleep(ctx, time.Millisecond); err != nil {
				return err
			}
		}
	})
	if err != nil {
		return w, 0, err
	}
	to := time.Now()
	all = slices.DeleteFunc(all, func(one written) bool { return one.ended.Before(from) })
	files, err := filepath.Glob(filepath.Join(dir, "*.snap"))
	if err != nil || len(files) == 0 {
		return w, 0, fmt.Errorf("no snapshot in %s: %w", dir, err)
	}
	info, err := os.Stat(files[len(files)-1])
	if err != nil {
		return w, 0, err
	}
	return summed(all, to.Sub(from)), info.Size(), nil
}

// again opens what a manager that was alone has left, writes, and looks at everything as a new leader does.
func (r restart) again(ctx context.Context, dir string, got *restartResult) (err error) {
	begun := time.Now()
	store, err := raftstore.Open(raftstore.Config{Dir: dir, NodeID: "node0", Addr: "127.0.0.1:1", Transport: raftstore.Alone(), Key: make([]byte, raftstore.KeySize)})
	if err != nil {
		return err
	}
	got.Opened = time.Since(begun)
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- store.Run(running) }()
	defer func() { stop(); err = errors.Join(err, <-ended) }()
	if err := leads(ctx, store); err != nil {
		return err
	}
	if err := putOne(ctx, store, "again"); err != nil {
		return err
	}
	got.Wrote = time.Since(begun)
	c := controlOf(store)
	defer c.watch.Close()
	if err := c.settle(ctx); err != nil {
		return err
	}
	got.Decided = time.Since(begun)
	return nil
}

func putOne(ctx context.Context, store *raftstore.Store, id string) error {
	o := &cluster.Config{}
	o.ID, o.Spec.Name, o.Spec.Data = id, id, make([]byte, 1024)
	_, err := store.Propose(ctx, &cluster.Txn{Changes: []cluster.Change{cluster.CreateOf(o)}})
	return err
}

type written struct {
	ended time.Time
	took  time.Duration
}

// writeBeside lets clients write until something else is done.
func writeBeside(ctx context.Context, store *raftstore.Store, clients int, beside func(context.Context) error) (writesBeside, error) {
	var all []written
	took, err := writeBesideEach(ctx, store, clients, &all, beside)
	return summed(all, took), err
}

func summed(all []written, took time.Duration) writesBeside {
	if len(all) == 0 {
		return writesBeside{Took: took}
	}
	times := make([]time.Duration, len(all))
	for i, one := range all {
		times[i] = one.took
	}
	slices.Sort(times)
	return writesBeside{took, len(all), times[len(times)*99/100], times[len(times)-1]}
}

func writeBesideEach(ctx context.Context, store *raftstore.Store, clients int, all *[]written, beside func(context.Context) error) (time.Duration, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var mu sync.Mutex
	var work sync.WaitGroup
	failures := make([]error, clients)
	run := time.Now().UnixNano()
	done := make(chan struct{})
	for i := range clients {
		work.Go(func() {
			o := &cluster.Config{}
			o.ID = fmt.Sprintf("client%d-%d", run, i)
			o.Spec.Name, o.Spec.Data = o.ID, make([]byte, 1024)
			change := cluster.CreateOf(o)
			for {
				select {
				case <-done:
					return
				default:
				}
				begun := time.Now()
				if _, err := store.Propose(ctx, &cluster.Txn{Changes: []cluster.Change{change}}); err != nil {
					failures[i] = err
					stop() // what goes on beside may wait for writes
					return
				}
				mu.Lock()
				*all = append(*all, written{time.Now(), time.Since(begun)})
				mu.Unlock()
				change = cluster.UpdateOf(o)
				change.Version = 0
			}
		})
	}
	begun := time.Now()
	err := beside(ctx)
	took := time.Since(begun)
	close(done)
	work.Wait()
	return took, errors.Join(append(failures, err)...)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
