package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// taskFiles lists the directories on a host in which tasks have secrets and configs.
func (c *testCluster) taskFiles(ctx context.Context, host string) (string, error) {
	now, err := c.Host(host)
	if err != nil || !now.On {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := c.Output(ctx, host, "sh", "-c", "ls -d /run/miniswarm/*/* 2>/dev/null || true")
	return strings.TrimSpace(out), err
}

// containerFile is what the witness tells of a file.
type containerFile struct {
	Path, Mode      string
	UID, GID        int
	Tmpfs, ReadOnly bool
	Data            string
}

// filesIn has the witness in a container, as the container's own user, describe files.
func (c *testCluster) filesIn(t *testing.T, r replica, paths ...string) []containerFile {
	t.Helper()
	out, err := c.Output(t.Context(), r.host, append([]string{"docker", "exec", r.id, "/witness", "file"}, paths...)...)
	if err != nil {
		t.Fatalf("files in %s on %s: %v\n%s", r.name, r.host, err, out)
	}
	var all []containerFile
	for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
		var f containerFile
		if err := dec.Decode(&f); err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
	}
	return all
}

// wantSecrets checks what the replicas of the service read; pw is the secret's value.
func (c *testCluster) wantSecrets(t *testing.T, all []replica, pw string) {
	t.Helper()
	for _, r := range all {
		want := []containerFile{
			{"/run/secrets/key", "0400", 1000, 1001, true, true, pw},
			{"/etc/app/app.conf", "0444", 0, 7, true, true, fmt.Sprintf("host=%s task=%s mode=m-%s pw=%s\n", r.host, r.task, r.host, pw)},
			{"/plain", "0444", 0, 0, true, true, "{{.Left.As.It.Is}}"},
		}
		if d := cmp.Diff(want, c.filesIn(t, r, "/run/secrets/key", "/etc/app/app.conf", "/plain")); d != "" {
			t.Errorf("files in %s on %s: %s", r.name, r.host, d)
		}
	}
}

