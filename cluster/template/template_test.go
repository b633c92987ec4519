package template

import (
	"reflect"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

func web() Context {
	t := &cluster.Task{}
	t.ID, t.ServiceID, t.Slot = "t1", "s1", 3
	t.ServiceAnnotations = swarm.Annotations{Name: "web", Labels: map[string]string{"tier": "front"}}
	return ContextOf(t, "n1", swarm.NodeDescription{Hostname: "vm1", Platform: swarm.Platform{Architecture: "x86_64", OS: "linux"}})
}

func TestExpand(t *testing.T) {
	spec := &swarm.ContainerSpec{
		Env:      []string{"SLOT={{.Task.Slot}}", "PLAIN={}", "{{.Not}}", `ALL={{join "-" .Service.Name .Node.Hostname .Task.Name}}`},
		Hostname: "{{.Service.Name}}-{{.Node.ID}}",
		Mounts: []mount.Mount{{Source: "data-{{.Task.Slot}}", Target: "/{{.Service.Labels.tier}}", VolumeOptions: &mount.VolumeOptions{
			Labels:       map[string]string{"of": "{{.Service.ID}}"},
			DriverConfig: &mount.Driver{Name: "{{.No}}", Options: map[string]string{"os": "{{.Node.Platform.OS}}"}}}}},
	}
	s := web()
	got, err := s.Expand(spec)
	if err != nil {
		t.Fatal(err)
	}
	want := Fields{
		Env:      []string{"SLOT=3", "PLAIN={}", "{{.Not}}", "ALL=web-vm1-web.3.t1"},
		Hostname: "web-n1",
		Mounts: []mount.Mount{{Source: "data-3", Target: "/front", VolumeOptions: &mount.VolumeOptions{
			Labels:       map[string]string{"of": "s1"},
			DriverConfig: &mount.Driver{Name: "{{.No}}", Options: map[string]string{"os": "linux"}}}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if spec.Mounts[0].VolumeOptions.Labels["of"] != "{{.Service.ID}}" || spec.Mounts[0].VolumeOptions.DriverConfig.Options["os"] != "{{.Node.Platform.OS}}" {
		t.Errorf("the specification was changed: %+v", spec.Mounts[0].VolumeOptions)
	}
}

func TestMistakesAreNamed(t *testing.T) {
	for _, tt := range []struct {
		spec swarm.ContainerSpec
		want string
	}{
		{swarm.ContainerSpec{Env: []string{"A={{.Nothing}}"}}, `expanding env failed: expanding env "A={{.Nothing}}": template: expansion:1`},
		{swarm.ContainerSpec{Hostname: "{{.Node"}, "expanding hostname failed: template: expansion:1"},
		{swarm.ContainerSpec{Hostname: "{{.Service.Labels.none}}"}, "no entry for key"},
		{swarm.ContainerSpec{Mounts: []mount.Mount{{Source: "{{.A}}", Target: "/{{.B}}"}}}, `expanding mounts failed: expanding mount source "{{.A}}": template: expansion:1:2: executing "expansion" at <.A>`},
		{swarm.ContainerSpec{Mounts: []mount.Mount{{Target: "/{{.B}}"}}}, `expanding mounts failed: expanding mount target "/{{.B}}": template`},
		{swarm.ContainerSpec{Mounts: []mount.Mount{{Target: "/b", VolumeOptions: &mount.VolumeOptions{Labels: map[string]string{"z": "{{.Z}}", "a": "{{.A}}"}}}}},
			`expanding mounts failed: expanding the volume options of mount "/b": template: expansion:1:2: executing "expansion" at <.A>`},
	} {
		s := web()
		if _, err := s.Expand(&tt.spec); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %s", tt.spec, err, tt.want)
		}
	}
}
