package docker

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"text/template"

	"github.com/docker/docker/api/types/mount"

	"github.com/miniswarm/miniswarm/cluster"
)

// scope is what templates of a spec can refer to (swarm-semantics.md, 6.10).
type scope struct {
	Service struct {
		ID, Name string
		Labels   map[string]string
	}
	Node struct {
		ID, Hostname string
		Platform     struct{ Architecture, OS string }
	}
	Task struct{ ID, Name, Slot string }
}

func scopeOf(t *cluster.Task, n Node) (s scope) {
	s.Service.ID, s.Service.Name, s.Service.Labels = t.ServiceID, t.ServiceAnnotations.Name, t.ServiceAnnotations.Labels
	s.Node.ID, s.Node.Hostname = n.ID, n.Description.Hostname
	s.Node.Platform.Architecture, s.Node.Platform.OS = n.Description.Platform.Architecture, n.Description.Platform.OS
	s.Task.ID, s.Task.Name, s.Task.Slot = t.ID, t.FullName(), t.SlotName()
	return s
}

// expanded holds the fields of a spec that may contain templates, without them.
type expanded struct {
	env      []string
	hostname string
	mounts   []mount.Mount
}

// expand resolves the templates of a task: values of environment variables, the host name, and of mounts the source,
// the target, volume labels and volume driver options. Nothing else in a spec is a template.
func expand(t *cluster.Task, n Node) (expanded, error) {
	s := scopeOf(t, n)
	spec := t.Spec.ContainerSpec
	var out expanded
	for _, e := range spec.Env {
		name, value, ok := strings.Cut(e, "=")
		if ok {
			v, err := s.text(value)
			if err != nil {
				return out, fmt.Errorf("expanding env failed: expanding env %q: %w", e, err)
			}
			e = name + "=" + v
		}
		out.env = append(out.env, e)
	}
	var err error
	if out.hostname, err = s.text(spec.Hostname); err != nil {
		return out, fmt.Errorf("expanding hostname failed: %w", err)
	}
	for _, m := range spec.Mounts {
		x, err := s.mount(m)
		if err != nil {
			return out, fmt.Errorf("expanding mounts failed: expanding mount %q: %w", m.Target, err)
		}
		if err := validateMount(x); err != nil {
			return out, err
		}
		out.mounts = append(out.mounts, x)
	}
	return out, nil
}

func (s *scope) mount(m mount.Mount) (mount.Mount, error) {
	var errs [4]error
	m.Source, errs[0] = s.text(m.Source)
	m.Target, errs[1] = s.text(m.Target)
	if v := m.VolumeOptions; v != nil {
		o := *v
		o.Labels, errs[2] = s.values(v.Labels)
		if v.DriverConfig != nil {
			d := *v.DriverConfig
			d.Options, errs[3] = s.values(d.Options)
			o.DriverConfig = &d
		}
		m.VolumeOptions = &o
	}
	return m, errors.Join(errs[:]...)
}

func (s *scope) values(in map[string]string) (map[string]string, error) {
	out := maps.Clone(in)
	for k, v := range in {
		x, err := s.text(v)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k, err)
		}
		out[k] = x
	}
	return out, nil
}

var templateFuncs = template.FuncMap{
	"join": func(sep string, parts ...string) string { return strings.Join(parts, sep) },
}

// parse reads a template that may use more functions than those of every template.
func parse(in string, more template.FuncMap) (*template.Template, error) {
	return template.New("expansion").Option("missingkey=error").Funcs(templateFuncs).Funcs(more).Parse(in)
}

func (s *scope) text(in string) (string, error) {
	if !strings.Contains(in, "{{") {
		return in, nil
	}
	tmpl, err := parse(in, nil)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	if err := tmpl.Execute(&b, s); err != nil {
		return "", err
	}
	return b.String(), nil
}
