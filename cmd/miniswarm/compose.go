package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/compose/convert"
	"github.com/docker/cli/cli/compose/loader"
	"github.com/docker/cli/cli/compose/schema"
	composetypes "github.com/docker/cli/cli/compose/types"
	"github.com/docker/cli/cli/streams"
	"github.com/docker/docker/api"
	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"
)

// stdinFile is how Docker's commands name a Compose file on standard input.
const stdinFile = "-"

// checkCompose makes a command that reads Compose files look for mistakes in them first, and name file, line and key.
// Docker's own loader knows no lines, and its deploy finds some mistakes only when half of the stack is created.
func checkCompose(dc command.Cli, cmd *cobra.Command) {
	read := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		names, err := cmd.Flags().GetStringSlice("compose-file")
		if err != nil {
			return fmt.Errorf("read --compose-file: %w", err)
		}
		// An interpolated file is not what --skip-interpolation asks about.
		if skip, err := cmd.Flags().GetBool("skip-interpolation"); err == nil && skip {
			return read(cmd, args)
		}
		for _, name := range names {
			f := composeFile{name: name, alone: len(names) == 1}
			if name == stdinFile {
				if f.text, err = io.ReadAll(dc.In()); err != nil {
					return fmt.Errorf("read the Compose file from standard input: %w", err)
				}
				dc.SetIn(streams.NewIn(io.NopCloser(bytes.NewReader(f.text))))
				f.name = "stdin"
			} else if f.text, err = os.ReadFile(name); err != nil {
				return fmt.Errorf("read the Compose file: %w", err)
			}
			if err := f.check(); err != nil {
				return err
			}
		}
		return read(cmd, args)
	}
}

// composeFile is one file as it is written.
type composeFile struct {
	name string
	text []byte
	// alone says that the stack consists of this file only. What is not in it is nowhere.
	alone bool
	// imageless says that a service without an image is not what is looked for.
	imageless bool
}

// check gives the first mistake as FILE:LINE: KEY: what is wrong.
func (f *composeFile) check() error {
	var doc yaml.Node
	if err := yaml.Unmarshal(f.text, &doc); err != nil {
		return f.syntax(err)
	}
	err := f.load(f.text)
	if err == nil {
		return nil
	}
	f.imageless = !strings.Contains(err.Error(), errNoImage.Error())
	path, line := f.locate(&doc, sameMistake(err))
	message := strings.TrimPrefix(err.Error(), "decoding failed due to the following error(s):\n\n")
	if first, rest, ok := strings.Cut(message, " "); ok && (path == first || strings.HasPrefix(path, first+".")) {
		message = rest
	}
	if path == "" {
		return fmt.Errorf("%s: %s", f.name, message)
	}
	return fmt.Errorf("%s:%d: %s: %s", f.name, line, path, message)
}

// syntax names the line after which the text stops being YAML. The parser tends to name the line where the part began.
func (f *composeFile) syntax(err error) error {
	message := strings.TrimPrefix(strings.TrimPrefix(err.Error(), "yaml: "), "unmarshal errors:\n  ")
	if rest, ok := strings.CutPrefix(message, "line "); ok {
		if _, what, ok := strings.Cut(rest, ": "); ok {
			message = what
		}
	}
	lines := bytes.SplitAfter(f.text, []byte("\n"))
	good := len(lines) - 1
	for ; good > 0; good-- {
		if yaml.Unmarshal(bytes.Join(lines[:good], nil), new(yaml.Node)) == nil {
			break
		}
	}
	return fmt.Errorf("%s:%d: %s", f.name, good+1, message)
}

