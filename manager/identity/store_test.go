package identity

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var testIdentity = Identity{NodeID: "node000000000000000000001", ClusterID: testClusterID, Role: Worker}

func newTestCA(t testing.TB, c *clock) *CA {
	t.Helper()
	ca, err := NewCA(CAConfig{Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func newCredentials(t testing.TB, ca *CA, id Identity) *Credentials {
	t.Helper()
	c, err := found(ca, id, 0)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestStoreSavesAndLoads(t *testing.T) {
	for name, sealer := range map[string]KeySealer{"plain": nil, "sealed": xorSealer(0x5a)} {
		t.Run(name, func(t *testing.T) {
			cfg := StoreConfig{Dir: filepath.Join(t.TempDir(), "state"), Sealer: sealer}
			s, err := NewStore(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Load(); !errors.Is(err, ErrNotJoined) {
				t.Fatalf("Load of nothing: %v", err)
			}
			want := newCredentials(t, newTestCA(t, &clock{}), testIdentity)
			if err := s.Save(want); err != nil {
				t.Fatal(err)
			}
			if s.Current() != want {
				t.Error("Save did not make the credentials current")
			}
			again, err := NewStore(cfg)
			if err != nil {
				t.Fatal(err)
			}
			got, err := again.Load()
			if err != nil {
				t.Fatal(err)
			}
			if got.Identity != want.Identity || !bytes.Equal(got.keyPEM, want.keyPEM) || got != again.Current() {
				t.Errorf("Load = %+v", got.Identity)
			}
			checkModes(t, s)
			if bare, err := s.Bare(); bare != (sealer == nil) || err != nil {
				t.Errorf("the key lies bare: %v, %v", bare, err)
			}
			s.cfg.Sealer = xorSealer(0x11) // what it was sealed with has gone
			if bare, err := s.Bare(); !bare || err != nil {
				t.Errorf("a key that nothing opens need not be sealed anew: %v, %v", bare, err)
			}
			if id, err := s.Identity(); id != testIdentity || err != nil {
				t.Errorf("the certificate is of %+v, %v", id, err)
			}
			if err := again.Reseal(); err != nil || again.Current() != got {
				t.Errorf("resealing: %v", err)
			}
			onDisk, err := os.ReadFile(s.path(keyFile))
			if err != nil {
				t.Fatal(err)
			}
			if plain := bytes.Equal(onDisk, want.keyPEM); plain != (sealer == nil) {
				t.Errorf("key is plain on disk: %v", plain)
			}
			for range 2 {
				if err := again.Clear(); err != nil {
					t.Fatal(err)
				}
			}
			if entries, err := os.ReadDir(cfg.Dir); err != nil || len(entries) != 0 {
				t.Errorf("after Clear: %v, %v", entries, err)
			}
			if _, err := again.Load(); !errors.Is(err, ErrNotJoined) || again.Current() != nil {
				t.Errorf("Load after Clear: %v", err)
			}
		})
	}
}

type xorSealer byte

func (x xorSealer) Seal(_ Identity, plain []byte) ([]byte, error) {
	out := []byte{byte(x)}
	for _, b := range plain {
		out = append(out, b^byte(x))
	}
	return out, nil
}

func (x xorSealer) Open(sealed []byte) ([]byte, error) {
	if len(sealed) == 0 || sealed[0] != byte(x) {
		return nil, errors.New("wrong key")
	}
	out, err := x.Seal(Identity{}, sealed[1:])
	return out[1:], err
}

// checkModes fails if anybody but the owner may read anything.
func checkModes(t *testing.T, s *Store) {
	t.Helper()
	for path, want := range map[string]os.FileMode{s.dir: 0o700 | os.ModeDir, s.path(rootFile): 0o600, s.path(certFile): 0o600, s.path(keyFile): 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("mode of %s is %v, want %v", path, info.Mode(), want)
		}
	}
}

func TestSaveTightensModes(t *testing.T) {
	s := newTestStore(t, &clock{})
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path(keyFile)+stagedSuffix, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(newCredentials(t, newTestCA(t, &clock{}), testIdentity)); err != nil {
		t.Fatal(err)
	}
	checkModes(t, s)
}

func TestLoadNamesTheFault(t *testing.T) {
	c := &clock{}
	ca := newTestCA(t, c)
	other := newCredentials(t, newTestCA(t, c), testIdentity)
	sibling := newCredentials(t, ca, testIdentity)
	rsaLike := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("nonsense")})
	for _, tc := range []struct {
		name  string
		file  string
		text  []byte // nil removes the file
		words string
	}{
		{"root missing", rootFile, nil, "[swarm-root-ca.crt] missing"},
		{"certificate missing", certFile, nil, "[swarm-node.crt] missing"},
		{"key missing", keyFile, nil, "[swarm-node.key] missing"},
		{"root empty", rootFile, []byte{}, "root CA certificate: it holds no PEM block"},
		{"root is a key", rootFile, sibling.keyPEM, `root CA certificate: it holds a PEM block of type "EC PRIVATE KEY"`},
		{"root is a leaf", rootFile, sibling.certPEM, "is not a CA's"},
		{"root of another cluster", rootFile, other.Root.pem, "did not sign it"},
		{"certificate garbage", certFile, []byte("garbage"), "node certificate: it holds no PEM block"},
		{"certificate damaged", certFile, bytes.Replace(sibling.certPEM, []byte("MII"), []byte("MIX"), 1), "node certificate: x509"},
		{"certificate of another cluster", certFile, other.certPEM, "node key: it does not belong to the certificate"},
		{"certificate is the root", certFile, sibling.Root.pem, "is not a node certificate"},
		{"key cut", keyFile, sibling.keyPEM[:40], "node key: private key: it holds no PEM block"},
		{"key garbage", keyFile, rsaLike, "node key: private key: "},
		{"key of a sibling", keyFile, sibling.keyPEM, "node key: it does not belong to the certificate"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newTestStore(t, c)
			if err := s.Save(newCredentials(t, ca, testIdentity)); err != nil {
				t.Fatal(err)
			}
			var err error
			if tc.text == nil {
				err = os.Remove(s.path(tc.file))
			} else {
				err = os.WriteFile(s.path(tc.file), tc.text, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			fresh, err := NewStore(s.cfg)
			if err != nil {
				t.Fatal(err)
			}
			got, err := fresh.Load()
			if err == nil || !strings.Contains(err.Error(), tc.words) || !strings.Contains(err.Error(), "leave the swarm and join again") {
				t.Errorf("Load = %v, want an error with %q", err, tc.words)
			}
			if got != nil || fresh.Current() != nil {
				t.Error("Load made faulty credentials current")
			}
		})
	}
}

func TestLoadLooksAtTheClock(t *testing.T) {
	c := &clock{}
	s := newTestStore(t, c)
	if err := s.Save(newCredentials(t, newTestCA(t, c), testIdentity)); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		shift time.Duration
		allow bool
		want  string
	}{
		{"fresh", 0, false, ""},
		{"last day", DefaultValidity - time.Hour, false, ""},
		{"expired", DefaultValidity + time.Hour, false, ErrExpired.Error()},
		{"expired but allowed", DefaultValidity + time.Hour, true, ""},
		{"clock back an hour", -59 * time.Minute, false, ""},
		{"clock back a year", -year, false, "set the clock right"},
		{"clock back a year, expired allowed", -year, true, "set the clock right"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			later, err := NewStore(StoreConfig{Dir: s.cfg.Dir, Now: (&clock{offset: tc.shift}).now, AllowExpired: tc.allow})
			if err != nil {
				t.Fatal(err)
			}
			_, err = later.Load()
			switch {
			case tc.want == "" && err != nil:
				t.Error(err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("Load = %v, want %q", err, tc.want)
			case errors.Is(err, ErrExpired) != strings.Contains(tc.want, "expired"):
				t.Errorf("matches ErrExpired wrongly: %v", err)
			}
		})
	}
}

// errPlug is what every operation returns once the plug is pulled.
var errPlug = errors.New("no power")

// fragileDisk is a real disk that loses power at its n-th change: a write in progress is torn, what follows does not happen.
type fragileDisk struct {
	realDisk
	left int
	dead bool
	once bool // only the one operation fails, as when the disk is full for a moment
}

func (d *fragileDisk) step() error {
	if d.dead && !d.once {
		return errPlug
	}
	d.left--
	if d.left == 0 {
		d.dead = true
		return errPlug
	}
	return nil
}

func (d *fragileDisk) mkdir(dir string) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.realDisk.mkdir(dir)
}

func (d *fragileDisk) write(path string, content []byte) error {
	was := d.dead
	if err := d.step(); err != nil {
		if !was {
			return errors.Join(err, os.WriteFile(path, content[:len(content)/2], 0o600))
		}
		return err
	}
	return d.realDisk.write(path, content)
}

func (d *fragileDisk) sync(dir string) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.realDisk.sync(dir)
}

