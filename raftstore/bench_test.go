package raftstore

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal"

	"github.com/miniswarm/miniswarm/cluster"
)

// BenchmarkUpdates stores objects of 1 KB from many clients at once; members are in one process and talk over TLS on loopback.
//
//	go test -run xxx -bench Updates ./raftstore
func BenchmarkUpdates(b *testing.B) {
	wal.SegmentSizeBytes = 64 * 1000 * 1000
	for _, members := range []int{1, 3} {
		for _, clients := range []int{1, 16, 256} {
			b.Run(fmt.Sprintf("members=%d/clients=%d", members, clients), func(b *testing.B) { benchmarkUpdates(b, members, clients) })
		}
	}
}

func benchmarkUpdates(b *testing.B, members, clients int) {
	g := newTLSGroup(b, nil)
	g.grow(members)
	leader := g.leader()
	txns := make([]cluster.Change, clients)
	for i := range txns {
		o := config(fmt.Sprintf("object%020d", i), 1024)
		if _, err := leader.Propose(b.Context(), &cluster.Txn{Changes: []cluster.Change{cluster.CreateOf(o)}}); err != nil {
			b.Fatal(err)
		}
		txns[i] = cluster.Change{Action: cluster.Update, Kind: cluster.KindConfig, ID: o.ID, Object: o}
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ResetTimer()
	begin, cpu := time.Now(), cpuTime(b)
	var work sync.WaitGroup
	for _, c := range txns {
		work.Go(func() {
			for left.Add(-1) >= 0 {
				if _, err := leader.Propose(context.Background(), &cluster.Txn{Changes: []cluster.Change{c}}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/time.Since(begin).Seconds(), "updates/s")
	// On a machine that does other things as well this says more.
	b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/float64(b.N), "cpu-us/update")
	g.settle()
}

// BenchmarkMillionTasks creates 1,000,000 small tasks in one member's store, 1000 to a transaction, four transactions under way.
//
//	go test -run xxx -bench MillionTasks -benchtime 1x ./raftstore
func BenchmarkMillionTasks(b *testing.B) {
	wal.SegmentSizeBytes = 64 * 1000 * 1000
	const tasks, perTxn = 1_000_000, 1000
	for b.Loop() {
		g := newTLSGroup(b, nil)
		g.grow(1)
		leader := g.leader()
		begin, cpu := time.Now(), cpuTime(b)
		next := atomic.Int64{}
		var work sync.WaitGroup
		for range 4 {
			work.Go(func() {
				for {
					n := int(next.Add(perTxn))
					if n > tasks {
						return
					}
					if _, err := leader.Propose(b.Context(), manyTasks(perTxn, n-perTxn)); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		work.Wait()
		took := time.Since(begin)
		if got := leader.Snapshot().Len(cluster.KindTask); got != tasks {
			b.Fatalf("%d tasks are stored, want %d", got, tasks)
		}
		b.ReportMetric(took.Seconds(), "s")
		b.ReportMetric((cpuTime(b) - cpu).Seconds(), "cpu-s")
		b.ReportMetric(tasks/took.Seconds(), "tasks/s")
		b.ReportMetric(peakRSS(b)/(1<<20), "peak-MB")
		var mem runtime.MemStats
		debug.FreeOSMemory()
		runtime.ReadMemStats(&mem)
		b.ReportMetric(float64(mem.HeapAlloc)/(1<<20), "live-MB")
		g.end()
	}
}

// cpuTime is what this process has used so far.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// peakRSS is the process's largest resident size so far in bytes.
func peakRSS(b *testing.B) float64 {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				b.Fatal(err)
			}
			return float64(kb) * 1024
		}
	}
	b.Fatal("no VmHWM")
	return 0
}
