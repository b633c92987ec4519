package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/stack"
	"github.com/docker/cli/cli/flags"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
	"github.com/google/go-cmp/cmp"
)

//lint:file-ignore SA1019 Docker's own command is what ours is compared with.

// chance is what depends on the order in which services are created, which Docker leaves to chance.
var chance = regexp.MustCompile(`(/services/)[^/]+/update.version=[0-9]+`)

// recorder passes requests on to a daemon and remembers what they write.
type recorder struct {
	mu     sync.Mutex
	writes []string // METHOD path?query body, guarded by mu
}

func (rec *recorder) ServeHTTP(w http.ResponseWriter, r *http.Request, to http.Handler) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		var indented bytes.Buffer
		if json.Indent(&indented, body, "", "  ") != nil {
			indented.Write(body)
		}
		rec.mu.Lock()
		rec.writes = append(rec.writes, r.Method+" "+chance.ReplaceAllString(r.URL.RequestURI(), "$1")+" "+r.Header.Get("X-Registry-Auth")+"\n"+indented.String())
		rec.mu.Unlock()
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	to.ServeHTTP(w, r)
}

// record serves a fresh fake daemon behind a recorder.
func record(t *testing.T) (host string, rec *recorder) {
	t.Helper()
	f := startFake(t, t.TempDir())
	f.member = true
	f.networks = append(f.networks, network.Summary{Name: "existing", ID: "network-existing", Scope: "swarm", Driver: "overlay"})
	f.secrets = append(f.secrets, swarm.Secret{ID: "secret-given", Spec: swarm.SecretSpec{Annotations: swarm.Annotations{Name: "given"}}})
	f.configs = append(f.configs, swarm.Config{ID: "config-given", Spec: swarm.ConfigSpec{Annotations: swarm.Annotations{Name: "given"}}})
	target, err := url.Parse("http://daemon")
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = &http.Transport{DialContext: dialSocket(f.socket)}
	rec = &recorder{}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { rec.ServeHTTP(w, r, proxy) }))
	t.Cleanup(front.Close)
	return "tcp://" + strings.TrimPrefix(front.URL, "http://"), rec
}

func (rec *recorder) sorted() []string {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	out := slices.Clone(rec.writes)
	slices.Sort(out)
	return out
}

// What Docker's own "stack deploy" accepts becomes the same services, networks, secrets and configs here.
func TestFilesThatDockerAcceptsBecomeTheSame(t *testing.T) {
	t.Setenv("FROM_ENV", "from the environment")
	t.Setenv("EMPTY", "")
	t.Setenv("PASSWORD_FILE", "../../cmd/miniswarm/testdata/corpus/files/key")
	t.Setenv("IMAGE", "registry.local/web:2")
	t.Setenv("HOME", t.TempDir())
	for _, c := range []struct{ name, files, more string }{
		{"minimal", "minimal.yml", ""},
		{"everything", "everything.yml", ""},
		{"keys that are ignored", "ignored.yml", ""},
		{"jobs", "jobs.yml", ""},
		{"external objects", "external.yml", ""},
		{"several files", "everything.yml override.yml", ""},
		{"blue and green", "../../../../examples/bluegreen/compose.yml", ""},
		{"secrets and configs", "../../../../examples/secrets/compose.yml", ""},
		{"the prime service", "../../../../examples/prime/compose.yml", ""},
		{"prune", "minimal.yml", "--prune"},
		{"images are not resolved", "minimal.yml", "--resolve-image=never"},
		{"with registry auth", "minimal.yml", "--with-registry-auth"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := []string{"deploy", "--detach"}
			for _, file := range strings.Fields(c.files) {
				args = append(args, "-c", filepath.Join("testdata", "corpus", file))
			}
			args = append(append(args, strings.Fields(c.more)...), "shop")

			host, docker := record(t)
			dc, err := command.NewDockerCli(command.WithCombinedStreams(io.Discard))
			if err != nil {
				t.Fatal(err)
			}
			opts := flags.NewClientOptions()
			opts.Hosts = []string{host}
			if err := dc.Initialize(opts); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second time updates
				cmd := stack.NewStackCommand(dc)
				cmd.SetArgs(args)
				cmd.SilenceUsage = true
				if err := cmd.ExecuteContext(t.Context()); err != nil {
					t.Fatalf("docker stack deploy: %v", err)
				}
			}
			host, ours := record(t)
			for range 2 {
				if code, out, errs := call(t.Context(), append([]string{"--host", host, "stack"}, args...)...); code != 0 {
					t.Fatalf("miniswarm stack deploy: code %d\n%s%s", code, out, errs)
				}
			}
			want, got := docker.sorted(), ours.sorted()
			if len(want) == 0 {
				t.Fatal("nothing was written")
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Docker's requests (-) and ours (+):\n%s", diff)
			}
		})
	}
}
