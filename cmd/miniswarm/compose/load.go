package compose

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/cli/cli/compose/loader"
	"github.com/docker/cli/cli/compose/schema"
	"github.com/docker/cli/cli/compose/types"
	"github.com/sirupsen/logrus"
	"gopkg.in/yaml.v3"
)

// newest is the version of Docker's schema that all files are read by: a file's own version changes nothing.
const newest = "3.13"

// File is a Compose file as it is written.
type File struct {
	// Name is how messages call it; files it refers to are looked for beside it.
	Name string
	Text []byte
}

// Options say what to load.
type Options struct {
	// Files, the later ones overriding the earlier.
	Files []File
	// Dir is what relative paths are relative to: for Docker the directory of the first file, or the working directory for
	// a file on standard input.
	Dir string
	// Environment is what variables stand for.
	Environment map[string]string
	// Profiles are those whose services are wanted; "*" is every one.
	Profiles []string
	// SkipInterpolation leaves variables as they are written.
	SkipInterpolation bool
}

// Mistake is what is wrong at a place of a file.
type Mistake struct {
	File string
	Line int
	// Path is the key, as services.web.ports.1; "" for a file that is no YAML.
	Path string
	Text string
}

func (m *Mistake) Error() string {
	place := m.File
	if m.Line > 0 {
		place = fmt.Sprintf("%s:%d", m.File, m.Line)
	}
	if m.Path == "" {
		return place + ": " + m.Text
	}
	return place + ": " + m.Path + ": " + m.Text
}

// Note is a key that does not become what its author may expect.
type Note struct {
	File string
	Line int
	Path string
	Text string
}

func (n Note) String() string { return fmt.Sprintf("%s:%d: %s: %s", n.File, n.Line, n.Path, n.Text) }

// Load reads the files and gives the stack they describe. Errors about a file are a *Mistake. Other files are read where
// the given ones name them (env_file, extends, include).
func Load(opts Options) (*Stack, error) {
	if len(opts.Files) == 0 {
		return nil, errors.New("no Compose file is given: name it with --compose-file, or - for standard input")
	}
	s := newStack(opts)
	for _, f := range opts.Files {
		if err := s.add(f, opts.Dir, nil); err != nil {
			return nil, err
		}
	}
	if err := s.checkEach(); err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		return nil, err
	}
	return s, s.finish()
}

// add takes a file and those it needs before it. above are the files that led here.
func (s *Stack) add(f File, dir string, above []string) error {
	root, err := parse(f)
	if err != nil {
		return err
	}
	file := &file{stack: s, name: f.Name, text: f.Text, root: root, dir: dir}
	if err := file.includeOthers(above); err != nil {
		return err
	}
	if err := file.extendOthers(); err != nil {
		return err
	}
	s.files = append(s.files, file)
	return nil
}

// parse gives the document with its aliases written out.
func parse(f File) (*yaml.Node, error) {
	var doc yaml.Node
	err := yaml.Unmarshal(f.Text, &doc)
	if err == nil {
		err = doc.Decode(new(any)) // finds keys that are there twice
	}
	if err != nil {
		return nil, syntax(f, err)
	}
	if len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, &Mistake{File: f.Name, Line: 1, Text: "the file must be a mapping with the key services"}
	}
	root, err := expand(doc.Content[0])
	if err != nil {
		return nil, &Mistake{File: f.Name, Text: err.Error()}
	}
	return root, nil
}

// checkEach looks for mistakes in each file by itself, where they can be located.
func (s *Stack) checkEach() error {
	alone := len(s.files) == 1
	for _, f := range s.files {
		f.alone = alone
		if err := f.check(); err != nil {
			return err
		}
	}
	return nil
}

// load hands the rewritten documents to Docker's loader, which merges them.
func (s *Stack) load() error {
	details := types.ConfigDetails{Version: newest, WorkingDir: s.opts.Dir, Environment: s.opts.Environment}
	for _, f := range s.files {
		root := clone(f.root)
		if err := f.rewrite(root); err != nil {
			return err
		}
		dict, err := decode(root)
		if err != nil {
			return &Mistake{File: f.name, Text: err.Error()}
		}
		details.ConfigFiles = append(details.ConfigFiles, types.ConfigFile{Filename: f.name, Config: dict})
	}
	cfg, err := guarded(details, s.opts.SkipInterpolation)
	if err != nil {
		return err
	}
	s.Config = cfg
	return nil
}

