package main

import (
	"regexp"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	for _, c := range []struct{ args, env, out, err string }{
		{"count 1 100", "SHARE=0 SHARES=1", `^share 0 of 1: 25 primes from 1 to 100\n$`, ""},
		{"count 1 10", "SHARE=0 SHARES=2", `^share 0 of 2: 3 primes from 1 to 5\n$`, ""}, // 2 3 5
		{"count 1 10", "SHARE=1 SHARES=2", `: 1 primes from 6 to 10\n$`, ""},             // 7
		{"count 8 10", "SHARE=9 SHARES=12", `: 0 primes `, ""},
		{"count 10 1", "SHARE=0 SHARES=1", `: 0 primes `, ""},
		{"survey", "NODE=vm1", `^vm1: Linux \d+\.\S+, \d+ processors, \w+\n$`, ""},
		{"count 1 10", "SHARE=n1 SHARES=2", "", `SHARE must be a number, not "n1"`},
		{"count 1 10", "SHARE=1", "", `SHARES must be a number, not ""`},
		{"count -1 10", "SHARE=1 SHARES=2", "", `FROM must be a number, not "-1"`},
		{"count 1 10", "SHARE=2 SHARES=2", "", "there is no share 2 of 2"},
		{"count 1", "", "", "say what to do"},
		{"", "", "", "say what to do"},
	} {
		var out strings.Builder
		env := func(name string) string {
			for _, e := range strings.Fields(c.env) {
				if k, v, _ := strings.Cut(e, "="); k == name {
					return v
				}
			}
			return ""
		}
		err := run(strings.Fields(c.args), env, &out)
		if (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s with %s: %v", c.args, c.env, err)
		}
		if !regexp.MustCompile(c.out).MatchString(out.String()) {
			t.Errorf("%s with %s: %q", c.args, c.env, out.String())
		}
	}
}
