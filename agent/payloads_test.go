package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/google/go-cmp/cmp"

	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/agent/docker/fake"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

const plain = "correct horse battery staple"

// withFiles gives an agent whose containers can have secrets; files says which tasks have any on the node.
func withFiles(t *testing.T, f func(w *world, files func() []string)) {
	dir := filepath.Join(t.TempDir(), "files")
	withWorld(t, func(w *world) {
		_ = w.stop()
		w.config.Files = docker.NewFiles(dir, nil)
		w.start()
		w.engine.SetImage("web:1", fake.Program{})
		f(w, func() []string {
			ids, err := docker.NewFiles(dir, nil).Tasks()
			if err != nil {
				w.Error(err)
			}
			return ids
		})
	})
}

func secretTask(w *world, id string) *cluster.Task {
	t := w.task(id, running)
	t.Spec.ContainerSpec.Secrets = []*swarm.SecretReference{{SecretID: "s1", SecretName: "pw", File: &swarm.SecretReferenceFileTarget{Name: "pw", Mode: 0o400}}}
	t.Spec.ContainerSpec.Configs = []*swarm.ConfigReference{{ConfigID: "c1", ConfigName: "conf", File: &swarm.ConfigReferenceFileTarget{Name: "/etc/conf", Mode: 0o444}}}
	return t
}

func secret(id, data string) *cluster.Secret {
	return &cluster.Secret{Secret: swarm.Secret{ID: id, Spec: swarm.SecretSpec{Annotations: swarm.Annotations{Name: "pw"}, Data: []byte(data)}}}
}

func config(id, data string) *cluster.Config {
	return &cluster.Config{Config: swarm.Config{ID: id, Spec: swarm.ConfigSpec{Annotations: swarm.Annotations{Name: "conf"}, Data: []byte(data),
		Templating: &swarm.Driver{Name: "golang"}}}}
}

func (w *world) wantFiles(task string, want map[string]string) {
	w.Helper()
	st := w.manager("a").heard().state[task]
	if st.ContainerStatus == nil {
		w.Fatalf("task %s has no container: %+v", task, st)
	}
	if d := cmp.Diff(want, w.engine.Files(st.ContainerStatus.ContainerID)); d != "" {
		w.Errorf("files in the container of %s: %s", task, d)
	}
}

func TestSecretsAndConfigsReachTheContainer(t *testing.T) {
	withFiles(t, func(w *world, files func() []string) {
		m := w.manager("a")
		m.assign(protocol.Assignments{Complete: true, Tasks: []*cluster.Task{secretTask(w, "t1")},
			Secrets: []*cluster.Secret{secret("s1", plain)}, Configs: []*cluster.Config{config("c1", `{{.Task.ID}} {{secret "pw"}}`)}})
		m.wantTasks("t1 running started")
		w.wantFiles("t1", map[string]string{"/run/secrets/pw": plain, "/etc/conf": "t1 " + plain})

		// The files go when nothing will start any more, while the container is kept for its log.
		down := secretTask(w, "t1")
		down.DesiredState = swarm.TaskStateShutdown
		m.assign(protocol.Assignments{Tasks: []*cluster.Task{down}})
		m.wantTasks("t1 shutdown shutdown")
		if ids := files(); len(ids) != 0 {
			t.Errorf("files are left for %v", ids)
		}
		m.assign(protocol.Assignments{RemoveTasks: []string{"t1"}, RemoveSecrets: []string{"s1"}, RemoveConfigs: []string{"c1"}})
		m.assign(protocol.Assignments{Tasks: []*cluster.Task{secretTask(w, "t2")}})
		if got := m.heard().state["t2"]; got.State != swarm.TaskStateRejected || got.Err != "unable to get secret from secret store: secret s1 not found" {
			t.Errorf("a task whose secret is gone: %+v", got)
		}
	})
}

func TestARestartedAgentKeepsFilesAndWaitsForSecrets(t *testing.T) {
	withFiles(t, func(w *world, files func() []string) {
		m := w.manager("a")
		later := secretTask(w, "later") // prepared, not started
		later.DesiredState = swarm.TaskStateReady
		fresh := secretTask(w, "fresh") // not even prepared
		fresh.DesiredState = swarm.TaskStateAccepted
		all := protocol.Assignments{Complete: true, Tasks: []*cluster.Task{secretTask(w, "t1"), later, fresh},
			Secrets: []*cluster.Secret{secret("s1", plain)}, Configs: []*cluster.Config{config("c1", "conf")}}
		m.assign(all)
		if d := cmp.Diff([]string{"later", "t1"}, files()); d != "" {
			t.Error(d)
		}
		before := w.engine.Ids()
		_ = w.stop()
		m.die()
		w.manager("b").die()
		w.noPlainBytes(w.dir)

		// Without managers: what runs goes on, its files stay.
		w.start()
		if d := cmp.Diff(before, w.engine.Ids()); d != "" {
			t.Error(d)
		}
		if d := cmp.Diff([]string{"later", "t1"}, files()); d != "" {
			t.Error(d)
		}
		// A manager comes back, and wants the others to run. The secret has another version by now, which tasks that have
		// their files do not see.
		w.revive("a")
		time.Sleep(10 * time.Second) // past every pause between two attempts to connect
		m = w.manager("a")
		all.Tasks = []*cluster.Task{secretTask(w, "t1"), secretTask(w, "later"), secretTask(w, "fresh")}
		all.Secrets[0] = secret("s1", "another")
		m.assign(all)
		m.wantTasks("fresh running started\nlater running started\nt1 running started")
		w.wantFiles("later", map[string]string{"/run/secrets/pw": plain, "/etc/conf": "conf"})
		w.wantFiles("fresh", map[string]string{"/run/secrets/pw": "another", "/etc/conf": "conf"})

		// What a complete list does not know goes with its files.
		all.Tasks = all.Tasks[:1]
		m.assign(all)
		if d := cmp.Diff([]string{"t1"}, files()); d != "" {
			t.Error(d)
		}
		_ = w.stop()
		if err := w.agent.Leave(w.life); err != nil {
			t.Error(err)
		}
		if ids := files(); len(ids) != 0 {
			t.Errorf("files are left for %v", ids)
		}
		w.start()
	})
}

