package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"github.com/docker/docker/api/types/swarm"
)

// Images of registries that want a name and a password reach all nodes: with the password in every request (Debian's
// registry), or with a token that is had for it.
func TestPrivateRegistries(t *testing.T) {
	c := onShared(t)
	for name, start := range map[string]func(*testing.T, *testCluster) *privateRegistry{"password": startPasswordRegistry, "token": startTokenRegistry} {
		t.Run(name, func(t *testing.T) {
			p := start(t, c)
			t.Setenv("DOCKER_CONFIG", t.TempDir())
			service := "private-" + name
			p.login(t, c, "first")
			for _, tag := range []string{"1", "2"} {
				c.docker(t, "vm1", "tag", c.witness+":"+tag, p.image(tag))
				c.docker(t, "vm1", "push", "--quiet", p.image(tag))
				c.docker(t, "vm1", "rmi", p.image(tag)) // so that vm1 has to pull as well
			}

			out := c.docker(t, "vm1", "service", "create", "--quiet", "--with-registry-auth", "--name", service, "--mode", "global", "--restart-delay", "100ms", p.image("1"))
			if !regexp.MustCompile(`^\w{25}\n$`).MatchString(out) {
				t.Errorf("create said:\n%s", out)
			}
			digest := p.pinned(t, c, service, "1")

			// A new password: the old one fetches nothing any more, and the update that brings the new one is served.
			p.password.Store("second")
			p.changed(t)
			// Where the image is there, what ends is started again with the credentials that have expired.
			gone := c.running(t, service, 3)[0]
			c.docker(t, gone.host, "rm", "--force", gone.id)
			eventually(t, "what ended runs again without a new password", patience, func() error {
				all, err := c.converged(t.Context(), service, 3)
				if err == nil && slices.ContainsFunc(all, func(r replica) bool { return r.id == gone.id }) {
					err = fmt.Errorf("%s is still there", gone.name)
				}
				return err
			})
			out = c.docker(t, "vm1", "service", "update", "--quiet", "--detach", "--update-failure-action", "continue", "--image", p.image("2"), service)
			eventually(t, "a task with the old password is rejected", patience, func() error { return p.rejected(t, c, service, "2") })
			p.login(t, c, "second")
			c.docker(t, "vm1", "service", "update", "--quiet", "--with-registry-auth", "--force", "--image", p.image("2"), service)
			if p.pinned(t, c, service, "2") == digest {
				t.Errorf("both tags have the digest %s; the update said %s", digest, out)
			}

			// Without credentials the command warns, and the tasks say why they cannot run.
			out, err := c.Output(t.Context(), "vm1", "sh", "-c", "docker -H unix:///run/miniswarm.sock service create --detach --name other "+p.image("none")+" 2>&1")
			if err != nil || !strings.Contains(out, "image "+p.image("none")+" could not be accessed on a registry to record\nits digest. Each node will access "+p.image("none")+" independently,\n"+
				"possibly leading to different nodes running different\nversions of the image.\n") {
				t.Errorf("create without credentials said %v:\n%s", err, out)
			}
			eventually(t, "a task without credentials is rejected", patience, func() error { return p.rejected(t, c, "other", "none") })
			c.docker(t, "vm1", "service", "rm", service, "other")
		})
	}
}

