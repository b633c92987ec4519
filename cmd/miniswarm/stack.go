package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"
	dockercli "github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command/stack/options"
	stackswarm "github.com/docker/cli/cli/command/stack/swarm"
	"github.com/docker/cli/cli/compose/convert"
	"github.com/docker/cli/cli/compose/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
	"github.com/joho/godotenv"
	"github.com/spf13/cobra"

	"github.com/miniswarm/miniswarm/cmd/miniswarm/compose"
)

//lint:file-ignore SA1019 Docker's deployment is what makes a stack exactly Docker's; see docker.go.

// stdinFile is how Docker's commands name a Compose file on standard input.
const stdinFile = "-"

// adaptStack gives Docker's stack commands the files of today, order, waiting, and dry runs.
func adaptStack(oc *observedCLI, cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		switch sub.Name() {
		case "deploy":
			adaptDeploy(oc, sub)
		case "config":
			adaptConfig(oc, sub)
		case "services":
			namePaused(oc, sub)
		case "rm":
			adaptRemoval(oc, sub, waitForStacks)
		}
	}
}

// composeFlags are those of the commands that read Compose files, besides Docker's.
func composeFlags(cmd *cobra.Command) {
	cmd.Flags().StringSlice("profile", nil, `Profile whose services are wanted too ("*" is every one; also COMPOSE_PROFILES)`)
	cmd.Flags().StringSlice("env-file", nil, "File with variables for the Compose files; the environment comes first")
}

// loadStack reads the Compose files that the command line names.
func loadStack(oc *observedCLI, cmd *cobra.Command) (*compose.Stack, error) {
	f := cmd.Flags()
	names, err := f.GetStringSlice("compose-file")
	if err != nil {
		return nil, err
	}
	profiles, err := f.GetStringSlice("profile")
	if err != nil {
		return nil, err
	}
	if !f.Changed("profile") && os.Getenv("COMPOSE_PROFILES") != "" {
		profiles = strings.FieldsFunc(os.Getenv("COMPOSE_PROFILES"), func(r rune) bool { return r == ',' || unicode.IsSpace(r) })
	}
	envFiles, err := f.GetStringSlice("env-file")
	if err != nil {
		return nil, err
	}
	opts := compose.Options{Profiles: profiles}
	if opts.Environment, err = environment(envFiles); err != nil {
		return nil, err
	}
	if skip, err := f.GetBool("skip-interpolation"); err == nil {
		opts.SkipInterpolation = skip
	}
	for _, name := range names {
		file := compose.File{Name: name}
		if name == stdinFile {
			file.Name = "stdin"
			file.Text, err = io.ReadAll(oc.In())
		} else {
			file.Text, err = os.ReadFile(name)
		}
		if err != nil {
			return nil, fmt.Errorf("read the Compose file: %w", err)
		}
		opts.Files = append(opts.Files, file)
	}
	if len(names) > 0 && names[0] != stdinFile {
		opts.Dir = filepath.Dir(names[0])
	}
	if opts.Dir, err = filepath.Abs(opts.Dir); err != nil {
		return nil, err
	}
	stack, err := compose.Load(opts)
	if err != nil {
		return nil, dotEnvHint(err, opts, envFiles)
	}
	return stack, nil
}

// environment is what a Compose file may refer to.
func environment(files []string) (map[string]string, error) {
	env := make(map[string]string)
	if len(files) > 0 {
		read, err := godotenv.Read(files...)
		if err != nil {
			return nil, fmt.Errorf("read --env-file: %w", err)
		}
		env = read
	}
	for _, kv := range os.Environ() {
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" {
			env[k] = v
		}
	}
	return env, nil
}

// dotEnvHint says of a variable that is required and missing that the file .env, which Docker's stacks do not read, is
// there.
func dotEnvHint(err error, opts compose.Options, given []string) error {
	path := filepath.Join(opts.Dir, ".env")
	if _, gone := os.Stat(path); gone != nil || len(given) > 0 || !strings.Contains(err.Error(), "required variable") {
		return err
	}
	return fmt.Errorf("%w\nthe file %s is not read unless --env-file names it", err, path)
}

func adaptConfig(oc *observedCLI, cmd *cobra.Command) {
	composeFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		stack, err := loadStack(oc, cmd)
		if err != nil {
			return err
		}
		printNotes(oc, stack)
		text, err := stack.YAML()
		if err != nil {
			return err
		}
		_, err = oc.Out().Write(text)
		return err
	}
}

func printNotes(oc *observedCLI, stack *compose.Stack) {
	for _, n := range stack.Notes {
		fmt.Fprintln(oc.Err(), n)
	}
}

