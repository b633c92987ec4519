package docker

import (
	"github.com/docker/docker/api/types/mount"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/template"
)

// scopeOf is what the templates of a task can refer to.
func scopeOf(t *cluster.Task, n Node) template.Context {
	return template.ContextOf(t, n.ID, n.Description)
}

// expanded holds the fields of a spec that may contain templates, without them.
type expanded struct {
	env      []string
	hostname string
	mounts   []mount.Mount
}

// expand resolves the templates of a task, and looks at what has come of its mounts.
func expand(t *cluster.Task, n Node) (expanded, error) {
	s := scopeOf(t, n)
	f, err := s.Expand(t.Spec.ContainerSpec)
	if err != nil {
		return expanded{}, err
	}
	for _, m := range f.Mounts {
		if err := validateMount(m); err != nil {
			return expanded{}, err
		}
	}
	return expanded{f.Env, f.Hostname, f.Mounts}, nil
}
