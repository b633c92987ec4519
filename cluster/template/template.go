// Package template expands the templates in a service's specification (swarm-semantics.md, 6.10): managers do it once to
// find mistakes, nodes do it for each task. It is pure.
package template

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/template"

	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// Context is what a template can refer to. Its name shows in errors, where it is Swarm's.
type Context struct {
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

// ContextOf is what the templates of a task can refer to on a node.
func ContextOf(t *cluster.Task, nodeID string, node swarm.NodeDescription) (c Context) {
	c.Service.ID, c.Service.Name, c.Service.Labels = t.ServiceID, t.ServiceAnnotations.Name, t.ServiceAnnotations.Labels
	c.Node.ID, c.Node.Hostname = nodeID, node.Hostname
	c.Node.Platform.Architecture, c.Node.Platform.OS = node.Platform.Architecture, node.Platform.OS
	c.Task.ID, c.Task.Name, c.Task.Slot = t.ID, t.FullName(), t.SlotName()
	return c
}

// Fields are the fields of a specification that may contain templates.
type Fields struct {
	Env      []string
	Hostname string
	Mounts   []mount.Mount
}

// Expand gives these fields without templates: values of environment variables, the host name, and of mounts the source,
// the target, volume labels and volume driver options. Nothing else in a specification is a template. spec is not changed. Errors
// have Swarm's words.
func (c *Context) Expand(spec *swarm.ContainerSpec) (out Fields, err error) {
	for _, e := range spec.Env {
		if name, value, ok := strings.Cut(e, "="); ok {
			v, err := c.plain(value)
			if err != nil {
				return out, fmt.Errorf("expanding env failed: expanding env %q: %w", e, err)
			}
			e = name + "=" + v
		}
		out.Env = append(out.Env, e)
	}
	if out.Hostname, err = c.plain(spec.Hostname); err != nil {
		return out, fmt.Errorf("expanding hostname failed: %w", err)
	}
	for _, m := range spec.Mounts {
		x, err := c.mount(m)
		if err != nil {
			return out, fmt.Errorf("expanding mounts failed: expanding %w", err)
		}
		out.Mounts = append(out.Mounts, x)
	}
	return out, nil
}

func (c *Context) mount(m mount.Mount) (_ mount.Mount, err error) {
	asked := m
	if m.Source, err = c.plain(asked.Source); err != nil {
		return m, fmt.Errorf("mount source %q: %w", asked.Source, err)
	}
	if m.Target, err = c.plain(asked.Target); err != nil {
		return m, fmt.Errorf("mount target %q: %w", asked.Target, err)
	}
	if m.VolumeOptions, err = c.volume(asked.VolumeOptions); err != nil {
		return m, fmt.Errorf("the volume options of mount %q: %w", asked.Target, err)
	}
	return m, nil
}

func (c *Context) volume(v *mount.VolumeOptions) (_ *mount.VolumeOptions, err error) {
	if v == nil {
		return nil, nil
	}
	o := *v
	if o.Labels, err = c.values(v.Labels); err != nil {
		return nil, err
	}
	if v.DriverConfig != nil {
		d := *v.DriverConfig
		if d.Options, err = c.values(d.Options); err != nil {
			return nil, err
		}
		o.DriverConfig = &d
	}
	return &o, nil
}

// values expands the values of a map; of several mistakes it names that of the first key.
func (c *Context) values(in map[string]string) (map[string]string, error) {
	out := maps.Clone(in)
	for _, k := range slices.Sorted(maps.Keys(in)) {
		v, err := c.plain(in[k])
		if err != nil {
			return nil, err
		}
		out[k] = v
	}
	return out, nil
}

// plain is Text for what mostly is no template.
func (c *Context) plain(in string) (string, error) {
	if !strings.Contains(in, "{{") {
		return in, nil
	}
	return c.Text(in, nil)
}

// Text expands one template. It may use the function join, and more. Errors quote it. A template that makes more text or goes
// through more rounds of its ranges than anybody needs is an error: managers expand templates while others wait.
func (c *Context) Text(in string, more map[string]any) (string, error) {
	left := maxRounds
	tick := func() (string, error) {
		if left--; left < 0 {
			return "", errRounds
		}
		return "", nil
	}
	tmpl, err := template.New("expansion").Option("missingkey=error").Funcs(builtin).Funcs(functions).Funcs(more).Funcs(template.FuncMap{roundName: tick}).Parse(in)
	if err != nil {
		return "", err
	}
	for _, t := range tmpl.Templates() {
		countCalls(t)
	}
	var b bounded
	if err := tmpl.Execute(&b, c); err != nil {
		return "", err
	}
	return b.String(), nil
}

var functions = template.FuncMap{
	"join": func(sep string, parts ...string) (string, error) { return within(strings.Join(parts, sep)) },
}
