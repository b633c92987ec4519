package compose

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/docker/cli/cli/compose/convert"
	"github.com/docker/cli/cli/compose/types"
	"github.com/docker/docker/api"
	"gopkg.in/yaml.v3"
)

// check gives the first mistake in the file by itself.
func (f *file) check() error {
	err := f.try(f.root)
	var known *Mistake
	if err == nil || errors.As(err, &known) {
		return err
	}
	f.imageless = !strings.Contains(err.Error(), errNoImage.Error())
	path, line := f.locate(clone(f.root), sameMistake(err))
	message := strings.TrimPrefix(err.Error(), "decoding failed due to the following error(s):\n\n")
	if first, rest, ok := strings.Cut(message, " "); ok && (path == first || strings.HasPrefix(path, first+".")) {
		message = rest
	}
	return &Mistake{File: f.name, Line: line, Path: path, Text: message}
}

// searched bounds how many bytes are parsed to find a line, which takes about a second.
const searched = 32 << 20

// syntax names the line after which the text stops being YAML. The parser tends to name the line where the part began.
func syntax(f File, err error) error {
	message := strings.TrimPrefix(strings.TrimPrefix(err.Error(), "yaml: "), "unmarshal errors:\n  ")
	line := 0
	if rest, ok := strings.CutPrefix(message, "line "); ok {
		if at, what, ok := strings.Cut(rest, ": "); ok {
			message = what
			line, _ = strconv.Atoi(at) // 0 says that there is none
		}
	}
	if yaml.Unmarshal(f.Text, new(yaml.Node)) == nil {
		return &Mistake{File: f.Name, Line: line, Text: message}
	}
	lines := bytes.SplitAfter(f.Text, []byte("\n"))
	good := len(lines) - 1
	for left := searched; good > 0; good-- {
		part := bytes.Join(lines[:good], nil)
		if left -= len(part); left < 0 {
			return &Mistake{File: f.Name, Line: line, Text: message}
		}
		if yaml.Unmarshal(part, new(yaml.Node)) == nil {
			break
		}
	}
	return &Mistake{File: f.Name, Line: good + 1, Text: message}
}

// try does all that a deployment does with the file before it talks to the cluster.
func (f *file) try(root *yaml.Node) error {
	trial := *f
	trial.stack = newStack(f.stack.opts)
	root = clone(root)
	if err := trial.rewrite(root); err != nil {
		return err
	}
	dict, err := decode(root)
	if err != nil {
		return err
	}
	cfg, err := guarded(types.ConfigDetails{Version: newest, WorkingDir: f.stack.opts.Dir, Environment: f.stack.opts.Environment,
		ConfigFiles: []types.ConfigFile{{Filename: f.name, Config: dict}}}, f.stack.opts.SkipInterpolation)
	if err != nil || !f.alone || f.stack.opts.SkipInterpolation {
		return err
	}
	slices.SortFunc(cfg.Services, func(a, b types.ServiceConfig) int { return strings.Compare(a.Name, b.Name) })
	for _, s := range cfg.Services {
		if s.Image == "" && f.imageless {
			s.Image = "any"
		}
		if err := convertible(cfg, s); err != nil {
			return err
		}
	}
	return nil
}

var errNoImage = errors.New("no image specified")

func convertible(cfg *types.Config, s types.ServiceConfig) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("service %s: %w", s.Name, err)
		}
	}()
	if s.Image == "" {
		if s.Build.Context != "" {
			return fmt.Errorf("%w: it is built and pushed first, and its name given as image", errNoImage)
		}
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
	// The conversion writes the stack's label into the maps it is given.
	s.Labels, s.Deploy.Labels = maps.Clone(s.Labels), maps.Clone(s.Deploy.Labels)
	volumes := maps.Clone(cfg.Volumes)
	for name, v := range volumes {
		v.Labels = maps.Clone(v.Labels)
		volumes[name] = v
	}
	_, err = convert.Service(api.DefaultVersion, convert.NewNamespace("check"), s, cfg.Networks, volumes, nil, nil)
	return err
}

// locate finds the smallest part of the document without which the file would not have this mistake, whatever it is.
// It leaves out one entry at a time: where the mistake goes with it, the search goes on inside.
func (f *file) locate(at *yaml.Node, mistake string) (path string, line int) {
	root := at
	for {
		step := 1
		if at.Kind == yaml.MappingNode {
			step = 2 // key, value
		} else if at.Kind != yaml.SequenceNode {
			return path, line
		}
		found := -1
		for i := 0; i < len(at.Content); i += step {
			left := f.without(root, at, i, step, mistake)
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

// without gives the mistake that is left when an entry of at is not there.
func (f *file) without(root, at *yaml.Node, i, step int, mistake string) string {
	whole := at.Content
	defer func() { at.Content = whole }()
	at.Content = slices.Delete(slices.Clone(whole), i, i+step)
	err := f.try(root)
	if err == nil {
		return ""
	}
	return sameMistake(err)
}

// places are the numbers of list items in paths, which change when an item is left out.
var places = regexp.MustCompile(`\.[0-9]+\b`)

// sameMistake gives what a mistake has in common with itself when it has moved.
func sameMistake(err error) string { return places.ReplaceAllString(err.Error(), "") }