func adaptDeploy(oc *observedCLI, cmd *cobra.Command) {
	composeFlags(cmd)
	dryRunFlag(cmd)
	cmd.Use = "deploy [OPTIONS] [STACK]"
	cmd.Args = dockercli.RequiresMaxArgs(1)
	detach := cmd.Flags().Lookup("detach")
	detach.DefValue = "false"
	if err := detach.Value.Set("false"); err != nil {
		panic("stack deploy: set the default of --detach: " + err.Error()) // it is a boolean
	}
	detach.Usage = "Exit when everything is created instead of waiting until it runs; the conditions of depends_on are not waited for either"
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		stack, err := loadStack(oc, cmd)
		if err != nil {
			return err
		}
		d := &deployment{oc: oc, cmd: cmd, stack: stack}
		if d.opts, err = deployOptions(cmd, args, stack.Name); err != nil {
			return err
		}
		printNotes(oc, stack)
		return explainChanged(d.run(cmd.Context()), stack, convert.NewNamespace(d.opts.Namespace))
	}
}

func deployOptions(cmd *cobra.Command, args []string, name string) (options.Deploy, error) {
	var o options.Deploy
	f := cmd.Flags()
	var errs [5]error
	o.ResolveImage, errs[0] = f.GetString("resolve-image")
	o.SendRegistryAuth, errs[1] = f.GetBool("with-registry-auth")
	o.Prune, errs[2] = f.GetBool("prune")
	o.Detach, errs[3] = f.GetBool("detach")
	o.Quiet, errs[4] = f.GetBool("quiet")
	if err := errors.Join(errs[:]...); err != nil {
		return o, err
	}
	switch o.Namespace = name; {
	case len(args) == 1:
		o.Namespace = args[0]
	case name == "":
		return o, errors.New("the stack has no name: give it as argument, or as name: in the Compose file")
	}
	if strings.Trim(o.Namespace, `'" `) == "" {
		return o, fmt.Errorf("invalid stack name: %q", o.Namespace)
	}
	return o, nil
}

// deployment is one "stack deploy".
type deployment struct {
	oc    *observedCLI
	cmd   *cobra.Command
	stack *compose.Stack
	opts  options.Deploy
	// services has the ids of those deployed by the name in the file.
	services map[string]string
}

