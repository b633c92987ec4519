package ingress

import (
	"strings"
	"testing"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// With each network that it makes, Docker takes the jump to DOCKER-USER out of FORWARD and puts it in again. No first packet of a
// connection is lost in between.
func TestDockerTakesItsJumpOutForAMoment(t *testing.T) {
	c := newCluster(t, options{hosts: 1})
	client, h := c.plug("client", addr("192.0.2.100")), c.hosts[0]
	c.apply()
	ct := c.container(1, ingressID)
	c.ports = []plan.PublishedPort{{ServiceID: "web", Name: "web", Protocol: plan.TCP, Published: 80, Target: 8000, Backends: []plan.Backend{ct.task}}}
	c.apply()
	verify := func() {
		t.Helper()
		h.must(func() error { _, err := h.mesh.Verify(t.Context()); return err })
	}
	passes := func() { t.Helper(); even(t, client.survey("tcp", h.at(80), "192.0.2.100", 4), []*container{ct}, 4) }
	out := func() { t.Helper(); h.run("iptables", "-w", "-D", "FORWARD", "-j", "DOCKER-USER"); passes() }
	in := func() { t.Helper(); h.run("iptables", "-w", "-I", "FORWARD", "-j", "DOCKER-USER"); passes() }

	passes()
	out()
	in()
	out()
	in()
	// Docker 28 drops in a chain of its own, to which a jump comes first as well.
	for _, command := range []string{"-N DOCKER-FORWARD", "-A DOCKER-FORWARD -j DROP", "-I FORWARD 2 -j DOCKER-FORWARD"} {
		h.run("sh", "-c", "iptables -w "+command)
	}
	passes()
	verify()
	out()
	in()
	h.run("sh", "-c", "iptables -w -I FORWARD -d 198.51.100.0/24 -j DROP") // somebody's own rule
	verify()
	rules, err := h.output("iptables", "-w", "-S", "FORWARD")
	if err != nil {
		t.Fatal(err)
	}
	if first := strings.Split(rules, "\n")[1]; !strings.Contains(first, "198.51.100.0/24") || strings.Count(rules, "miniswarm") != 1 {
		t.Errorf("what somebody has put first does not decide first, or the rule is not there once:\n%s", rules)
	}
	h.must(func() error { return h.mesh.Remove(t.Context()) })
	if rules, err := h.output("iptables", "-w", "-S"); err != nil || strings.Contains(rules, "miniswarm") {
		t.Errorf("left (%v):\n%s", err, rules)
	}
}
