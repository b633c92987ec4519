package engineapi

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/manager/identity"
)

// cli runs the real docker command against a world's socket.
type cli struct {
	*world
	docker string
	config string
}

func newCLI(t *testing.T) *cli {
	t.Helper()
	path, err := exec.LookPath("docker")
	if err != nil {
		t.Fatalf("the docker command is needed to judge the API by: %v", err)
	}
	w := newWorld(t)
	w.control.put(t, append(aCluster(), aManager("node1aaaaaaaaaaaaaaaaaaaa", "vm1"), aNode("node2aaaaaaaaaaaaaaaaaaaa", "vm2"))...)
	w.control.members[0].NodeID = "node1aaaaaaaaaaaaaaaaaaaa"
	w.control.setLeader(true, "node1aaaaaaaaaaaaaaaaaaaa", "10.0.0.1:2377")
	info := w.local.Info()
	info.NodeID = "node1aaaaaaaaaaaaaaaaaaaa"
	w.local.set(info, w.control, nil)
	return &cli{world: w, docker: path, config: t.TempDir()}
}

// run gives what the command printed and whether it succeeded.
func (c *cli) run(stdin string, args ...string) (stdout, stderr string, ok bool) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), c.docker, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+c.socket, "DOCKER_CONFIG="+c.config, "DOCKER_CLI_HINTS=false", "NO_COLOR=1", "TZ=UTC")
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	return out.String(), errs.String(), err == nil
}

// ok runs a command that must succeed and gives its output.
func (c *cli) ok(args ...string) string {
	c.t.Helper()
	out, errs, ok := c.run("", args...)
	if !ok {
		c.t.Fatalf("docker %s failed:\n%s%s", strings.Join(args, " "), out, errs)
	}
	return out
}

// fails runs a command that must fail with the text.
func (c *cli) fails(text string, args ...string) {
	c.t.Helper()
	out, errs, ok := c.run("", args...)
	if ok || !strings.Contains(errs, text) {
		c.t.Errorf("docker %s: ok %v\n%s%s\nwant the error %q", strings.Join(args, " "), ok, out, errs, text)
	}
}

// shows checks that the output has all the texts, blanks taken together.
func (c *cli) shows(out string, texts ...string) {
	c.t.Helper()
	squeezed := regexp.MustCompile(`[ \t\n]+`).ReplaceAllString(out, " ")
	for _, text := range texts {
		if !strings.Contains(squeezed, text) {
			c.t.Errorf("%q is not in:\n%s", text, out)
		}
	}
}

func TestDockerCommandNodes(t *testing.T) {
	c := newCLI(t)
	c.shows(c.ok("node", "ls"), "node1aaaaaaaaaaaaaaaaaaaa * vm1 Ready Active Leader 20.10.24", "node2aaaaaaaaaaaaaaaaaaaa vm2 Ready Active 20.10.24")
	c.shows(c.ok("node", "inspect", "self", "--pretty"), "Hostname: vm1", "Manager Status:", "Raft Status: Reachable")
	c.ok("node", "update", "--label-add", "zone=a", "--availability", "drain", "vm2")
	c.shows(c.ok("node", "inspect", "vm2", "--format", "{{.Spec.Availability}} {{.Spec.Labels}}"), "drain map[zone:a]")
	c.shows(c.ok("node", "ls", "--filter", "role=manager", "-q"), "node1")
	c.shows(c.ok("node", "ls", "--filter", "node.label=zone=a", "--format", "{{.Hostname}}"), "vm2")
	c.fails("is not down and can't be removed", "node", "rm", "vm2")
	c.ok("node", "rm", "--force", "vm2")
	c.fails("node vm2 not found", "node", "inspect", "vm2")
	c.shows(c.ok("node", "ps"), "ID NAME IMAGE NODE DESIRED STATE CURRENT STATE ERROR PORTS")
	c.shows(c.ok("info"), "Swarm: active", "NodeID: node1aaaaaaaaaaaaaaaaaaaa", "Is Manager: true", "ClusterID: cluster1", "Managers: 1", "Nodes: 1", "Default Address Pool: 10.0.0.0/8", "Task History Retention Limit: 5")
	c.shows(c.ok("version"), "miniswarm:", "Version: 1.2.3", "API version: 1.41")
}