// A secret and a config reach the processes of other nodes and nobody else, outlive their daemon, can be rotated, and
// leave nothing behind on any disk.
func TestSecretsAndConfigs(t *testing.T) {
	c := onShared(t)
	ctx := t.Context()
	const first, second = "correct horse battery staple", "Tr0ub4dor&3 is hard to remember"
	c.docker(t, "vm1", "secret", "create", "pw", writeFile(t, "pw", first))
	c.docker(t, "vm1", "config", "create", "--template-driver", "golang", "conf",
		writeFile(t, "conf", `host={{.Node.Hostname}} task={{.Task.ID}} mode={{env "MODE"}} pw={{secret "key"}}`+"\n"))
	c.docker(t, "vm1", "config", "create", "plain", writeFile(t, "plain", "{{.Left.As.It.Is}}"))
	c.docker(t, "vm1", "service", "create", "--detach", "--name", "w", "--replicas", "2", "--replicas-max-per-node", "1", "--constraint", "node.role==worker",
		"--user", "1000", "--env", "MODE=m-{{.Node.Hostname}}", "--secret", "source=pw,target=key,uid=1000,gid=1001,mode=0400",
		"--config", "source=conf,target=/etc/app/app.conf,gid=7", "--config", "plain", "--restart-delay", "0s", c.witness+":1")
	before := c.running(t, "w", 2)
	c.wantSecrets(t, before, first)
	if files, err := c.taskFiles(ctx, "vm1"); err != nil || files != "" {
		t.Errorf("a node without a task of the service has files: %q, %v", files, err)
	}

	for _, args := range [][]string{{"secret", "rm", "pw"}, {"config", "rm", "conf"}} {
		out, err := c.tryDocker(t, "vm1", args...)
		if want := fmt.Sprintf("%s '%s' is in use by the following service: w", args[0], args[2]); err == nil || !strings.Contains(out+err.Error(), want) {
			t.Errorf("docker %s does not say %q: %s %v", strings.Join(args, " "), want, out, err)
		}
	}
	if out := c.docker(t, "vm1", "secret", "inspect", "pw"); strings.Contains(out, "Data") {
		t.Errorf("inspect shows data: %s", out)
	}

	// The daemon of a node dies and comes back. The container does not notice, and the next one gets the secret as well.
	if err := c.KillDaemon(ctx, "vm2"); err != nil {
		t.Fatal(err)
	}
	c.wantSecrets(t, before, first)
	if err := c.StartDaemon(ctx, "vm2"); err != nil {
		t.Fatal(err)
	}
	c.nodeState(t, "vm2", "Ready")
	now := c.running(t, "w", 2)
	untouched(t, before, now)
	c.wantSecrets(t, now, first)
	old := on(now, "vm2")[0]
	if out, err := c.Output(ctx, "vm2", "docker", "kill", old.id); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	eventually(t, "another container runs on vm2", patience, func() (err error) {
		if now, err = c.converged(ctx, "w", 2); err == nil && on(now, "vm2")[0].id == old.id {
			err = fmt.Errorf("still the old one")
		}
		return err
	})
	c.wantSecrets(t, now, first)
	eventually(t, "the files of the container that was killed are gone", patience, func() error {
		files, err := c.taskFiles(ctx, "vm2")
		if err == nil && (strings.Contains(files, old.task) || len(strings.Fields(files)) != 1) {
			err = fmt.Errorf("files of %s", files)
		}
		return err
	})

	// Rotation: a new secret in the place of the old one, which then is free to go.
	c.docker(t, "vm1", "secret", "create", "pw2", writeFile(t, "pw2", second))
	c.docker(t, "vm1", "service", "update", "--detach=false", "--quiet", "--update-monitor", "100ms", "--secret-rm", "pw",
		"--secret-add", "source=pw2,target=key,uid=1000,gid=1001,mode=0400", "w")
	now = c.running(t, "w", 2)
	c.wantSecrets(t, now, second)
	c.docker(t, "vm1", "secret", "rm", "pw")

	for _, args := range [][]string{{"secret", "inspect", "pw2"}, {"config", "inspect", "conf"}, {"service", "inspect", "w"}, {"service", "ps", "--no-trunc", "w"}, {"service", "explain", "w"},
		{"task", "explain", now[0].task}, {"node", "inspect", "vm2"}} {
		if out := c.miniswarm(t, "vm1", args...); strings.Contains(out, first) || strings.Contains(out, second) {
			t.Errorf("miniswarm %s shows a secret: %s", strings.Join(args, " "), out)
		}
	}
	if out := c.docker(t, "vm1", "events", "--since", "10m", "--until", "0s"); !strings.Contains(out, "secret create") || strings.Contains(out, first) || strings.Contains(out, second) {
		t.Errorf("events lack the secret's creation, or show the secret: %s", out)
	}
	for _, h := range c.hosts {
		for _, dir := range []string{filepath.Join(c.Dir(), h.Name, "miniswarm"), filepath.Join(c.Dir(), h.Name, "docker", "containers"), h.DaemonLog, h.EngineLog} {
			noPlainText(t, dir, first, second)
		}
	}

	// What is removed while a daemon is dead is cleared away when it is back; restore looks for it.
	if err := c.KillDaemon(ctx, "vm3"); err != nil {
		t.Fatal(err)
	}
	c.docker(t, "vm1", "service", "rm", "w")
}

