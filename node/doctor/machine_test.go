package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/api/types/system"
)

// found looks for a finding; what is not well must come with a cure.
func found(fs []Finding, check string, level Level, says string) bool {
	return slices.ContainsFunc(fs, func(f Finding) bool {
		return f.Check == check && f.Level == level && strings.Contains(f.Says, says) && (level == Ok) == (f.Cure == "")
	})
}

func TestEngines(t *testing.T) {
	sound := system.Info{ServerVersion: "28.5.2", Driver: "overlay2", CgroupVersion: "2", CgroupDriver: "systemd", LiveRestoreEnabled: true}
	old, slow, swarming := sound, sound, sound
	old.ServerVersion, slow.Driver = "19.03.1", "vfs"
	swarming.Swarm.LocalNodeState = swarm.LocalNodeStateActive
	for _, c := range []struct {
		name  string
		info  system.Info
		err   error
		level Level
		says  string
	}{
		{"sound", sound, nil, Ok, "version 28.5.2, storage driver overlay2, cgroup v2 (systemd), live-restore is on"},
		{"away", system.Info{}, errors.New("connection refused"), Failure, "does not answer: connection refused"},
		{"old", old, nil, Warning, "19.03.1"},
		{"copying", slow, nil, Warning, "vfs"},
		{"in a swarm of its own", swarming, nil, Failure, "Docker Swarm of its own"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := Machine{StateDir: t.TempDir(), EngineHost: "unix:///nowhere", Engine: func(context.Context) (system.Info, error) { return c.info, c.err }}
			if fs := m.engine(t.Context()); !found(fs, "engine", c.level, c.says) || Worst(fs) != c.level {
				t.Errorf("%+v", fs)
			}
		})
	}
}

func TestSettings(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		level Level
		says  string
	}{
		{"sound", map[string]string{"net/ipv4/ip_forward": "1\n", "net/ipv4/conf/all/rp_filter": "2\n"}, Ok, "ip_forward 1, rp_filter 2"},
		{"no forwarding", map[string]string{"net/ipv4/ip_forward": "0\n"}, Failure, `net.ipv4.ip_forward is "0"`},
		{"many connections", map[string]string{"net/ipv4/ip_forward": "1", "net/netfilter/nf_conntrack_count": "95", "net/netfilter/nf_conntrack_max": "100"}, Warning, "95 connections are tracked of 100"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			for name, content := range c.files {
				path := filepath.Join(root, name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			if fs := settings(root); !found(fs, "settings", c.level, c.says) || Worst(fs) != c.level {
				t.Errorf("%+v", fs)
			}
		})
	}
}

func TestTheStateDirectory(t *testing.T) {
	m := Machine{StateDir: filepath.Join(t.TempDir(), "none")}
	if fs := m.disk(t.Context()); !found(fs, "disk", Ok, "no state directory") {
		t.Errorf("%+v", fs)
	}
	m.StateDir = t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(m.StateDir, "agent"), 0o700), os.WriteFile(filepath.Join(m.StateDir, "agent", "tasks.db.damaged"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if fs := m.leftovers(); !found(fs, "state", Warning, "tasks.db.damaged") {
		t.Errorf("%+v", fs)
	}
	if fs := m.disk(t.Context()); !slices.ContainsFunc(fs, func(f Finding) bool { return f.Check == "disk latency" && strings.Contains(f.Says, "4 KiB") }) {
		t.Errorf("%+v", fs)
	}
	left, err := filepath.Glob(filepath.Join(m.StateDir, ".doctor*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestTheEnginesDisk(t *testing.T) {
	m := Machine{StateDir: t.TempDir(), EngineHost: "unix:///nowhere"}
	if fs := m.engineDisk("/proc"); !found(fs, "engine disk", Failure, "0.0 MiB free") { // a file system that never has room
		t.Errorf("%+v", fs)
	}
	for _, root := range []string{"", m.StateDir, "/none"} {
		if fs := m.engineDisk(root); len(fs) > 0 {
			t.Errorf("%q: %+v", root, fs)
		}
	}
	m.EngineHost = "tcp://192.0.2.1:2375"
	if fs := m.engineDisk("/proc"); len(fs) > 0 {
		t.Errorf("of an engine elsewhere: %+v", fs)
	}
}

func TestTheWorstComesFirst(t *testing.T) {
	fs := []Finding{Good("a", "1"), Bad("b", "x", "2"), Broken("c", "x", "3"), Bad("d", "x", "4"), Good("e", "5")}
	Sort(fs)
	var order string
	for _, f := range fs {
		order += f.Check
	}
	if order != "cbdae" {
		t.Error(order)
	}
	if Worst(nil, fs[3:]) != Ok || Worst(fs[1:2], fs[3:]) != Warning || Worst(fs[3:], fs) != Failure {
		t.Error("worst")
	}
}
