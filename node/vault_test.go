package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
)

var (
	keyA = identity.UnlockKey(bytes.Repeat([]byte{'a'}, 32))
	keyB = identity.UnlockKey(bytes.Repeat([]byte{'b'}, 32))
)

// reopened gives the vault as the next daemon finds it.
func reopened(t *testing.T, v *vault, key identity.UnlockKey) *vault {
	t.Helper()
	again := &vault{dir: v.dir}
	must(t, again.open(key))
	return again
}

func newest(t *testing.T, v *vault) []byte {
	t.Helper()
	k, _, err := v.dataKeys()
	must(t, err)
	return k
}

func TestTheFileOpensWithTheUnlockKeyAlone(t *testing.T) {
	v := &vault{dir: t.TempDir()}
	must(t, v.open(nil))
	first := newest(t, v)
	if len(first) != raftstore.KeySize || !bytes.Equal(newest(t, reopened(t, v, nil)), first) {
		t.Fatalf("the first key is %x", first)
	}
	opens := func(key identity.UnlockKey, want error) {
		t.Helper()
		again := &vault{dir: v.dir}
		if err := again.open(key); !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("open: %v, want %v", err, want)
		}
		if _, _, err := again.dataKeys(); (err == nil) != (want == nil) {
			t.Errorf("the keys of a file that ended with %v: %v", want, err)
		}
	}
	follow := func(key identity.UnlockKey, version uint64, want bool) {
		t.Helper()
		if changed, err := v.follow(key, version); changed != want || err != nil {
			t.Errorf("follow at version %d: changed %v, %v", version, changed, err)
		}
	}
	follow(nil, 5, false)
	follow(keyA, 10, true)
	opens(nil, errLocked)
	opens(keyB, errWrongKey)
	opens(keyA, nil)
	raw, err := os.ReadFile(v.path())
	must(t, err)
	var f keyFile
	must(t, json.Unmarshal(raw, &f))
	if bytes.Contains(f.Keys, first) || bytes.Contains(f.Keys, newest(t, v)) {
		t.Error("a locked file has its keys in the clear")
	}
	second, older, err := v.dataKeys()
	must(t, err)
	if bytes.Equal(second, first) || len(older) != 1 || !bytes.Equal(older[0], first) {
		t.Error("the key that lay open is still the one that seals")
	}

	// What a manager reads that begins with an old part of its log is passed over.
	v = reopened(t, v, keyA)
	follow(keyB, 9, false)
	follow(nil, 10, false)
	follow(keyA, 11, false)
	opens(keyA, nil)

	follow(keyB, 20, true)
	opens(keyA, errWrongKey)
	opens(keyB, nil)
	if _, older, err := v.dataKeys(); err != nil || len(older) != 2 {
		t.Errorf("%d older keys, %v", len(older), err)
	}
	must(t, v.settle(second)) // which is not the newest any more
	if _, older, _ := v.dataKeys(); len(older) != 2 {
		t.Error("keys that are needed were forgotten")
	}
	third := newest(t, v)
	must(t, v.settle(third))
	v = reopened(t, v, keyB)
	if got, older, err := v.dataKeys(); err != nil || len(older) != 0 || !bytes.Equal(got, third) {
		t.Errorf("after settling: %d older keys, %v", len(older), err)
	}
	follow(nil, 30, true)
	opens(nil, nil)
	if !bytes.Equal(newest(t, v), third) {
		t.Error("opening the file changed the key")
	}
}

func TestAFileThatIsLockedFromTheStart(t *testing.T) {
	v := &vault{dir: t.TempDir()}
	v.lockFirst(keyA)
	k := newest(t, v)
	if err := (&vault{dir: v.dir}).open(nil); !errors.Is(err, errLocked) {
		t.Errorf("open without a key: %v", err)
	}
	if changed, err := v.follow(keyA, 3); changed || err != nil {
		t.Errorf("the founding itself changed something: %v, %v", changed, err)
	}
	if !bytes.Equal(newest(t, reopened(t, v, keyA)), k) {
		t.Error("another key came back")
	}
}

