package main

import (
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/lab/claim"
)

// Numbers that are no plain ones come with what they mean.
func TestUpdateSaysWhatNumbersMean(t *testing.T) {
	n, host := daemonWithoutEngine(t)
	if _, err := n.Init(t.Context(), swarm.InitRequest{ListenAddr: claim.Addr(t).String()}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ flag, value, want string }{
		{"--task-history-limit", "3", ""},
		{"--task-history-limit", "-3", "A task history limit of -3 is none: finished tasks are kept for ever.\n"},
		{"--dispatcher-heartbeat", "0s", "A dispatcher heartbeat of 0s is the default: one each second.\n"},
	} {
		code, out, errs := call(t.Context(), "--host", host, "update", c.flag+"="+c.value)
		if code != 0 || out != "Swarm updated.\n"+c.want {
			t.Errorf("%s %s: code %d, %q, %s", c.flag, c.value, code, out, errs)
		}
	}
}

func TestOffset(t *testing.T) {
	for d, want := range map[time.Duration]string{-3 * time.Second: "3s behind", 0: "right", 3 * time.Second: "3s ahead"} {
		if got := offset(d); got != want {
			t.Errorf("%s: %s", d, got)
		}
	}
}
