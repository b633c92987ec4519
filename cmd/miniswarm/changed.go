package main

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/docker/cli/cli/compose/convert"

	"github.com/miniswarm/miniswarm/cmd/miniswarm/compose"
)

// changedPayload is how a deployment ends that has other content for a secret or config than the cluster.
var changedPayload = regexp.MustCompile(`failed to update (secret|config) (\S+): .*only updates to Labels are allowed`)

// explainChanged says what to do about content that has changed, in the words of the Compose file. Docker says what cannot be done.
func explainChanged(err error, stack *compose.Stack, namespace convert.Namespace) error {
	if err == nil {
		return nil
	}
	m := changedPayload.FindStringSubmatch(err.Error())
	if m == nil {
		return err
	}
	kind, name := m[1], m[2]
	written, where := writtenName(stack, namespace, kind+"s", name)
	advice := fmt.Sprintf("give it a new name in the Compose file, such as \"name: %s_${VERSION}\", and deploy with another VERSION", written)
	if strings.Contains(written, "$") {
		advice = fmt.Sprintf("its name is written %q (%s), so deploy with another value of what stands in it", written, where)
	}
	return fmt.Errorf("%w\nthe content of %s %s has changed, and what running tasks use does not change: %s; the services then move to it by a rolling update", err, kind, name, advice)
}

// writtenName gives the name of a secret or config as the file has it, its variables not replaced, and where; for one that is called
// after its key, the name it has in the cluster.
func writtenName(stack *compose.Stack, namespace convert.Namespace, section, name string) (written, where string) {
	named := make(map[string]string) // names by key
	for key, s := range stack.Config.Secrets {
		if section == "secrets" {
			named[key] = s.Name
		}
	}
	for key, c := range stack.Config.Configs {
		if section == "configs" {
			named[key] = c.Name
		}
	}
	for key, its := range named {
		if scoped(namespace, its, key) != name {
			continue
		}
		if written := stack.Written(section, key, "name"); written != "" {
			return written, stack.Where(section, key, "name")
		}
	}
	return name, ""
}
