package main

import (
	"bytes"
	"testing"
)

func TestTheUnitNamesTheBinaryAsItIs(t *testing.T) {
	for _, tt := range []struct{ path, want string }{
		{"/usr/local/bin/miniswarm", `ExecStart="/usr/local/bin/miniswarm" daemon`},
		{"/home/a b/50%/miniswarm", `ExecStart="/home/a b/50%%/miniswarm" daemon`},
	} {
		if text := unitText(tt.path); !bytes.Contains(text, []byte("\n"+tt.want+"\n")) {
			t.Errorf("unit for %s:\n%swant %s", tt.path, text, tt.want)
		}
	}
}
