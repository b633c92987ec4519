package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/docker/docker/api/types/swarm"
)

const (
	goodDigest = "49nj1cmql0jkz5s954yi3oex3nedyz0fb0xx14ie39trti4wxv"
	goodSecret = "8vxv8rssmk743ojnwacrr2e7c"
	goodToken  = "SWMTKN-1-" + goodDigest + "-" + goodSecret // the example of Docker's manual
)

func TestParseTokenAcceptsSwarms(t *testing.T) {
	for _, text := range []string{goodToken, "  " + goodToken + "\n"} {
		token, err := ParseToken(text)
		if err != nil {
			t.Fatalf("ParseToken(%q): %v", text, err)
		}
		if token.String() != goodToken || token.RootDigest() != goodDigest {
			t.Errorf("ParseToken(%q) = %s with digest %s", text, token, token.RootDigest())
		}
	}
}

func TestParseTokenNamesTheWrongPart(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"empty", " \n", "it is empty"},
		{"not a token", "hello", "does not begin with SWMTKN-"},
		{"unlock key", "SWMKEY-1-abc", "does not begin with SWMTKN-"},
		{"lower case prefix", strings.ToLower(goodToken), "does not begin with SWMTKN-"},
		{"prefix alone", "SWMTKN", "ends after its first part"},
		{"FIPS version", "SWMTKN-2-1-" + goodDigest + "-" + goodSecret, `version (second part) is "2"`},
		{"no version", "SWMTKN--" + goodDigest, `version (second part) is ""`},
		{"version alone", "SWMTKN-1", "ends after its version"},
		{"no digest", "SWMTKN-1-", "root CA digest (third part) has 0 of 50 characters"},
		{"digest cut", "SWMTKN-1-" + goodDigest[:49], "root CA digest (third part) has 49 of 50 characters"},
		{"digest cut, secret there", "SWMTKN-1-" + goodDigest[1:] + "-" + goodSecret, "root CA digest (third part) has 49 of 50 characters"},
		{"digest too long", "SWMTKN-1-0" + goodDigest + "-" + goodSecret, "root CA digest (third part) has 51 characters instead of 50"},
		{"digest too large", "SWMTKN-1-" + strings.Repeat("z", 50) + "-" + goodSecret, "larger than any SHA-256"},
		{"digest upper case", "SWMTKN-1-A" + goodDigest[1:] + "-" + goodSecret, "root CA digest (third part) has 'A' as character 1"},
		{"no secret", "SWMTKN-1-" + goodDigest, "secret is missing"},
		{"empty secret", "SWMTKN-1-" + goodDigest + "-", "secret (last part) has 0 of 25"},
		{"secret cut", goodToken[:len(goodToken)-3], "secret (last part) has 22 of 25 characters: the end of it was cut off"},
		{"secret too long", goodToken + "x", "secret (last part) has 26 characters instead of 25"},
		{"secret with a space", "SWMTKN-1-" + goodDigest + "-8vxv8 ssmk743ojnwacrr2e7c", "secret (last part) has ' ' as character 6"},
		{"trailing part", goodToken + "-x", "has 5 parts instead of 4"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			token, err := ParseToken(tc.text)
			if !errors.Is(err, ErrMalformedToken) || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("ParseToken(%q) = %v, want ErrMalformedToken with %q", tc.text, err, tc.want)
			}
			if token != (Token{}) {
				t.Errorf("a token came with the error: %s", token)
			}
			if strings.Contains(err.Error(), goodSecret) {
				t.Errorf("the error tells the secret: %v", err)
			}
		})
	}
}

