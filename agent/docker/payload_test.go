package docker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/api/types/system"
	"github.com/google/go-cmp/cmp"

	"github.com/miniswarm/miniswarm/cluster"
)

// store is what managers have sent; what starts with {{ is a template.
type store map[string]string

func (s store) Secret(_ context.Context, id string) (*cluster.Secret, error) {
	data, templating, err := s.get(id)
	return &cluster.Secret{Secret: swarm.Secret{ID: id, Spec: swarm.SecretSpec{Data: data, Templating: templating}}}, err
}

func (s store) Config(_ context.Context, id string) (*cluster.Config, error) {
	data, templating, err := s.get(id)
	return &cluster.Config{Config: swarm.Config{ID: id, Spec: swarm.ConfigSpec{Data: data, Templating: templating}}}, err
}

func (s store) get(id string) ([]byte, *swarm.Driver, error) {
	data, ok := s[id]
	if !ok {
		return nil, nil, fmt.Errorf("%s not found", id)
	}
	if kind, text, ok := strings.Cut(data, "!"); ok {
		return []byte(text), &swarm.Driver{Name: kind}, nil
	}
	return []byte(data), nil, nil
}

func secretRef(id, target string) *swarm.SecretReference {
	return &swarm.SecretReference{SecretID: id, SecretName: id, File: &swarm.SecretReferenceFileTarget{Name: target, UID: "0", GID: "0", Mode: 0o444}}
}

func configRef(id, target string) *swarm.ConfigReference {
	return &swarm.ConfigReference{ConfigID: id, ConfigName: id, File: &swarm.ConfigReferenceFileTarget{Name: target, UID: "0", GID: "0", Mode: 0o444}}
}

func TestWhereSecretsAndConfigsGo(t *testing.T) {
	spec := swarm.ContainerSpec{
		Secrets: []*swarm.SecretReference{secretRef("a", "key"), secretRef("b", "/etc/tls/key"), secretRef("c", "sub/key")},
		Configs: []*swarm.ConfigReference{configRef("d", "app.conf"), configRef("e", "/etc/app/app.conf"),
			{ConfigID: "f", ConfigName: "f", Runtime: &swarm.ConfigReferenceRuntimeTarget{}}},
		Mounts: []mount.Mount{{Type: mount.TypeVolume, Source: "v", Target: "/v"}},
	}
	n := vm1
	n.Files = "/run/miniswarm/node1"
	got, err := Translate(webTask(spec), n, nil)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, m := range got.Host.Mounts {
		lines = append(lines, fmt.Sprint(m.Type, " ", m.Source, " ", m.Target, " ", m.ReadOnly))
	}
	want := []string{
		"volume v /v false",
		"bind /run/miniswarm/node1/task1/secret0 /run/secrets/key true",
		"bind /run/miniswarm/node1/task1/secret1 /etc/tls/key true",
		"bind /run/miniswarm/node1/task1/secret2 /run/secrets/sub/key true",
		"bind /run/miniswarm/node1/task1/config0 /app.conf true",
		"bind /run/miniswarm/node1/task1/config1 /etc/app/app.conf true",
	}
	if d := cmp.Diff(want, lines); d != "" {
		t.Error(d)
	}
}

