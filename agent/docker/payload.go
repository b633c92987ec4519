package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/template"
)

// Payloads gives the secrets and configs that the managers have sent to this node. It waits for one that may still come;
// an error says that it will not. It may be used concurrently.
type Payloads interface {
	Secret(ctx context.Context, id string) (*cluster.Secret, error)
	Config(ctx context.Context, id string) (*cluster.Config, error)
}

// Where relative targets are put, as in Swarm (swarm-semantics.md, 12.6).
const (
	secretDir = "/run/secrets"
	configDir = "/"
)

// payload is one use of a secret or a config by a task.
type payload struct {
	kind   cluster.Kind
	id     string
	name   string // of the secret or config
	file   string // its file's name among those of the task
	asked  string // target as the spec has it
	target string // path in the container
	uid    string
	gid    string
	mode   fs.FileMode
}

// payloadsOf lists what a task wants to see as files. Configs that only the runtime reads are none.
func payloadsOf(spec *swarm.ContainerSpec) []payload {
	var out []payload
	for i, ref := range spec.Secrets {
		if f := ref.File; f != nil {
			out = append(out, payload{kind: cluster.KindSecret, id: ref.SecretID, name: ref.SecretName, file: fmt.Sprintf("secret%d", i),
				asked: f.Name, target: under(secretDir, f.Name), uid: f.UID, gid: f.GID, mode: f.Mode})
		}
	}
	for i, ref := range spec.Configs {
		if f := ref.File; f != nil {
			out = append(out, payload{kind: cluster.KindConfig, id: ref.ConfigID, name: ref.ConfigName, file: fmt.Sprintf("config%d", i),
				asked: f.Name, target: under(configDir, f.Name), uid: f.UID, gid: f.GID, mode: f.Mode})
		}
	}
	return out
}

// under gives an absolute path as it is and others below dir.
func under(dir, target string) string {
	if path.IsAbs(target) {
		return path.Clean(target)
	}
	return path.Join(dir, target)
}

// validatePayloads says whether the files of a task can be made at all.
func validatePayloads(spec *swarm.ContainerSpec) error {
	for _, p := range payloadsOf(spec) {
		if _, _, err := p.owner(); err != nil {
			return err
		}
	}
	return nil
}

func (p *payload) owner() (uid, gid int, err error) {
	if uid, err = number(p.uid); err == nil {
		gid, err = number(p.gid)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("%s %s: uid %q, gid %q: must be numbers", p.kind, p.name, p.uid, p.gid)
	}
	return uid, gid, nil
}

// number reads a uid or gid; none given is root.
func number(text string) (int, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 31)
	return int(n), err
}

// payloadMounts binds the files of a task, which lie in dir, to their places in the container.
func payloadMounts(spec *swarm.ContainerSpec, dir string) []mount.Mount {
	var out []mount.Mount
	for _, p := range payloadsOf(spec) {
		out = append(out, mount.Mount{Type: mount.TypeBind, Source: filepath.Join(dir, p.file), Target: p.target, ReadOnly: true})
	}
	return out
}

// renderer turns secrets and configs into the files of one task.
type renderer struct {
	task  *cluster.Task
	from  Payloads
	scope template.Context
	env   []string // expanded
	// revealed says that the template that is being expanded has read a secret.
	revealed bool
}

// render gives the files of a task, with owners as the container counts them. It waits for what it needs of from.
func render(ctx context.Context, t *cluster.Task, n Node, from Payloads) ([]File, error) {
	x, err := expand(t, n)
	if err != nil {
		return nil, err
	}
	r := renderer{task: t, from: from, scope: scopeOf(t, n), env: x.env}
	var out []File
	for _, p := range payloadsOf(t.Spec.ContainerSpec) {
		uid, gid, err := p.owner()
		if err != nil {
			return nil, err
		}
		data, err := r.content(ctx, p)
		if err != nil {
			return nil, err
		}
		out = append(out, File{Name: p.file, Data: data, UID: uid, GID: gid, Mode: p.mode})
	}
	return out, nil
}

// content gives what is in the file of one secret or config.
func (r *renderer) content(ctx context.Context, p payload) ([]byte, error) {
	data, templating, err := r.fetch(ctx, p.kind, p.id)
	if err != nil || templating == nil {
		return data, err
	}
	if templating.Name != "golang" {
		return nil, fmt.Errorf("failed to expand templated %s %s: unrecognized template type", p.kind, p.name)
	}
	r.revealed = p.kind == cluster.KindSecret
	out, err := r.expand(ctx, data)
	switch {
	case err == nil:
		return out, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case r.revealed:
		// The template's errors quote it, and what it was given.
		return nil, fmt.Errorf("failed to expand templated %s %s: %s", p.kind, p.name, withoutQuotes(err))
	}
	return nil, fmt.Errorf("failed to expand templated %s %s: %w", p.kind, p.name, err)
}

func (r *renderer) fetch(ctx context.Context, k cluster.Kind, id string) ([]byte, *swarm.Driver, error) {
	if k == cluster.KindSecret {
		s, err := r.from.Secret(ctx, id)
		if err != nil {
			return nil, nil, fmt.Errorf("unable to get secret from secret store: %w", err)
		}
		return s.Spec.Data, s.Spec.Templating, nil
	}
	c, err := r.from.Config(ctx, id)
	if err != nil {
		return nil, nil, fmt.Errorf("unable to get config from config store: %w", err)
	}
	return c.Spec.Data, c.Spec.Templating, nil
}

// expand expands the template of a secret or config, which has three functions more than those of a spec
// (swarm-semantics.md, 6.10).
func (r *renderer) expand(ctx context.Context, data []byte) ([]byte, error) {
	out, err := r.scope.Text(string(data), map[string]any{
		"env": r.variable,
		"secret": func(target string) (string, error) {
			r.revealed = true
			return r.named(ctx, cluster.KindSecret, target)
		},
		"config": func(target string) (string, error) { return r.named(ctx, cluster.KindConfig, target) },
	})
	return []byte(out), err
}

// variable gives the value of an environment variable of the task; "" if it is not set.
func (r *renderer) variable(name string) string {
	for _, e := range r.env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v
		}
	}
	return ""
}

// named gives a secret or config of the task by the target that its spec names. Templates in it are left as they are.
func (r *renderer) named(ctx context.Context, k cluster.Kind, target string) (string, error) {
	for _, p := range payloadsOf(r.task.Spec.ContainerSpec) {
		if p.kind == k && p.asked == target {
			data, _, err := r.fetch(ctx, k, p.id)
			return string(data), err
		}
	}
	return "", fmt.Errorf("%s target %s not found", k, target)
}

// errTemplate is what is left of a template's error that must not be shown.
var errTemplate = errors.New("its template cannot be expanded")

var templatePlace = regexp.MustCompile(`^template: expansion:(\d+)`)

// withoutQuotes keeps the line of a template's error.
func withoutQuotes(err error) string {
	if at := templatePlace.FindStringSubmatch(err.Error()); at != nil {
		return errTemplate.Error() + ": mistake in line " + at[1]
	}
	return errTemplate.Error()
}
