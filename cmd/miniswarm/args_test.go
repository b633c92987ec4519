package main

import (
	"io"
	"slices"
	"strings"
	"testing"
)

func TestFlagsFirst(t *testing.T) {
	app := newApp(&env{stdout: io.Discard, stderr: io.Discard})
	for _, tc := range []struct{ typed, want string }{
		{"join 10.0.0.1:2377 --token T", "join --token T 10.0.0.1:2377"},
		{"join 10.0.0.1:2377 --token=T --availability drain", "join --token=T --availability drain 10.0.0.1:2377"},
		{"token worker -q", "token -q worker"},
		{"--host unix:///x token worker -q", "--host unix:///x token -q worker"},
		{"lab fail vm2 --name x vm3", "lab fail --name x vm2 vm3"},
		{"lab exec --name x vm2 ls -l --name y", "lab exec --name x vm2 ls -l --name y"},
		{"lab exec vm2 -- ls -l", "lab exec vm2 -- ls -l"},
		{"service ls --filter name=x -q", "service ls --filter name=x -q"},
		{"token -- worker -q", "token -- worker -q"},
		{"lab logs vm2 --help", "lab logs --help"},
		{"lab clock vm1 --name x -h", "lab clock -h"},
		{"lab nosuch --help", "lab --help nosuch"},
		{"help lab up", "lab up --help"},
		{"bogus -x", "bogus -x"},
		{"", ""},
	} {
		got := flagsFirst(app, append([]string{"miniswarm"}, strings.Fields(tc.typed)...))
		if want := append([]string{"miniswarm"}, strings.Fields(tc.want)...); !slices.Equal(got, want) {
			t.Errorf("%q becomes %q, not %q", tc.typed, got, want)
		}
	}
}
