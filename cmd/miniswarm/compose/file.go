package compose

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/cli/cli/compose/template"
	"gopkg.in/yaml.v3"
)

// file is one document of the stack.
type file struct {
	stack *Stack
	name  string
	text  []byte
	root  *yaml.Node
	dir   string
	// alone says that the stack consists of this file only. What is not in it is nowhere.
	alone bool
	// imageless says that a service without an image is not what is looked for.
	imageless bool
}

// work is one service while it is rewritten.
type work struct {
	f       *file
	service string
	node    *yaml.Node
}

// mistake is an error about a key of the service.
func (w *work) mistake(line int, text string, path ...string) error {
	return &Mistake{File: w.f.name, Line: line, Path: strings.Join(append([]string{"services", w.service}, path...), "."), Text: text}
}

func (w *work) note(line int, text string, path ...string) {
	w.f.note(line, text, append([]string{"services", w.service}, path...))
}

func (w *work) value(n *yaml.Node, path ...string) (string, error) {
	return w.f.value(n, append([]string{"services", w.service}, path...)...)
}

// boolean gives the value of a switch; otherwise is what it is where it is not given.
func (w *work) boolean(n *yaml.Node, otherwise bool, path ...string) (bool, error) {
	if n == nil || n.Tag == "!!null" {
		return otherwise, nil
	}
	text, err := w.value(n, path...)
	if err != nil {
		return false, err
	}
	b, err := strconv.ParseBool(text)
	if err != nil && w.f.raw(n) {
		return otherwise, nil
	}
	if err != nil {
		return false, w.mistake(n.Line, fmt.Sprintf("%q is neither true nor false", text), path...)
	}
	return b, nil
}

// raw says that a value is to be left as it is written, though it has variables.
func (f *file) raw(n *yaml.Node) bool {
	return f.stack.opts.SkipInterpolation && strings.Contains(n.Value, "$")
}

func (f *file) note(line int, text string, path []string) {
	f.stack.Notes = append(f.stack.Notes, Note{File: f.name, Line: line, Path: strings.Join(path, "."), Text: text})
}

// value gives a scalar with its variables replaced.
func (f *file) value(n *yaml.Node, path ...string) (string, error) {
	wrong := func(text string) error {
		return &Mistake{File: f.name, Line: n.Line, Path: strings.Join(path, "."), Text: text}
	}
	if n.Kind != yaml.ScalarNode {
		return "", wrong("must be a single value")
	}
	if f.stack.opts.SkipInterpolation {
		return n.Value, nil
	}
	text, err := template.Substitute(n.Value, func(name string) (string, bool) {
		v, ok := f.stack.opts.Environment[name]
		return v, ok
	})
	if err != nil {
		return "", wrong(err.Error())
	}
	return text, nil
}

// values gives the items of a list, or the one value where it is no list; none where the key has no value.
func (w *work) values(n *yaml.Node, key string) ([]string, error) {
	if n.Tag == "!!null" {
		return nil, nil
	}
	items := n.Content
	if n.Kind != yaml.SequenceNode {
		items = []*yaml.Node{n}
	}
	out := make([]string, 0, len(items))
	for _, item := range items {
		text, err := w.value(item, key)
		if err != nil {
			return nil, err
		}
		out = append(out, text)
	}
	return out, nil
}

// rewrite turns the document into one that Docker's loader understands, and remembers what it has no place for.
func (f *file) rewrite(root *yaml.Node) error {
	if err := f.sift(root, nil, nil); err != nil {
		return err
	}
	if err := f.takeContents(root, "configs"); err != nil {
		return err
	}
	if err := f.takeContents(root, "secrets"); err != nil {
		return err
	}
	if err := f.bridges(root); err != nil {
		return err
	}
	for name, node := range pairs(get(root, "services")) {
		w := &work{f: f, service: name.Value, node: node}
		for key, value := range pairs(node) {
			if do := rewrites[key.Value]; do != nil {
				if err := do(w, key, value); err != nil {
					return err
				}
			}
			if k := keysByPath["services.*."+key.Value]; k != nil && k.unknown {
				remove(node, key.Value)
			}
		}
	}
	for _, key := range []string{"name", "include"} {
		remove(root, key)
	}
	return nil
}

