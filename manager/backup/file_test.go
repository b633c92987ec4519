package backup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

var key = NewRecoveryKey()

func write(t testing.TB, secret Secret, chunks ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b, secret, Manifest{ClusterID: "the cluster", Index: 42, Taken: time.Unix(1e9, 0).UTC(), Objects: map[string]int{"service": 3}})
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range chunks {
		if err := w.Put([]byte(c), i == len(chunks)-1); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func read(data []byte, secret Secret) (m Manifest, content string, err error) {
	r, err := NewReader(bytes.NewReader(data), secret)
	if err != nil {
		return m, "", err
	}
	for {
		chunk, err := r.Next()
		if errors.Is(err, io.EOF) {
			return r.Manifest(), content, nil
		}
		if err != nil {
			return m, "", err
		}
		content += string(chunk)
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	pass, err := ParseSecret("correct horse\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []Secret{key, pass} {
		data := write(t, secret, "hello ", strings.Repeat("x", 300_000), "")
		m, content, err := read(data, secret)
		if err != nil || m.ClusterID != "the cluster" || m.Objects["service"] != 3 || len(content) != 300_006 {
			t.Errorf("read %+v and %d bytes: %v", m, len(content), err)
		}
		again, err := ParseSecret(secret.Text())
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := read(data, again); err != nil {
			t.Errorf("with the secret as text: %v", err)
		}
		for _, other := range []Secret{NewRecoveryKey(), {passphrase: "wrong horse"}} {
			if _, _, err := read(data, other); !errors.Is(err, ErrSecret) {
				t.Errorf("with another secret: %v", err)
			}
		}
		if size, err := Check(bytes.NewReader(data)); err != nil || size != int64(len(data)) {
			t.Errorf("a check of %d bytes found %d: %v", len(data), size, err)
		}
		if strings.Contains(string(data), "hello") || strings.Contains(string(data), "cluster") {
			t.Error("the content is in the clear")
		}
		if text := fmt.Sprintf("%v %+v %#v %s", secret, secret, secret, &secret); strings.Contains(text, "horse") || strings.Contains(text, keyPrefix) {
			t.Errorf("the secret is printed: %s", text)
		}
	}
	if bytes.Equal(write(t, key, "a"), write(t, key, "a")) {
		t.Error("two backups are equal")
	}
}

// Every byte of a backup counts: whichever is changed, and wherever it ends, nothing is read, and the offset is named.
func TestDamageOfEveryByteIsNamed(t *testing.T) {
	data := write(t, key, "first chunk", "second", "last")
	for i := range data {
		for _, flip := range []byte{1, 0x20, 0x80} {
			bad := bytes.Clone(data)
			bad[i] ^= flip
			_, _, err := read(bad, key)
			damage, ok := errors.AsType[*DamageError](err)
			if !ok || damage.Offset > int64(i) {
				t.Errorf("byte %d changed by %x: %v", i, flip, err)
			}
			if _, err := Check(bytes.NewReader(bad)); err == nil {
				t.Errorf("byte %d changed by %x: a check without the key finds nothing", i, flip)
			}
		}
	}
	for n := range data {
		_, _, err := read(data[:n], key)
		if _, ok := errors.AsType[*DamageError](err); !ok {
			t.Errorf("cut off after %d of %d bytes: %v", n, len(data), err)
		}
		if _, err := Check(bytes.NewReader(data[:n])); err == nil {
			t.Errorf("cut off after %d of %d bytes: a check finds nothing", n, len(data))
		}
	}
	if _, _, err := read(append(bytes.Clone(data), 0), key); err == nil || !strings.Contains(err.Error(), fmt.Sprint("offset ", len(data))) {
		t.Errorf("with something behind its end: %v", err)
	}
}

// Who has no key but writes correct checksums cannot leave chunks out or exchange them.
func TestChunksCannotBeRearranged(t *testing.T) {
	data := write(t, key, "aaaa", "bbbb", "cccc")
	const chunk = 8 + 4 + 16
	end := len(data)
	for name, bad := range map[string][]byte{
		"exchanged": bytes.Join([][]byte{data[:end-3*chunk], data[end-2*chunk : end-chunk], data[end-3*chunk : end-2*chunk], data[end-chunk:]}, nil),
		"left out":  bytes.Join([][]byte{data[:end-3*chunk], data[end-2*chunk:]}, nil),
		"doubled":   bytes.Join([][]byte{data[:end-2*chunk], data[end-3*chunk:]}, nil),
		"ended early": func() []byte {
			b := bytes.Clone(data[:end-chunk])
			last := b[len(b)-chunk:]
			last[0] |= 0x80
			binary.BigEndian.PutUint32(last[4:], checksum(last[:4], last[8:]))
			return b
		}(),
	} {
		if _, err := Check(bytes.NewReader(bad)); err != nil {
			t.Errorf("%s: the checksums are right, but %v", name, err)
		}
		if _, content, err := read(bad, key); err == nil {
			t.Errorf("%s: read %q", name, content)
		}
	}
}

func TestSecretsThatAreNone(t *testing.T) {
	for _, text := range []string{"", "short", keyPrefix, key.Text()[:40], key.Text() + "A", strings.Replace(key.Text(), "1-", "1-!", 1)} {
		if _, err := ParseSecret(text); err == nil {
			t.Errorf("%q was taken", text)
		} else if len(text) > 9 && strings.Contains(err.Error(), text[9:]) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
}

func FuzzReader(f *testing.F) {
	f.Add(write(f, key, "first", "last"))
	f.Add([]byte(magic + `{"KDF":{"Name":"scrypt","Salt":"AAAAAAAAAAAAAAAAAAAAAA==","N":3}} 00000000` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _, err := read(data, key)
		if _, cerr := Check(bytes.NewReader(data)); err == nil && cerr != nil {
			t.Errorf("read, but a check says %v", cerr)
		}
	})
}