func TestDockerCommandSwarm(t *testing.T) {
	c := newCLI(t)
	c.shows(c.ok("swarm", "join-token", "worker"), "docker swarm join --token SWMTKN-1-w 10.0.0.1:2377")
	c.shows(c.ok("swarm", "join-token", "-q", "manager"), "SWMTKN-1-m")
	c.shows(c.ok("swarm", "update", "--task-history-limit", "7"), "Swarm updated.")
	if limit := c.control.snapshot().Cluster().Spec.Orchestration.TaskHistoryRetentionLimit; *limit != 7 {
		t.Errorf("history limit %d", *limit)
	}
	c.fails("not locked", "swarm", "unlock")
	c.fails("cannot rotate because autolock is not turned on", "swarm", "unlock-key", "--rotate")
	key := func() string { return identity.UnlockKey(c.control.snapshot().Cluster().UnlockKeys).Text() }
	c.shows(c.ok("swarm", "update", "--autolock=true"), "Swarm updated.", "To unlock a swarm manager after it restarts", key())
	first := key()
	c.shows(c.ok("swarm", "unlock-key", "-q"), first)
	c.shows(c.ok("swarm", "unlock-key", "--rotate"), "Successfully rotated manager unlock key.", key())
	if key() == first {
		t.Error("the unlock key was not rotated")
	}
	c.ok("swarm", "update", "--autolock=false")
	c.fails("no unlock key is set", "swarm", "unlock-key")
	c.fails("already part of a swarm", "swarm", "init")
	c.fails("last manager", "swarm", "leave")
}

func TestDockerCommandServices(t *testing.T) {
	c := newCLI(t)
	id := strings.TrimSpace(c.ok("service", "create", "-d", "--name", "web", "--replicas", "3", "-p", "80:8000", "-e", "A=1", "--label", "tier=front", "--limit-cpu", "0.5", "--reserve-memory", "64M",
		"--constraint", "node.role==worker", "--placement-pref", "spread=node.labels.zone", "--restart-condition", "on-failure", "--mount", "type=volume,source=data,target=/data",
		"--update-parallelism", "2", "--update-order", "start-first", "--health-cmd", "true", "--stop-grace-period", "3s", "--host", "db:10.1.1.1", "--no-resolve-image", "app:1", "serve", "--fast"))
	if len(id) != 25 {
		t.Fatalf("create printed %q", id)
	}
	svc := c.control.snapshot().Service(id)
	if svc == nil || svc.Spec.EndpointSpec.Ports[0].PublishedPort != 80 || svc.Spec.TaskTemplate.RestartPolicy.Condition != swarm.RestartPolicyConditionOnFailure {
		t.Fatalf("stored: %+v", svc)
	}
	allocated := *svc
	allocated.Endpoint.Ports = svc.Spec.EndpointSpec.Ports
	c.control.put(t, &allocated, aTask("task1aaaaaaaaaaaaaaaaaaaa", svc, 1, "node2aaaaaaaaaaaaaaaaaaaa", swarm.TaskStateRunning), aTask("task2aaaaaaaaaaaaaaaaaaaa", svc, 2, "", swarm.TaskStatePending))
	c.shows(c.ok("service", "ls"), "web replicated 1/3 app:1 *:80->8000/tcp")
	c.shows(c.ok("service", "ls", "--filter", "label=tier=front", "--format", "{{.Name}} {{.Replicas}}"), "web 1/3")
	if out := c.ok("service", "ls", "-q", "--filter", "mode=global"); out != "" {
		t.Errorf("global services: %q", out)
	}
	c.shows(c.ok("service", "ps", "web"), "task1aaaaaaa web.1 app:1 vm2 Running Running", "task2aaaaaaa web.2 app:1 Running Pending")
	c.shows(c.ok("service", "ps", "--filter", "node=vm2", "-q", "web"), "task1aaaaaaa")
	c.shows(c.ok("service", "inspect", "--pretty", "web"), "Name: web", "Service Mode: Replicated", "Replicas: 3", "Constraints: [node.role==worker]", "Preferences: [spread=node.labels.zone]",
		"Parallelism: 2", "Update order: start-first", "Image: app:1", "Args: serve --fast", "Env: A=1", "Target: /data", "CPU: 0.5", "Memory: 64MiB", "Endpoint Mode: vip", "PublishedPort = 80", "TargetPort = 8000")
	c.shows(c.ok("inspect", "--type", "task", "task1aaa"), `"ServiceID": "`+id+`"`)
	c.shows(c.ok("inspect", "--type", "task", "web.1.task1aaaaaaaaaaaaaaaaaaaa", "--format", "{{.Slot}}"), "1")

	c.shows(c.ok("service", "update", "-d", "--image", "app:2", "--env-add", "B=2", "--no-resolve-image", "web"), "web")
	c.shows(c.ok("service", "inspect", "web", "--format", "{{.Spec.TaskTemplate.ContainerSpec.Image}} {{.PreviousSpec.TaskTemplate.ContainerSpec.Image}}"), "app:2 app:1")
	c.shows(c.ok("service", "rollback", "-d", "web"), "web")
	c.shows(c.ok("service", "inspect", "web", "--format", "{{.Spec.TaskTemplate.ContainerSpec.Image}} {{.UpdateStatus.State}}"), "app:1 rollback_started")
	c.shows(c.ok("service", "scale", "-d", "web=12"), "web scaled to 12")
	c.fails("port '80' is already in use by service 'web'", "service", "create", "-d", "--name", "other", "-p", "80:80", "--no-resolve-image", "app:1")
	c.fails("name conflicts with an existing object: service web already exists", "service", "create", "-d", "--name", "web", "--no-resolve-image", "app:1")
	c.fails("no such service: nothing", "service", "inspect", "nothing")
	c.fails("network nothing not found", "service", "create", "-d", "--network", "nothing", "--no-resolve-image", "app:1")
	c.ok("service", "create", "-d", "--name", "onhost", "--network", "host", "--mode", "global", "--no-resolve-image", "app:1")
	if n := c.control.snapshot().NetworkNamed("host"); n == nil || c.control.snapshot().ServiceNamed("onhost").Spec.TaskTemplate.Networks[0].Target != n.ID {
		t.Error("the service is not on the host's network")
	}
	c.shows(c.ok("service", "rm", "web", "onhost"), "web", "onhost")
	c.fails("no such service: web", "service", "ps", "web")
}

