package node

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/manager/identity"
)

// listener hears everything that nodes say to the outside: their logs in full detail, and their answers.
type listener struct {
	t *testing.T

	mu      sync.Mutex
	log     bytes.Buffer      // guarded by mu
	answers map[string]string // guarded by mu; by request
	known   map[string]string // what each secret is
}

func (l *listener) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.Write(p)
}

func (l *listener) node() *Node {
	return newLoggedNode(l.t, slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug})))
}

// secret remembers a value in the forms in which it might slip out.
func (l *listener) secret(what string, value []byte) {
	for form, text := range map[string]string{"": string(value), " in base64": base64.StdEncoding.EncodeToString(value), " in hex": hex.EncodeToString(value),
		" as numbers": strings.Trim(fmt.Sprint(value), "[]")} {
		l.known[strings.TrimRight(text, "=")] = what + form
	}
}

// ask sends a request to a node's socket and keeps the answer. Of a stream it waits for the beginning.
func (l *listener) ask(n *Node, method, path string, body any, header ...string) (int, string) {
	l.t.Helper()
	raw, err := json.Marshal(body)
	must(l.t, err)
	ctx, cancel := context.WithTimeout(l.t.Context(), 30*time.Second)
	defer cancel()
	if strings.HasPrefix(path, "/events") || strings.HasSuffix(path, "/logs") {
		ctx, cancel = context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://node"+path, bytes.NewReader(raw))
	must(l.t, err)
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", n.cfg.Socket)
	}}}
	status, text := 0, ""
	if resp, err := client.Do(req); err == nil {
		all, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		status, text = resp.StatusCode, fmt.Sprint(resp.Header)+string(all)
	} else {
		text = err.Error()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answers[fmt.Sprintf("%s %s of %s, number %d", method, path, filepath.Base(filepath.Dir(n.cfg.StateDir)), len(l.answers))] = text
	_, said, _ := strings.Cut(text, "]{")
	return status, "{" + said
}

// want is ask where the answer has to have a status.
func (l *listener) want(status int, n *Node, method, path string, body any, header ...string) string {
	l.t.Helper()
	got, text := l.ask(n, method, path, body, header...)
	if got != status {
		l.t.Fatalf("%s %s: %d %s, want %d", method, path, got, text, status)
	}
	return text
}

// create gives the id of what a request makes.
func (l *listener) create(n *Node, path string, body any, header ...string) string {
	l.t.Helper()
	var answer struct{ ID string }
	must(l.t, json.Unmarshal([]byte(l.want(http.StatusCreated, n, http.MethodPost, path, body, header...)), &answer))
	return answer.ID
}

// learn takes down what a node's cluster and disk have that nobody may see.
func (l *listener) learn(n *Node) {
	c := snapshot(l.t, n).Cluster()
	for role, token := range map[string]string{"worker": c.JoinTokens.Worker, "manager": c.JoinTokens.Manager} {
		l.secret("a join token of "+role+"s", []byte(token[strings.LastIndex(token, "-")+1:]))
	}
	block, _ := pem.Decode(c.RootCAKey)
	l.secret("the key of the root", block.Bytes)
	l.secret("the key of the mesh", c.MeshKey)
	if len(c.UnlockKeys) > 0 {
		l.secret("the unlock key", c.UnlockKeys)
	}
	newest, older, err := n.vault.dataKeys()
	must(l.t, err)
	for i, k := range append(older, newest) {
		l.secret(fmt.Sprintf("data key %d of %s", i, n.Info().NodeID), k)
	}
	sealed, err := os.ReadFile(filepath.Join(n.cfg.StateDir, "certificates", "swarm-node.key"))
	must(l.t, err)
	plain, err := n.vault.Open(sealed)
	must(l.t, err)
	block, _ = pem.Decode(plain)
	l.secret("the key of the certificate of "+n.Info().NodeID, block.Bytes)
}

var (
	getRoute = regexp.MustCompile(`"GET (/[^"]*)"`)
	// byDesign are the two answers that show a secret to those who may act for the cluster, with what they show.
	byDesign = map[string]string{"GET /swarm of": "a join token of", "GET /swarm/unlockkey of": "the unlock key"}
)

