package identity

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// unlockPrefix begins the text of an unlock key, and unlockKeyBytes is its length (swarm-semantics.md, 7.5).
const (
	unlockPrefix   = "SWMKEY-1-"
	unlockKeyBytes = 32
)

// ErrMalformedUnlockKey is returned for a text that is no unlock key, in Docker's words.
var ErrMalformedUnlockKey = errors.New("invalid key string")

// UnlockKey opens the keys of managers that lock themselves. It is as random as the keys it seals, so that guessing is
// hopeless. Nil is none: managers do not lock themselves.
type UnlockKey []byte

// NewUnlockKey returns a key drawn from random; nil means crypto/rand.
func NewUnlockKey(random io.Reader) (UnlockKey, error) {
	if random == nil {
		random = rand.Reader
	}
	k := make(UnlockKey, unlockKeyBytes)
	if _, err := io.ReadFull(random, k); err != nil {
		return nil, fmt.Errorf("make unlock key: %w", err)
	}
	return k, nil
}

// ParseUnlockKey reads a key as a person pastes it; white space around it is ignored. Its errors match
// [ErrMalformedUnlockKey] and repeat nothing of the key. A key of another length is a key that opens nothing, as in Docker. One whose
// last character has bits that no key has was mistyped; Docker ignores them.
func ParseUnlockKey(s string) (UnlockKey, error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(s), unlockPrefix)
	if !ok {
		return nil, ErrMalformedUnlockKey
	}
	k, err := base64.RawStdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, ErrMalformedUnlockKey
	}
	return k, nil
}

// Text returns the key as users type it, "" for none.
func (k UnlockKey) Text() string {
	if len(k) == 0 {
		return ""
	}
	return unlockPrefix + base64.RawStdEncoding.EncodeToString(k)
}

// String hides the key from whoever prints it by mistake.
func (k UnlockKey) String() string { return unlockPrefix + "(secret)" }

// LogValue hides the key from logs.
func (k UnlockKey) LogValue() slog.Value { return slog.StringValue(k.String()) }