// TestACrashLeavesTheOldFileOrTheNew pulls the plug before the rename and writes garbage beside the file.
func TestACrashLeavesTheOldFileOrTheNew(t *testing.T) {
	v := &vault{dir: t.TempDir()}
	k := newest(t, v)
	must(t, os.Mkdir(v.path()+".new", 0o700)) // the new file cannot be written
	if _, err := v.follow(keyA, 1); err == nil {
		t.Fatal("sealed without a disk")
	}
	if !bytes.Equal(newest(t, v), k) || !bytes.Equal(newest(t, reopened(t, v, nil)), k) {
		t.Error("a failed change left something")
	}
	must(t, os.Remove(v.path()+".new"))
	must(t, os.WriteFile(v.path()+".new", []byte("{"), 0o600))
	if changed, err := reopened(t, v, nil).follow(keyA, 1); !changed || err != nil {
		t.Errorf("the attempt after it: %v, %v", changed, err)
	}
	reopened(t, v, keyA)
}

func TestWhatIsWrongWithTheFileIsSaid(t *testing.T) {
	v := &vault{dir: t.TempDir()}
	key := newest(t, v)
	good, err := os.ReadFile(v.path())
	must(t, err)
	for content, want := range map[string]string{
		"":                           "is damaged",
		"{":                          "is damaged",
		`{"Format":2,"Keys":"AAAA"}`: "format 1",
		`{"Format":1}`:               "0 bytes of keys",
		`{"Format":1,"Keys":"AAAA"}`: "3 bytes of keys",
		`{"Format":1,"Locked":true,"Keys":"AAAA"}`:                  "unlock key is another",
		strings.Replace(string(good), `"Locked":false`, `"x":1`, 1): "",
	} {
		must(t, os.WriteFile(v.path(), []byte(content), 0o600))
		if err := (&vault{dir: v.dir}).open(keyA); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", content, err, want)
		}
	}
	must(t, os.Remove(v.path()))
	store, err := raftstore.Open(raftstore.Config{Dir: filepath.Join(v.dir, raftDir), NodeID: "n1", ClusterID: "c1", Addr: "192.0.2.1:2377", Bootstrap: true,
		Transport: raftstore.Alone(), Key: key})
	must(t, err)
	must(t, store.Close())
	if err := (&vault{dir: v.dir}).open(nil); err == nil || !strings.Contains(err.Error(), "is missing") {
		t.Errorf("a log without its keys: %v", err)
	}
}

func TestTheKeysOfManagersCertificatesAreSealed(t *testing.T) {
	v := &vault{dir: t.TempDir()}
	plain := []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
	worker, err := v.Seal(identity.Identity{Role: identity.Worker}, plain)
	must(t, err)
	if !bytes.Equal(worker, plain) {
		t.Error("a worker's key is sealed, with what?")
	}
	if _, err := os.Stat(v.path()); err == nil {
		t.Error("a worker has keys of a log")
	}
	sealed, err := v.Seal(identity.Identity{Role: identity.Manager}, plain)
	must(t, err)
	if bytes.Contains(sealed, []byte("AAAA\n")) {
		t.Error("a manager's key is in the clear")
	}
	must(t, os.Remove(v.path()))
	if _, err := v.Seal(identity.Identity{Role: identity.Manager}, plain); err != nil {
		t.Fatal(err)
	}
	if got, err := reopened(t, v, nil).Open(sealed); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("a file that was taken away came back with other keys: %v", err)
	}
	// A promoted node's key is found again after a crash, and one sealed before the keys changed as well.
	again := reopened(t, v, nil)
	_, err = again.follow(keyA, 1)
	must(t, err)
	for _, text := range [][]byte{sealed, worker} {
		if got, err := again.Open(text); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("opened %q, %v", got, err)
		}
	}
	must(t, again.settle(newest(t, again)))
	if _, err := again.Open(sealed); err == nil || !strings.Contains(err.Error(), "none of the keys") {
		t.Errorf("a key that was forgotten opens something: %v", err)
	}
	closed := &vault{dir: v.dir}
	if err := closed.open(nil); !errors.Is(err, errLocked) {
		t.Fatal(err)
	}
	if _, err := closed.Seal(identity.Identity{Role: identity.Manager}, plain); !errors.Is(err, errLocked) {
		t.Errorf("a locked vault made new keys: %v", err)
	}
}