// load does all that a deployment does with the file before it talks to the cluster.
func (f *composeFile) load(text []byte) (err error) {
	defer func() {
		if p := recover(); p != nil { // the loader's way to report what its schema let through
			err = fmt.Errorf("%v", p)
		}
	}()
	dict, err := loader.ParseYAML(text)
	if err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	dir, err := filepath.Abs(filepath.Dir(f.name))
	if err != nil {
		return err
	}
	cfg, err := loader.Load(composetypes.ConfigDetails{Version: schema.Version(dict), WorkingDir: dir, Environment: environment(),
		ConfigFiles: []composetypes.ConfigFile{{Filename: f.name, Config: dict}}})
	var forbidden *loader.ForbiddenPropertiesError
	switch {
	case errors.As(err, &forbidden):
		var all []string
		for _, name := range slices.Sorted(maps.Keys(forbidden.Properties)) {
			all = append(all, "unsupported option "+name+": "+forbidden.Properties[name])
		}
		return errors.New(strings.Join(all, "; "))
	case err != nil:
		return err
	case !f.alone:
		return nil
	}
	slices.SortFunc(cfg.Services, func(a, b composetypes.ServiceConfig) int { return strings.Compare(a.Name, b.Name) })
	for _, s := range cfg.Services {
		if s.Image == "" && f.imageless {
			s.Image = "any"
		}
		if err := convertible(cfg, s); err != nil {
			return fmt.Errorf("service %s: %w", s.Name, err)
		}
	}
	return nil
}

var errNoImage = errors.New("no image specified")

func convertible(cfg *composetypes.Config, s composetypes.ServiceConfig) error {
	if s.Image == "" {
		return errNoImage
	}
	if _, err := reference.ParseAnyReference(s.Image); err != nil {
		return fmt.Errorf("invalid image reference %q: %w", s.Image, err)
	}
	for _, ref := range s.Secrets {
		if _, ok := cfg.Secrets[ref.Source]; !ok {
			return fmt.Errorf("undefined secret %q", ref.Source)
		}
	}
	for _, ref := range s.Configs {
		if _, ok := cfg.Configs[ref.Source]; !ok {
			return fmt.Errorf("undefined config %q", ref.Source)
		}
	}
	_, err := convert.Service(api.DefaultVersion, convert.NewNamespace("check"), s, cfg.Networks, cfg.Volumes, nil, nil)
	return err
}

// locate finds the smallest part of the document without which the file would not have this mistake, whatever it is.
// It leaves out one entry at a time: where the mistake goes with it, the search goes on inside.
func (f *composeFile) locate(doc *yaml.Node, mistake string) (path string, line int) {
	if len(doc.Content) == 0 {
		return "", 0
	}
	at := doc.Content[0]
	for {
		step := 1
		if at.Kind == yaml.MappingNode {
			step = 2 // key, value
		} else if at.Kind != yaml.SequenceNode {
			return path, line
		}
		found := -1
		for i := 0; i < len(at.Content); i += step {
			left := f.without(doc, at, i, step, mistake)
			if left == "" {
				found = i
				break
			}
			if left != mistake && found < 0 { // another mistake shows now, unless leaving out more helps more
				found = i
			}
		}
		if found < 0 {
			return path, line
		}
		name := strconv.Itoa(found)
		if step == 2 {
			name = at.Content[found].Value
		}
		if path != "" {
			name = path + "." + name
		}
		path, line, at = name, at.Content[found].Line, at.Content[found+step-1]
	}
}

// without gives the mistake that is left when an entry of at is not there; where that cannot be tried, the same mistake.
func (f *composeFile) without(doc, at *yaml.Node, i, step int, mistake string) string {
	whole := at.Content
	defer func() { at.Content = whole }()
	at.Content = slices.Delete(slices.Clone(whole), i, i+step)
	text, err := yaml.Marshal(doc)
	if err != nil {
		return mistake // others refer to an anchor in the entry
	}
	if err := f.load(text); err != nil {
		return sameMistake(err)
	}
	return ""
}

// places are the numbers of list items in paths, which change when an item is left out.
var places = regexp.MustCompile(`\.[0-9]+\b`)

// sameMistake gives what a mistake has in common with itself when it has moved.
func sameMistake(err error) string { return places.ReplaceAllString(err.Error(), "") }

// environment is what a Compose file may refer to.
func environment() map[string]string {
	env := make(map[string]string)
	for _, kv := range os.Environ() {
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" {
			env[k] = v
		}
	}
	return env
}