// noPlainText looks for secrets, also as JSON has them, in all files at or below path.
func noPlainText(t *testing.T, path string, secrets ...string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
		return
	}
	err := filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) || err == nil && !d.Type().IsRegular() {
			return nil // what a daemon that works has just removed
		}
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil
		}
		for _, s := range secrets {
			if bytes.Contains(data, []byte(s)) || bytes.Contains(data, []byte(strings.TrimRight(base64.RawStdEncoding.EncodeToString([]byte(s[:len(s)/3*3])), "="))) {
				t.Errorf("%s contains the secret %q", path, s)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// The example stack: a page with a password and a config, and a store behind it that keeps its notes.
func TestSecretsExample(t *testing.T) {
	c := onShared(t)
	const example = "../../examples/secrets"
	image := c.buildNotes(t, example)
	c.docker(t, "vm1", "node", "update", "--label-add", "notes=data", "vm2")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if out, err := c.Output(ctx, "vm1", c.binary, "node", "update", "--label-rm", "notes", "vm2"); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	compose := writeFile(t, "compose.yml", readFile(t, filepath.Join(example, "compose.yml")))
	dir := filepath.Dir(compose)
	for name, text := range map[string]string{"notes.json": readFile(t, filepath.Join(example, "notes.json")), "password.txt": "first\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	deploy := func(version string) {
		t.Helper()
		out, err := c.Output(t.Context(), "vm1", "env", "IMAGE="+image, "VERSION="+version, "docker", "-H", "unix:///run/miniswarm.sock",
			"stack", "deploy", "--detach=true", "--resolve-image", "never", "-c", compose, "notes")
		if err != nil {
			t.Fatalf("deploy version %s: %v\n%s", version, err, out)
		}
	}
	leave := func(note string) (page string) {
		t.Helper()
		address := "http://" + c.addr("vm3", 8080) + "/"
		eventually(t, "a note is left", patience, func() error {
			_, err := visit(t.Context(), http.MethodPost, address, note, http.StatusSeeOther)
			return err
		})
		for range 10 { // whichever replica is met, on whichever node, finds the store by its name
			var err error
			if page, err = visit(t.Context(), http.MethodGet, address, "", http.StatusOK); err != nil {
				t.Fatal(err)
			}
		}
		return page
	}
	deploy("1")
	c.running(t, "notes_web", 2)
	store := c.running(t, "notes_store", 1)
	if store[0].host != "vm2" {
		t.Errorf("the store is on %s", store[0].host)
	}
	if page := leave("before"); !strings.Contains(page, "<h1>Notes of notes_web</h1>") || !strings.Contains(page, "shown by notes_web.") || !strings.Contains(page, "<li>before</li>") {
		t.Errorf("the page is\n%s", page)
	}

	// A new password, in a new version; the notes are still there.
	if err := os.WriteFile(filepath.Join(dir, "password.txt"), []byte("second\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	deploy("2")
	eventually(t, "nobody uses the old password", patience, func() error {
		web, err := c.converged(t.Context(), "notes_web", 2)
		if err != nil {
			return err
		}
		now, err := c.converged(t.Context(), "notes_store", 1)
		if err != nil {
			return err
		}
		for _, r := range append(web, now...) {
			if out, err := c.Output(t.Context(), r.host, "docker", "inspect", "--format", "{{range .Mounts}}{{.Source}} {{end}}", r.id); err != nil || !strings.Contains(out, r.task) {
				return fmt.Errorf("mounts of %s: %s, %w", r.name, out, err)
			}
		}
		if now[0].id == store[0].id {
			return fmt.Errorf("the store is still the old one")
		}
		return nil
	})
	if page := leave("after"); !strings.Contains(page, "<li>before</li>") || !strings.Contains(page, "<li>after</li>") {
		t.Errorf("the page is\n%s", page)
	}
	c.docker(t, "vm1", "secret", "rm", "notes_password_1")
	c.docker(t, "vm1", "stack", "rm", "notes")
	eventually(t, "the volume can be removed", patience, func() error {
		out, err := c.Output(t.Context(), "vm2", "docker", "volume", "rm", "notes_data")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// buildNotes builds the image of the example and puts it on every host.
func (c *testCluster) buildNotes(t *testing.T, example string) string {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "notes"), example)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the example: %v\n%s", err, out)
	}
	if err := os.CopyFS(filepath.Join(dir, "data"), os.DirFS(filepath.Join(example, "data"))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(readFile(t, filepath.Join(example, "Dockerfile"))), 0o644); err != nil {
		t.Fatal(err)
	}
	image, err := c.BuildImage(t.Context(), "vm1", dir, "notes:1")
	if err == nil {
		err = c.Preload(t.Context(), image)
	}
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// visit asks the page of the example over a connection of its own, with a note for it if it is to get one.
func visit(ctx context.Context, method, address, note string, want int) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, address, strings.NewReader(url.Values{"note": {note}}.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req) // follows no redirection
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != want {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}
