package compose

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/docker/cli/cli/compose/schema"
	"github.com/docker/cli/cli/compose/types"
)

var update = flag.Bool("update", false, "write docs/compose.md anew")

// docs/compose.md has a table of every key, made of the one that the code goes by.
func TestDocsHaveEveryKey(t *testing.T) {
	const begin, end = "<!-- keys: made by go test ./cmd/miniswarm/compose -update -->\n", "<!-- end of keys -->\n"
	path := filepath.Join("..", "..", "..", "docs", "compose.md")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the keys", path)
	}
	var b strings.Builder
	b.WriteString("\n| key | | |\n| --- | --- | --- |\n")
	for _, k := range Keys {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", strings.ReplaceAll(strings.TrimPrefix(k.Path, "services.*."), ".[]", "[]"), k.Fate, k.Words)
	}
	b.WriteByte('\n')
	want := before + begin + b.String() + end + after
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want != string(text) {
		t.Errorf("%s is stale: go test ./cmd/miniswarm/compose -update", path)
	}
}

// The table knows every key that Docker's types have, and which ones Docker's schema refuses.
func TestTheTableKnowsWhatDockerKnows(t *testing.T) {
	for f := range fieldsOf(reflect.TypeFor[types.ServiceConfig]()) {
		if f != "name" && keysByPath["services.*."+f] == nil {
			t.Errorf("services.*.%s is not in the table", f)
		}
	}
	for _, k := range Keys {
		parts := strings.Split(k.Path, ".")
		if len(parts) != 3 || parts[1] != "*" {
			continue
		}
		err := schema.Validate(map[string]any{"version": newest, parts[0]: map[string]any{"x": map[string]any{parts[2]: nil}}}, newest)
		refused := err != nil && strings.Contains(err.Error(), "Additional property "+parts[2])
		if refused != k.unknown {
			t.Errorf("%s: Docker's schema refuses it: %v, the table says %v", k.Path, refused, k.unknown)
		}
		if k.Fate == Added && rewrites[parts[2]] == nil && parts[2] != "extends" && parts[0] == "services" {
			t.Errorf("%s is added and nothing is done about it", k.Path)
		}
		if k.Fate == Ignored && k.Words == "" {
			t.Errorf("%s is ignored without a reason", k.Path)
		}
	}
}

func fieldsOf(typ reflect.Type) func(func(string) bool) {
	return func(yield func(string) bool) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name != "-" && name != "" && !yield(name) {
				return
			}
		}
	}
}

// Whatever a file has in it, loading ends with a stack or with an error that names a place.
func FuzzLoad(f *testing.F) {
	for _, seed := range []string{"services: {web: {image: a}}", "services: {web: {image: a, ports: [{published: '1', target: 2}], gpus: all, deploy: {resources: 1}}}",
		"x: &x {a: *x}", "services: {a: {extends: a}}", "services: {a: {image: b, depends_on: {a: {condition: 1}}, labels: 1, privileged: true}}",
		"services: {a: {image: b, tmpfs: [1, {a: b}], env_file: [{path: x}], devices: {a: b}, networks: [1]}}", "include: 1", "include: [{path: {a: b}}]", "a: &a [*b]"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "file") || strings.Contains(text, "include") {
			t.Skip("it may read what the machine has")
		}
		s, err := Load(Options{Files: []File{{Name: "f.yml", Text: []byte(text)}}, Dir: t.TempDir()})
		if err == nil {
			if _, err = s.YAML(); err != nil {
				t.Errorf("written: %v", err)
			}
		} else if !strings.HasPrefix(err.Error(), "f.yml:") {
			t.Errorf("the error has no place: %v", err)
		}
	})
}
