package oracle

import (
	"slices"
	"testing"
)

func TestNormal(t *testing.T) {
	variables := map[string]string{"N": "s012a", "WORKER": "SWMTKN-1-short"}
	for _, c := range []struct{ in, want string }{
		{"s012a.1.r0x4q2m1v8k7w6e5t3y2u1i0p   vm1", "$N.1.ID  vm1"},
		{"r0x4q2m1v8k7   s012aweb", "ID  $Nweb"},
		{"abcdefghijkl", "ID"},
		{"replicatedxx 123456789012 sometimeshas", "replicatedxx 123456789012 sometimeshas"},
		{"Running 3 seconds ago, About a minute ago, Less than a second ago", "Running AGO, AGO, AGO"},
		{"server:1@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "server:1@sha256:DIGEST"},
		{`"CreatedAt": "2026-11-25T15:05:43.123456789Z"`, `"CreatedAt": "TIME"`},
		{"Created at:\t2026-11-25 15:05:43.1234 +0000 utc  ", "Created at:\tTIME"},
		{"10.213.0.12:2377 and 10.0.1.0/24", "ADDR:2377 and ADDR/24"},
		{"docker swarm join --token SWMTKN-1-short 10.1.1.1:2377", "docker swarm join --token $WORKER ADDR:2377"},
		{`"Version": {"Index": 42}`, `"Version": {"Index": INDEX}`},
		{"unix:///var/lib/lab/vm1/engine.sock: refused", "unix://SOCKET: refused"},
		{"02:42:0a:00:00:02", "MAC"},
	} {
		if got := normal(c.in, variables); got != c.want {
			t.Errorf("%q\nbecame %q\nwant   %q", c.in, got, c.want)
		}
	}
}

func TestText(t *testing.T) {
	for _, c := range []struct {
		in   outcome
		want string
	}{
		{outcome{}, ""},
		{outcome{stdout: "a\nb\n"}, "a\nb\n"},
		{outcome{stdout: "a", stderr: "Error: b\n\n", code: 1}, "a\n! Error: b\n!\nexit 1\n"},
	} {
		if got := c.in.text(nil); got != c.want {
			t.Errorf("%+v became %q, want %q", c.in, got, c.want)
		}
	}
}

func TestCompare(t *testing.T) {
	lines, readable := compare("a\nb\nc\n", "a\nB\nc\n")
	if !slices.Equal(lines, []string{"-b", "+B"}) || readable == "" {
		t.Errorf("%q\n%s", lines, readable)
	}
	if lines, readable := compare("a\n", "a\n"); lines != nil || readable != "" {
		t.Errorf("%q\n%s", lines, readable)
	}
}