func TestDockerCommandSecretsConfigsAndNetworks(t *testing.T) {
	c := newCLI(t)
	if out, errs, ok := c.run("s3cret", "secret", "create", "--label", "a=b", "pass", "-"); !ok {
		t.Fatal(out, errs)
	}
	if out, errs, ok := c.run("conf", "config", "create", "conf", "-"); !ok {
		t.Fatal(out, errs)
	}
	c.shows(c.ok("secret", "ls"), "pass")
	c.shows(c.ok("secret", "inspect", "pass", "--format", "{{.Spec.Name}} {{.Spec.Labels}}"), "pass map[a:b]")
	c.shows(c.ok("config", "ls"), "conf")
	c.shows(c.ok("config", "inspect", "--pretty", "conf"), "Name: conf", "Data: conf")
	c.ok("service", "create", "-d", "--name", "user", "--secret", "pass", "--config", "source=conf,target=/etc/conf", "--no-resolve-image", "app:1")
	c.fails("secret 'pass' is in use by the following service: user", "secret", "rm", "pass")
	c.fails("config 'conf' is in use by the following service: user", "config", "rm", "conf")
	c.fails("secret not found: nothing", "service", "create", "-d", "--secret", "nothing", "--no-resolve-image", "app:1")

	c.ok("network", "create", "-d", "overlay", "--subnet", "10.9.0.0/24", "--label", "k=v", "--attachable", "back")
	c.ok("network", "create", "local")
	out := c.ok("network", "ls")
	c.shows(out, "back overlay swarm", "ingress overlay swarm", "local bridge local", "bridge bridge local", "host host local")
	if n := strings.Count(c.ok("network", "ls", "--filter", "scope=swarm", "-q"), "\n"); n != 2 {
		t.Errorf("%d networks of the swarm", n)
	}
	c.shows(c.ok("network", "inspect", "back", "--format", "{{.Driver}} {{.Scope}} {{.Attachable}} {{(index .IPAM.Config 0).Subnet}} {{.Labels}}"), "overlay swarm true 10.9.0.0/24 map[k:v]")
	c.fails("network with name back already exists", "network", "create", "-d", "overlay", "back")
	c.fails("network with name back already exists", "network", "create", "back")
	c.fails("network with name local already exists", "network", "create", "-d", "overlay", "local")
	c.ok("service", "update", "-d", "--network-add", "back", "--no-resolve-image", "user")
	c.fails("is in use by service", "network", "rm", "back")
	c.fails("network local not found", "service", "create", "-d", "--network", "local", "--no-resolve-image", "app:1")
	c.ok("service", "rm", "user")
	c.shows(c.ok("network", "rm", "back", "local"), "back", "local")
	c.shows(c.ok("secret", "rm", "pass"), "pass")
	c.shows(c.ok("config", "rm", "conf"), "conf")
}

