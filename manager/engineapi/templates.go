package engineapi

import (
	"io"
	"slices"
	"strings"
	"text/template"

	"github.com/docker/docker/api/types/swarm"
)

// templateScope is what templates of a specification may refer to, with nothing in it (swarm-semantics, 6.10).
type templateScope struct {
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

var templateFuncs = template.FuncMap{"join": func(sep string, parts ...string) string { return strings.Join(parts, sep) }}

// validateTemplates expands every template once, so that a mistake in one is refused instead of met by each task.
func validateTemplates(spec swarm.ServiceSpec) error {
	var scope templateScope
	scope.Service.Labels = spec.Labels
	c := spec.TaskTemplate.ContainerSpec
	for _, env := range c.Env {
		_, value, _ := strings.Cut(env, "=")
		if err := scope.expand(value); err != nil {
			return rpcErrorf(invalidArgument, "expanding env failed: expanding env %q: %v", env, err)
		}
	}
	if err := scope.expand(c.Hostname); err != nil {
		return rpcErrorf(invalidArgument, "expanding hostname failed: %v", err)
	}
	for _, m := range c.Mounts {
		if err := scope.expand(m.Source); err != nil {
			return rpcErrorf(invalidArgument, "expanding mounts failed: expanding mount source %q: %v", m.Source, err)
		}
		if err := scope.expand(m.Target); err != nil {
			return rpcErrorf(invalidArgument, "expanding mounts failed: expanding mount target %q: %v", m.Target, err)
		}
		var texts []string
		if v := m.VolumeOptions; v != nil {
			texts = appendValues(texts, v.Labels)
			if v.DriverConfig != nil {
				texts = appendValues(texts, v.DriverConfig.Options)
			}
		}
		for _, text := range texts {
			if err := scope.expand(text); err != nil {
				return rpcErrorf(invalidArgument, "expanding mounts failed: expanding the volume options of mount %q: %v", m.Target, err)
			}
		}
	}
	return nil
}

// appendValues appends the values of a map in the order of its keys.
func appendValues(list []string, m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		list = append(list, m[k])
	}
	return list
}

func (s *templateScope) expand(text string) error {
	if !strings.Contains(text, "{{") {
		return nil
	}
	t, err := template.New("expansion").Option("missingkey=error").Funcs(templateFuncs).Parse(text)
	if err != nil {
		return err
	}
	return t.Execute(io.Discard, s)
}
