package oracle

import (
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miniswarm/miniswarm/lab"
)

var (
	all    = flag.Bool("all", false, "run all scripts with all docker commands, not the sample alone")
	keep   = flag.String("keep", "", "leave the labs up under this name, and use them if they are up")
	accept = flag.Bool("accept", false, "write the differences into the scripts, to be explained there")
)

var regexpThree = regexp.MustCompile(`^Ready\nReady\nReady$`)

func readScripts(t *testing.T) []*script {
	t.Helper()
	var scripts []*script
	err := filepath.WalkDir("testdata", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".txt" {
			return err
		}
		s, err := readScript(path)
		if err == nil {
			scripts = append(scripts, s)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return scripts
}

// TestScripts runs the scripts side by side: first those that need the swarm for themselves, then all others at once.
func TestScripts(t *testing.T) {
	if os.Getenv(lab.TestVariable) != "1" {
		t.Skipf("set %s=1 to run tests on real hosts", lab.TestVariable)
	}
	scripts := readScripts(t)
	clients, err := findDocker(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if !*all {
		scripts = slices.DeleteFunc(scripts, func(s *script) bool { return !s.sample })
		clients = clients[:1]
	}
	for _, c := range clients {
		t.Logf("docker command %d", c.major)
	}
	theirs, ours := bringUp(t, clients[0], *keep)
	run := func(t *testing.T, s *script) {
		found := map[*step]map[int][]string{}
		for n, c := range clients {
			if s.client != 0 && s.client != c.major {
				continue
			}
			// A name of the same length for all, so that none begins another and tables are as wide.
			name := fmt.Sprintf("s%03d%c", slices.Index(scripts, s), 'a'+n)
			t.Run(fmt.Sprint("docker-", c.major), func(t *testing.T) {
				sideBySide(t, s, theirs.script(t, s, c, name), ours.script(t, s, c, name), found)
			})
		}
		if *accept && len(found) > 0 {
			if err := os.WriteFile(s.path, s.rewritten(found), 0o644); err != nil {
				t.Error(err)
			}
		}
	}
	for _, s := range scripts {
		if s.exclusive {
			t.Run(s.name(), func(t *testing.T) { run(t, s) })
		}
	}
	t.Run("fresh", func(t *testing.T) {
		t.Parallel() // with the others, but one after the other: there is one such pair of hosts
		for _, s := range scripts {
			if s.fresh {
				t.Run(s.name(), func(t *testing.T) { run(t, s) })
			}
		}
	})
	for _, s := range scripts {
		if !s.exclusive && !s.fresh {
			t.Run(s.name(), func(t *testing.T) {
				t.Parallel()
				run(t, s)
			})
		}
	}
}

// name is the script's path below testdata.
func (s *script) name() string {
	return strings.TrimSuffix(strings.TrimPrefix(s.path, "testdata/"), ".txt")
}

// script gives a session for a script in a directory of its own with the script's files.
func (s *side) script(t *testing.T, sc *script, client dockerCommand, name string) *session {
	t.Helper()
	host := "vm1"
	if sc.fresh {
		host = "vm4"
	}
	one := s.session(t, client, host)
	one.variables["N"] = name
	for _, f := range sc.files {
		path := filepath.Join(one.dir, f.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return one
}

func (s *side) session(t *testing.T, client dockerCommand, host string) *session {
	return &session{side: s, client: client, host: host, dir: t.TempDir(), config: t.TempDir(), variables: maps.Clone(s.variables)}
}

// sideBySide runs a script step by step on both sides and puts the differences into found.
func sideBySide(t *testing.T, sc *script, theirs, ours *session, found map[*step]map[int][]string) {
	defer both(func(s *session, _ int) {
		if err := s.clean(t.Context(), sc); err != nil {
			t.Errorf("clearing away: %v", err)
		}
	}, theirs, ours)
	for _, st := range sc.steps {
		var texts [2]string
		var errs [2]error
		both(func(s *session, i int) { texts[i], errs[i] = s.step(t.Context(), st) }, theirs, ours)
		for _, err := range errs {
			if err != nil {
				t.Errorf("%s:%d: %v", sc.path, st.first+1, err)
			}
		}
		if t.Failed() && (errs[0] != nil || errs[1] != nil) {
			return
		}
		lines, readable := compare(texts[0], texts[1])
		if found[st] == nil {
			found[st] = map[int][]string{}
		}
		found[st][theirs.client.major] = lines
		var want []string
		if d := st.expected(theirs.client.major); d != nil {
			want = d.lines
		}
		switch {
		case slices.Equal(lines, want):
			if st.ends && len(want) > 0 {
				return
			}
		case len(want) == 0:
			t.Errorf("%s:%d: $ %s\n%s", sc.path, st.first+1, st.command, readable)
		case len(lines) == 0:
			t.Errorf("%s:%d: $ %s\nthe difference is gone, take it out:\n%s\nboth say:\n%s", sc.path, st.first+1, st.command, strings.Join(want, "\n"), texts[0])
		default:
			t.Errorf("%s:%d: $ %s\nthe difference is not the one that is written down:\n%s\nbut\n%s", sc.path, st.first+1, st.command, strings.Join(want, "\n"), readable)
		}
	}
}

// both does something on both sides at once.
func both(do func(s *session, i int), theirs, ours *session) {
	var wg sync.WaitGroup
	for i, s := range []*session{theirs, ours} {
		wg.Go(func() { do(s, i) })
	}
	wg.Wait()
}