// TestKeysTokensAndSecretsAreNeverSaid goes through the life of a cluster, good and bad requests, and looks for every secret in all
// that was logged and answered.
func TestKeysTokensAndSecretsAreNeverSaid(t *testing.T) {
	l := &listener{t: t, answers: map[string]string{}, known: map[string]string{}}
	first := l.node()
	run(t, first)
	l.want(http.StatusOK, first, http.MethodPost, "/swarm/init", swarm.InitRequest{ListenAddr: freePort(t), AutoLockManagers: true})
	l.learn(first)
	remote := []string{first.current().state.AdvertiseAddr}
	tokens := snapshot(t, first).Cluster().JoinTokens

	join := func(status int, n *Node, token string) {
		t.Helper()
		if got, text := l.ask(n, http.MethodPost, "/swarm/join", swarm.JoinRequest{ListenAddr: freePort(t), RemoteAddrs: remote, JoinToken: token, Availability: swarm.NodeAvailabilityDrain}); got != status && (status != 0 || got < 400) {
			t.Errorf("join: %d %s", got, text)
		}
	}
	worker, second := l.node(), l.node()
	emptyEngine(t, worker) // so that it can leave
	run(t, worker)
	stopSecond := run(t, second)
	foreign, err := identity.NewJoinTokens([]byte("another root"), nil)
	must(t, err)
	secretOf := func(token string) string { return token[strings.LastIndex(token, "-")+1:] }
	l.secret("a foreign token", []byte(secretOf(foreign.Manager)))
	for _, wrong := range []string{
		foreign.Manager, strings.TrimSuffix(tokens.Worker, secretOf(tokens.Worker)) + secretOf(foreign.Manager), tokens.Worker[:len(tokens.Worker)-3], tokens.Worker + "x",
		"SWMKEY" + strings.TrimPrefix(tokens.Worker, "SWMTKN"), secretOf(tokens.Manager), strings.ToUpper(tokens.Manager),
	} {
		join(0, worker, wrong)
	}
	join(http.StatusOK, worker, tokens.Worker)
	join(http.StatusOK, second, tokens.Manager)
	waitFor(t, "a second manager that leads or follows", func() bool { return snapshot(t, second) != nil })
	sealedWith(t, second, snapshot(t, first).Cluster().UnlockKeys)
	l.learn(second)

	// Objects that have something to hide.
	password, auth := []byte("correct-horse-battery-staple"), []byte(`{"username":"u","password":"open-sesame-99"}`)
	l.secret("a secret", password)
	l.secret("a password of a registry", []byte("open-sesame-99"))
	header := base64.URLEncoding.EncodeToString(auth)
	l.secret("credentials of a registry", []byte(header))
	ids := map[string]string{}
	secret := swarm.SecretSpec{Annotations: swarm.Annotations{Name: "pw"}, Data: password}
	ids["secrets"] = l.create(first, "/secrets/create", secret)
	l.ask(first, http.MethodPost, "/secrets/create", secret) // of the same name
	ids["configs"] = l.create(first, "/configs/create", swarm.ConfigSpec{Annotations: swarm.Annotations{Name: "cf"}, Data: []byte("shown")})
	l.ask(first, http.MethodPost, fmt.Sprintf("/secrets/%s/update?version=0", ids["secrets"]), secret)
	l.ask(first, http.MethodPost, "/secrets/create", map[string]any{"Name": "bad name!", "Data": password})
	l.ask(first, http.MethodPost, "/secrets/create", map[string]any{"Name": "x", "Data": password, "Templating": map[string]any{"Name": "nope"}})
	l.ask(first, http.MethodPost, "/secrets/create", map[string]any{"Name": "x", "Data": base64.StdEncoding.EncodeToString(password) + "!"})
	spec := swarm.ServiceSpec{Annotations: swarm.Annotations{Name: "web"}, TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "registry.invalid/web:1",
		Secrets: []*swarm.SecretReference{{SecretID: ids["secrets"], SecretName: "pw", File: &swarm.SecretReferenceFileTarget{Name: "pw", UID: "0", GID: "0", Mode: 0o444}}}}}}
	ids["services"] = l.create(first, "/services/create", spec, "X-Registry-Auth", header)
	l.want(http.StatusOK, second, http.MethodPost, fmt.Sprintf("/services/%s/update?version=%d", ids["services"], snapshot(t, first).Service(ids["services"]).Version.Index), spec, "X-Registry-Auth", header)
	l.ask(first, http.MethodPost, "/services/create", spec, "X-Registry-Auth", header+"!")
	l.ask(first, http.MethodPost, "/miniswarm/plan", spec, "X-Registry-Auth", header)
	ids["nodes"], ids["networks"] = first.Info().NodeID, "ingress"
	waitFor(t, "a task", func() bool {
		for task := range snapshot(t, first).Tasks() {
			ids["tasks"] = task.ID
		}
		return ids["tasks"] != ""
	})

	// Keys are rotated and mistaken.
	update := func(query string) {
		t.Helper()
		c := snapshot(t, first).Cluster()
		l.want(http.StatusOK, first, http.MethodPost, fmt.Sprintf("/swarm/update?version=%d&%s", c.Version.Index, query), c.Spec)
		l.learn(first)
	}
	before := identity.UnlockKey(snapshot(t, first).Cluster().UnlockKeys)
	update("rotateManagerUnlockKey=true")
	key := identity.UnlockKey(snapshot(t, first).Cluster().UnlockKeys)
	sealedWith(t, first, key)
	sealedWith(t, second, key)
	l.ask(first, http.MethodPost, "/swarm/unlock", swarm.UnlockRequest{UnlockKey: key.Text()})
	l.ask(worker, http.MethodPost, "/swarm/unlock", swarm.UnlockRequest{UnlockKey: key.Text()})
	must(t, stopSecond())
	second, err = New(second.cfg)
	must(t, err)
	run(t, second)
	waitFor(t, "a locked node", func() bool { return second.Info().LocalNodeState == swarm.LocalNodeStateLocked })
	everything := func(n *Node) {
		for _, path := range getPaths(t, ids) {
			l.ask(n, http.MethodGet, path, nil)
		}
	}
	everything(second)
	for _, wrong := range []string{before.Text(), key.Text()[9:], key.Text() + "A", "SWMKEY-2-" + key.Text()[9:], tokens.Manager} {
		l.ask(second, http.MethodPost, "/swarm/unlock", swarm.UnlockRequest{UnlockKey: wrong})
	}
	l.want(http.StatusOK, second, http.MethodPost, "/swarm/unlock", swarm.UnlockRequest{UnlockKey: key.Text()})
	waitFor(t, "a manager that is back", func() bool { return snapshot(t, second) != nil })
	update("rotateWorkerToken=true&rotateManagerToken=true")
	late := l.node()
	run(t, late)
	join(0, late, tokens.Worker)
	l.learn(second)

	for _, n := range []*Node{first, second, worker} {
		everything(n)
	}
	l.want(http.StatusOK, worker, http.MethodPost, "/swarm/leave", nil)
	l.ask(second, http.MethodPost, "/swarm/leave", nil)
	l.hasSaidNothing()
}

