package lab

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// removeTimeout bounds clearing away what a failed or cancelled Up has built.
const removeTimeout = 60 * time.Second

//go:embed boot.sh
var bootScript []byte

// Lab is one lab on this machine. It holds only what never changes; the rest is read from the lab's directory at
// each call. Its methods may be used concurrently.
type Lab struct {
	name, dir string
	subnet    netip.Prefix
	opts      Options
	// children waits for the processes this Lab has started, so that they leave no zombies behind while the
	// program that started them lives on. Each of them ends at the latest in Down.
	children *sync.WaitGroup
}

// Up builds a lab and returns when every host answers: engine, and daemon and cluster where asked for. Progress
// is told to w, a line an event; nil means silence. When it fails or ctx ends, nothing of the lab is left.
// A lab of that name that is up already is ErrExists; remains of one that is not are cleared away first.
func Up(ctx context.Context, opts Options, w io.Writer) (*Lab, error) {
	opts, err := opts.complete()
	if err != nil {
		return nil, err
	}
	if err := Check(); err != nil {
		return nil, err
	}
	if opts.MiniswarmBinary != "" {
		if _, err := os.Stat(opts.MiniswarmBinary); err != nil && !opts.NoDaemon {
			return nil, fmt.Errorf("lab %s: miniswarm binary: %w", opts.Name, err)
		}
	}
	say := newTeller(w)
	l, err := reserve(ctx, opts, say)
	if err != nil {
		return nil, err
	}
	if err := l.build(ctx, say); err != nil {
		if ctx.Err() != nil { // what was killed for it says so in its own way
			err = errors.Join(err, ctx.Err())
		}
		say("lab %s: %v; clearing away", l.name, err)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("lab %s: %w", l.name, err), l.Down(ctx))
	}
	return l, nil
}

// Open finds a lab that is up, or was when its machine went down. An empty root means DefaultRoot.
func Open(root, name string) (*Lab, error) {
	dir := filepath.Join(rootOr(root), name)
	r, err := readRecord(dir)
	if err != nil {
		return nil, err
	}
	return opened(dir, r), nil
}

// List opens all labs below root, in order of name. An empty root means DefaultRoot.
func List(root string) ([]*Lab, error) {
	entries, err := os.ReadDir(rootOr(root))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list labs: %w", err)
	}
	var all []*Lab
	for _, e := range entries {
		l, err := Open(root, e.Name())
		if errors.Is(err, ErrNotFound) || !e.IsDir() {
			continue
		}
		if err != nil {
			return all, err
		}
		all = append(all, l)
	}
	return all, nil
}

// Remove takes a lab away whatever state it is in: up, half built by a run that was killed, or only a directory.
// It returns ErrNotFound when there is not even that, or a directory that no lab has made. An empty root means
// DefaultRoot.
func Remove(ctx context.Context, root, name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("%w: %q", ErrNotFound, name)
	}
	dir, err := filepath.Abs(filepath.Join(rootOr(root), name))
	if err != nil {
		return fmt.Errorf("remove lab %s: %w", name, err)
	}
	if !isLab(dir) {
		return fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	if err := Check(); err != nil {
		return err
	}
	unlock, err := lock(ctx, filepath.Join(dir, lockFile))
	if err != nil {
		return fmt.Errorf("remove lab %s: %w", name, err)
	}
	defer unlock()
	return wipe(ctx, dir)
}

// Down removes the lab: processes, containers, namespaces, devices, cgroups and its directory. A lab that is gone
// already is no error. When something cannot be removed the rest still is, and Down may be called again.
func (l *Lab) Down(ctx context.Context) error {
	err := Remove(ctx, filepath.Dir(l.dir), l.name)
	if errors.Is(err, ErrNotFound) {
		err = nil
	}
	if err == nil {
		l.children.Wait()
	}
	return err
}

func rootOr(root string) string {
	if root == "" {
		return DefaultRoot
	}
	return root
}

func opened(dir string, r *record) *Lab {
	return &Lab{name: r.Name, dir: dir, subnet: r.Subnet, opts: r.Options, children: new(sync.WaitGroup)}
}

