package main

import (
	"net/http"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/swarm"
)

// Several managers are demoted one after another: the one that is talked to comes last, and what the demotions themselves bring
// about on the way is no error.
func TestDemoteSeveral(t *testing.T) {
	lost := refusal{http.StatusServiceUnavailable, "the leader changed while the request was on its way; look whether it was carried out before you try again"}
	for name, c := range map[string]struct {
		disturb func(n *swarm.Node, nth int) error // nth counts the updates from 1
		code    int
		stderr  string
	}{
		"in peace":                        {disturb: func(*swarm.Node, int) error { return nil }},
		"the object moves on":             {disturb: func(n *swarm.Node, nth int) error { n.Version.Index += uint64(nth % 2); return nil }},
		"unanswered, and not carried out": {disturb: func(_ *swarm.Node, nth int) error { return map[bool]error{true: lost}[nth == 2] }},
		"unanswered, but carried out": {disturb: func(n *swarm.Node, nth int) error {
			if nth != 2 {
				return nil
			}
			n.Spec.Role = swarm.NodeRoleWorker
			return lost
		}},
		"somebody else wants something": {code: exitFailed, stderr: "update out of sequence", disturb: func(n *swarm.Node, nth int) error {
			n.Spec.Availability, n.Version.Index = swarm.NodeAvailabilityDrain, n.Version.Index+1
			return nil
		}},
		"never answered": {code: exitFailed, stderr: "the leader changed", disturb: func(*swarm.Node, int) error { return lost }},
	} {
		t.Run(name, func(t *testing.T) {
			f := startFake(t, t.TempDir())
			f.member = true
			var order []string
			nth := 0
			for i := range f.nodes {
				f.nodes[i].Spec.Role = swarm.NodeRoleManager
			}
			f.disturb = func(n *swarm.Node) error {
				nth++
				if len(order) == 0 || order[len(order)-1] != n.Description.Hostname {
					order = append(order, n.Description.Hostname)
				}
				return c.disturb(n, nth)
			}
			code, _, stderr := call(t.Context(), "--host", "unix://"+f.socket, "node", "demote", "vm2", "vm1", "vm3")
			if code != c.code || !strings.Contains(stderr, c.stderr) {
				t.Fatalf("code %d, %s", code, stderr)
			}
			if got := strings.Join(order, " "); code == 0 && got != "vm2 vm3 vm1" {
				t.Errorf("order: %s", got)
			}
		})
	}
}
