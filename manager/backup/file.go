package backup

import (
	"bufio"
	"bytes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"golang.org/x/crypto/chacha20poly1305"
)

const (
	magic     = "miniswarm backup 1\n"
	maxHeader = 4 << 10
	maxChunk  = 128<<20 + chacha20poly1305.Overhead
	lastChunk = 1 << 31 // in a chunk's length
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrSecret says that a backup does not open with the key or passphrase that was given.
var ErrSecret = errors.New("this is not the key or passphrase of this backup")

// DamageError says where a backup is damaged.
type DamageError struct {
	// Offset is where in the file what cannot be read begins, in bytes.
	Offset int64
	Err    error
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("the backup is damaged at offset %d: %v", e.Offset, e.Err)
}
func (e *DamageError) Unwrap() error { return e.Err }

// header is in the clear.
type header struct{ KDF kdf }

// sealing seals or opens the chunks of one file.
type sealing struct {
	aead cipher.AEAD
	head []byte // authenticated with every chunk
	n    uint64
}

// nonce is of one chunk: keys are of one file, and in it no two chunks have the same number.
func (s *sealing) nonce(last bool) []byte {
	nonce := make([]byte, chacha20poly1305.NonceSizeX)
	binary.BigEndian.PutUint64(nonce, s.n)
	if last {
		nonce[len(nonce)-1] = 1
	}
	return nonce
}

// Writer writes a backup. It has no goroutine and is for one.
type Writer struct {
	w io.Writer
	s sealing
}

// NewWriter begins a backup with the header and the manifest.
func NewWriter(w io.Writer, secret Secret, m Manifest) (*Writer, error) {
	h := header{KDF: secret.kdf()}
	key, err := secret.derive(h.KDF)
	if err != nil {
		return nil, fmt.Errorf("begin backup: %w", err)
	}
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, fmt.Errorf("begin backup: %w", err)
	}
	head, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("begin backup: %w", err)
	}
	manifest, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("begin backup: %w", err)
	}
	b := &Writer{w: w, s: sealing{aead: aead, head: head}}
	if _, err := fmt.Fprintf(w, "%s%s %08x\n", magic, head, crc32.Checksum(head, castagnoli)); err != nil {
		return nil, fmt.Errorf("write backup: %w", err)
	}
	return b, b.Put(manifest, false)
}

// Put writes a chunk of the content; last ends the backup.
func (b *Writer) Put(chunk []byte, last bool) error {
	var head [8]byte
	sealed := b.s.aead.Seal(nil, b.s.nonce(last), chunk, b.s.head)
	b.s.n++
	size := uint32(len(sealed))
	if last {
		size |= lastChunk
	}
	binary.BigEndian.PutUint32(head[:], size)
	binary.BigEndian.PutUint32(head[4:], checksum(head[:4], sealed))
	for _, part := range [][]byte{head[:], sealed} {
		if _, err := b.w.Write(part); err != nil {
			return fmt.Errorf("write backup: %w", err)
		}
	}
	return nil
}

// checksum is of a chunk's length and its sealed bytes.
func checksum(length, sealed []byte) uint32 {
	return crc32.Update(crc32.Checksum(length, castagnoli), castagnoli, sealed)
}

// frames reads a file's parts without opening them. Errors are DamageErrors.
type frames struct {
	r      *bufio.Reader
	offset int64
	h      header
	head   []byte
	ended  bool // the last chunk was read
}

func openFrames(r io.Reader) (*frames, error) {
	f := &frames{r: bufio.NewReaderSize(r, 128<<10)}
	begin := make([]byte, len(magic))
	if _, err := io.ReadFull(f.r, begin); err != nil || string(begin) != magic {
		return nil, f.damage(errors.New("it does not begin as a backup of this version of miniswarm"))
	}
	f.offset = int64(len(magic))
	line, err := f.r.ReadSlice('\n')
	if err != nil || len(line) > maxHeader {
		return nil, f.damage(errors.New("the header does not end"))
	}
	at := bytes.LastIndexByte(line, ' ')
	if at < 0 || string(line[at:]) != fmt.Sprintf(" %08x\n", crc32.Checksum(line[:at], castagnoli)) {
		return nil, f.damage(errors.New("the header does not have its checksum"))
	}
	f.head = bytes.Clone(line[:at])
	if err := json.Unmarshal(f.head, &f.h); err != nil {
		return nil, f.damage(fmt.Errorf("header: %w", err))
	}
	f.offset += int64(len(line))
	return f, nil
}

