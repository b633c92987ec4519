package template

import (
	"fmt"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// FuzzText expands what users write into a specification: within bounds, whatever it is.
func FuzzText(f *testing.F) {
	for _, s := range []string{"{{.Service.Name}}.{{.Task.Slot}}", `{{join "-" .Node.ID .Task.ID}}`, "{{range .Service.Labels}}{{.}}{{end}}", "{{index .Service.Labels \"a\"}}", "{{range 9999999999}}{{end}}",
		`{{printf "%999999d%999999d" 1 2}}`, `{{define "a"}}{{template "a"}}{{end}}{{template "a"}}`, "{{range 1000}}{{range 1000}}{{range 1000}}x{{end}}{{end}}{{end}}", "{{with .Task}}{{.ID}}{{else}}{{range 5}}{{end}}{{end}}", "{{", "{{.Nothing}}"} {
		f.Add(s)
	}
	c := ContextOf(&cluster.Task{}, "n", swarm.NodeDescription{})
	c.Service.Labels = map[string]string{"a": "b"}
	f.Fuzz(func(t *testing.T, in string) {
		if len(in) > 10_000 {
			return
		}
		out, err := c.Text(in, nil)
		if len(out) > maxText {
			t.Fatalf("%d bytes of text (%v)", len(out), err)
		}
	})
}

// TestTemplatesAreBounded: one request must not keep a manager busy for ever.
func TestTemplatesAreBounded(t *testing.T) {
	c := ContextOf(&cluster.Task{}, "n", swarm.NodeDescription{})
	twice := `{{template "t40"}}`
	for i := range 41 {
		twice += fmt.Sprintf(`{{define "t%d"}}{{template "t%d"}}{{template "t%d"}}{{end}}`, i, max(i, 1)-1, max(i, 1)-1)
	}
	twice = strings.Replace(twice, `{{template "t0"}}{{template "t0"}}`, "", 1)
	for in, want := range map[string]string{
		twice: "rounds of a range",
		`{{$x := "a"}}{{range 60}}{{$x = printf "%s%s" $x $x}}{{end}}`:                     "1 MiB",
		`{{$x := "\\"}}{{range 60}}{{$x = js $x}}{{end}}`:                                  "1 MiB",
		`{{$x := "a"}}{{range 60}}{{$x = join $x $x $x}}{{end}}`:                           "1 MiB",
		"{{range 9999999999}}{{end}}":                                                      "rounds of a range",
		`{{define "a"}}{{range 99999999}}{{end}}{{end}}{{if true}}{{template "a"}}{{end}}`: "rounds of a range",
		strings.Repeat(`{{printf "%999999d" 1}}`, 3):                                       "1 MiB",
	} {
		if _, err := c.Text(in, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", in, err, want)
		}
	}
	if got, err := c.Text(`{{printf "%s-%d" "a" 1}}{{print "b" 2}}{{html "<"}}`, nil); got != "a-1b2&lt;" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := c.Text("{{range 3}}x{{else}}y{{end}}", nil); got != "xxx" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}
