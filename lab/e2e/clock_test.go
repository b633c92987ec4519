package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

// Clocks that are wrong on one machine (F12), and then machines that were off for longer than certificates live (F19). What is wrong is named,
// nothing is restarted because of a date, and everybody comes back by himself.
func TestClocks(t *testing.T) {
	f := newFaultCluster(t, "clocks", 0)
	f.oneAfterTheOther(t, []scenario{
		{"a worker's clock is ahead", f.workerAhead},
		{"the leader's clock is ahead, and the next one's is not", f.leaderAhead},
		{"a machine starts with a clock that is behind", f.startsBehind},
		{"certificates expire while machines are off", f.expired},
	})
}

const day = 24 * time.Hour

// clocks sets the clocks of some hosts' daemons.
func (f *faultCluster) clocks(t *testing.T, ahead time.Duration, hosts ...string) {
	t.Helper()
	for _, host := range hosts {
		f.must(t, f.SetClock(t.Context(), host, ahead))
	}
}

// workerAhead sets a clock while the daemon runs, and restarts that.
func (f *faultCluster) workerAhead(t *testing.T) {
	f.undisturbed(t, f.managers, func() time.Duration {
		f.clocks(t, 26*time.Hour, "vm4")
		leader := f.currentLeader(t)
		eventually(t, "the leader's log names the clock", patience, func() error {
			if !strings.Contains(readFile(t, f.hostNamed(t, leader).DaemonLog), "a node's clock is not the leader's") {
				return errors.New("it does not")
			}
			return nil
		})
		eventually(t, "doctor names the clock", patience, func() error {
			return f.named(t, []string{leader}, 2, []want{{"vm4", "clock", "failure", "ahead of the leader's"}})
		})
		began := time.Now()
		f.must(t, f.KillDaemon(t.Context(), "vm4"))
		f.must(t, f.StartDaemon(t.Context(), "vm4"))
		f.nodeState(t, "vm4", "Ready")
		took := time.Since(began)
		f.clocks(t, 0, "vm4")
		return took
	})
}

// leaderAhead: what a leader has written with a clock that is ahead holds nothing up under the next one.
func (f *faultCluster) leaderAhead(t *testing.T) {
	leader := f.currentLeader(t)
	rest := f.others(leader)
	before := f.whole(t)
	f.clocks(t, 26*time.Hour, leader)
	eventually(t, "doctor names the clocks", patience, func() error {
		return f.named(t, []string{rest[0]}, 2, []want{{"vm4", "clock", "failure", "behind the leader's"}})
	})
	f.miniswarm(t, rest[0], "service", "scale", "--detach", "w=9")
	f.running(t, "w", 9)
	f.must(t, f.KillDaemon(t.Context(), leader))
	changed := time.Now()
	f.clocks(t, 0, leader)
	eventually(t, "the next leader takes a write", patience, func() error {
		_, err := f.tryMiniswarm(t, rest[0], "service", "scale", "--detach", "w=8")
		return err
	})
	f.must(t, f.StartDaemon(t.Context(), leader))
	now := f.whole(t)
	t.Logf("the next leader has scaled and all is well: %.1f s", time.Since(changed).Seconds())
	untouched(t, on(before, rest...), now)
}

// startsBehind starts a daemon with a clock by which its certificate is not valid yet, as a machine has that is without NTP yet.
func (f *faultCluster) startsBehind(t *testing.T) {
	host := f.others(f.currentLeader(t))[0]
	f.must(t, f.KillDaemon(t.Context(), host))
	f.clocks(t, -26*time.Hour, host)
	f.must(t, f.StartDaemon(t.Context(), host))
	eventually(t, "the node says that its clock is behind", patience, func() error {
		info, err := f.swarm(host).Info(t.Context())
		if err == nil && !strings.Contains(info.Swarm.Error, "set the clock right") {
			err = fmt.Errorf("it says %q", info.Swarm.Error)
		}
		return err
	})
	d, err := f.doctor(t, host)
	f.must(t, err)
	f.must(t, d.has(want{host, "swarm", "failure", "set the clock right"}))
	set := time.Now()
	f.clocks(t, 0, host)
	f.nodeState(t, host, "Ready")
	f.spreadOut(t)
	t.Logf("its clock is set -> whole: %.1f s", time.Since(set).Seconds())
	if log := readFile(t, f.hostNamed(t, host).DaemonLog); strings.Count(log, "this node could not resume its part in the swarm") != 1 {
		t.Error("the log does not name the clock once")
	}
}

// expired lets more than the 90 days pass for which certificates are valid. Two of three managers are back first and certify themselves; the
// other manager and the worker come later, and are certified as members.
func (f *faultCluster) expired(t *testing.T) {
	before := f.whole(t)
	certificates := map[string]string{}
	for _, host := range f.nodes() {
		certificates[host] = f.certificate(t, host)
	}
	all(t, f.nodes(), func(host string) error { return f.StopDaemon(t.Context(), host) })
	f.clocks(t, 100*day, f.nodes()...)
	back := time.Now()
	all(t, []string{"vm1", "vm2"}, func(host string) error { return f.StartDaemon(t.Context(), host) })
	eventually(t, "two managers that were off for too long are a cluster again", patience, func() error {
		_, err := f.swarm("vm1").NodeList(t.Context(), swarm.NodeListOptions{})
		return err
	})
	t.Logf("two of three managers with expired certificates are back -> they answer: %.1f s", time.Since(back).Seconds())
	late := time.Now()
	all(t, []string{"vm3", "vm4"}, func(host string) error { return f.StartDaemon(t.Context(), host) })
	for _, host := range f.nodes() {
		eventually(t, host+" has another certificate", patience, func() error {
			if f.certificate(t, host) == certificates[host] {
				return errors.New("it has not")
			}
			return nil
		})
	}
	t.Logf("a manager and a worker with expired certificates are back -> all have others: %.1f s", time.Since(late).Seconds())
	now := f.whole(t)
	t.Logf("all certificates had expired -> whole: %.1f s", time.Since(back).Seconds())
	down := f.calledDown(t, back.Add(50*day)) // by their clocks
	var in []string
	for _, host := range f.nodes() {
		if !strings.Contains(strings.Join(down, " "), host) {
			in = append(in, host)
		}
	}
	t.Logf("found by the new leader within the grace: %v", in)
	untouched(t, on(before, in...), now)
	eventually(t, "doctor finds nothing wrong with certificates and clocks", patience, func() error {
		d, err := f.doctor(t, "vm1")
		if err != nil {
			return err
		}
		for _, host := range f.nodes() {
			for _, check := range []string{"certificate", "root certificate"} {
				if err := d.has(want{host, check, "ok", ""}); err != nil && !strings.Contains(err.Error(), "without a cure") {
					return err
				}
			}
		}
		return nil
	})
}

// certificate is the node's certificate as it is on its disk.
func (f *faultCluster) certificate(t *testing.T, host string) string {
	t.Helper()
	return readFile(t, f.Dir()+"/"+host+"/miniswarm/certificates/swarm-node.crt")
}
