package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// Files below the state directory, named as Docker Swarm names them (swarm-semantics.md, 8.2).
const (
	certificatesDir = "certificates"
	rootFile        = "swarm-root-ca.crt"
	certFile        = "swarm-node.crt"
	keyFile         = "swarm-node.key"
	stagedSuffix    = ".next"
)

// KeySealer turns the node key into what is written on disk and back. Without one the key is written as plain PEM,
// readable by root alone. Both methods may be called at any time and concurrently.
type KeySealer interface {
	// Seal is told whose key it is: a worker has nothing to seal with.
	Seal(id Identity, plain []byte) (sealed []byte, err error)
	Open(sealed []byte) (plain []byte, err error)
}

// StoreConfig configures a Store.
type StoreConfig struct {
	// Dir is the daemon's state directory; the files are in its folder "certificates".
	Dir string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Sealer encrypts the key on disk; nil leaves it plain.
	Sealer KeySealer
	// AllowExpired makes Load accept an expired certificate. Peers accept it for nothing but its renewal, which is the first
	// thing to do: see [RenewProtocol].
	AllowExpired bool
}

// Store keeps a node's credentials: in memory for every handshake, on disk for the next start. At any moment, also when the
// power fails during [Store.Save], the disk holds one complete set of files or none.
type Store struct {
	cfg     StoreConfig
	dir     string
	disk    disk
	mu      sync.Mutex // serialises changes on disk
	current atomic.Pointer[Credentials]
}

// NewStore returns an empty store. It touches no disk: call Load.
func NewStore(cfg StoreConfig) (*Store, error) {
	if cfg.Dir == "" {
		return nil, errors.New("credential store: no directory given")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Store{cfg: cfg, dir: filepath.Join(cfg.Dir, certificatesDir), disk: realDisk{}}, nil
}

// Current returns the credentials in use, or nil before a successful [Store.Load] or [Store.Save]. It does not block.
func (s *Store) Current() *Credentials { return s.current.Load() }

// Load reads the credentials from disk and makes them current. It returns an error that matches [ErrNotJoined] if there
// are none, [ErrExpired] if they are of no more use, and otherwise one that names the file at fault.
//
// If a Save was interrupted after the point of no return, Load completes it.
func (s *Store) Load() (*Credentials, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	live, err := s.read(false)
	if errors.Is(err, ErrNotJoined) {
		return nil, fmt.Errorf("load credentials from %s: %w", s.dir, err)
	}
	if err != nil {
		var completed error
		if live, completed = s.read(true); completed != nil {
			return nil, fmt.Errorf("load credentials from %s: %w", s.dir, err)
		}
		if err := s.publish(); err != nil {
			return nil, fmt.Errorf("load credentials from %s: complete an interrupted renewal: %w", s.dir, err)
		}
	}
	s.unstage() // what an interrupted Save left before the point of no return
	if err := live.CheckTime(s.cfg.Now()); err != nil && !(s.cfg.AllowExpired && errors.Is(err, ErrExpired)) {
		return nil, fmt.Errorf("load credentials from %s: %w", s.dir, err)
	}
	s.current.Store(live)
	return live, nil
}

// Save puts new credentials on disk and then makes them current for all later handshakes. When it fails the former ones
// stay in use, and a store that held none has nothing on disk.
func (s *Store) Save(c *Credentials) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.put(c)
}

// put is Save under the lock.
func (s *Store) put(c *Credentials) error {
	_, before := s.read(false)
	if err := s.save(c); err != nil {
		if errors.Is(before, ErrNotJoined) {
			err = errors.Join(err, s.clear())
		}
		return fmt.Errorf("save credentials of node %s in %s: %w", c.Identity.NodeID, s.dir, err)
	}
	s.current.Store(c)
	return nil
}

// replace saves what build makes of the current credentials, and returns both; nobody else changes them meanwhile. An error
// of build's own leaves them as they are.
func (s *Store) replace(build func(old *Credentials) (*Credentials, error)) (old, fresh *Credentials, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, err = s.required(); err != nil {
		return nil, nil, err
	}
	if fresh, err = build(old); err != nil {
		return nil, nil, err
	}
	return old, fresh, s.put(fresh)
}

// Trust makes root what this node verifies its peers by from now on; changed is false where it is that already. It is refused
// if the node's own certificate does not descend from root, because no peer would accept this node then.
func (s *Store) Trust(root *Root) (changed bool, err error) {
	c, err := s.required()
	if err != nil || c.Root.equal(root) {
		return false, err
	}
	_, _, err = s.replace(func(old *Credentials) (*Credentials, error) {
		return ParseCredentials(root.pem, old.certPEM, old.keyPEM)
	})
	if err != nil {
		return false, fmt.Errorf("trust another root CA: %w", err)
	}
	return true, nil
}

// Clear removes the credentials from memory and disk, as leaving a cluster does. It may be repeated.
func (s *Store) Clear() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current.Store(nil)
	if err := s.clear(); err != nil {
		return fmt.Errorf("remove credentials in %s: %w", s.dir, err)
	}
	return nil
}

