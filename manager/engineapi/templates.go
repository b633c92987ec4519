package engineapi

import (
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster/template"
)

// validateTemplates expands every template once, with nothing but the service's labels to refer to, so that a mistake in one
// is refused instead of met by each task.
func validateTemplates(spec swarm.ServiceSpec) error {
	var scope template.Context
	scope.Service.Labels = spec.Labels
	if _, err := scope.Expand(spec.TaskTemplate.ContainerSpec); err != nil {
		return rpcErrorf(invalidArgument, "%v", err)
	}
	return nil
}