func (d *fragileDisk) rename(from, to string) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.realDisk.rename(from, to)
}

func (d *fragileDisk) remove(path string) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.realDisk.remove(path)
}

func (d *fragileDisk) removeAll(dir string) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.realDisk.removeAll(dir)
}

// TestPowerLoss pulls the plug at every step of a first save, a renewal and a leave. Whenever it happens the next start finds
// the old set or the new one, whole.
func TestPowerLoss(t *testing.T) {
	c := &clock{}
	ca := newTestCA(t, c)
	before, after := newCredentials(t, ca, testIdentity), newCredentials(t, ca, testIdentity)
	promoted := newCredentials(t, newTestCA(t, c), testIdentity) // a new root as well
	for _, tc := range []struct {
		name     string
		old, new *Credentials // nil: none
	}{
		{"join", nil, after},
		{"renewal", before, after},
		{"renewal with a new root", before, promoted},
		{"leave", before, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			finished := false
			for n := 1; !finished; n++ {
				if n > 40 {
					t.Fatal("never finishes")
				}
				s := newTestStore(t, c)
				if tc.old != nil {
					if err := s.Save(tc.old); err != nil {
						t.Fatal(err)
					}
				}
				s.disk = &fragileDisk{left: n}
				var err error
				if tc.new != nil {
					err = s.Save(tc.new)
				} else {
					err = s.Clear()
				}
				finished = err == nil
				if !finished && !errors.Is(err, errPlug) {
					t.Fatalf("step %d: %v", n, err)
				}
				next, err := NewStore(s.cfg)
				if err != nil {
					t.Fatal(err)
				}
				got, err := next.Load()
				if err != nil && !errors.Is(err, ErrNotJoined) {
					t.Fatalf("start after step %d: %v; files %v", n, err, filesIn(t, s))
				}
				switch {
				case finished && !same(got, tc.new):
					t.Fatalf("finished after %d steps, but the next start finds another set", n)
				case !same(got, tc.old) && !same(got, tc.new):
					t.Fatalf("start after step %d finds neither the old nor the new set", n)
				}
				if again, err := next.Load(); !same(again, got) {
					t.Fatalf("second start after step %d differs: %v", n, err)
				}
				if got != nil && len(filesIn(t, next)) != len(files) {
					t.Errorf("start after step %d leaves %v", n, filesIn(t, next))
				}
			}
		})
	}
}

