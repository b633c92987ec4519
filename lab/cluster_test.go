package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miniswarm/miniswarm/lab"
)

// The lab's part in a cluster: the right commands with the right flags on the right hosts. The program that takes
// them is fakeswarm.
func TestCluster(t *testing.T) {
	l := lab.ForTest(t, lab.Options{Nodes: 4, Managers: 2, MiniswarmBinary: program(t, "fakeswarm"), Cluster: true})
	ctx := t.Context()
	hosts, err := l.Hosts()
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, h := range hosts {
		role := "worker"
		if h.Manager {
			role = "manager"
		}
		want = append(want, fmt.Sprintf("%s %s", role, h.Addr))
	}
	if got := members(t, l); !slices.Equal(got, want) {
		t.Errorf("members of the cluster: got %q, want %q", got, want)
	}

	t.Run("a killed daemon leaves engine and host alone", func(t *testing.T) {
		before, _ := l.Host("vm3")
		if err := l.KillDaemon(ctx, "vm3"); err != nil {
			t.Fatal(err)
		}
		after, _ := l.Host("vm3")
		if !after.On || !after.Engine || after.Daemon || after.PID != before.PID {
			t.Errorf("vm3: %+v", after)
		}
		if err := answer(ctx, after.DaemonSocket); err == nil {
			t.Error("the daemon still answers")
		}
		for range 2 { // starting what runs is no error
			if err := l.StartDaemon(ctx, "vm3"); err != nil {
				t.Fatal(err)
			}
		}
		if err := answer(ctx, after.DaemonSocket); err != nil {
			t.Error(err)
		}
		if err := l.StopDaemon(ctx, "vm3"); err != nil {
			t.Error(err)
		}
		// Start brings back what is missing.
		if err := l.Start(ctx, "vm3"); err != nil {
			t.Error(err)
		}
	})

	t.Run("a power failure takes the daemon along and a boot brings it back", func(t *testing.T) {
		if err := l.Fail(ctx, "vm1"); err != nil {
			t.Fatal(err)
		}
		h, _ := l.Host("vm1")
		if h.On || h.Daemon {
			t.Errorf("vm1: %+v", h)
		}
		if err := l.StartDaemon(ctx, "vm1"); err == nil {
			t.Error("a daemon started on a host without power")
		}
		if err := l.Start(ctx, "vm1"); err != nil {
			t.Fatal(err)
		}
		if err := answer(ctx, h.DaemonSocket); err != nil {
			t.Error(err)
		}
		if got := members(t, l); !slices.Equal(got, want) {
			t.Errorf("vm1 forgot its disk: members are %q", got)
		}
	})

	t.Run("another command finds the same lab", func(t *testing.T) {
		again, err := lab.Open("", l.Name())
		if err != nil {
			t.Fatal(err)
		}
		env, err := again.Env("vm2")
		if err != nil {
			t.Fatal(err)
		}
		vm2, _ := l.Host("vm2")
		if want := []string{"DOCKER_HOST=unix://" + vm2.EngineSocket, "MINISWARM_HOST=unix://" + vm2.DaemonSocket}; !slices.Equal(env, want) {
			t.Errorf("env: got %q, want %q", env, want)
		}
		if got := output(t, again, "vm2", "sh", "-c", `echo $DOCKER_HOST; readlink /run/miniswarm.sock`); got != "unix://"+vm2.EngineSocket+"\n"+vm2.DaemonSocket {
			t.Errorf("inside vm2: %s", got)
		}
		if _, err := again.Env("vm9"); err == nil || !strings.Contains(err.Error(), "vm1, vm2, vm3, vm4") {
			t.Errorf("unknown host: %v", err)
		}
		all, err := lab.List("")
		if err != nil || !slices.ContainsFunc(all, func(x *lab.Lab) bool { return x.Name() == l.Name() }) {
			t.Errorf("list: %v %v", all, err)
		}
		if _, err := lab.Up(ctx, lab.Options{Name: l.Name(), NoDaemon: true}, nil); !errors.Is(err, lab.ErrExists) {
			t.Errorf("a second lab of the same name: %v", err)
		}
	})
}

// members reads what vm1's daemon wrote down, in order of address.
func members(t *testing.T, l *lab.Lab) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(l.Dir(), "vm1", "miniswarm", "members"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	slices.SortFunc(lines, func(a, b string) int {
		return strings.Compare(strings.Fields(a)[1], strings.Fields(b)[1])
	})
	return lines
}

func answer(ctx context.Context, socket string) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://daemon/_ping", nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	return res.Body.Close()
}