// reserve writes down the new lab, its subnet and its hosts before anything of it exists, so that whoever finds
// the directory knows what to look for.
func reserve(ctx context.Context, opts Options, say teller) (*Lab, error) {
	dir := filepath.Join(opts.StateDir, opts.Name)
	if _, err := os.Lstat(dir); err == nil && !isLab(dir) {
		return nil, fmt.Errorf("lab %s: %s is there already and is no lab: choose another name or state directory", opts.Name, dir)
	}
	if err := os.MkdirAll(opts.StateDir, 0o755); err != nil {
		return nil, fmt.Errorf("lab %s: %w", opts.Name, err)
	}
	// One at a time: two labs that start together must not choose the same subnet. The lock and the list of
	// subnets are the machine's, in the default root, wherever this lab's own directory is.
	if err := os.MkdirAll(DefaultRoot, 0o755); err != nil {
		return nil, fmt.Errorf("lab %s: %w", opts.Name, err)
	}
	unlock, err := lock(ctx, filepath.Join(DefaultRoot, ".lock"))
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", opts.Name, err)
	}
	defer unlock()

	if r, err := readRecord(dir); err == nil && r.up() && (r.Owner.PID == 0 || r.Owner.alive()) {
		return nil, fmt.Errorf("%w: %s, %d hosts; `miniswarm lab down --name %s` removes it", ErrExists, opts.Name, len(r.Hosts), opts.Name)
	}
	if isLab(dir) {
		say("clearing away what is left of an earlier lab %s", opts.Name)
		if err := wipe(ctx, dir); err != nil {
			return nil, fmt.Errorf("lab %s: remains of an earlier one: %w", opts.Name, err)
		}
	}
	taken, err := sweep(ctx, opts.StateDir, say)
	if err != nil {
		return nil, err
	}
	subnet, err := freeSubnet(ctx, taken)
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", opts.Name, err)
	}

	self, err := identify(os.Getpid())
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", opts.Name, err)
	}
	r := &record{Name: opts.Name, Created: time.Now(), BootID: bootID(), Subnet: subnet, Options: opts, Builder: self}
	if opts.Ephemeral {
		r.Owner = self
	}
	for n := 1; n <= opts.Nodes; n++ {
		r.Hosts = append(r.Hosts, hostRecord{Name: hostName(n), Addr: hostAddr(subnet, n), Manager: n <= opts.Managers})
	}
	// The directory appears in one step, complete: a lab without lab.json would be nobody's to sweep.
	staging := filepath.Join(opts.StateDir, passingPrefix+"new")
	if err := errors.Join(
		os.RemoveAll(staging),
		os.Mkdir(staging, 0o755),
		os.WriteFile(filepath.Join(staging, bootFile), bootScript, 0o755),
		writeRecord(staging, r),
		os.Rename(staging, dir),
	); err != nil {
		return nil, fmt.Errorf("lab %s: %w", opts.Name, err)
	}
	return opened(dir, r), nil
}

// sweep removes ephemeral labs whose owner is gone and returns the subnets of the others.
func sweep(ctx context.Context, root string, say teller) ([]netip.Prefix, error) {
	var taken []netip.Prefix
	for _, root := range slices.Compact([]string{DefaultRoot, root}) {
		here, err := sweepRoot(ctx, root, say)
		if err != nil {
			return nil, err
		}
		taken = append(taken, here...)
	}
	return taken, nil
}

// sweepRoot is sweep for one directory of labs. People choose it, so what no lab has made is left alone.
func sweepRoot(ctx context.Context, root string, say teller) (taken []netip.Prefix, err error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("list labs: %w", err)
	}
	for _, e := range entries {
		dir := filepath.Join(root, e.Name())
		if e.IsDir() && strings.HasPrefix(e.Name(), passingPrefix) {
			if err := os.RemoveAll(dir); err != nil {
				return nil, fmt.Errorf("remains of a lab: %w", err)
			}
			continue
		}
		r, err := readRecord(dir)
		if err != nil {
			continue // not a lab, or one whose record is beyond reading: `lab down` is for that
		}
		if r.Owner.PID != 0 && !r.Owner.alive() {
			say("clearing away lab %s, whose owner is gone", r.Name)
			if err := wipe(ctx, dir); err != nil {
				return nil, fmt.Errorf("remains of lab %s: %w", r.Name, err)
			}
			continue
		}
		taken = append(taken, r.Subnet)
	}
	return taken, nil
}

