package compose

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// includeOthers adds the files that this one includes.
func (f *file) includeOthers(above []string) error {
	inc := get(f.root, "include")
	if inc == nil || inc.Tag == "!!null" {
		return nil
	}
	if inc.Kind != yaml.SequenceNode {
		return &Mistake{File: f.name, Line: inc.Line, Path: "include", Text: "must be a list of files"}
	}
	for _, item := range inc.Content {
		paths := []*yaml.Node{item}
		if item.Kind == yaml.MappingNode {
			p := get(item, "path")
			if p == nil {
				return &Mistake{File: f.name, Line: item.Line, Path: "include", Text: "an included file needs its path"}
			}
			for _, other := range []string{"project_directory", "env_file"} {
				if get(item, other) != nil {
					f.note(item.Line, "ignored, paths are relative to the included file and variables are those of the command", []string{"include", other})
				}
			}
			if paths = p.Content; p.Kind == yaml.ScalarNode {
				paths = []*yaml.Node{p}
			}
		}
		for _, p := range paths {
			path, err := f.value(p, "include")
			if err != nil {
				return err
			}
			if err := f.include(absolute(f.dir, path), p.Line, above); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *file) include(path string, line int, above []string) error {
	if slices.Contains(above, path) {
		return &Mistake{File: f.name, Line: line, Path: "include", Text: "the files include each other in a circle"}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return &Mistake{File: f.name, Line: line, Path: "include", Text: err.Error()}
	}
	before := len(f.stack.files)
	if err := f.stack.add(File{Name: shorter(path), Text: text}, filepath.Dir(path), append(slices.Clone(above), path)); err != nil {
		return err
	}
	for _, other := range f.stack.files[before:] {
		if other.dir != f.stack.opts.Dir {
			for _, svc := range pairs(get(other.root, "services")) {
				other.relocate(svc)
			}
			for _, section := range []string{"secrets", "configs"} {
				for _, obj := range pairs(get(other.root, section)) {
					other.resolve(get(obj, "file"), "")
				}
			}
			other.dir = f.stack.opts.Dir // done once
		}
	}
	return nil
}

// extendOthers puts the services that the file's services extend into files of their own before it.
func (f *file) extendOthers() error {
	for name, svc := range pairs(get(f.root, "services")) {
		if err := f.extend(name.Value, svc, nil); err != nil {
			return err
		}
	}
	return nil
}

// extend adds the service that svc extends under the name of svc, after those which that one extends. above are the
// services that led here.
func (f *file) extend(name string, svc *yaml.Node, above []string) error {
	ext := get(svc, "extends")
	if ext == nil {
		return nil
	}
	wrong := func(text string) error {
		return &Mistake{File: f.name, Line: ext.Line, Path: "services." + name + ".extends", Text: text}
	}
	of := ext
	base := f
	if ext.Kind == yaml.MappingNode {
		if of = get(ext, "service"); of == nil {
			return wrong("it must name a service")
		}
		if from := get(ext, "file"); from != nil {
			path, err := f.value(from, "services", name, "extends", "file")
			if err != nil {
				return err
			}
			path = absolute(f.dir, path)
			text, err := os.ReadFile(path)
			if err != nil {
				return wrong(err.Error())
			}
			root, err := parse(File{Name: shorter(path), Text: text})
			if err != nil {
				return err
			}
			base = &file{stack: f.stack, name: shorter(path), text: text, root: root, dir: filepath.Dir(path)}
		}
	}
	target, err := f.value(of, "services", name, "extends", "service")
	if err != nil {
		return err
	}
	id := base.name + ":" + target
	if slices.Contains(above, id) {
		return wrong("the services extend each other in a circle")
	}
	found := get(base.root, "services", target)
	if found == nil {
		return wrong(fmt.Sprintf("there is no service %s in %s", target, base.name))
	}
	copied := clone(found)
	if err := base.extend(name, copied, append(slices.Clone(above), id)); err != nil {
		return err
	}
	remove(copied, "extends")
	if base.dir != f.stack.opts.Dir {
		base.relocate(copied)
	}
	root := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: 1}
	put(child(root, copied.Line, "services"), name, copied, copied.Line)
	f.stack.files = append(f.stack.files, &file{stack: f.stack, name: base.name, text: base.text, root: root, dir: f.stack.opts.Dir})
	return nil
}

// relocate makes the paths of a service that is written in a file of another directory absolute.
func (f *file) relocate(svc *yaml.Node) {
	if env := get(svc, "env_file"); env != nil {
		for _, item := range append([]*yaml.Node{env}, env.Content...) {
			if p := get(item, "path"); p != nil {
				item = p
			}
			f.resolve(item, "")
		}
	}
	if vols := get(svc, "volumes"); vols != nil {
		for _, v := range vols.Content {
			f.resolve(v, ".")
			f.resolve(get(v, "source"), ".")
		}
	}
}

// resolve makes a path absolute that begins, with its variables replaced, in a certain way. What is wrong with variables is
// said when all of the file is read.
func (f *file) resolve(v *yaml.Node, begins string) {
	if v == nil || v.Kind != yaml.ScalarNode || f.raw(v) {
		return
	}
	text, err := f.value(v)
	if err != nil || filepath.IsAbs(text) || !strings.HasPrefix(text, begins) {
		return
	}
	v.Value = absolute(f.dir, text)
	if !f.stack.opts.SkipInterpolation {
		v.Value = strings.ReplaceAll(v.Value, "$", "$$") // it was replaced
	}
}

// shorter names a file from the working directory, where that is below it.
func shorter(path string) string {
	cwd, err := os.Getwd()
	if err != nil {
		return path
	}
	if rel, err := filepath.Rel(cwd, path); err == nil && !strings.HasPrefix(rel, "..") {
		return rel
	}
	return path
}