func TestDockerCommandStacks(t *testing.T) {
	c := newCLI(t)
	file := filepath.Join(t.TempDir(), "compose.yml")
	compose := `
version: "3.8"
services:
  web:
    image: app:1
    ports: ["80:8000"]
    networks: [default, back]
    secrets: [pass]
    configs: [{source: conf, target: /etc/conf}]
    environment: {A: "1"}
    volumes: ["data:/data"]
    deploy:
      replicas: REPLICAS
      restart_policy: {condition: on-failure}
      resources: {limits: {cpus: "0.5", memory: 64M}}
      update_config: {parallelism: 2, order: start-first}
  db:
    image: db:1
    networks: [back]
    deploy: {placement: {constraints: [node.labels.zone==a]}}
networks:
  back: {driver: overlay, internal: true}
volumes:
  data:
secrets:
  pass: {file: ./pass}
configs:
  conf: {file: ./pass}
`
	write := func(replicas string) {
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(compose, "REPLICAS", replicas)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(file), "pass"), []byte("s3cret"), 0o600); err != nil {
		t.Fatal(err)
	}
	write("4")
	c.shows(c.ok("stack", "deploy", "--detach=true", "--resolve-image", "never", "-c", file, "shop"), "Creating network shop_default", "Creating network shop_back", "Creating secret shop_pass", "Creating config shop_conf",
		"Creating service shop_web", "Creating service shop_db")
	c.shows(c.ok("stack", "ls"), "shop 2")
	c.shows(c.ok("stack", "services", "shop"), "shop_web replicated 0/4 app:1", "shop_db replicated 0/1 db:1")
	svc := c.control.snapshot().ServiceNamed("shop_web")
	c.control.put(t, aTask("task1aaaaaaaaaaaaaaaaaaaa", svc, 1, "node2aaaaaaaaaaaaaaaaaaaa", swarm.TaskStateRunning))
	c.shows(c.ok("stack", "ps", "shop"), "shop_web.1 app:1 vm2 Running Running")
	write("12")
	c.shows(c.ok("stack", "deploy", "--detach=true", "--resolve-image", "never", "-c", file, "shop"), "Updating service shop_web (id: "+svc.ID+")")
	if n := c.control.snapshot().Service(svc.ID).Spec.Mode.Replicated.Replicas; *n != 12 {
		t.Errorf("replicas %d", *n)
	}
	c.shows(c.ok("stack", "rm", "shop"), "Removing service shop_web", "Removing service shop_db", "Removing secret shop_pass", "Removing config shop_conf", "Removing network shop_default", "Removing network shop_back")
	if out := strings.TrimSpace(c.ok("stack", "ls", "--format", "{{.Name}}")); out != "" {
		t.Errorf("stacks left: %q", out)
	}
	if n := c.control.snapshot().NetworkNamed("shop_back"); n != nil {
		t.Error("network left")
	}
}

func TestDockerCommandOnAWorkerAndWithoutASwarm(t *testing.T) {
	c := newCLI(t)
	c.local.set(swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive}, nil, errNever)
	c.fails("This node is not a swarm manager. Use", "node", "ls")
	file := filepath.Join(t.TempDir(), "compose.yml")
	if err := os.WriteFile(file, []byte("services: {web: {image: app}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.fails("not a swarm manager", "stack", "deploy", "-c", file, "x")
	c.shows(c.ok("info"), "Swarm: inactive")
	c.shows(c.ok("network", "ls"), "bridge bridge local")
	c.local.set(swarm.Info{LocalNodeState: swarm.LocalNodeStateActive, NodeID: "node2"}, nil, errWorker)
	c.fails("Worker nodes can't be used to view or modify cluster state", "service", "ls")
	c.fails("Worker nodes can't be used to view or modify cluster state", "network", "create", "-d", "overlay", "x")
	c.shows(c.ok("info"), "Swarm: active", "Is Manager: false")
}