func same(a, b *Credentials) bool {
	if a == nil || b == nil {
		return a == b
	}
	return bytes.Equal(a.Root.pem, b.Root.pem) && bytes.Equal(a.certPEM, b.certPEM) && bytes.Equal(a.keyPEM, b.keyPEM)
}

// TestFailedSave lets single operations fail while the process goes on: the old credentials stay in use, a newcomer has
// nothing on disk, and a second attempt succeeds.
func TestFailedSave(t *testing.T) {
	c := &clock{}
	ca := newTestCA(t, c)
	before, after := newCredentials(t, ca, testIdentity), newCredentials(t, ca, testIdentity)
	for _, old := range []*Credentials{nil, before} {
		for n := 1; n <= 10; n++ { // mkdir, sync, 3 writes, sync, 3 renames, sync
			t.Run(fmt.Sprintf("renewal=%v/step=%d", old != nil, n), func(t *testing.T) {
				s := newTestStore(t, c)
				if old != nil {
					if err := s.Save(old); err != nil {
						t.Fatal(err)
					}
				}
				s.disk = &fragileDisk{left: n, once: true}
				if err := s.Save(after); !errors.Is(err, errPlug) {
					t.Fatalf("Save = %v", err)
				}
				if s.Current() != old {
					t.Error("a failed save changed what is in use")
				}
				if left := filesIn(t, s); old == nil && len(left) > 0 {
					t.Errorf("a failed first save left %v", left)
				}
				if err := s.Save(after); err != nil || s.Current() != after {
					t.Errorf("second attempt: %v", err)
				}
			})
		}
	}
}
