package raftstore

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"golang.org/x/crypto/chacha20poly1305"
)

// KeySize is the length of Config.Key in bytes.
const KeySize = chacha20poly1305.KeySize

// errSealed says that a record does not open: the key is another one or the record was changed.
var errSealed = errors.New("record cannot be opened: it was sealed with another key or has been changed")

// sealer encrypts and authenticates what goes to disk with XChaCha20-Poly1305. Its nonces are long enough to be drawn at
// random for every record of a store's whole life. The place of a record (its purpose and position) is authenticated
// with it, so that records cannot be exchanged for each other.
//
// It seals with one key and opens with that and those before it; see [Store.Rekey].
type sealer struct{ keys atomic.Pointer[[]sealKey] } // newest first

type sealKey struct {
	key  []byte
	aead cipher.AEAD
}

func newSealer(key []byte, older ...[]byte) (*sealer, error) {
	s := &sealer{}
	s.keys.Store(&[]sealKey{})
	for _, k := range slices.Backward(append([][]byte{key}, older...)) {
		if err := s.use(k); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// use seals with key from now on. Others must not do so at the same time.
func (s *sealer) use(key []byte) error {
	before := *s.keys.Load()
	if len(before) > 0 && bytes.Equal(before[0].key, key) {
		return nil
	}
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return fmt.Errorf("the key has %d bytes, want %d", len(key), KeySize)
	}
	after := append([]sealKey{{bytes.Clone(key), aead}}, before...)
	s.keys.Store(&after)
	return nil
}

// fixed gives a sealer that goes on with today's keys, for what is to be sealed by a single one.
func (s *sealer) fixed() *sealer {
	f := &sealer{}
	f.keys.Store(s.keys.Load())
	return f
}

// seal gives nonce and ciphertext of plain. It may be called concurrently.
func (s *sealer) seal(plain []byte, place [17]byte) []byte {
	out := make([]byte, chacha20poly1305.NonceSizeX, chacha20poly1305.NonceSizeX+len(plain)+chacha20poly1305.Overhead)
	rand.Read(out) // never fails: the runtime ends the program when the system has no randomness
	return (*s.keys.Load())[0].aead.Seal(out, out, plain, place[:])
}

// open gives what seal was given.
func (s *sealer) open(sealed []byte, place [17]byte) ([]byte, error) {
	plain, _, err := s.openAny(sealed, place)
	return plain, err
}

// openAny is open; newest says that the key was the one that seals at present.
func (s *sealer) openAny(sealed []byte, place [17]byte) (plain []byte, newest bool, err error) {
	if len(sealed) < chacha20poly1305.NonceSizeX+chacha20poly1305.Overhead {
		return nil, false, fmt.Errorf("a sealed record of %d bytes is too short", len(sealed))
	}
	nonce, text := sealed[:chacha20poly1305.NonceSizeX], sealed[chacha20poly1305.NonceSizeX:]
	for i, k := range *s.keys.Load() {
		if plain, err := k.aead.Open(nil, nonce, text, place[:]); err == nil {
			return plain, i == 0, nil
		}
	}
	return nil, false, errSealed
}

// The purposes of sealed records.
const (
	sealEntry byte = iota + 1
	sealChunk
)

// place gives the authenticated place of a record.
func place(purpose byte, a, b uint64) (p [17]byte) {
	p[0] = purpose
	binary.BigEndian.PutUint64(p[1:], a)
	binary.BigEndian.PutUint64(p[9:], b)
	return p
}