// clear renames the directory first, so that an interruption cannot leave some of the files in place.
func (s *Store) clear() error {
	gone := s.dir + ".removed"
	if err := s.disk.removeAll(gone); err != nil {
		return err
	}
	if err := s.disk.rename(s.dir, gone); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return errors.Join(s.disk.sync(s.cfg.Dir), s.disk.removeAll(gone))
}

// files are in the order in which a save renames them. Any order would do, since Load can tell a half-renamed set from
// a whole one: key and certificate must match.
var files = [...]string{rootFile, keyFile, certFile}

// save writes the new files next to the old ones and makes them durable; from then on renaming them is all that is left,
// which Load can complete.
func (s *Store) save(c *Credentials) error {
	key := c.keyPEM
	if s.cfg.Sealer != nil {
		var err error
		if key, err = s.cfg.Sealer.Seal(c.Identity, key); err != nil {
			return fmt.Errorf("seal key: %w", err)
		}
	}
	if err := s.makeDir(); err != nil {
		return err
	}
	content := map[string][]byte{rootFile: c.Root.pem, keyFile: key, certFile: c.certPEM}
	for _, name := range files {
		if err := s.disk.write(s.path(name)+stagedSuffix, content[name]); err != nil {
			s.unstage()
			return err
		}
	}
	if err := s.disk.sync(s.dir); err != nil {
		s.unstage()
		return err
	}
	return s.publish()
}

// makeDir creates the directory durably.
func (s *Store) makeDir() error {
	if err := s.disk.mkdir(s.dir); err != nil {
		return err
	}
	return s.disk.sync(filepath.Dir(s.dir))
}

// publish renames whatever is staged over the live files.
func (s *Store) publish() error {
	for _, name := range files {
		if err := s.disk.rename(s.path(name)+stagedSuffix, s.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return s.disk.sync(s.dir)
}

// unstage removes staged files. What it cannot remove the next save overwrites.
func (s *Store) unstage() {
	for _, name := range files {
		_ = s.disk.remove(s.path(name) + stagedSuffix)
	}
}

// read parses the live files or, with staged, those a save has not renamed yet in their place.
func (s *Store) read(staged bool) (*Credentials, error) {
	content := make(map[string][]byte, len(files))
	var missing []string
	for _, name := range files {
		b, err := []byte(nil), fs.ErrNotExist
		if staged {
			b, err = os.ReadFile(s.path(name) + stagedSuffix)
		}
		if errors.Is(err, fs.ErrNotExist) {
			b, err = os.ReadFile(s.path(name))
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			missing = append(missing, name)
		case err != nil:
			return nil, err
		}
		content[name] = b
	}
	switch {
	case len(missing) == len(files):
		return nil, ErrNotJoined
	case len(missing) > 0:
		return nil, fmt.Errorf("%v missing: restore it from a backup, or leave the swarm and join again", missing)
	}
	key := content[keyFile]
	if s.cfg.Sealer != nil {
		var err error
		if key, err = s.cfg.Sealer.Open(key); err != nil {
			return nil, fmt.Errorf("open sealed %s: %w", keyFile, err)
		}
	}
	c, err := ParseCredentials(content[rootFile], content[certFile], key)
	if err != nil {
		return nil, fmt.Errorf("%w: restore %s, %s and %s from a backup, or leave the swarm and join again",
			err, rootFile, certFile, keyFile)
	}
	return c, nil
}

// Identity returns who this node is according to the certificate on disk, which can be read while the key is sealed and
// nobody can open it.
func (s *Store) Identity() (Identity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	raw, err := os.ReadFile(s.path(certFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Identity{}, ErrNotJoined
	}
	if err != nil {
		return Identity{}, fmt.Errorf("read this node's certificate: %w", err)
	}
	chain, err := parseCertificates(raw)
	if err != nil {
		return Identity{}, fmt.Errorf("read this node's certificate %s: %w", s.path(certFile), err)
	}
	return fromCertificate(chain[0])
}

// Bare says whether the key on disk is to be sealed anew: it lies there as it is, or the sealer cannot open it any more, because what
// it was sealed with has gone while it was written.
func (s *Store) Bare() (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.current.Load()
	if c == nil {
		return false, ErrNotJoined
	}
	onDisk, err := os.ReadFile(s.path(keyFile))
	if err != nil {
		return false, fmt.Errorf("read the key of this node's certificate: %w", err)
	}
	if s.cfg.Sealer == nil || bytes.Equal(onDisk, c.keyPEM) {
		return true, nil
	}
	plain, err := s.cfg.Sealer.Open(onDisk)
	return err != nil || !bytes.Equal(plain, c.keyPEM), nil
}

// Reseal writes the current credentials anew, sealed with what the sealer seals with now.
func (s *Store) Reseal() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.current.Load()
	if c == nil {
		return ErrNotJoined
	}
	if err := s.save(c); err != nil {
		return fmt.Errorf("seal the key of node %s in %s anew: %w", c.Identity.NodeID, s.dir, err)
	}
	return nil
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }
