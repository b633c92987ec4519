package backup

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/scrypt"
)

const (
	keyPrefix = "SWMBKP-1-"
	keyBytes  = 32
	saltBytes = 16
	// minPassphrase keeps a slip of the finger from being the protection of all secrets of a cluster.
	minPassphrase = 8

	// scryptN makes a guess cost 64 MiB and some 200 ms; maxScryptN bounds what a file may make its reader spend.
	scryptN    = 1 << 16
	maxScryptN = 1 << 20
	scryptR    = 8
	scryptP    = 1

	kdfKey        = "hkdf-sha256"
	kdfPassphrase = "scrypt"
)

// Secret is what people keep to read a backup: a recovery key or a passphrase. It never appears in errors.
type Secret struct {
	key        []byte // of a recovery key
	passphrase string
}

// NewRecoveryKey draws a recovery key.
func NewRecoveryKey() Secret {
	key := make([]byte, keyBytes)
	rand.Read(key) // never fails: the runtime ends the program when the system has no randomness
	return Secret{key: key}
}

// ParseSecret reads what a person kept, with white space around it: a recovery key where it begins as one, otherwise a passphrase.
func ParseSecret(text string) (Secret, error) {
	text = strings.TrimSpace(text)
	if encoded, ok := strings.CutPrefix(text, keyPrefix); ok {
		key, err := base64.RawStdEncoding.Strict().DecodeString(encoded)
		if err != nil || len(key) != keyBytes {
			return Secret{}, errors.New("the recovery key is not complete, or was mistyped: it is SWMBKP-1- and 43 characters")
		}
		return Secret{key: key}, nil
	}
	if len(text) < minPassphrase {
		return Secret{}, fmt.Errorf("a passphrase has at least %d characters", minPassphrase)
	}
	return Secret{passphrase: text}, nil
}

// Text gives the secret as [ParseSecret] reads it. Show it to the person whose it is, and to nobody else.
func (s Secret) Text() string {
	if s.key != nil {
		return keyPrefix + base64.RawStdEncoding.EncodeToString(s.key)
	}
	return s.passphrase
}

// String keeps the secret out of logs and errors.
func (s Secret) String() string { return "(secret)" }

// GoString keeps it out of %#v.
func (s Secret) GoString() string { return s.String() }

// kdf says in a header how the file's key is derived.
type kdf struct {
	Name string
	Salt []byte
	// N is scrypt's cost.
	N int `json:",omitempty"`
}

func (s Secret) kdf() kdf {
	k := kdf{Name: kdfKey, Salt: make([]byte, saltBytes)}
	rand.Read(k.Salt)
	if s.key == nil {
		k.Name, k.N = kdfPassphrase, scryptN
	}
	return k
}

// derive gives the file's key.
func (s Secret) derive(k kdf) ([]byte, error) {
	switch {
	case len(k.Salt) != saltBytes:
		return nil, errors.New("the header has no salt")
	case k.Name == kdfKey && s.key == nil:
		return nil, fmt.Errorf("%w: it was sealed with a recovery key (%s...), and this is a passphrase", ErrSecret, keyPrefix)
	case k.Name == kdfPassphrase && s.passphrase == "":
		return nil, fmt.Errorf("%w: it was sealed with a passphrase, and this is a recovery key", ErrSecret)
	case k.Name == kdfKey:
		return hkdf.Key(sha256.New, s.key, k.Salt, "miniswarm backup", chacha20poly1305.KeySize)
	case k.Name == kdfPassphrase:
		if k.N < 2 || k.N > maxScryptN || k.N&(k.N-1) != 0 {
			return nil, fmt.Errorf("the header asks for a cost of %d, which no miniswarm does", k.N)
		}
		return scrypt.Key([]byte(s.passphrase), k.Salt, k.N, scryptR, scryptP, chacha20poly1305.KeySize)
	}
	return nil, fmt.Errorf("the header asks for the key derivation %q: written by a newer version of miniswarm", k.Name)
}