// decode gives the document as Docker's loader wants it.
func decode(root *yaml.Node) (map[string]any, error) {
	var dict map[string]any
	if err := root.Decode(&dict); err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	dict["version"] = newest
	return dict, nil
}

// guarded calls Docker's loader, which panics about some of what its schema lets through, and logs what was better
// written otherwise: each time, and a file is loaded many times to find a mistake.
func guarded(details types.ConfigDetails, raw bool) (cfg *types.Config, err error) {
	level := logrus.GetLevel()
	logrus.SetLevel(logrus.ErrorLevel)
	defer func() {
		logrus.SetLevel(level)
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	return loader.Load(details, func(o *loader.Options) { o.SkipInterpolation = raw })
}

// finish does what needs the whole stack: profiles, dependencies, what Docker's types have no field for.
func (s *Stack) finish() error {
	s.Config.Version = s.version()
	for _, f := range s.files {
		if name := get(f.root, "name"); name != nil {
			text, err := f.value(name, "name")
			if err != nil {
				return err
			}
			s.Name = text
		}
	}
	s.leaveOutProfiles()
	slices.SortFunc(s.Config.Services, func(a, b types.ServiceConfig) int { return strings.Compare(a.Name, b.Name) })
	if err := s.checkServices(); err != nil {
		return err
	}
	if err := s.settleDependencies(); err != nil {
		return err
	}
	slices.SortStableFunc(s.Notes, func(a, b Note) int {
		if c := strings.Compare(a.File, b.File); c != 0 {
			return c
		}
		return a.Line - b.Line
	})
	s.Notes = slices.Compact(s.Notes)
	return nil
}

// version is what Docker would say the stack's is, as far as it knows it.
func (s *Stack) version() string {
	v := get(s.files[0].root, "version")
	if v == nil {
		return newest
	}
	version := schema.Version(map[string]any{"version": v.Value})
	if err := schema.Validate(map[string]any{"version": version}, version); err != nil {
		return newest
	}
	return version
}

// checkServices finds what Docker's deploy would find when half of the stack is created.
func (s *Stack) checkServices() error {
	for _, svc := range s.Config.Services {
		if err := convertible(s.Config, svc); err != nil {
			return s.mistake(err.Error(), "services", svc.Name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Config.Secrets)) {
		if err := s.readable("secrets", name, types.FileObjectConfig(s.Config.Secrets[name])); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Config.Configs)) {
		if err := s.readable("configs", name, types.FileObjectConfig(s.Config.Configs[name])); err != nil {
			return err
		}
	}
	return nil
}

// readable says whether the content of a secret or config can be had.
func (s *Stack) readable(section, name string, obj types.FileObjectConfig) error {
	if obj.External.External || obj.Driver != "" || s.opts.SkipInterpolation {
		return nil
	}
	f, err := os.Open(obj.File)
	if err != nil {
		return s.mistake(err.Error(), section, name)
	}
	return f.Close()
}

// mistake is an error about what is at a path in one of the files.
func (s *Stack) mistake(text string, path ...string) error {
	file, line := s.where(path...)
	return &Mistake{File: file, Line: line, Path: strings.Join(path, "."), Text: text}
}

// where finds the place of a path: the last file that has it says how it is.
func (s *Stack) where(path ...string) (file string, line int) {
	for _, f := range slices.Backward(s.files) {
		parent := get(f.root, path[:len(path)-1]...)
		if i := find(parent, path[len(path)-1]); i >= 0 {
			return f.name, parent.Content[i].Line
		}
	}
	return s.files[len(s.files)-1].name, 1
}

// Where is the place of a path of keys as FILE:LINE.
func (s *Stack) Where(path ...string) string {
	file, line := s.where(path...)
	return fmt.Sprintf("%s:%d", file, line)
}

// Written is the single value of a path of keys as the last file that has it puts it, its variables not replaced; "" for none.
func (s *Stack) Written(path ...string) string {
	for _, f := range slices.Backward(s.files) {
		if n := get(f.root, path...); n != nil && n.Kind == yaml.ScalarNode {
			return n.Value
		}
	}
	return ""
}

func absolute(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}
