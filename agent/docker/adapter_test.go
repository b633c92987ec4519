package docker

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/docker/docker/api/types/mount"
)

// An engine that accepts connections and says nothing holds up those who wait for it, and nobody who gave himself a limit.
func TestEngineThatHangs(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "engine.sock")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := Open("unix://" + sock)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	patient, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := a.Info(patient)
		ended <- err
	}()
	for len(a.negotiating) == 0 {
		time.Sleep(time.Millisecond)
	}
	hurried, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := a.Networks(hurried, "label", "value"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the limit", err)
	}
	asked, enough := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer enough()
	if err := a.Ping(asked); err == nil {
		t.Error("what hangs answers")
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the end", err)
	}
}

func TestMountsThatAnEngineIsTooOldFor(t *testing.T) {
	part := mount.Mount{Type: mount.TypeVolume, Target: "/v", VolumeOptions: &mount.VolumeOptions{Subpath: "part"}}
	special := mount.Mount{Type: mount.TypeTmpfs, Target: "/t", TmpfsOptions: &mount.TmpfsOptions{Options: [][]string{{"noexec"}}}}
	for _, tt := range []struct {
		m             mount.Mount
		version, want string
	}{
		{part, "1.44", "mount /v: volume-subpath requires API v1.45 or later, the engine of this node has v1.44"},
		{part, "1.45", ""},
		{special, "1.45", "mount /t: a tmpfs option requires API v1.46 or later, the engine of this node has v1.45"},
		{special, "1.46", ""},
		{mount.Mount{Type: mount.TypeVolume, Target: "/v", VolumeOptions: &mount.VolumeOptions{NoCopy: true}}, "1.41", ""},
	} {
		err := knowsMounts([]mount.Mount{tt.m}, tt.version)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || err.Error() != tt.want) {
			t.Errorf("%s on %s: %v", tt.m.Target, tt.version, err)
		}
	}
}