// A registry that takes connections and says nothing delays a service by seconds, and does not keep it from running where
// the image is there.
func TestSilentRegistry(t *testing.T) {
	c := onShared(t)
	silent, err := net.Listen("tcp", net.JoinHostPort(c.MachineAddr().String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	image := silent.Addr().String() + "/witness:1"
	for _, host := range []string{"vm1", "vm2", "vm3"} {
		c.docker(t, host, "tag", c.witness+":1", image)
	}
	took := eventually(t, "a service of a silent registry runs", patience, func() error {
		out, err := c.Output(t.Context(), "vm1", "sh", "-c", "docker -H unix:///run/miniswarm.sock service create --quiet --name silent --replicas 3 "+image+" 2>&1")
		if err == nil && !strings.Contains(out, "could not be accessed on a registry to record") {
			err = fmt.Errorf("create said:\n%s", out)
		}
		return err
	})
	c.running(t, "silent", 3)
	t.Logf("created and running after %s", took)
}

// privateRegistry is a registry for one user.
type privateRegistry struct {
	addr     string
	password atomic.Value       // string
	changed  func(t *testing.T) // tells the registry of a new password
}

const registryUser = "user"

func (p *privateRegistry) image(tag string) string { return p.addr + "/private:" + tag }

func (p *privateRegistry) login(t *testing.T, c *testCluster, password string) {
	t.Helper()
	out := c.docker(t, "vm1", "login", "--username", registryUser, "--password", password, p.addr)
	if !strings.Contains(out, "Login Succeeded") {
		t.Errorf("login said:\n%s", out)
	}
}

// pinned waits until every node runs the image, and gives the digest that the service's image was resolved to.
func (p *privateRegistry) pinned(t *testing.T, c *testCluster, service, tag string) string {
	t.Helper()
	eventually(t, "all nodes run "+p.image(tag), patience, func() error {
		all, err := c.converged(t.Context(), service, 3)
		for _, r := range all {
			if !strings.HasPrefix(r.image, p.image(tag)+"@sha256:") {
				return fmt.Errorf("%s on %s runs %s", r.name, r.host, r.image)
			}
		}
		return err
	})
	svc, raw, err := c.swarm("vm1").ServiceInspectWithRaw(t.Context(), service, swarm.ServiceInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	spec := svc.Spec.TaskTemplate
	_, digest, _ := strings.Cut(spec.ContainerSpec.Image, "@")
	if !strings.HasPrefix(digest, "sha256:") || spec.Placement == nil || len(spec.Placement.Platforms) != 1 || spec.Placement.Platforms[0].OS != "linux" {
		t.Errorf("the image is %s, its platforms %+v", spec.ContainerSpec.Image, spec.Placement)
	}
	if strings.Contains(strings.ToLower(string(raw)), "auth") {
		t.Errorf("the service shows credentials: %s", raw)
	}
	return digest
}

// rejected says whether a task with the image was rejected in Docker's words.
func (p *privateRegistry) rejected(t *testing.T, c *testCluster, service, tag string) error {
	out := c.docker(t, "vm1", "service", "ps", "--no-trunc", "--format", "{{.Image}} {{.CurrentState}} {{.Error}}", service)
	if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(p.image(tag)) + `\S* Rejected .*No such image: ` + regexp.QuoteMeta(p.image(tag))).MatchString(out) {
		return fmt.Errorf("no task was rejected:\n%s", out)
	}
	return nil
}

// startPasswordRegistry starts Debian's docker-registry with a password file, as a process of the test.
func startPasswordRegistry(t *testing.T, c *testCluster) *privateRegistry {
	t.Helper()
	free, err := net.Listen("tcp", net.JoinHostPort(c.MachineAddr().String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	p := &privateRegistry{addr: free.Addr().String()}
	p.password.Store("first")
	dir := t.TempDir()
	passwords := filepath.Join(dir, "htpasswd")
	p.changed = func(t *testing.T) {
		t.Helper()
		hash, err := bcrypt.GenerateFromPassword([]byte(p.password.Load().(string)), bcrypt.MinCost)
		if err == nil {
			err = os.WriteFile(passwords, fmt.Appendf(nil, "%s:%s\n", registryUser, hash), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	p.changed(t)
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: %q\nhttp:\n  addr: %s\nauth:\n  htpasswd:\n    realm: private\n    path: %q\n", filepath.Join(dir, "store"), p.addr, passwords)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	said := &lockedBuffer{}
	cmd := exec.CommandContext(ctx, "docker-registry", "serve", config)
	cmd.Stdout, cmd.Stderr = said, said
	free.Close()
	if err := cmd.Start(); err != nil {
		t.Fatalf("docker-registry (scripts/setup.sh test installs it): %v", err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("the registry said:\n%s", said)
		}
	})
	eventually(t, "the registry answers", patience, func() error {
		conn, err := net.Dial("tcp", p.addr)
		if err == nil {
			conn.Close()
		}
		return err
	})
	return p
}

// startTokenRegistry puts a door in front of the lab's registry that opens for tokens, which it gives for the password.
func startTokenRegistry(t *testing.T, c *testCluster) *privateRegistry {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(c.MachineAddr().String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	p := &privateRegistry{addr: l.Addr().String(), changed: func(*testing.T) {}}
	p.password.Store("first")
	behind := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: c.Registry()})
		r.Out.Host = r.In.Host // in the places that uploads go on at
		r.Out.Header.Del("Authorization")
	}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /token", func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if user != registryUser || password != p.password.Load() {
			http.Error(w, `{"details":"incorrect username or password"}`, http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, `{"token":"token-for-%s","expires_in":60}`, password)
	})
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer token-for-"+p.password.Load().(string) {
			w.Header().Set("Www-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="door"`, p.addr))
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
			return
		}
		behind.ServeHTTP(w, r)
	})
	server := &httptest.Server{Listener: l, Config: &http.Server{Handler: mux}}
	server.Start()
	t.Cleanup(server.Close)
	return p
}
