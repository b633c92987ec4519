package compose

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/docker/cli/cli/compose/types"
	"gopkg.in/yaml.v3"
)

// Condition is what a service waits for of one that it depends on.
type Condition string

// The conditions of the Compose specification.
const (
	// Started: the containers of all its tasks have been started.
	Started Condition = "service_started"
	// Healthy: all its tasks run, which with a health check means that they are healthy.
	Healthy Condition = "service_healthy"
	// Completed: all its tasks have ended with exit code 0.
	Completed Condition = "service_completed_successfully"
)

// Dependency is a service that has to be in a condition before another is deployed.
type Dependency struct {
	Service   string
	Condition Condition
	// Place is where the file says so, as FILE:LINE: KEY.
	Place string
}

// dependency is a Dependency as written.
type dependency struct {
	condition Condition
	optional  bool
	file      string
	line      int
}

// dependsOn takes both forms of depends_on and leaves Docker's loader the short one.
func dependsOn(w *work, key, value *yaml.Node) error {
	deps := w.f.stack.depends[w.service]
	if deps == nil {
		deps = make(map[string]dependency)
		w.f.stack.depends[w.service] = deps
	}
	switch value.Kind {
	case yaml.SequenceNode:
		for _, item := range value.Content {
			name, err := w.value(item, "depends_on")
			if err != nil {
				return err
			}
			deps[name] = dependency{condition: Started, file: w.f.name, line: item.Line}
		}
	case yaml.MappingNode:
		names := list(value.Line)
		for k, v := range pairs(value) {
			d := dependency{condition: Started, file: w.f.name, line: k.Line}
			if c := get(v, "condition"); c != nil {
				text, err := w.value(c, "depends_on", k.Value, "condition")
				if err != nil {
					return err
				}
				if d.condition = Condition(text); !slices.Contains([]Condition{Started, Healthy, Completed}, d.condition) {
					return w.mistake(c.Line, fmt.Sprintf("unknown condition %q: it is %s, %s or %s", text, Started, Healthy, Completed), "depends_on", k.Value, "condition")
				}
			}
			required, err := w.boolean(get(v, "required"), true, "depends_on", k.Value, "required")
			if err != nil {
				return err
			}
			d.optional = !required
			deps[k.Value] = d
			names.Content = append(names.Content, str(k.Value, k.Line))
		}
		put(w.node, "depends_on", names, key.Line)
	}
	return nil
}

// settleDependencies checks that the dependencies exist and can come to their conditions, and fills in Depends.
func (s *Stack) settleDependencies() error {
	byName := make(map[string]*types.ServiceConfig)
	for i := range s.Config.Services {
		byName[s.Config.Services[i].Name] = &s.Config.Services[i]
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		var short []string
		for _, on := range slices.Sorted(maps.Keys(s.depends[name])) {
			d := s.depends[name][on]
			path := "services." + name + ".depends_on." + on
			refuse := func(text string) error { return &Mistake{File: d.file, Line: d.line, Path: path, Text: text} }
			target := byName[on]
			switch {
			case target == nil && d.optional:
				continue
			case target == nil && len(s.profiles[on]) > 0:
				return refuse(fmt.Sprintf("service %s is left out: it needs --profile %s", on, strings.Join(s.profiles[on], " or ")))
			case target == nil:
				return refuse("there is no such service")
			case target.Deploy.Replicas != nil && *target.Deploy.Replicas == 0:
				return refuse(fmt.Sprintf("%s has no replicas, so it will never be in the condition %s", on, d.condition))
			}
			if d.condition == Completed {
				if err := s.mayComplete(target, refuse); err != nil {
					return err
				}
			}
			short = append(short, on)
			s.Depends[name] = append(s.Depends[name], Dependency{Service: on, Condition: d.condition, Place: fmt.Sprintf("%s:%d: %s", d.file, d.line, path)})
		}
		byName[name].DependsOn = short
	}
	_, err := s.Waves()
	return err
}

// mayComplete sees to it that a service which others wait for to complete is not started again when it does. One whose
// file says nothing of it is run once, as by Compose.
func (s *Stack) mayComplete(target *types.ServiceConfig, refuse func(string) error) error {
	if strings.HasSuffix(target.Deploy.Mode, "-job") {
		return nil
	}
	const never = "%s is started again whenever it ends, so it will never have completed: give it deploy.restart_policy.condition none or on-failure, or deploy.mode replicated-job"
	if p := target.Deploy.RestartPolicy; p != nil {
		if p.Condition == "" || p.Condition == "any" {
			return refuse(fmt.Sprintf(never, target.Name))
		}
		return nil
	}
	switch {
	case target.Restart == "always" || target.Restart == "unless-stopped":
		return refuse(fmt.Sprintf(never, target.Name))
	case target.Restart == "" || target.Restart == "no":
		target.Deploy.RestartPolicy = &types.RestartPolicy{Condition: "none"}
		file, line := s.where("services", target.Name)
		s.Notes = append(s.Notes, Note{File: file, Line: line, Path: "services." + target.Name,
			Text: "deploy.restart_policy.condition is taken as none, because others wait for it to complete"})
	}
	return nil
}

// Waves gives the names of the services in the order in which they can be deployed: those of a wave depend on earlier
// waves alone.
func (s *Stack) Waves() ([][]string, error) {
	left := make(map[string]bool)
	for _, svc := range s.Config.Services {
		left[svc.Name] = true
	}
	var waves [][]string
	for len(left) > 0 {
		var wave []string
		for name := range left {
			if !slices.ContainsFunc(s.Depends[name], func(d Dependency) bool { return left[d.Service] }) {
				wave = append(wave, name)
			}
		}
		if len(wave) == 0 {
			round := slices.Sorted(maps.Keys(left))
			return nil, s.mistake("services depend on each other in a circle: "+strings.Join(round, ", "), "services", round[0], "depends_on")
		}
		slices.Sort(wave)
		for _, name := range wave {
			delete(left, name)
		}
		waves = append(waves, wave)
	}
	return waves, nil
}
