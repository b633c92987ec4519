package oracle

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const example = `# What it is about.
sample
client 28

$ docker service ls
differs a reason
- theirs
+ ours
end
until ^2/2$ vm2$ docker ps
set ID $ docker node ls -q
quiet $ docker info
-- compose.yml --
services: {}
`

func TestParse(t *testing.T) {
	s, err := parseScript([]byte(example))
	if err != nil {
		t.Fatal(err)
	}
	if !s.sample || s.client != 28 || s.exclusive || s.fresh || len(s.steps) != 4 || len(s.files) != 1 {
		t.Errorf("parsed %+v", s)
	}
	ls, ps, id, info := s.steps[0], s.steps[1], s.steps[2], s.steps[3]
	if d := ls.expected(20); ls.command != "docker service ls" || !ls.ends || d == nil || d.reason != "a reason" || len(d.lines) != 2 {
		t.Errorf("first step %+v", ls)
	}
	if ps.host != "vm2" || ps.until.String() != "(?s)^2/2$" || ps.command != "docker ps" || id.set != "ID" || !info.quiet {
		t.Errorf("steps %+v %+v %+v", ps, id, info)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no title":           "$ true\n",
		"no step":            "# A\nsample\n",
		"unknown word":       "# A\nsampel\n$ true\n",
		"reason missing":     "# A\n$ true\ndiffers\n- x\n",
		"lines of no reason": "# A\n$ true\n- x\n",
		"no number":          "# A\nclient new\n$ true\n",
		"no expression":      "# A\nuntil ( $ true\n",
	} {
		if _, err := parseScript([]byte(text)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// What -accept writes keeps reasons, replaces lines and tells docker commands apart where they differ.
func TestRewritten(t *testing.T) {
	s, err := parseScript([]byte(example))
	if err != nil {
		t.Fatal(err)
	}
	got := string(s.rewritten(map[*step]map[int][]string{s.steps[0]: {28: {"-new"}, 20: {"-new"}}, s.steps[3]: {28: {"+a"}, 20: {"+b"}}}))
	want := strings.NewReplacer("- theirs\n+ ours\n", "-new\n", "quiet $ docker info\n", "quiet $ docker info\ndiffers(20) UNEXPLAINED\n+b\ndiffers(28) UNEXPLAINED\n+a\n").Replace(example)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got := string(s.rewritten(map[*step]map[int][]string{s.steps[0]: {28: nil}})); strings.Contains(got, "differs") || strings.Contains(got, "end\n") {
		t.Errorf("a difference that is gone stays:\n%s", got)
	}
}

// Every difference has a reason that people can read in docs/differences.md.
func TestEveryDifferenceIsListed(t *testing.T) {
	listed, err := os.ReadFile("../../docs/differences.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range readScripts(t) {
		for _, st := range s.steps {
			for _, d := range st.differs {
				if !strings.Contains(string(listed), d.reason) {
					t.Errorf("%s:%d: docs/differences.md does not say %q", s.path, st.first+1, d.reason)
				}
			}
		}
	}
}