// build brings up what reserve has written down.
func (l *Lab) build(ctx context.Context, say teller) error {
	start := time.Now()
	if err := l.fabric().create(ctx); err != nil {
		return err
	}
	hosts, err := l.Hosts()
	if err != nil {
		return err
	}
	say("network %s, machine %s", l.subnet, l.fabric().machine())
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := l.startRegistry(gctx); err != nil {
			return err
		}
		say("registry %s", l.Registry())
		return nil
	})
	for _, h := range hosts {
		g.Go(func() error {
			if err := l.Start(gctx, h.Name); err != nil {
				return err
			}
			say("%s %s is up (%.1f s)", h.Name, h.Addr, time.Since(start).Seconds())
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if l.opts.Cluster {
		if err := l.form(ctx, hosts, say); err != nil {
			return err
		}
	}
	return l.update(ctx, func(r *record) error { r.Builder = process{}; return nil })
}

// wipe removes everything that belongs to the lab in dir, and dir last, so that a failure can be tried again.
func wipe(ctx context.Context, dir string) error {
	var errs []error
	// What is frozen, or waits for a disk that hangs, cannot end.
	if r, err := readRecord(dir); err == nil {
		for _, h := range r.Hosts {
			errs = append(errs, release(ctx, dir, h))
		}
	}
	// First processes end with all that is in their namespaces. Killing in rounds catches what was being started.
	for {
		found := marked(dir)
		if len(found) == 0 {
			break
		}
		g, gctx := errgroup.WithContext(ctx)
		for _, p := range found {
			g.Go(func() error { return p.kill(gctx) })
		}
		if err := g.Wait(); err != nil {
			errs = append(errs, err)
			break
		}
	}
	errs = append(errs, newFabric(dir, netip.Prefix{}).remove(ctx))
	errs = append(errs, removeCgroups(ctx, labGroup(dir)))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("lab %s is not gone: %w", filepath.Base(dir), err)
	}
	// Gone in one step, too. Deleting images and layers takes longer, and a later sweep finishes it if need be.
	rest := filepath.Join(filepath.Dir(dir), passingPrefix+"gone-"+filepath.Base(dir))
	if err := errors.Join(os.RemoveAll(rest), os.Rename(dir, rest), os.RemoveAll(rest)); err != nil {
		return fmt.Errorf("lab %s is not gone: %w", filepath.Base(dir), err)
	}
	return nil
}

// Name returns the lab's name.
func (l *Lab) Name() string { return l.name }

// Dir returns the lab's directory.
func (l *Lab) Dir() string { return l.dir }

// Subnet returns the network the hosts and the machine share.
func (l *Lab) Subnet() netip.Prefix { return l.subnet }

// MachineAddr returns the machine's own address in the lab's network.
func (l *Lab) MachineAddr() netip.Addr { return l.fabric().machine() }

// Registry returns the host:port of the registry that all hosts and the machine reach.
func (l *Lab) Registry() string { return l.fabric().registry() }

// teller reports progress; it may be called from several goroutines.
type teller func(format string, args ...any)

func newTeller(w io.Writer) teller {
	var mu sync.Mutex
	return func(format string, args ...any) {
		if w == nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(w, format+"\n", args...)
	}
}

// reap waits for a process this Lab has started, so that it does not stay a zombie. Down waits for its end.
func (l *Lab) reap(cmd *exec.Cmd) {
	l.children.Go(func() { _ = cmd.Wait() })
}

// environment is that of the lab's own long-lived processes.
func (l *Lab) environment() []string {
	env := append(baseEnv(), dirVariable+"="+l.dir)
	for _, e := range l.opts.Env {
		if name, _, _ := strings.Cut(e, "="); name != dirVariable {
			env = append(env, e)
		}
	}
	return env
}