func TestTemplatedPayloads(t *testing.T) {
	for _, tt := range []struct{ name, config, want, err string }{
		{"plain text is no template", "{{.Nope}}", "{{.Nope}}", ""},
		{"the context", "golang!{{.Service.Name}} {{.Task.Slot}} {{.Node.Hostname}} {{index .Service.Labels \"tier\"}}", "web 3 vm1 front", ""},
		{"functions", `golang!{{secret "pw"}} {{config "/etc/other"}} {{env "MODE"}} [{{env "NONE"}}] {{join "," "a" "b"}}`, "hunter2 {{.Task.ID}} prod-3 [] a,b", ""},
		{"another language", "jinja!{{x}}", "", "failed to expand templated config c: unrecognized template type"},
		{"a mistake", "golang!\n{{.Nope}}", "", `failed to expand templated config c: template: expansion:2:2: executing "expansion" at <.Nope>: can't evaluate field Nope in type *template.Context`},
		{"a missing label", `golang!{{.Service.Labels.nope}}`, "", `failed to expand templated config c: template: expansion:1:10: executing "expansion" at <.Service.Labels.nope>: map has no entry for key "nope"`},
		{"no such target", `golang!{{config "none"}}`, "", `failed to expand templated config c: template: expansion:1:2: executing "expansion" at <config "none">: error calling config: config target none not found`},
		{"errors do not tell secrets", "golang!{{config (secret \"pw\")}}", "", "failed to expand templated config c: its template cannot be expanded: mistake in line 1"},
	} {
		task := webTask(swarm.ContainerSpec{Env: []string{"MODE=prod-{{.Task.Slot}}"}, Secrets: []*swarm.SecretReference{secretRef("s", "pw")},
			Configs: []*swarm.ConfigReference{configRef("c", "file"), configRef("o", "/etc/other")}})
		files, err := render(t.Context(), task, vm1, store{"s": "hunter2", "o": "golang!{{.Task.ID}}", "c": tt.config})
		switch {
		case tt.err != "":
			if err == nil || err.Error() != tt.err {
				t.Errorf("%s: got error %v, want %s", tt.name, err, tt.err)
			}
		case err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case string(files[1].Data) != tt.want:
			t.Errorf("%s: got %q, want %q", tt.name, files[1].Data, tt.want)
		}
	}
	task := webTask(swarm.ContainerSpec{Secrets: []*swarm.SecretReference{secretRef("s", "pw")}})
	if _, err := render(t.Context(), task, vm1, store{"s": "golang!top {{secretword"}); err == nil || strings.Contains(err.Error(), "secretword") {
		t.Errorf("a mistake in a secret's template: %v", err)
	}
	if _, err := render(t.Context(), task, vm1, store{}); err == nil || err.Error() != "unable to get secret from secret store: s not found" {
		t.Errorf("a secret that is not there: %v", err)
	}
}

func TestFilesOfTasks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "files")
	f := NewFiles(dir, nil)
	if ids, err := f.Tasks(); err != nil || len(ids) != 0 {
		t.Fatalf("before anything was made: %v, %v", ids, err)
	}
	if err := f.make("t1", []File{{Name: "secret0", Data: []byte("x"), UID: os.Getuid(), GID: os.Getgid(), Mode: 0o440}}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "t1", "secret0"))
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); info.Mode() != 0o440 || int(st.Uid) != os.Getuid() {
		t.Errorf("mode %s, owner %d", info.Mode(), st.Uid)
	}
	// A daemon was killed while it wrote; the next one finds what was finished and clears away the rest.
	if err := os.Mkdir(filepath.Join(dir, "t2.new"), 0o700); err != nil {
		t.Fatal(err)
	}
	f = NewFiles(dir, nil)
	if !f.made("t1") || f.made("t2") {
		t.Errorf("made: t1 %v, t2 %v", f.made("t1"), f.made("t2"))
	}
	if ids, err := f.Tasks(); err != nil || cmp.Diff([]string{"t1", "t2"}, ids) != "" {
		t.Errorf("tasks with files: %v, %v", ids, err)
	}
	if err := f.Remove("t2", "never"); err != nil {
		t.Error(err)
	}
	if ids, _ := f.Tasks(); cmp.Diff([]string{"t1"}, ids) != "" {
		t.Errorf("left: %v", ids)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory after Close: %v", err)
	}
}

func TestOwnersOnAnEngineThatRemapsUsers(t *testing.T) {
	for _, tt := range []struct {
		options  []string
		dir      string
		uid, gid int
	}{
		{nil, "/var/lib/docker", 0, 0},
		{nil, "/var/lib/docker/231072.231072", 0, 0},
		{[]string{"name=seccomp,profile=default", "name=userns"}, "/var/lib/docker/231072.165536", 231072, 165536},
		{[]string{"name=userns"}, "/var/lib/docker", 0, 0},
	} {
		if uid, gid := remapped(system.Info{SecurityOptions: tt.options, DockerRootDir: tt.dir}); uid != tt.uid || gid != tt.gid {
			t.Errorf("%v in %s: %d.%d, want %d.%d", tt.options, tt.dir, uid, gid, tt.uid, tt.gid)
		}
	}
}