func (d *deployment) run(ctx context.Context) error {
	namespace := convert.NewNamespace(d.opts.Namespace)
	obs := d.oc.observer()
	obs.adjust = &stackAdjuster{stack: d.stack, namespace: namespace}
	dry := startDryRun(d.oc, d.cmd)
	if err := d.missing(ctx); err != nil {
		return err
	}
	waves, err := d.stack.Waves()
	if err != nil {
		return err
	}
	if d.opts.Prune {
		if err := d.prune(ctx, namespace); err != nil {
			return err
		}
	}
	if d.opts.Detach && len(waves) > 1 && !dry {
		fmt.Fprintln(d.oc.Err(), "--detach: services are created in the order of depends_on, and its conditions are not waited for")
	}
	d.services = make(map[string]string)
	for _, wave := range waves {
		if err := d.deploy(ctx, namespace, wave, dry); err != nil {
			return err
		}
	}
	if dry {
		return showPlan(ctx, d.oc)
	}
	if d.opts.Detach {
		return nil
	}
	var errs []error
	for _, id := range obs.written {
		if len(obs.written) > 1 && !d.opts.Quiet {
			fmt.Fprintf(d.oc.Out(), "service %s:\n", d.nameOf(id, namespace))
		}
		if err := await(ctx, d.oc, id, d.opts.Quiet); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

func (d *deployment) nameOf(id string, namespace convert.Namespace) string {
	for name, its := range d.services {
		if its == id {
			return namespace.Scope(name)
		}
	}
	return id
}

// deploy creates and updates the services of one wave, after what they depend on has come to its conditions. With the
// first wave goes all that is not a service and has to be there before.
func (d *deployment) deploy(ctx context.Context, namespace convert.Namespace, wave []string, dry bool) error {
	if !d.opts.Detach && !dry {
		for _, dep := range d.dependencies(wave) {
			if err := d.awaitCondition(ctx, dep); err != nil {
				return err
			}
		}
	}
	cfg := *d.stack.Config
	cfg.Services = nil
	for _, svc := range d.stack.Config.Services {
		if slices.Contains(wave, svc.Name) {
			cfg.Services = append(cfg.Services, svc)
		}
	}
	one := d.opts
	one.Prune, one.Detach = false, true
	if err := d.cmd.Flags().Set("detach", "true"); err != nil {
		return err
	}
	obs := d.oc.observer()
	before := len(obs.written)
	if err := stackswarm.RunDeploy(ctx, d.oc, d.cmd.Flags(), &one, &cfg); err != nil {
		return err
	}
	for _, id := range obs.written[before:] {
		svc, _, err := obs.ServiceInspectWithRaw(ctx, id, swarm.ServiceInspectOptions{})
		if err != nil {
			return err
		}
		d.services[namespace.Descope(svc.Spec.Name)] = id
	}
	return nil
}

// dependencies are what the services of a wave wait for, each once.
func (d *deployment) dependencies(wave []string) []compose.Dependency {
	var all []compose.Dependency
	for _, name := range wave {
		for _, dep := range d.stack.Depends[name] {
			if !slices.ContainsFunc(all, func(o compose.Dependency) bool { return o.Service == dep.Service && o.Condition == dep.Condition }) {
				all = append(all, dep)
			}
		}
	}
	return all
}

// prune removes the stack's services that are not in the files any more.
func (d *deployment) prune(ctx context.Context, namespace convert.Namespace) error {
	obs := d.oc.observer()
	services, err := obs.ServiceList(ctx, swarm.ServiceListOptions{Filters: filterOf("label", convert.LabelNamespace+"="+namespace.Name())})
	if err != nil {
		return fmt.Errorf("list the services of stack %s: %w", namespace.Name(), err)
	}
	slices.SortFunc(services, func(a, b swarm.Service) int { return strings.Compare(a.Spec.Name, b.Spec.Name) })
	for _, old := range services {
		if slices.ContainsFunc(d.stack.Config.Services, func(s types.ServiceConfig) bool { return namespace.Scope(s.Name) == old.Spec.Name }) {
			continue
		}
		fmt.Fprintln(d.oc.Out(), "Removing service", old.Spec.Name)
		if err := obs.ServiceRemove(ctx, old.ID); err != nil {
			return fmt.Errorf("remove service %s: %w", old.Spec.Name, err)
		}
	}
	return nil
}

// missing names what the stack takes from outside and is not there, before anything is created.
func (d *deployment) missing(ctx context.Context) error {
	cl, cfg := d.oc.observer(), d.stack.Config
	var errs []error
	lacks := func(section, key, name, noun string, err error) {
		if errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("%s: %s.%s: %s %s is declared as external and does not exist: 'miniswarm %s create' makes it",
				d.stack.Where(section, key), section, key, noun, name, noun))
		} else if err != nil {
			errs = append(errs, err)
		}
	}
	used := make(map[string]bool)
	secrets, configs := make(map[string]bool), make(map[string]bool)
	for _, svc := range cfg.Services {
		for name := range svc.Networks {
			used[name] = true
		}
		for _, ref := range svc.Secrets {
			secrets[ref.Source] = true
		}
		for _, ref := range svc.Configs {
			configs[ref.Source] = true
		}
	}
	for _, key := range sortedKeys(cfg.Networks) {
		n := cfg.Networks[key]
		if !n.External.External || !used[key] || !container.NetworkMode(n.Name).IsUserDefined() {
			continue
		}
		found, err := cl.NetworkInspect(ctx, n.Name, network.InspectOptions{})
		lacks("networks", key, n.Name, "network", err)
		if err == nil && found.Scope != "swarm" {
			errs = append(errs, fmt.Errorf("%s: networks.%s: network %s is declared as external, and is %s to one engine: services need one of the swarm ('miniswarm network create -d overlay')",
				d.stack.Where("networks", key), key, n.Name, found.Scope))
		}
	}
	for _, key := range sortedKeys(cfg.Secrets) {
		if s := cfg.Secrets[key]; s.External.External && secrets[key] {
			_, _, err := cl.SecretInspectWithRaw(ctx, s.Name)
			lacks("secrets", key, s.Name, "secret", err)
		}
	}
	for _, key := range sortedKeys(cfg.Configs) {
		if c := cfg.Configs[key]; c.External.External && configs[key] {
			_, _, err := cl.ConfigInspectWithRaw(ctx, c.Name)
			lacks("configs", key, c.Name, "config", err)
		}
	}
	return errors.Join(errs...)
}

// stackAdjuster gives a stack's objects what Docker's conversion has no field for.
type stackAdjuster struct {
	stack     *compose.Stack
	namespace convert.Namespace
}

func (a *stackAdjuster) service(spec *swarm.ServiceSpec) {
	if a != nil {
		a.stack.Adjust(a.namespace.Descope(spec.Name), spec)
	}
}

func (a *stackAdjuster) secret(spec *swarm.SecretSpec) {
	if a == nil {
		return
	}
	for key, s := range a.stack.Config.Secrets {
		if data, ok := a.stack.SecretData(key); ok && spec.Name == scoped(a.namespace, s.Name, key) {
			spec.Data = bytes.Clone(data)
		}
	}
}

func (a *stackAdjuster) config(spec *swarm.ConfigSpec) {
	if a == nil {
		return
	}
	for key, c := range a.stack.Config.Configs {
		if data, ok := a.stack.ConfigData(key); ok && spec.Name == scoped(a.namespace, c.Name, key) {
			spec.Data = bytes.Clone(data)
		}
	}
}

// scoped is the name that an object of a stack gets.
func scoped(namespace convert.Namespace, name, key string) string {
	if name != "" {
		return name
	}
	return namespace.Scope(key)
}
