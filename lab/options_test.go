package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOptions(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   Options
		want string // part of the error; empty for none
	}{
		{"defaults", Options{NoDaemon: true}, ""},
		{"with a daemon", Options{MiniswarmBinary: "bin/miniswarm", Cluster: true}, ""},
		{"no binary", Options{}, "no miniswarm binary"},
		{"cluster without daemon", Options{NoDaemon: true, Cluster: true}, "needs the miniswarm daemon"},
		{"name with a slash", Options{Name: "../x", NoDaemon: true}, "lower-case letters"},
		{"too many hosts", Options{Nodes: 201, NoDaemon: true}, "1 to 200"},
		{"fewer than no hosts", Options{Nodes: -1, NoDaemon: true}, "1 to 200"},
		{"more managers than hosts", Options{Nodes: 2, Managers: 3, NoDaemon: true}, "1 to 2"},
		{"socket path too long", Options{StateDir: "/" + strings.Repeat("long", 25), NoDaemon: true}, "shorter state directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := tc.in.complete()
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
			if err == nil && (got.Name != "lab" || got.Nodes != 3 || got.Managers != 1 || got.StateDir != DefaultRoot) {
				t.Errorf("defaults: %+v", got)
			}
			if got.MiniswarmBinary != "" && !filepath.IsAbs(got.MiniswarmBinary) {
				t.Errorf("binary %s depends on who asks from where", got.MiniswarmBinary)
			}
		})
	}
}

func TestRecycledPidIsAnotherProcess(t *testing.T) {
	self, err := identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !self.alive() {
		t.Error("this test does not run")
	}
	for _, other := range []process{{}, {PID: self.PID, Start: self.Start + 1}, staleProcess(self)} {
		if other.alive() {
			t.Errorf("%+v is taken for %+v", other, self)
		}
		if err := other.kill(t.Context()); err != nil {
			t.Errorf("killing what is gone: %v", err)
		}
	}
}

func TestRecordOfAnEarlierBoot(t *testing.T) {
	self, err := identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	r := &record{Name: "x", BootID: bootID(), Registry: self, Owner: self, Hosts: []hostRecord{{Name: "vm1", Init: self, Engine: self, Cut: true}}}
	for _, earlier := range []bool{false, true} {
		if earlier {
			r.BootID = "another"
		}
		if err := writeRecord(dir, r); err != nil {
			t.Fatal(err)
		}
		got, err := readRecord(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got.up() == earlier || got.Owner.alive() == earlier || got.Hosts[0].Init.alive() == earlier || got.Hosts[0].Cut == earlier {
			t.Errorf("earlier boot %v: %+v", earlier, got)
		}
		if got.Owner.PID == 0 {
			t.Error("the lab no longer belongs to anybody, and nobody would sweep it")
		}
	}
}
