// Command load lets the story's crowd loose on a prime service: users who ask for primes, wait 1 to 5 seconds and ask
// again (package loadgen says precisely how). It prints a line a second while it runs, and at the end requests per
// second, failures by kind, latency percentiles and who answered, phase by phase.
//
//	load -users 2000 -spawn-rate 200 -duration 1m http://vm1 http://vm2 http://vm3
//	load -users 500 -phases ramp=10s,steady=30s -json out/load.json http://vm1
//
// Ctrl-C ends a run early; the account of what was until then is still given. It exits 0 however many requests failed,
// unless -max-failures says otherwise: then it exits 1 when more failed.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/miniswarm/miniswarm/examples/prime/load/loadgen"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr, term.IsTerminal(int(os.Stderr.Fd())))
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "load:", strings.TrimPrefix(err.Error(), "load: "))
		os.Exit(1)
	}
}

// phase is a named part of the run.
type phase struct {
	name string
	long time.Duration
}

// run is the command; live lines go to stderr, overwriting each other on a terminal, and the account to stdout.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, terminal bool) error {
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: load [flags] URL...")
		flags.PrintDefaults()
	}
	var cfg loadgen.Config
	flags.IntVar(&cfg.Users, "users", 2000, "`number` of users")
	flags.Float64Var(&cfg.SpawnRate, "spawn-rate", 200, "users started per second, 0 for all at once")
	flags.DurationVar(&cfg.ThinkMin, "think-min", time.Second, "least wait of a user between requests")
	flags.DurationVar(&cfg.ThinkMax, "think-max", 5*time.Second, "greatest wait of a user between requests")
	flags.DurationVar(&cfg.Timeout, "timeout", 10*time.Second, "a request without a whole answer by then has failed")
	flags.BoolVar(&cfg.NewConnections, "new-connections", false, "a connection for each request instead of one for each user")
	flags.Uint64Var(&cfg.Seed, "seed", 1, "the same seed asks the same questions")
	balance := flags.String("balance", "sticky", "with several URLs: `sticky` (a user stays with one) or round-robin")
	duration := flags.Duration("duration", time.Minute, "how long to run, 0 until Ctrl-C")
	phases := flags.String("phases", "", "instead of -duration: `NAME=DURATION,...`, accounted for one by one")
	jsonFile := flags.String("json", "", "write the account as JSON to this `file` too")
	maxFailures := flags.Int64("max-failures", -1, "exit 1 if more requests fail; -1 for any number")
	if err := flags.Parse(args); err != nil {
		return err
	}
	cfg.Targets = flags.Args()
	var err error
	if cfg.Balance, err = loadgen.ParseBalance(*balance); err != nil {
		return err
	}
	if cfg.ThinkMin == 0 && cfg.ThinkMax == 0 {
		cfg.ThinkMin, cfg.ThinkMax = -1, -1 // said on purpose here: no wait
	}
	plan := []phase{{name: "load", long: *duration}}
	if *phases != "" {
		if plan, err = parsePhases(*phases); err != nil {
			return err
		}
	}
	cfg.FirstPhase = plan[0].name
	cfg.Live = func(l loadgen.Live) {
		if terminal {
			fmt.Fprintf(stderr, "\r\x1b[K%s", l)
			return
		}
		fmt.Fprintln(stderr, l)
	}
	generator, err := loadgen.New(cfg)
	if err != nil {
		return err
	}

	result, err := runPhases(ctx, generator, plan)
	if err != nil {
		return err
	}
	if terminal {
		fmt.Fprintln(stderr)
	}
	if err := result.WriteTable(stdout); err != nil {
		return err
	}
	if *jsonFile != "" {
		if err := writeJSON(*jsonFile, result); err != nil {
			return err
		}
	}
	if *maxFailures >= 0 && result.Total.Failures > *maxFailures {
		return fmt.Errorf("%d requests failed, more than the %d allowed", result.Total.Failures, *maxFailures)
	}
	return nil
}

// runPhases runs the generator through the plan. A last phase of no duration goes on until ctx ends.
func runPhases(ctx context.Context, generator *loadgen.Generator, plan []phase) (loadgen.Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conducted := make(chan struct{})
	go func() {
		defer close(conducted)
		for i, p := range plan {
			if i > 0 {
				generator.Phase(p.name)
			}
			if p.long == 0 {
				return
			}
			timer := time.NewTimer(p.long)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return
			}
		}
		cancel()
	}()
	result, err := generator.Run(ctx)
	cancel()
	<-conducted
	return result, err
}

func parsePhases(s string) ([]phase, error) {
	var plan []phase
	for _, part := range strings.Split(s, ",") {
		name, long, ok := strings.Cut(part, "=")
		d, err := time.ParseDuration(long)
		if !ok || name == "" || err != nil || d <= 0 {
			return nil, fmt.Errorf("phase %q is not NAME=DURATION, such as steady=30s", part)
		}
		plan = append(plan, phase{name, d})
	}
	return plan, nil
}

func writeJSON(file string, result loadgen.Result) error {
	data, err := json.MarshalIndent(result, "", "  ")
	if err != nil {
		return fmt.Errorf("marshal account: %w", err)
	}
	if err := os.WriteFile(file, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write account: %w", err)
	}
	return nil
}
