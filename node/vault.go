package node

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
)

// vault keeps the data keys of a manager's disk, in one file. They seal the log, the snapshots and, by a key derived from
// them, the key of the manager's certificate. On a swarm that locks its managers the file is itself sealed, by a key
// derived from the unlock key: whoever has the disk then has nothing. To turn the lock on, off or to another key is to
// replace this one file, so that a crash at any moment leaves one that opens with the old key or with the new one.
//
// Wherever the file has lain open, or under a key that is not to count any more, new data keys take the place of the
// old ones: what was deleted may still be found on the disk. The old ones stay until nothing needs them; see settle.
//
// Its methods may be called concurrently.
type vault struct {
	dir string // the state directory

	mu   sync.Mutex
	lock lock     // guarded by mu
	keys [][]byte // guarded by mu; newest first; nil while closed, and on a machine that has none, as workers
}

// lock is what the file is sealed with: nothing if key is nil. It comes from the cluster object of that version, so that a
// manager which reads its log from the beginning is not moved back by it.
type lock struct {
	key     identity.UnlockKey
	version uint64
}

// keyFile is the content of the file.
type keyFile struct {
	Format  int
	Version uint64
	Locked  bool
	// Keys are the data keys one after the other; while Locked a nonce and their ciphertext.
	Keys []byte
}

const (
	keyFileFormat = 1
	// purposes of derived keys
	lockPurpose = "miniswarm: the data keys of a manager's disk"
	certPurpose = "miniswarm: the key of a manager's certificate"
	// pemSealed is the type of a sealed key of a certificate.
	pemSealed = "MINISWARM SEALED KEY"
)

var (
	errLocked   = errors.New("the keys of this manager are locked")
	errWrongKey = errors.New("the unlock key is another one")
)

func (v *vault) path() string { return filepath.Join(v.dir, raftKeyFile) }

// open reads the file. It fails with errLocked if that is sealed and no key is given, and with errWrongKey if the key is
// another one. A machine that has no file has no keys.
func (v *vault) open(key identity.UnlockKey) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.lock, v.keys = lock{}, nil
	raw, err := os.ReadFile(v.path())
	if errors.Is(err, os.ErrNotExist) {
		if raftstore.Exists(filepath.Join(v.dir, raftDir)) {
			return fmt.Errorf("read the keys of the log: %s is missing; restore it from a backup, or leave the swarm with --force", v.path())
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the keys of the log: %w", err)
	}
	var f keyFile
	if err := json.Unmarshal(raw, &f); err != nil {
		return v.damaged(err)
	}
	if f.Format != keyFileFormat {
		return v.damaged(fmt.Errorf("its format is %d, this miniswarm reads format %d", f.Format, keyFileFormat))
	}
	l := lock{version: f.Version}
	if f.Locked {
		if len(key) == 0 {
			return errLocked
		}
		l.key = key
		plain, ok := unseal(key, lockPurpose, f.Keys, f.place())
		if !ok {
			return errWrongKey
		}
		f.Keys = plain
	}
	if len(f.Keys) == 0 || len(f.Keys)%raftstore.KeySize != 0 {
		return v.damaged(fmt.Errorf("it has %d bytes of keys, which have %d each", len(f.Keys), raftstore.KeySize))
	}
	v.lock, v.keys = l, slices.Collect(slices.Chunk(f.Keys, raftstore.KeySize))
	return nil
}

// isOpen says whether the keys are known.
func (v *vault) isOpen() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.keys) > 0
}

func (v *vault) damaged(err error) error {
	return fmt.Errorf("read the keys of the log: %s is damaged (%w); restore it from a backup, or leave the swarm with --force", v.path(), err)
}

// dataKeys gives the key that seals from now on and those that were in use before. A machine without keys gets its first,
// sealed by what later calls of follow say.
func (v *vault) dataKeys() (newest []byte, older [][]byte, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.needLocked(); err != nil {
		return nil, nil, err
	}
	return v.keys[0], slices.Clone(v.keys[1:]), nil
}

// needLocked makes the first key where there is none, and the file where it is gone: nothing may be sealed with keys that are
// on no disk.
func (v *vault) needLocked() error {
	_, err := os.Lstat(v.path())
	missing := errors.Is(err, os.ErrNotExist)
	switch {
	case len(v.keys) > 0 && !missing:
		return nil
	case len(v.keys) > 0:
		return v.replaceLocked(v.lock, v.keys)
	case missing:
		return v.replaceLocked(v.lock, [][]byte{newDataKey()})
	}
	return errors.Join(errLocked, err)
}

// lockFirst says what a machine that has no keys yet seals its first ones with.
func (v *vault) lockFirst(key identity.UnlockKey) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.lock = lock{key: key}
}