func TestNewToken(t *testing.T) {
	root := []byte("any text")
	zero, err := NewToken(root, bytes.NewReader(make([]byte, 16)))
	if err != nil {
		t.Fatal(err)
	}
	// sha256("any text") in base 36, computed independently; the secret shows the padding.
	if want := "SWMTKN-1-0632p474vgq5q3y3bn24m2m0lu2qa6ewfqvli8nz1c5wtuw9wf-" + strings.Repeat("0", 25); zero.String() != want {
		t.Errorf("token = %s, want %s", zero, want)
	}
	parsed, err := ParseToken(zero.String())
	if err != nil || !parsed.Equal(zero) {
		t.Errorf("ParseToken(%s) = %s, %v", zero, parsed, err)
	}
	ones, err := NewToken(root, bytes.NewReader(bytes.Repeat([]byte{0xff}, 16)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseToken(ones.String()); err != nil {
		t.Errorf("the largest secret does not parse: %v", err)
	}
	if !zero.matchesRoot(root) || zero.matchesRoot([]byte("any text\n")) {
		t.Error("a token must match its root's bytes and nothing else")
	}
	if _, err := NewToken(root, iotest.ErrReader(io.ErrClosedPipe)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("without randomness: %v", err)
	}
}

func TestTokenEqual(t *testing.T) {
	a, b := mustToken(t, goodToken), mustToken(t, goodToken[:len(goodToken)-1]+"d")
	switch {
	case !a.Equal(a), a.Equal(b), b.Equal(a):
		t.Error("Equal is not equality")
	case (Token{}).Equal(Token{}):
		t.Error("no token equals no token")
	}
}

func TestTokenKeepsItsSecretInLogs(t *testing.T) {
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("join", "token", mustToken(t, goodToken))
	if strings.Contains(out.String(), goodSecret) || !strings.Contains(out.String(), goodDigest) {
		t.Errorf("logged as %s", out.String())
	}
}

func TestRoleOfRotatedTokens(t *testing.T) {
	root := []byte("root")
	tokens, err := NewJoinTokens(root, nil)
	if err != nil {
		t.Fatal(err)
	}
	rotated, err := NewToken(root, nil)
	if err != nil {
		t.Fatal(err)
	}
	after := swarm.JoinTokens{Worker: rotated.String(), Manager: tokens.Manager}
	for _, tc := range []struct {
		name      string
		tokens    swarm.JoinTokens
		presented string
		role      Role
		ok        bool
	}{
		{"worker", tokens, tokens.Worker, Worker, true},
		{"manager", tokens, tokens.Manager, Manager, true},
		{"stranger", tokens, goodToken, "", false},
		{"empty", tokens, "", "", false},
		{"no tokens", swarm.JoinTokens{}, "", "", false},
		{"old worker after rotation", after, tokens.Worker, "", false},
		{"new worker after rotation", after, rotated.String(), Worker, true},
		{"manager after rotation of worker", after, tokens.Manager, Manager, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if role, ok := roleOf(tc.tokens, tc.presented); role != tc.role || ok != tc.ok {
				t.Errorf("roleOf = %q, %v, want %q, %v", role, ok, tc.role, tc.ok)
			}
		})
	}
}

func mustToken(t testing.TB, text string) Token {
	t.Helper()
	token, err := ParseToken(text)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// go test -fuzz FuzzParseToken ./manager/identity
func FuzzParseToken(f *testing.F) {
	for _, s := range []string{goodToken, "", "SWMTKN", "SWMTKN-1", "SWMTKN-1--", goodToken + "-", "\x00", "SWMTKN-1-é", strings.Repeat("-", 99)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		token, err := ParseToken(s)
		if err != nil {
			if !errors.Is(err, ErrMalformedToken) || token != (Token{}) {
				t.Fatalf("ParseToken(%q) = %v, %v", s, token, err)
			}
			return
		}
		// Whatever parses is in canonical form and survives the way through text.
		if token.String() != strings.TrimSpace(s) {
			t.Fatalf("ParseToken(%q).String() = %q", s, token)
		}
		if again, err := ParseToken(fmt.Sprint(token)); err != nil || !again.Equal(token) {
			t.Fatalf("ParseToken(%q) again: %v, %v", token, again, err)
		}
	})
}
