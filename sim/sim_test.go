package sim

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"go.etcd.io/etcd/server/v3/storage/wal"
)

var (
	oneSeed = flag.Uint64("seed", 0, "play this seed only and show its trace")
	times   = flag.Int("times", 1, "how often to play it")
	seeds   = flag.Int("seeds", 0, "how many seeds to play, from a random one on; 0: those of the ordinary tests")
	members = flag.Bool("members", false, "nodes are promoted and demoted in every seed")
	verbose = flag.Bool("logs", false, "the trace has the daemons' logs, too")
)

func TestMain(m *testing.M) {
	flag.Parse()
	wal.SegmentSizeBytes = 256 << 10 // so that worlds fill several
	os.Exit(m.Run())
}

// linearizable holds the history of the clients against what objects promise (I1, and reads). It takes real time, so it is
// done outside of the world.
func (r *result) linearizable() {
	if porcupine.CheckOperationsTimeout(registers, r.history, 20*time.Second) != porcupine.Illegal {
		return
	}
	r.violations = append(r.violations, fmt.Sprintf("I1: the history of %d requests is not linearizable", len(r.history)))
	for _, part := range registers.Partition(r.history) {
		if porcupine.CheckOperations(registers, part) {
			continue
		}
		for _, op := range part {
			r.trace += fmt.Sprintf("\nclient %d, %d to %d: %s", op.ClientId, op.Call, op.Return, registers.DescribeOperation(op.Input, op.Output))
		}
	}
}

func play(t *testing.T, seed uint64) {
	r := run(t, options{seed: seed})
	if *oneSeed != 0 {
		t.Logf("trace of seed %d:\n%s", seed, r.trace)
	}
	if len(r.violations) > 0 {
		if *oneSeed == 0 {
			t.Logf("trace:\n%s", r.trace)
		}
		again := fmt.Sprint("SEED=", seed)
		if *members {
			again += " MEMBERS=1"
		}
		t.Errorf("seed %d, to be played again by make sim %s:\n%s", seed, again, strings.Join(r.violations[:min(len(r.violations), 20)], "\n"))
	}
	t.Logf("%d of %d requests were carried out; converged after %s", r.acked, r.ops, r.converged)
}

// TestSeeds plays seeds: the same ones in the ordinary tests, so that what fails in one place fails in another, others for
// who asks for them.
func TestSeeds(t *testing.T) {
	if *oneSeed != 0 {
		for range *times {
			play(t, *oneSeed)
		}
		return
	}
	first, n := uint64(1), ordinary
	if testing.Short() {
		n = min(n, 10)
	}
	if *seeds > 0 {
		first, n = rand.Uint64N(1<<40), *seeds
	}
	for i := range n {
		seed := first + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			play(t, seed)
		})
	}
}
