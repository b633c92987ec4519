package main

import (
	"slices"
	"strings"
)

// nextSteps are what to do about refusals whose words are Docker's and stop short of that, by a part of the words.
var nextSteps = []struct{ refusal, step string }{
	{"is not down and can't be removed", "'miniswarm leave' on that machine first; --force removes a node that is lost for good, or is not to come back"},
	{"must be demoted to worker before removal", "'miniswarm node demote' it first"},
	{"The only way to restore a swarm that has lost consensus", "while the cluster works, 'miniswarm node demote' this node first, and then leave"},
	{"attempting to demote the last manager of the swarm", "'miniswarm node promote' another node first"},
	{"Worker nodes can't be used to view or modify cluster state", "'miniswarm info' shows the addresses of the managers"},
	{"invalid key string", "an unlock key begins with SWMKEY-1-; 'miniswarm unlock-key' on a manager that runs shows it"},
	{"invalid key provided", "'miniswarm unlock-key' on a manager that runs shows the key; one that was rotated while this one was off does not count here"},
	{"A valid join token is necessary to join this cluster", "'miniswarm token worker', or 'token manager', on a manager prints the one that counts now"},
	{"invalid Availability", "it is active, pause or drain"},
	{"invalid Role", "it is worker or manager"},
	{"name must be valid as a DNS name component", "letters, digits, - and _ may be in it, at the ends letters and digits, and 63 at the most"},
	{"constraint expected one operator from", "such as --constraint node.labels.zone==a or --constraint node.hostname!=vm2"},
}

// withNextStep adds to errors, which have a line each, what to do about them, where that is known and not said.
func withNextStep(text string) string {
	var out []string
	for line := range strings.SplitSeq(text, "\n") {
		out = append(out, line)
		for _, n := range nextSteps {
			if strings.Contains(line, n.refusal) && !slices.Contains(out, n.step) {
				out = append(out, n.step)
			}
		}
	}
	return strings.Join(out, "\n")
}