// sift goes through the document and takes out what is ignored, with a note, and finds what is refused. path is where n
// is, and like the same as Keys writes it.
func (f *file) sift(n *yaml.Node, path, like []string) error {
	if n.Kind == yaml.SequenceNode {
		for i, item := range n.Content {
			if err := f.sift(item, append(slices.Clone(path), strconv.Itoa(i)), append(slices.Clone(like), "[]")); err != nil {
				return err
			}
		}
		return nil
	}
	for k, v := range pairs(n) {
		here, alike := append(slices.Clone(path), k.Value), append(slices.Clone(like), k.Value)
		if chosen(like) {
			alike[len(like)] = "*"
		}
		key := keysByPath[strings.Join(alike, ".")]
		switch {
		case key == nil || key.Fate == Honoured || key.Fate == Added:
			if err := f.sift(v, here, alike); err != nil {
				return err
			}
		case key.Fate == Refused:
			return &Mistake{File: f.name, Line: k.Line, Path: strings.Join(here, "."), Text: "unsupported option: " + key.Words}
		default:
			f.note(k.Line, "ignored, "+key.Words, here)
			if key.unknown || k.Value == "build" && v.Kind == yaml.MappingNode {
				remove(n, k.Value)
			}
			if k.Value == "build" && v.Kind == yaml.MappingNode { // its keys are many, and new ones come
				put(n, "build", &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: k.Line, Content: contextOnly(v)}, k.Line)
			}
		}
	}
	return nil
}

// bridges takes networks of driver bridge, which Compose makes by default on one machine, for what they are among several.
func (f *file) bridges(root *yaml.Node) error {
	for name, node := range pairs(get(root, "networks")) {
		driver := get(node, "driver")
		if driver == nil || driver.Kind != yaml.ScalarNode {
			continue
		}
		text, err := f.value(driver, "networks", name.Value, "driver")
		if err != nil {
			return err
		}
		if text == "bridge" {
			f.note(driver.Line, "bridge is taken as overlay, since the services may be on several nodes", []string{"networks", name.Value, "driver"})
			put(node, "driver", str("overlay", driver.Line), driver.Line)
		}
	}
	return nil
}

// contextOnly gives what is known of a build that is not made here.
func contextOnly(build *yaml.Node) []*yaml.Node {
	context := get(build, "context")
	if context == nil {
		context = str(".", build.Line)
	}
	return []*yaml.Node{str("context", build.Line), context}
}

// takeContents remembers the secrets or configs whose content is in the file or the environment.
func (f *file) takeContents(root *yaml.Node, section string) error {
	for name, node := range pairs(get(root, section)) {
		if get(node, "file") != nil || get(node, "external") != nil { // it overrides the content that an earlier file has
			delete(f.stack.contents, [2]string{section, name.Value})
		}
		for _, key := range []string{"content", "environment"} {
			v := get(node, key)
			if v == nil || section == "secrets" && key == "content" {
				continue
			}
			text, err := f.value(v, section, name.Value, key)
			if err != nil {
				return err
			}
			c := content{key: key, value: text, data: text}
			if key == "environment" {
				data, ok := f.stack.opts.Environment[text]
				if !ok && !f.raw(v) {
					return &Mistake{File: f.name, Line: v.Line, Path: section + "." + name.Value + "." + key, Text: fmt.Sprintf("the variable %s is not set", text)}
				}
				c.data = data
			}
			remove(node, key)
			put(node, "file", str(os.DevNull, v.Line), v.Line)
			f.stack.contents[[2]string{section, name.Value}] = c
		}
	}
	return nil
}
