package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
)

const (
	leakRounds = 10
	leakWidth  = 10 // services at a time
)

// footprint is what a daemon holds.
type footprint struct {
	threads, files int
	rss            int // bytes
}

// footprint measures a host's daemon.
func (c *testCluster) footprint(t *testing.T, host string) footprint {
	t.Helper()
	pid := c.daemonPID(t, host)
	var f footprint
	f.threads = c.count(t, host, "ls /proc/"+pid+"/task | wc -l")
	f.files = c.count(t, host, "ls /proc/"+pid+"/fd | wc -l")
	f.rss = c.count(t, host, "awk '/VmRSS/ {print $2}' /proc/"+pid+"/status") << 10
	return f
}

func (c *testCluster) count(t *testing.T, host, script string) int {
	t.Helper()
	out, err := c.Output(t.Context(), host, "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return n
}

// daemonPID is the daemon's process id as its host sees it.
func (c *testCluster) daemonPID(t *testing.T, host string) string {
	t.Helper()
	out, err := c.Output(t.Context(), host, "pgrep", "-f", "^"+c.binary+" daemon ")
	if err != nil || len(strings.Fields(out)) != 1 {
		t.Fatalf("daemon of %s: %q %v", host, out, err)
	}
	return strings.TrimSpace(out)
}

// goroutines counts a daemon's, by having it print them as it ends, and starts it again.
func (c *testCluster) goroutines(t *testing.T, host string) (int, map[string]int) {
	t.Helper()
	h, err := c.Host(host)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(h.DaemonLog)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Output(t.Context(), host, "kill", "-QUIT", c.daemonPID(t, host)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the daemon of "+host+" has ended", patience, func() error {
		if h, err := c.Host(host); err != nil || h.Daemon {
			return fmt.Errorf("it still runs: %w", err)
		}
		return nil
	})
	data, err := os.ReadFile(h.DaemonLog)
	if err != nil {
		t.Fatal(err)
	}
	c.read[host] = int64(len(data)) // what it printed is not for the search for panics
	by := map[string]int{}
	all := regexp.MustCompile(`(?m)^created by (\S+)`).FindAllSubmatch(data[before.Size():], -1)
	for _, m := range all {
		by[string(m[1])]++
	}
	if err := c.StartDaemon(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	return len(all), by
}

// A hundred services come and go, each with a published port and a network of its own. Afterwards the machines are as they
// were before, and the daemons hold no more than before (I11).
func TestNothingLeaks(t *testing.T) {
	c := onShared(t)
	nodes := []string{"vm1", "vm2", "vm3"}
	kernel := map[string]map[string]string{}
	c.cycle(t) // what is made once and kept is there from here on
	for _, host := range nodes {
		// The engines go on tidying for a moment, and the ways to the others are proven one after the other.
		eventually(t, host+" has the ingress network alone, and nothing changes any more", patience, func() error {
			was := kernel[host]
			kernel[host] = c.machineState(t, host)
			ways := strings.Count(kernel[host]["routes"], "dev eth0 table") - strings.Count(kernel[host]["routes"], "dev eth0 table local")
			overlays := map[string]bool{}
			for _, text := range kernel[host] {
				for _, bridge := range regexp.MustCompile(`msb-\w+`).FindAllString(text, -1) {
					overlays[bridge] = true
				}
			}
			if len(overlays) != 1 || ways != 2 {
				return fmt.Errorf("%d overlays, %d plain ways to others", len(overlays), ways)
			}
			return sameState(was, kernel[host])
		})
	}
	base := map[string]int{}
	creators := map[string]map[string]int{}
	for _, host := range nodes {
		base[host], creators[host] = c.goroutines(t, host)
	}
	c.allReady(t)
	c.cycle(t)
	before := map[string]footprint{}
	for _, host := range nodes {
		before[host] = c.footprint(t, host)
	}
	start := time.Now()
	for range leakRounds {
		c.cycle(t)
	}
	t.Logf("%d services came and went in %.1f s", leakRounds*leakWidth, time.Since(start).Seconds())

	for _, host := range nodes {
		was := before[host]
		eventually(t, host+" is as it was", patience, func() error {
			return sameState(kernel[host], c.machineState(t, host))
		})
		now := c.footprint(t, host)
		t.Logf("%s: threads %d -> %d, files %d -> %d, resident %d -> %d MiB", host, was.threads, now.threads, was.files, now.files, was.rss>>20, now.rss>>20)
		if now.files > was.files+10 {
			t.Errorf("%s: the daemon holds %d files, it held %d", host, now.files, was.files)
		}
		if now.threads > was.threads+16 {
			t.Errorf("%s: the daemon has %d threads, it had %d", host, now.threads, was.threads)
		}
		if now.rss > was.rss+64<<20 {
			t.Errorf("%s: the daemon holds %d MiB, it held %d", host, now.rss>>20, was.rss>>20)
		}
		n, by := c.goroutines(t, host)
		t.Logf("%s: goroutines %d -> %d", host, base[host], n)
		if n > base[host]+20 {
			t.Errorf("%s: the daemon has %d goroutines, it had %d. Made by, before:\n%v\nand now:\n%v", host, n, base[host], creators[host], by)
		}
		if size := dirSize(t, filepath.Join(c.Dir(), host, "miniswarm")); size > 256<<20 {
			t.Errorf("%s: the state directory holds %d MiB", host, size>>20)
		} else {
			t.Logf("%s: state directory %.1f MiB", host, float64(size)/(1<<20))
		}
	}
	c.allReady(t)
}

// cycle creates services with a port and a network each, waits until all run, and removes everything.
func (c *testCluster) cycle(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	api := c.swarm("vm1")
	ids := make([]string, leakWidth)
	errs := make([]error, leakWidth)
	var wg sync.WaitGroup
	for i := range leakWidth {
		wg.Go(func() {
			net, err := api.NetworkCreate(ctx, fmt.Sprintf("leak%d", i), network.CreateOptions{Driver: "overlay"})
			if err != nil {
				errs[i] = err
				return
			}
			one := uint64(1)
			grace := time.Second
			svc, err := api.ServiceCreate(ctx, swarm.ServiceSpec{Annotations: swarm.Annotations{Name: fmt.Sprintf("leak%d", i)},
				Mode: swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &one}},
				TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: c.witness + ":1", StopGracePeriod: &grace},
					Networks: []swarm.NetworkAttachmentConfig{{Target: net.ID}}},
				EndpointSpec: &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 8000, PublishedPort: uint32(9000 + i)}}}}, swarm.ServiceCreateOptions{})
			ids[i], errs[i] = svc.ID, err
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all services of the round run", patience, func() error {
		for _, id := range ids {
			tasks, err := c.tasks(ctx, id)
			if err != nil {
				return err
			}
			if len(tasks) != 1 || tasks[0].Status.State != swarm.TaskStateRunning {
				return fmt.Errorf("service %s: %d tasks", id, len(tasks))
			}
		}
		return nil
	})
	for _, id := range ids {
		if err := api.ServiceRemove(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all of the round is gone", patience, func() error { return c.empty(ctx) })
}

func dirSize(t *testing.T, dir string) int64 {
	t.Helper()
	var size int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			size += info.Size()
		}
		return nil // a file that has just gone is none
	})
	if err != nil {
		t.Fatal(err)
	}
	return size
}
