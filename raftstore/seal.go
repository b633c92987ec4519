package raftstore

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"
)

// KeySize is the length of Config.Key in bytes.
const KeySize = chacha20poly1305.KeySize

// errSealed says that a record does not open: the key is another one or the record was changed.
var errSealed = errors.New("record cannot be opened: it was sealed with another key or has been changed")

// sealer encrypts and authenticates what goes to disk with XChaCha20-Poly1305. Its nonces are long enough to be drawn at
// random for every record of a store's whole life. The place of a record (its purpose and position) is authenticated
// with it, so that records cannot be exchanged for each other.
type sealer struct{ aead cipher.AEAD }

func newSealer(key []byte) (*sealer, error) {
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, fmt.Errorf("the key has %d bytes, want %d", len(key), KeySize)
	}
	return &sealer{aead}, nil
}

// seal gives nonce and ciphertext of plain. It may be called concurrently.
func (s *sealer) seal(plain []byte, place [17]byte) []byte {
	out := make([]byte, chacha20poly1305.NonceSizeX, chacha20poly1305.NonceSizeX+len(plain)+chacha20poly1305.Overhead)
	rand.Read(out) // never fails: the runtime ends the program when the system has no randomness
	return s.aead.Seal(out, out, plain, place[:])
}

// open gives what seal was given.
func (s *sealer) open(sealed []byte, place [17]byte) ([]byte, error) {
	if len(sealed) < chacha20poly1305.NonceSizeX+chacha20poly1305.Overhead {
		return nil, fmt.Errorf("a sealed record of %d bytes is too short", len(sealed))
	}
	nonce, text := sealed[:chacha20poly1305.NonceSizeX], sealed[chacha20poly1305.NonceSizeX:]
	plain, err := s.aead.Open(nil, nonce, text, place[:])
	if err != nil {
		return nil, errSealed
	}
	return plain, nil
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
