package main

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miniswarm/miniswarm/node/doctor"
)

// serveDoctor serves what a daemon says of itself and, as a leader, of its cluster; nil: it does not lead.
func serveDoctor(t *testing.T, own doctor.Report, all *doctor.Cluster) (host string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "d.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /miniswarm/doctor", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(own) })
	mux.HandleFunc("GET /miniswarm/doctor/cluster", func(w http.ResponseWriter, _ *http.Request) {
		if all == nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			_ = json.NewEncoder(w).Encode(map[string]string{"message": "The swarm does not have a leader."})
			return
		}
		_ = json.NewEncoder(w).Encode(all)
	})
	server := &http.Server{Handler: mux}
	go func() { _ = server.Serve(ln) }()
	t.Cleanup(func() { _ = server.Close() })
	return "unix://" + socket
}

func TestDoctorSaysWhatIsWrong(t *testing.T) {
	good, bad := doctor.Good("disk", "10 GiB free"), doctor.Bad("clock", "set it", "3 s ahead")
	manager := doctor.Report{NodeID: "n1", Role: "manager", Hostname: "vm1", Findings: []doctor.Finding{good}}
	worker := doctor.Report{NodeID: "n2", Role: "worker", Hostname: "vm2", Findings: []doctor.Finding{bad, good}}
	broken := doctor.Broken("engine", "start it", "the engine\ndoes not answer")
	for _, c := range []struct {
		name  string
		own   doctor.Report
		all   *doctor.Cluster
		args  []string
		code  int
		shows []string
		hides []string
	}{
		{"all is well", manager, &doctor.Cluster{Nodes: []doctor.Report{manager}, Findings: []doctor.Finding{good}}, nil, 0,
			[]string{"1 node looked at: 0 failures, 0 warnings, 2 ok"}, []string{"disk"}},
		{"what is well on demand", manager, &doctor.Cluster{}, []string{"--all"}, 0, []string{"ok        vm1   disk   10 GiB free"}, nil},
		{"a warning on another node", manager, &doctor.Cluster{Nodes: []doctor.Report{manager, worker}}, nil, 1,
			[]string{"warning   vm2   clock   3 s ahead\n", "-> set it", "2 nodes looked at: 0 failures, 1 warning, 2 ok"}, []string{"\x1b"}},
		{"this machine only", manager, &doctor.Cluster{Nodes: []doctor.Report{worker}}, []string{"--local"}, 0, nil, []string{"vm2"}},
		{"a failure", doctor.Report{Hostname: "vm1", Findings: []doctor.Finding{broken}}, nil, nil, 2, []string{"failure   vm1   engine   the engine does not answer\n"}, []string{"cluster"}},
		{"a manager without a leader", manager, nil, nil, 2, []string{"failure   cluster   cluster   the cluster cannot be looked at", "does not have a leader"}, nil},
		{"a manager that is locked", doctor.Report{NodeID: "n1", Role: "manager", Hostname: "vm1", Findings: []doctor.Finding{doctor.Broken("swarm", "unlock it", "it is locked")}}, nil, nil, 2,
			[]string{"the cluster cannot be looked at", "-> see first what is said about this manager"}, []string{"bring back"}},
		{"a worker", worker, nil, []string{"-a"}, 1, []string{"this is a worker"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, out, errs := call(t.Context(), append([]string{"--host", serveDoctor(t, c.own, c.all), "doctor"}, c.args...)...)
			if code != c.code || errs != "" {
				t.Errorf("code %d, want %d; %q", code, c.code, errs)
			}
			for _, want := range c.shows {
				if !strings.Contains(out, want) {
					t.Errorf("%q is missing:\n%s", want, out)
				}
			}
			for _, not := range c.hides {
				if strings.Contains(out, not) {
					t.Errorf("%q is there:\n%s", not, out)
				}
			}
		})
	}
}

func TestDoctorSpeaksJSON(t *testing.T) {
	own := doctor.Report{NodeID: "n1", Role: "manager", Findings: []doctor.Finding{doctor.Bad("clock", "set it", "late")}}
	code, out, _ := call(t.Context(), "--host", serveDoctor(t, own, &doctor.Cluster{}), "doctor", "--format", "json")
	var up checkup
	if err := json.Unmarshal([]byte(out), &up); err != nil || code != 1 || up.Cluster == nil || up.Node.Findings[0].Cure != "set it" {
		t.Errorf("code %d, %v: %s", code, err, out)
	}
}

// Without a daemon it says so, and looks at the machine by itself.
func TestDoctorWithoutADaemon(t *testing.T) {
	dir := t.TempDir()
	code, out, errs := call(t.Context(), "--host", "unix://"+dir+"/none.sock", "doctor", "--all", "--state-dir", dir, "--engine", "unix://"+dir+"/engine.sock")
	if code != 2 || errs != "" {
		t.Errorf("code %d, %q", code, errs)
	}
	for _, want := range []string{"no daemon answers at", "'systemctl start miniswarm'", "free of", "a write of 4 KiB takes", "the Docker Engine at unix://" + dir + "/engine.sock does not answer: Cannot connect to the Docker daemon", "kernel"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing:\n%s", want, out)
		}
	}
}

// A socket of another machine is not taken for this one's: nothing here is examined in its place.
func TestDoctorOfAnotherMachine(t *testing.T) {
	t.Setenv(envLabRoot, t.TempDir())
	code, out, _ := call(t.Context(), "--host", "unix://"+os.Getenv(envLabRoot)+"/lab/vm1/miniswarm.sock", "doctor", "--all")
	if code != 2 || !strings.Contains(out, "which is another machine's: nothing was looked at") || !strings.Contains(out, "0 warnings, 0 ok") || strings.Contains(out, "kernel") {
		t.Errorf("code %d:\n%s", code, out)
	}
}

// A daemon that is frozen accepts connections and says nothing: doctor does not wait with it.
func TestDoctorWithADaemonThatHangs(t *testing.T) {
	dir := t.TempDir()
	ln, err := net.Listen("unix", filepath.Join(dir, "d.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	code, out, errs := call(t.Context(), "--host", "unix://"+dir+"/d.sock", "doctor", "--all", "--state-dir", dir, "--engine", "unix://"+dir+"/engine.sock")
	if code != 2 || errs != "" {
		t.Errorf("code %d, %q", code, errs)
	}
	for _, want := range []string{"does not answer: it accepts connections and has been silent for 5s", "'systemctl restart miniswarm'", "free of", "kernel"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing:\n%s", want, out)
		}
	}
}
