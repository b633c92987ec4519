package compose

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"github.com/docker/cli/cli/compose/types"
	"github.com/docker/docker/api/types/swarm"
	"gopkg.in/yaml.v3"
)

// Stack is what the files describe.
type Stack struct {
	// Config is what Docker's conversion takes.
	Config *types.Config
	// Name is the top-level name, "" where there is none.
	Name string
	// Notes name every key that is ignored or taken as another, in the order of the files.
	Notes []Note
	// Depends are the dependencies of each service, by the names in the file.
	Depends map[string][]Dependency

	opts  Options
	files []*file
	// What Docker's types have no field for, by service.
	extra    map[string]*extra
	profiles map[string][]string
	depends  map[string]map[string]dependency
	// contents are those of secrets and configs that no file has, by section and name.
	contents map[[2]string]content
}

// extra is what a service has beyond Docker's types.
type extra struct {
	groups, dnsOptions []string
	privileges         swarm.Privileges
	privileged         bool // that there are privileges
}

// content of a secret or config: key says under which name the file gives it.
type content struct{ key, value, data string }

func newStack(opts Options) *Stack {
	return &Stack{opts: opts, Depends: make(map[string][]Dependency), extra: make(map[string]*extra), profiles: make(map[string][]string),
		depends: make(map[string]map[string]dependency), contents: make(map[[2]string]content)}
}

func (s *Stack) extraOf(service string) *extra {
	if s.extra[service] == nil {
		s.extra[service] = &extra{}
	}
	return s.extra[service]
}

// Adjust adds to a service's specification what Docker's conversion has no field for. service is the name in the file.
func (s *Stack) Adjust(service string, spec *swarm.ServiceSpec) {
	e := s.extra[service]
	c := spec.TaskTemplate.ContainerSpec
	if e == nil || c == nil {
		return
	}
	c.Groups = append(c.Groups, e.groups...)
	if len(e.dnsOptions) > 0 {
		if c.DNSConfig == nil {
			c.DNSConfig = &swarm.DNSConfig{}
		}
		c.DNSConfig.Options = append(c.DNSConfig.Options, e.dnsOptions...)
	}
	if e.privileged {
		p := e.privileges
		if c.Privileges != nil {
			p.CredentialSpec = c.Privileges.CredentialSpec
		}
		c.Privileges = &p
	}
}

// ConfigData gives the content that a config has in the file itself or from the environment.
func (s *Stack) ConfigData(name string) ([]byte, bool) { return s.data("configs", name) }

// SecretData gives the content that a secret has from the environment.
func (s *Stack) SecretData(name string) ([]byte, bool) { return s.data("secrets", name) }

func (s *Stack) data(section, name string) ([]byte, bool) {
	c, ok := s.contents[[2]string{section, name}]
	return []byte(c.data), ok
}

// leaveOutProfiles leaves out the services of profiles that are not wanted.
func (s *Stack) leaveOutProfiles() {
	s.Config.Services = slices.DeleteFunc(s.Config.Services, func(svc types.ServiceConfig) bool {
		has := s.profiles[svc.Name]
		return len(has) > 0 && !slices.Contains(s.opts.Profiles, "*") && !slices.ContainsFunc(has, func(p string) bool { return slices.Contains(s.opts.Profiles, p) })
	})
}

// YAML writes the stack as one file that describes it wholly, as "stack config" shows it.
func (s *Stack) YAML() ([]byte, error) {
	cfg := *s.Config
	cfg.Services = slices.Clone(cfg.Services)
	cfg.Extras = maps.Clone(cfg.Extras)
	if s.Name != "" {
		cfg.Extras = with(cfg.Extras, "name", s.Name)
	}
	for i := range cfg.Services {
		s.describe(&cfg.Services[i])
	}
	cfg.Secrets, cfg.Configs = maps.Clone(cfg.Secrets), maps.Clone(cfg.Configs)
	for at, c := range s.contents {
		switch section, name := at[0], at[1]; section {
		case "secrets":
			obj := cfg.Secrets[name]
			obj.File, obj.Extras = "", with(obj.Extras, c.key, c.value)
			cfg.Secrets[name] = obj
		case "configs":
			obj := cfg.Configs[name]
			obj.File, obj.Extras = "", with(obj.Extras, c.key, c.value)
			cfg.Configs[name] = obj
		}
	}
	var doc yaml.Node
	if err := doc.Encode(&cfg); err != nil {
		return nil, fmt.Errorf("write the stack: %w", err)
	}
	for name, deps := range s.Depends { // Docker's type has the short form only
		on := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		for _, d := range deps {
			put(child(on, 0, d.Service), "condition", &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: string(d.Condition)}, 0)
		}
		put(get(&doc, "services", name), "depends_on", on, 0)
	}
	var buf bytes.Buffer
	enc := yaml.NewEncoder(&buf)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return nil, fmt.Errorf("write the stack: %w", err)
	}
	return buf.Bytes(), nil
}

// describe adds to a service the keys that Docker's types have no field for.
func (s *Stack) describe(svc *types.ServiceConfig) {
	e := s.extra[svc.Name]
	if e == nil {
		return
	}
	if len(e.groups) > 0 {
		svc.Extras = with(svc.Extras, "group_add", e.groups)
	}
	if len(e.dnsOptions) > 0 {
		svc.Extras = with(svc.Extras, "dns_opt", e.dnsOptions)
	}
}

func with(m map[string]any, key string, value any) map[string]any {
	if m = maps.Clone(m); m == nil {
		m = make(map[string]any)
	}
	m[key] = value
	return m
}
