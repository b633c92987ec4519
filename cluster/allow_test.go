package cluster

import (
	"reflect"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/swarm"
)

func TestAllowance(t *testing.T) {
	for text, want := range map[string]string{"": "", "gpus, privileged": "privileged,gpus", "devices": "devices", "privileged,devices,gpus": "privileged,devices,gpus"} {
		a, err := ParseAllowance(text)
		if err != nil || a.String() != want {
			t.Errorf("%q is %q, %v; want %q", text, a, err, want)
		}
	}
	if _, err := ParseAllowance("privileged,all"); err == nil || !strings.Contains(err.Error(), `"all"`) {
		t.Errorf("a word that means nothing: %v", err)
	}
	n := &Node{}
	n.Spec.Labels = map[string]string{LabelAllow: "privileged,everything"}
	if got := Allowed(n); got != (Allowance{}) {
		t.Errorf("a malformed label allows %s", got)
	}
	if (Allowance{Devices: true}).Covers(Allowance{Devices: true, GPUs: true}) || !(Allowance{Devices: true, GPUs: true}).Covers(Allowance{GPUs: true}) {
		t.Error("what is allowed covers what is not")
	}
}

func TestExtras(t *testing.T) {
	rwm := func(host, inside, how string) container.DeviceMapping {
		return container.DeviceMapping{PathOnHost: host, PathInContainer: inside, CgroupPermissions: how}
	}
	gpu := [][]string{{"gpu"}}
	for _, tt := range []struct {
		label, value string
		want         Extras
		err          string
	}{
		{LabelPrivileged, "true", Extras{Privileged: true}, ""},
		{LabelPrivileged, "false", Extras{}, ""},
		{LabelPrivileged, "yes", Extras{}, "neither true nor false"},
		{LabelDevices, "/dev/a,/dev/b:/dev/c,/dev/d:r,/dev/e:/dev/f:rw", Extras{Devices: []container.DeviceMapping{rwm("/dev/a", "/dev/a", "rwm"), rwm("/dev/b", "/dev/c", "rwm"),
			rwm("/dev/d", "/dev/d", "r"), rwm("/dev/e", "/dev/f", "rw")}}, ""},
		{LabelDevices, "dev/a", Extras{}, "absolute"},
		{LabelDevices, "/dev/a:/dev/b:x", Extras{}, "letters"},
		{LabelDevices, "/dev/a:/b:r:w", Extras{}, "PATH"},
		{LabelGPUs, "all", Extras{GPUs: []container.DeviceRequest{{Count: -1, Capabilities: gpu}}}, ""},
		{LabelGPUs, "2", Extras{GPUs: []container.DeviceRequest{{Count: 2, Capabilities: gpu}}}, ""},
		{LabelGPUs, "0", Extras{}, "at least 1"},
		{LabelGPUs, "device=0", Extras{GPUs: []container.DeviceRequest{{DeviceIDs: []string{"0"}, Capabilities: gpu}}}, ""},
		{LabelGPUs, "GPU-1f,GPU-2a", Extras{GPUs: []container.DeviceRequest{{DeviceIDs: []string{"GPU-1f", "GPU-2a"}, Capabilities: gpu}}}, ""},
		{LabelGPUs, "capabilities=x", Extras{}, "separated by commas"},
	} {
		labels := map[string]string{"other": "x", tt.label: tt.value}
		got, err := ParseExtras(labels)
		switch {
		case tt.err != "":
			if err == nil || !strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), tt.label) {
				t.Errorf("%s=%s: error %v, want %q", tt.label, tt.value, err, tt.err)
			}
		case err != nil || !reflect.DeepEqual(got, tt.want):
			t.Errorf("%s=%s: %+v, %v", tt.label, tt.value, got, err)
		default:
			need := Needs(&swarm.ContainerSpec{Labels: labels})
			if need != (Allowance{got.Privileged, len(got.Devices) > 0, len(got.GPUs) > 0}) {
				t.Errorf("%s=%s needs %s", tt.label, tt.value, need)
			}
		}
	}
	if Needs(nil) != (Allowance{}) {
		t.Error("no container needs something")
	}
}
