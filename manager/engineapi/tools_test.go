package engineapi

import (
	"fmt"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/swarm"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/tidwall/gjson"

	"github.com/miniswarm/miniswarm/cluster"
)

// TestTools replays what the tools of the Docker world ask, one script of testdata/tools each, and asserts what each of them
// looks into without asking whether it is there. The words of the scripts:
//
//	ask METHOD PATH [FILE]   sends a request; the query's values are escaped, FILE is the body
//	status CODE [TEXT]       is what the last answer must have; TEXT is a regular expression for the error's message
//	json PATH [REGEXP]       the answer must have something at the path, and all that is there must match as a whole; a path is
//	                         one of gjson with * for #, which begins a comment here
//	absent PATH              there must be nothing
//	let NAME PATH            keeps what is at the path in a variable
//	settle                   lets the orchestrator and the agents do what there is to do
//	events QUERY             opens /events; next TYPE ACTION NAME [ATTRIBUTE=VALUE]... reads one
func TestTools(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/tools",
		Setup: func(env *testscript.Env) error {
			w := newWorld(t)
			w.control.put(t, append(aCluster(), aManager("node1", "vm1"), aNode("node2", "vm2"))...)
			w.watched()
			env.Values["tool"] = &tool{world: w}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ask": toolCommand((*tool).ask), "status": toolCommand((*tool).status), "json": toolCommand((*tool).json), "absent": toolCommand((*tool).absent),
			"let": toolCommand((*tool).let), "settle": toolCommand((*tool).settle), "events": toolCommand((*tool).events), "next": toolCommand((*tool).next),
		},
	})
}

// tool is a client in the course of its script.
type tool struct {
	world *world
	asked string
	last  answer
	event func() string
}

func toolCommand(run func(*tool, *testscript.TestScript, []string)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg {
			ts.Fatalf("unsupported: !")
		}
		run(ts.Value("tool").(*tool), ts, append(args, "", "", "")) // absent arguments are empty
	}
}

func (c *tool) ask(ts *testscript.TestScript, args []string) {
	path, query, _ := strings.Cut(args[1], "?")
	var escaped []string
	for _, pair := range strings.Split(query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		escaped = append(escaped, name+"="+url.QueryEscape(value))
	}
	var body any
	if args[2] != "" {
		body = os.Expand(ts.ReadFile(args[2]), ts.Getenv)
	}
	if query != "" {
		path += "?" + strings.Join(escaped, "&")
	}
	c.asked = args[0] + " " + args[1]
	c.last = c.world.do(args[0], path, body)
}

func (c *tool) status(ts *testscript.TestScript, args []string) {
	if got := fmt.Sprint(c.last.status); got != args[0] || !regexp.MustCompile(args[1]).MatchString(c.last.message()) {
		ts.Fatalf("%s: %s %s", c.asked, got, c.last.body)
	}
}

func (c *tool) at(ts *testscript.TestScript, path string) gjson.Result {
	if !gjson.Valid(c.last.body) {
		ts.Fatalf("%s: no JSON: %d %s", c.asked, c.last.status, c.last.body)
	}
	return gjson.Get(c.last.body, strings.ReplaceAll(path, "*", "#"))
}

func (c *tool) json(ts *testscript.TestScript, args []string) {
	found := c.at(ts, args[0])
	values := []gjson.Result{found}
	if strings.Contains(args[0], "*") && found.IsArray() { // of every element
		values = found.Array()
	}
	want := regexp.MustCompile("^(?s:" + args[1] + ")$")
	for _, v := range values {
		if !v.Exists() || v.Type == gjson.Null || args[1] != "" && !want.MatchString(v.String()) {
			ts.Fatalf("%s: %s is %q, want %q, in %s", c.asked, args[0], v.Raw, args[1], c.last.body)
		}
	}
	if len(values) == 0 {
		ts.Fatalf("%s: nothing at %s in %s", c.asked, args[0], c.last.body)
	}
}

func (c *tool) absent(ts *testscript.TestScript, args []string) {
	if v := c.at(ts, args[0]); v.Exists() {
		ts.Fatalf("%s: %s is %s", c.asked, args[0], v.Raw)
	}
}

func (c *tool) let(ts *testscript.TestScript, args []string) {
	v := c.at(ts, args[1])
	if !v.Exists() {
		ts.Fatalf("%s: nothing at %s in %s", c.asked, args[1], c.last.body)
	}
	ts.Setenv(args[0], v.String())
}

// settle lets the orchestrator plan and every agent start or stop what it is told to, until nothing changes.
func (c *tool) settle(ts *testscript.TestScript, _ []string) {
	control := c.world.control
	for {
		control.orchestrate(c.world.t)
		var changed []cluster.Object
		for t := range control.snapshot().Tasks() {
			next := *t
			switch {
			case t.NodeID == "" || cluster.Terminal(t.Status.State):
				continue
			case !t.Wanted():
				next.Status.State = swarm.TaskStateShutdown
			case t.Status.State != swarm.TaskStateRunning:
				next.Status.State = swarm.TaskStateRunning
				next.Status.ContainerStatus = &swarm.ContainerStatus{ContainerID: "container-of-" + t.ID, PID: 42}
			default:
				continue
			}
			next.Status.Message = string(next.Status.State)
			changed = append(changed, &next)
		}
		if len(changed) == 0 {
			return
		}
		control.put(c.world.t, changed...)
	}
}

func (c *tool) events(_ *testscript.TestScript, args []string) {
	name, value, _ := strings.Cut(args[0], "=")
	c.event = c.world.stream(name + "=" + url.QueryEscape(value))
}

func (c *tool) next(ts *testscript.TestScript, args []string) {
	got := c.event()
	head, attributes, _ := strings.Cut(got, " [")
	if want := strings.Join(args[:3], " "); head != want {
		ts.Fatalf("event %q, want %q", got, want)
	}
	for _, a := range args[3:] {
		key, value, _ := strings.Cut(a, "=")
		if a != "" && !strings.Contains(" "+strings.TrimSuffix(attributes, "]")+" ", " "+key+":"+value+" ") {
			ts.Fatalf("event %q, want the attribute %s", got, a)
		}
	}
}
