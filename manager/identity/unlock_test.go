package identity

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestUnlockKeyTexts(t *testing.T) {
	k, err := NewUnlockKey(bytes.NewReader(bytes.Repeat([]byte{0xfb}, unlockKeyBytes)))
	if err != nil {
		t.Fatal(err)
	}
	const text = "SWMKEY-1-+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s"
	if k.Text() != text {
		t.Errorf("text is %s, want %s", k.Text(), text)
	}
	if got, err := ParseUnlockKey(" " + text + "\n"); err != nil || !bytes.Equal(got, k) {
		t.Errorf("read back %v, %v", []byte(got), err)
	}
	if UnlockKey(nil).Text() != "" {
		t.Error("no key has a text")
	}
	for _, bad := range []string{"", "nonsense", "SWMKEY-2-" + text[9:], text[:20] + "!" + text[21:], text[:51] + "t", "SWMTKN-1-x-y"} {
		if got, err := ParseUnlockKey(bad); !errors.Is(err, ErrMalformedUnlockKey) || got != nil || err.Error() != "invalid key string" {
			t.Errorf("%q: %v, %v", bad, got, err)
		}
	}
	for _, other := range []string{"SWMKEY-1-", text[:41], text + "AAAA"} {
		if got, err := ParseUnlockKey(other); err != nil || bytes.Equal(got, k) {
			t.Errorf("%q: %v", other, err)
		}
	}
	if _, err := NewUnlockKey(bytes.NewReader(nil)); err == nil {
		t.Error("a key without randomness")
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "key", k)
	for _, shown := range []string{log.String(), fmt.Sprint(k), fmt.Sprintf("%s %v", k, k)} {
		if strings.Contains(shown, text[12:30]) || strings.Contains(shown, "251") {
			t.Errorf("the key is shown: %s", shown)
		}
	}
}