// getPaths are all paths of the API that can be read, as its sources say, with the ids of objects that there are.
func getPaths(t *testing.T, ids map[string]string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "manager", "engineapi", "*.go"))
	must(t, err)
	var source []byte
	for _, file := range files {
		if !strings.HasSuffix(file, "_test.go") {
			text, err := os.ReadFile(file)
			must(t, err)
			source = append(source, text...)
		}
	}
	var paths []string
	for _, m := range getRoute.FindAllStringSubmatch(string(source), -1) {
		path := strings.ReplaceAll(m[1], "{page}", "metrics")
		for noun, id := range ids {
			path = strings.ReplaceAll(path, "/"+noun+"/{id}", "/"+noun+"/"+id)
		}
		if strings.Contains(path, "{") {
			t.Errorf("%s: for which object?", path)
		}
		if strings.HasSuffix(path, "/logs") {
			path += "?stdout=1"
		}
		paths = append(paths, path)
	}
	if len(paths) < 20 {
		t.Errorf("only %v can be read", paths)
	}
	return append(paths, "/services?status=true", "/metrics", "/healthz", "/readyz", "/miniswarm/services/"+ids["services"]+"/explain?verbose=1")
}

// hasSaidNothing looks for every secret in everything.
func (l *listener) hasSaidNothing() {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.log.Len() == 0 || len(l.known) < 40 || len(l.answers) < 100 {
		l.t.Fatalf("%d bytes of log, %d secrets, %d answers: that is not a life", l.log.Len(), len(l.known), len(l.answers))
	}
	shown := map[string]bool{}
	for value, what := range l.known {
		if len(value) < 12 {
			l.t.Errorf("%s is too short to be looked for", what)
		}
		if at := strings.Index(l.log.String(), value); at >= 0 {
			l.t.Errorf("%s is in the log: %s", what, l.log.String()[max(0, at-200):min(l.log.Len(), at+200)])
		}
	answers:
		for request, answer := range l.answers {
			if !strings.Contains(answer, value) {
				continue
			}
			for design, kind := range byDesign {
				if strings.HasPrefix(request, design) && strings.HasPrefix(what, kind) {
					shown[design] = true
					continue answers
				}
			}
			l.t.Errorf("%s is in the answer to %s: %s", what, request, answer)
		}
	}
	if len(shown) != len(byDesign) {
		l.t.Errorf("what is shown by design was not seen: %v", shown)
	}
}
