package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/docker/cli/cli/compose/convert"

	"github.com/miniswarm/miniswarm/cmd/miniswarm/compose"
)

func TestChangedContentIsExplained(t *testing.T) {
	stack, err := compose.Load(compose.Options{Dir: t.TempDir(), Environment: map[string]string{"V": "7"}, Files: []compose.File{{Name: "shop.yml", Text: []byte(`
services: {web: {image: web, secrets: [pw, key], configs: [conf]}}
secrets:
  pw: {environment: V}
  key:
    name: key_${V:-1}
    environment: V
configs:
  conf: {name: conf, content: "x"}
`)}}})
	if err != nil {
		t.Fatal(err)
	}
	for what, advice := range map[string]string{
		"secret shop_pw": `such as "name: shop_pw_${VERSION}"`,
		"secret key_7":   `its name is written "key_${V:-1}" (shop.yml:6), so deploy with another value`,
		"config conf":    `such as "name: conf_${VERSION}"`,
	} {
		refused := errors.New("failed to update " + what + ": Error response from daemon: rpc error: code = InvalidArgument desc = only updates to Labels are allowed")
		got := explainChanged(refused, stack, convert.NewNamespace("shop"))
		if !errors.Is(got, refused) || !strings.Contains(got.Error(), "the content of "+what+" has changed") || !strings.Contains(got.Error(), advice) {
			t.Errorf("got %v", got)
		}
	}
	other := errors.New("something else")
	if got := explainChanged(other, stack, convert.NewNamespace("shop")); got != other {
		t.Errorf("got %v", got)
	}
	if explainChanged(nil, stack, convert.NewNamespace("shop")) != nil {
		t.Error("an error out of nothing")
	}
}
