package node

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

func TestStateSurvivesAndSaysWhatIsWrong(t *testing.T) {
	whole := &state{ListenAddr: "0.0.0.0:2377", AdvertiseAddr: "192.0.2.1:2377", DataAddr: "192.0.2.1", RaftID: 7,
		Managers: []protocol.ManagerAddr{{NodeID: "m1", Addr: "192.0.2.2:2377"}}}
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, dir string)
		want    *state
		err     string
	}{
		{"nothing", func(*testing.T, string) {}, nil, ""},
		{"saved", func(t *testing.T, dir string) { must(t, whole.save(dir)) }, whole, ""},
		{"saved over an older one", func(t *testing.T, dir string) {
			must(t, (&state{ListenAddr: "old"}).save(dir))
			must(t, whole.save(dir))
		}, whole, ""},
		{"crash before the rename", func(t *testing.T, dir string) {
			must(t, whole.save(dir))
			must(t, os.WriteFile(filepath.Join(dir, stateFile+".new"), []byte(`{"Listen`), 0o600))
		}, whole, ""},
		{"crash before the first rename", func(t *testing.T, dir string) {
			must(t, os.WriteFile(filepath.Join(dir, stateFile+".new"), []byte(`{}`), 0o600))
		}, nil, ""},
		{"damaged", func(t *testing.T, dir string) {
			must(t, os.WriteFile(filepath.Join(dir, stateFile), []byte(`{"ListenAddr":`), 0o600))
		}, nil, "is damaged"},
		{"unreadable", func(t *testing.T, dir string) { must(t, os.Mkdir(filepath.Join(dir, stateFile), 0o700)) }, nil, "read this node's state"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			c.prepare(t, dir)
			got, err := loadState(dir)
			if !reflect.DeepEqual(got, c.want) || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("loaded %+v, %v; want %+v, %q", got, err, c.want, c.err)
			}
		})
	}
	dir := t.TempDir()
	must(t, whole.save(dir))
	info, err := os.Stat(filepath.Join(dir, stateFile))
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the state has mode %v, want 0600", info.Mode().Perm())
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