// A node that leaves while its engine is away cannot remove containers, but secrets go.
func TestNoSecretStaysOnANodeThatLeaves(t *testing.T) {
	withFiles(t, func(w *world, files func() []string) {
		w.manager("a").assign(protocol.Assignments{Complete: true, Tasks: []*cluster.Task{secretTask(w, "t1")},
			Secrets: []*cluster.Secret{secret("s1", plain)}, Configs: []*cluster.Config{config("c1", "conf")}})
		_ = w.stop()
		if len(files()) != 1 {
			t.Fatalf("files of %v", files())
		}
		w.engine.Vanish()
		ctx, cancel := context.WithTimeout(w.life, time.Minute)
		defer cancel()
		if err := w.agent.Leave(ctx); !errors.Is(err, docker.ErrUnavailable) {
			t.Errorf("left without an engine: %v", err)
		}
		if ids := files(); len(ids) != 0 {
			t.Errorf("files are left for %v", ids)
		}
		w.engine.Return()
		w.start()
	})
}

func TestATaskWaitsForTheSessionThatBringsItsSecret(t *testing.T) {
	withFiles(t, func(w *world, files func() []string) {
		m := w.manager("a")
		w.engine.SetRegistry("slow:1", fake.Registry{Silent: true}, fake.Program{})
		slow := secretTask(w, "t1")
		slow.Spec.ContainerSpec.Image = "slow:1"
		all := protocol.Assignments{Complete: true, Tasks: []*cluster.Task{slow}, Secrets: []*cluster.Secret{secret("s1", plain)},
			Configs: []*cluster.Config{config("c1", "conf")}}
		m.assign(all)
		m.wantTasks("t1 preparing preparing")
		// The agent restarts, no manager is there, and by now the image is.
		_ = w.stop()
		m.die()
		w.manager("b").die()
		w.engine.SetImage("slow:1", fake.Program{})
		w.start()
		time.Sleep(time.Minute)
		w.wantEngine("")
		if ids := files(); len(ids) != 0 {
			t.Errorf("files of %v", ids)
		}
		w.revive("a")
		time.Sleep(10 * time.Second)
		m = w.manager("a")
		m.wantTasks("t1 preparing preparing")
		m.assign(all)
		m.wantTasks("t1 running started")
		w.wantFiles("t1", map[string]string{"/run/secrets/pw": plain, "/etc/conf": "conf"})
	})
}

func TestManySecretsOverASlowWay(t *testing.T) {
	withFiles(t, func(w *world, _ func() []string) {
		m := w.manager("a")
		task := secretTask(w, "t1")
		a := protocol.Assignments{Seq: 1, Complete: true, Tasks: []*cluster.Task{task}, Secrets: []*cluster.Secret{secret("s1", strings.Repeat("x", 500000))},
			Configs: []*cluster.Config{config("c1", "conf")}}
		line, err := json.Marshal(protocol.ToAgent{Assignments: &a})
		if err != nil {
			t.Fatal(err)
		}
		m.complete()
		before := m.heard().sessions
		var conn net.Conn
		m.set(func() { m.mute, conn = true, m.conn }) // what the leader has to answer waits behind the message
		for part := range slices.Chunk(append(line, '\n'), 60000) {
			if _, err := conn.Write(part); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		m.set(func() { m.mute = false })
		w.settle()
		m.wantTasks("t1 running started")
		if n := m.heard().sessions; n != before {
			t.Errorf("%d sessions instead of %d", n, before)
		}
	})
}

// noPlainBytes looks for the secret in every file below dir.
func (w *world) noPlainBytes(dir string) {
	w.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(plain)) || bytes.Contains(data, []byte("Y29ycmVjdCBob3JzZSBiYXR0ZXJ5IHN0YXBsZQ")) {
			w.Errorf("%s contains the secret", path)
		}
		return err
	})
	if err != nil {
		w.Error(err)
	}
}