// next gives the sealed bytes of the next chunk, io.EOF after the last one. The caller moves the offset on.
func (f *frames) next() ([]byte, error) {
	var head [8]byte
	n, err := io.ReadFull(f.r, head[:])
	switch {
	case n == 0 && errors.Is(err, io.EOF) && f.ended:
		return nil, io.EOF
	case f.ended && n > 0:
		return nil, f.damage(errors.New("something follows the end"))
	case err != nil:
		return nil, f.damage(f.short(err))
	}
	length := binary.BigEndian.Uint32(head[:])
	size := int64(length &^ lastChunk)
	if size < chacha20poly1305.Overhead || size > maxChunk {
		return nil, f.damage(fmt.Errorf("a chunk of %d bytes is not possible", size))
	}
	// What the length promises is not believed before it is there.
	var sealed bytes.Buffer
	if _, err := io.CopyN(&sealed, f.r, size); err != nil {
		return nil, f.damage(f.short(err))
	}
	if sum := checksum(head[:4], sealed.Bytes()); sum != binary.BigEndian.Uint32(head[4:]) {
		return nil, f.damage(fmt.Errorf("the checksum is %08x, want %08x", sum, binary.BigEndian.Uint32(head[4:])))
	}
	f.ended = length&lastChunk != 0
	return sealed.Bytes(), nil
}

func (f *frames) moveOn(sealed []byte) { f.offset += int64(8 + len(sealed)) }

func (f *frames) damage(err error) error { return &DamageError{f.offset, err} }

// short is the error of a file that ends where it should not; what else the reader says is passed on.
func (f *frames) short(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errCutOff
	}
	return err
}

var errCutOff = errors.New("the file ends here, in the middle: it was not written to its end")

// Reader reads a backup. It has no goroutine and is for one.
type Reader struct {
	f        *frames
	s        sealing
	manifest Manifest
}

// NewReader opens a backup and reads its manifest. The error matches [ErrSecret] if the secret is another one and is a
// [*DamageError] if the file is damaged.
func NewReader(r io.Reader, secret Secret) (*Reader, error) {
	f, err := openFrames(r)
	if err != nil {
		return nil, err
	}
	key, err := secret.derive(f.h.KDF)
	if err != nil {
		return nil, fmt.Errorf("open backup: %w", err)
	}
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, fmt.Errorf("open backup: %w", err)
	}
	b := &Reader{f: f, s: sealing{aead: aead, head: f.head}}
	at := f.offset
	manifest, err := b.Next()
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(manifest, &b.manifest); err != nil {
		return nil, &DamageError{at, fmt.Errorf("manifest: %w", err)}
	}
	return b, nil
}

// Manifest says what the backup is of.
func (b *Reader) Manifest() Manifest { return b.manifest }

// Offset is how far the file has been read, in bytes.
func (b *Reader) Offset() int64 { return b.f.offset }

// Next gives the next chunk of the content, io.EOF after the last. An error other than that is a [*DamageError] or matches
// [ErrSecret]: what has been read so far must not be used.
func (b *Reader) Next() ([]byte, error) {
	sealed, err := b.f.next()
	if err != nil {
		return nil, err
	}
	chunk, err := b.s.aead.Open(nil, b.s.nonce(b.f.ended), sealed, b.s.head)
	switch {
	case err != nil && b.s.n == 0:
		return nil, fmt.Errorf("open backup: %w", ErrSecret) // its checksum is right
	case err != nil:
		return nil, b.f.damage(errors.New("the chunk was changed after it was written"))
	}
	b.s.n++
	b.f.moveOn(sealed)
	return chunk, nil
}

// Check reads a backup without a secret and compares all checksums; it gives the size of the file. It finds damage by accident, and a
// file that was cut off; what was changed on purpose only shows with the secret. Errors are [*DamageError].
func Check(r io.Reader) (size int64, err error) {
	f, err := openFrames(r)
	for err == nil {
		var sealed []byte
		if sealed, err = f.next(); err == nil {
			f.moveOn(sealed)
		}
	}
	if errors.Is(err, io.EOF) {
		return f.offset, nil
	}
	return 0, err
}
