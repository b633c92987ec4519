package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/miniswarm/miniswarm/lab"
)

// downTimeout bounds taking the lab away at the end.
const downTimeout = time.Minute

// logLines is how much of each host's logs is kept when the story does not go as told.
const logLines = 500

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal does not wait for the hosts to be taken away
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "demo:", err)
		}
		os.Exit(1)
	}
}

// settings are what the command line says.
type settings struct {
	miniswarm string // the binary
	prime     string // directory with the service's source, Dockerfile and compose.yml
	report    string // file
	stateDir  string // of the lab
	users     int
	steady    time.Duration // how long each load is measured
}

func run(ctx context.Context, args []string, out *os.File) (err error) {
	var set settings
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.StringVar(&set.miniswarm, "miniswarm", "bin/miniswarm", "the `binary`, as `make build` leaves it")
	flags.StringVar(&set.prime, "prime", "examples/prime", "`directory` of the service")
	flags.StringVar(&set.report, "report", "out/demo-report.json", "`file` for what was measured")
	flags.StringVar(&set.stateDir, "state-dir", lab.DefaultRoot, "`directory` for the hosts' disks; not on an overlay file system")
	flags.IntVar(&set.users, "users", 1000, "size of the crowd")
	flags.DurationVar(&set.steady, "steady", 8*time.Second, "how long each load is measured")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	for _, p := range []*string{&set.miniswarm, &set.prime, &set.report, &set.stateDir} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	s := &story{set: set, tell: newTeller(out, term.IsTerminal(int(out.Fd()))), report: newReport()}
	err = s.retell(ctx)
	if err != nil && ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	return errors.Join(err, s.report.finish(set.report, err))
}

// retell tells the whole story and takes away what it was told with.
func (s *story) retell(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "miniswarm-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := s.prepare(ctx, dir); err != nil {
		return err
	}
	defer func() {
		down, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
		defer cancel()
		err = errors.Join(err, s.lab.Down(down))
		if err == nil {
			s.tell.aside("The three hosts and all that ran on them are gone again.")
		}
	}()
	for _, step := range []func(context.Context) error{
		s.oneContainer, s.formCluster, s.deployFour, s.loadFour, s.deployTwelve, s.loadTwelve, s.loseNode,
	} {
		if err := step(ctx); err != nil {
			s.tell.endLive()
			return s.withLogs(ctx, err)
		}
	}
	s.summary()
	return nil
}

// withLogs keeps what the hosts have logged, where the story did not go as told, and says where.
func (s *story) withLogs(ctx context.Context, failed error) error {
	if ctx.Err() != nil {
		return failed
	}
	path := filepath.Join(filepath.Dir(s.set.report), "demo-logs.txt")
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(s.lab.Logs(logLines)), 0o644)); err != nil {
		return errors.Join(failed, err)
	}
	return fmt.Errorf("%w\n(the hosts' logs are in %s)", failed, path)
}