// follow seals the file with the unlock key that the cluster has at a version, nil leaves it open, and says whether that is a
// change. Anything but opening it brings a new data key. What is older than what the file knows is passed over.
func (v *vault) follow(key identity.UnlockKey, version uint64) (changed bool, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if version <= v.lock.version || bytes.Equal(key, v.lock.key) {
		return false, nil
	}
	if err := v.needLocked(); err != nil {
		return false, err
	}
	keys := v.keys
	if len(key) > 0 {
		keys = slices.Concat([][]byte{newDataKey()}, keys)
	}
	return true, v.replaceLocked(lock{slices.Clone(key), version}, keys)
}

// rewind has the file follow whatever cluster object it is shown next: in a cluster that was recovered from a backup the newest may be
// older than the one that the file went by.
func (v *vault) rewind() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.lock.version == 0 {
		return nil
	}
	return v.replaceLocked(lock{key: v.lock.key}, v.keys)
}

// settle forgets the older keys: the log, the snapshots and the certificate's key are sealed with newest.
func (v *vault) settle(newest []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.keys) < 2 || !bytes.Equal(v.keys[0], newest) {
		return nil // it was done, or a newer one has come
	}
	return v.replaceLocked(v.lock, v.keys[:1])
}

// replaceLocked writes the file, and then goes by it.
func (v *vault) replaceLocked(l lock, keys [][]byte) error {
	f := keyFile{Format: keyFileFormat, Version: l.version, Locked: len(l.key) > 0, Keys: slices.Concat(keys...)}
	if f.Locked {
		f.Keys = seal(l.key, lockPurpose, f.Keys, f.place())
	}
	raw, err := json.Marshal(f)
	if err == nil {
		err = writeFileDurably(v.path(), raw)
	}
	if err != nil {
		return fmt.Errorf("write the keys of the log: %w", err)
	}
	v.lock, v.keys = l, keys
	return nil
}

// place is authenticated with the sealed keys.
func (f *keyFile) place() []byte { return fmt.Appendf(nil, "%d %d", f.Format, f.Version) }

// forget lets go of the keys in memory, before the file is removed.
func (v *vault) forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.lock, v.keys = lock{}, nil
}

// discard removes the file, of a machine that is no manager any more.
func (v *vault) discard() error {
	v.forget()
	if err := removeDurably(v.path()); err != nil {
		return fmt.Errorf("remove the keys of the former log: %w", err)
	}
	return nil
}

// Seal implements identity.KeySealer: the keys of managers' certificates are sealed, workers have nothing to do so with.
func (v *vault) Seal(id identity.Identity, plain []byte) ([]byte, error) {
	if id.Role != identity.Manager {
		return plain, nil
	}
	newest, _, err := v.dataKeys()
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemSealed, Bytes: seal(newest, certPurpose, plain, nil)}), nil
}

// Open implements identity.KeySealer. A key that is not sealed is what it is: a worker's, or that of one that was promoted.
func (v *vault) Open(sealed []byte) ([]byte, error) {
	block, _ := pem.Decode(sealed)
	if block == nil || block.Type != pemSealed {
		return sealed, nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, k := range v.keys {
		if plain, ok := unseal(k, certPurpose, block.Bytes, nil); ok {
			return plain, nil
		}
	}
	return nil, fmt.Errorf("none of the keys in %s opens it", v.path())
}

func newDataKey() []byte {
	k := make([]byte, raftstore.KeySize)
	rand.Read(k) // never fails: the runtime ends the program when the system has no randomness
	return k
}

// derive gives the cipher of a purpose. The secrets are random and long, so that nothing slow is needed.
func derive(secret []byte, purpose string) cipher.AEAD {
	k, err := hkdf.Key(sha256.New, secret, nil, purpose, chacha20poly1305.KeySize)
	if err != nil {
		panic(err) // only for lengths that SHA-256 cannot give
	}
	aead, err := chacha20poly1305.NewX(k)
	if err != nil {
		panic(err) // only for keys of another length
	}
	return aead
}

// seal gives nonce and ciphertext; place is authenticated with it.
func seal(secret []byte, purpose string, plain, place []byte) []byte {
	aead := derive(secret, purpose)
	out := make([]byte, aead.NonceSize(), aead.NonceSize()+len(plain)+aead.Overhead())
	rand.Read(out)
	return aead.Seal(out, out, plain, place)
}

func unseal(secret []byte, purpose string, sealed, place []byte) ([]byte, bool) {
	aead := derive(secret, purpose)
	if len(sealed) < aead.NonceSize() {
		return nil, false
	}
	plain, err := aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], place)
	return plain, err == nil
}
