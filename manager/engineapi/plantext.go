package engineapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/swarm"
)

// FieldChange is a field of a specification that changes. Old or New is "" where there is none.
type FieldChange struct{ Path, Old, New string }

func (c FieldChange) String() string {
	switch {
	case c.Old == "":
		return fmt.Sprintf("+ %s: %s", c.Path, c.New)
	case c.New == "":
		return fmt.Sprintf("- %s: %s", c.Path, c.Old)
	}
	return fmt.Sprintf("~ %s: %s -> %s", c.Path, c.Old, c.New)
}

// fieldChanges gives what differs between two specifications, by path.
func fieldChanges(before, after swarm.ServiceSpec) []FieldChange {
	a, b := flatten(before), flatten(after)
	all := maps.Clone(a)
	maps.Copy(all, b)
	var out []FieldChange
	for _, path := range slices.Sorted(maps.Keys(all)) {
		if a[path] != b[path] {
			out = append(out, FieldChange{Path: path, Old: a[path], New: b[path]})
		}
	}
	return out
}

// flatten gives the specification's values by path, as Docker's API names them. What is empty is left out, as the API
// leaves it out in some places and not in others. Lists of single values are one value.
func flatten(spec swarm.ServiceSpec) map[string]string {
	text, err := json.Marshal(spec)
	if err != nil { // it came as JSON
		return nil
	}
	var tree any
	if json.Unmarshal(text, &tree) != nil {
		return nil
	}
	out := make(map[string]string)
	flattenInto(out, "", tree)
	return out
}

func flattenInto(out map[string]string, path string, v any) {
	at := func(key string) string {
		if path == "" {
			return key
		}
		return path + "." + key
	}
	switch v := v.(type) {
	case map[string]any:
		for key, item := range v {
			flattenInto(out, at(key), item)
		}
	case []any:
		var plain []string
		for i, item := range v {
			switch item.(type) {
			case map[string]any, []any:
				flattenInto(out, at(fmt.Sprint(i)), item)
			default:
				plain = append(plain, fmt.Sprint(item))
			}
		}
		if len(plain) > 0 {
			out[path] = strings.Join(plain, ", ")
		}
	case float64:
		if v != 0 || strings.HasSuffix(path, "Replicas") {
			text, _ := json.Marshal(v) // a number always can be
			out[path] = string(text)
		}
	case bool:
		if v {
			out[path] = "true"
		}
	case string:
		if v != "" {
			out[path] = v
		}
	}
}

// planText words a plan.
func planText(a *PlanAnswer) string {
	var b strings.Builder
	b.WriteString("dry run: nothing is changed\n")
	for _, made := range []struct {
		noun  string
		names []string
	}{{"network", a.Networks}, {"secret", a.Secrets}, {"config", a.Configs}} {
		for _, name := range made.names {
			fmt.Fprintf(&b, "%s %s would be created\n", made.noun, name)
		}
	}
	if len(a.Services) == 0 {
		b.WriteString("no service would change\n")
	}
	for i := range a.Services {
		a.Services[i].writeText(&b)
	}
	if !a.Settled {
		fmt.Fprintf(&b, "\nthe plan goes on beyond the %d steps that were looked at\n", planPasses)
	}
	return b.String()
}

func (p *ServicePlan) writeText(b *strings.Builder) {
	words := map[string]string{"create": "would be created", "update": "would be updated", "remove": "would be removed", "none": "is already as asked"}
	fmt.Fprintf(b, "\nservice %s %s", p.Name, words[p.Action])
	if p.Action != "create" && p.Action != "remove" {
		fmt.Fprintf(b, "; %s unchanged", count(p.Keep, "task"))
	}
	b.WriteByte('\n')
	for _, c := range p.Changes {
		fmt.Fprintf(b, "  %s\n", c)
	}
	// As it happens: an update stops and starts tasks in turns, and which comes first is its order.
	for stop, start := p.Stop, p.Start; len(stop)+len(start) > 0; {
		if len(start) == 0 || len(stop) > 0 && stop[0].at <= start[0].at {
			stop[0].writeText(b, "stop ")
			stop = stop[1:]
		} else {
			start[0].writeText(b, "start")
			start = start[1:]
		}
	}
	if p.Waiting > 0 {
		fmt.Fprintf(b, "  %s would wait for a place:\n", count(p.Waiting, "task"))
		for _, l := range p.Lacking {
			fmt.Fprintf(b, "    %s\n", l)
		}
	}
}

func (t PlannedTask) writeText(b *strings.Builder, verb string) {
	fmt.Fprintf(b, "  %s  %s on %s", verb, t.Name, t.Node)
	if t.Container != "" {
		fmt.Fprintf(b, ", container %.12s", t.Container)
	}
	if t.Why != "" {
		fmt.Fprintf(b, ": %s", t.Why)
	}
	b.WriteByte('\n')
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
