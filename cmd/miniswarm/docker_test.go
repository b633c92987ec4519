package main

import (
	"errors"
	"strings"
	"testing"
)

func TestChangedContentIsExplained(t *testing.T) {
	refused := errors.New("failed to update secret shop_pw: Error response from daemon: rpc error: code = InvalidArgument desc = only updates to Labels are allowed")
	got := explainChanged(refused)
	if !errors.Is(got, refused) || !strings.Contains(got.Error(), "the content of secret shop_pw has changed") || !strings.Contains(got.Error(), `"name: shop_pw_${VERSION}"`) {
		t.Errorf("got %v", got)
	}
	other := errors.New("failed to update secret shop_pw: Error response from daemon: secret shop_pw not found")
	for _, err := range []error{nil, other} {
		if got := explainChanged(err); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
}
