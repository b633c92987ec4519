package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"strings"

	"github.com/docker/docker/api/types/swarm"
)

// A join token is four parts joined by dashes (swarm-semantics.md, 8.1):
//
//	SWMTKN - 1 - 50 characters of digest - 25 characters of secret
//
// Digest and secret are base 36 numbers, left-padded with zeros: the SHA-256 of the root certificate's PEM text, and
// 16 random bytes.
const (
	tokenPrefix      = "SWMTKN"
	tokenVersion     = "1"
	tokenDigestChars = 50
	tokenSecretChars = 25
	tokenSecretBytes = 16
)

// ErrMalformedToken is matched by every error of [ParseToken].
var ErrMalformedToken = errors.New("invalid join token")

// Token is a join token. The zero value is no token; others come from [NewToken] or [ParseToken] and are well-formed.
// It logs without its secret.
type Token struct {
	digest string
	secret string
}

// NewToken returns a token with a fresh secret for the cluster whose root certificate is rootPEM, byte for byte as
// managers serve it. To rotate a token is to make a new one and forget the old. A nil random means the system's.
func NewToken(rootPEM []byte, random io.Reader) (Token, error) {
	if random == nil {
		random = rand.Reader
	}
	secret := make([]byte, tokenSecretBytes)
	if _, err := io.ReadFull(random, secret); err != nil {
		return Token{}, fmt.Errorf("make join token: read random secret: %w", err)
	}
	return Token{digest: digestOf(rootPEM), secret: base36(secret, tokenSecretChars)}, nil
}

// NewJoinTokens returns a fresh pair of tokens, as a cluster has from its first moment.
func NewJoinTokens(rootPEM []byte, random io.Reader) (swarm.JoinTokens, error) {
	worker, err := NewToken(rootPEM, random)
	if err != nil {
		return swarm.JoinTokens{}, err
	}
	manager, err := NewToken(rootPEM, random)
	if err != nil {
		return swarm.JoinTokens{}, err
	}
	return swarm.JoinTokens{Worker: worker.String(), Manager: manager.String()}, nil
}

// ParseToken reads a token as a person pastes it; white space around it is ignored. Its errors match
// [ErrMalformedToken], name the part that is wrong and never repeat the secret.
func ParseToken(s string) (Token, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return Token{}, fmt.Errorf("%w: it is empty", ErrMalformedToken)
	}
	parts := strings.Split(s, "-")
	if parts[0] != tokenPrefix {
		return Token{}, fmt.Errorf("%w: it does not begin with %s-; paste it as \"join-token\" prints it",
			ErrMalformedToken, tokenPrefix)
	}
	if len(parts) > 1 && parts[1] != tokenVersion {
		return Token{}, fmt.Errorf("%w: its version (second part) is %.10q, and only version %s is known",
			ErrMalformedToken, parts[1], tokenVersion)
	}
	switch {
	case len(parts) == 1:
		return Token{}, fmt.Errorf("%w: it ends after its first part: version, root CA digest and secret are missing", ErrMalformedToken)
	case len(parts) == 2:
		return Token{}, fmt.Errorf("%w: it ends after its version: root CA digest and secret are missing", ErrMalformedToken)
	case len(parts) > 4:
		return Token{}, fmt.Errorf("%w: it has %d parts instead of 4", ErrMalformedToken, len(parts))
	}
	if err := checkPart("root CA digest (third part)", parts[2], tokenDigestChars); err != nil {
		return Token{}, err
	}
	if n, _ := new(big.Int).SetString(parts[2], 36); n.BitLen() > 8*sha256.Size {
		return Token{}, fmt.Errorf("%w: its root CA digest (third part) is larger than any SHA-256: it was mistyped", ErrMalformedToken)
	}
	if len(parts) == 3 {
		return Token{}, fmt.Errorf("%w: it ends after its root CA digest: the secret is missing", ErrMalformedToken)
	}
	if err := checkPart("secret (last part)", parts[3], tokenSecretChars); err != nil {
		return Token{}, err
	}
	return Token{digest: parts[2], secret: parts[3]}, nil
}

func checkPart(name, text string, chars int) error {
	for i, c := range text {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return fmt.Errorf("%w: its %s has %q as character %d, where only 0-9 and a-z may be",
				ErrMalformedToken, name, c, i+1)
		}
	}
	switch {
	case len(text) < chars:
		return fmt.Errorf("%w: its %s has %d of %d characters: the end of it was cut off", ErrMalformedToken, name, len(text), chars)
	case len(text) > chars:
		return fmt.Errorf("%w: its %s has %d characters instead of %d", ErrMalformedToken, name, len(text), chars)
	}
	return nil
}

// String returns the token with its secret, as users type it.
func (t Token) String() string {
	if t == (Token{}) {
		return ""
	}
	return tokenPrefix + "-" + tokenVersion + "-" + t.digest + "-" + t.secret
}

// LogValue returns the token without its secret.
func (t Token) LogValue() slog.Value {
	return slog.StringValue(tokenPrefix + "-" + tokenVersion + "-" + t.digest + "-(secret)")
}

// RootDigest returns the digest of the cluster's root certificate that the token carries, in base 36.
func (t Token) RootDigest() string { return t.digest }

// Equal reports whether two tokens are the same, in a time that does not depend on where they differ. The zero token
// equals none.
func (t Token) Equal(other Token) bool {
	a, b := t.String(), other.String()
	return a != "" && subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1
}

// matchesRoot reports whether rootPEM is the root the token was made for.
func (t Token) matchesRoot(rootPEM []byte) bool {
	return subtle.ConstantTimeCompare([]byte(t.digest), []byte(digestOf(rootPEM))) == 1
}

// roleOf returns the role that presented earns in a cluster with these tokens. Both are always compared.
func roleOf(tokens swarm.JoinTokens, presented string) (Role, bool) {
	t, err := ParseToken(presented)
	if err != nil {
		return "", false
	}
	isManager, isWorker := equalText(t, tokens.Manager), equalText(t, tokens.Worker)
	switch {
	case isManager:
		return Manager, true
	case isWorker:
		return Worker, true
	}
	return "", false
}

func equalText(t Token, stored string) bool {
	s, err := ParseToken(stored)
	return err == nil && t.Equal(s)
}

func digestOf(rootPEM []byte) string {
	sum := sha256.Sum256(rootPEM)
	return base36(sum[:], tokenDigestChars)
}

// base36 writes a big-endian number in base 36, left-padded with zeros to chars.
func base36(number []byte, chars int) string {
	text := new(big.Int).SetBytes(number).Text(36)
	return strings.Repeat("0", chars-len(text)) + text
}
