package ingress

import (
	"os"
	"testing"
)

// The machines that run the other tests of this package have all that the data plane needs.
func TestThisKernelHasAllFeatures(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	before, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	all := Features()
	if len(all) < 4 {
		t.Errorf("only %v", all)
	}
	for _, f := range all {
		if f.Err != nil {
			t.Errorf("%s: %v", f.Name, f.Err)
		}
	}
	if after, err := os.Readlink("/proc/thread-self/ns/net"); err != nil || after != before {
		t.Errorf("in namespace %s, was %s (%v)", after, before, err)
	}
}
