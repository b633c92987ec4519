package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// measurement is one thing that can be measured by its name.
type measurement struct {
	name string
	// flags declares what can be set; run prints a table and may be cut short by ctx, after which nothing is left behind.
	flags func(*flag.FlagSet) (run func(ctx context.Context, out *table) error)
}

var measurements = []measurement{
	{"million", millionFlags},
	{"scale", scaleFlags},
	{"writes", writesFlags},
	{"cluster", clusterFlags},
	{"restart", restartFlags},
	{"churn", churnFlags},
	{"idle", idleFlags},
}

// children are the measurements' parts that run in processes of their own, and print JSON.
var children = map[string]func(ctx context.Context, args []byte) (any, error){
	"million": millionChild,
	"scale":   scaleChild,
	"writes":  writesChild,
	"restart": restartChild,
	"churn":   churnChild,
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 3 && args[0] == childCommand {
		result, err := children[args[1]](ctx, []byte(args[2]))
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(result)
	}
	var names []string
	for _, m := range measurements {
		names = append(names, m.name)
	}
	if len(args) == 0 || !slices.Contains(names, args[0]) {
		return fmt.Errorf("name a measurement (%s); -h after it shows what can be set", strings.Join(names, ", "))
	}
	m := measurements[slices.Index(names, args[0])]
	flags := flag.NewFlagSet(m.name, flag.ContinueOnError)
	do := m.flags(flags)
	if err := flags.Parse(args[1:]); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	out := &table{Measurement: m.name, Began: time.Now(), LoadBefore: loadAverage()}
	err := do(ctx, out)
	return errors.Join(err, out.finish())
}

// table collects rows, shows them as they come, and keeps them in out/bench.
type table struct {
	Measurement           string
	Began                 time.Time
	LoadBefore, LoadAfter string
	Rows                  []row
}

// row is one line: what was measured, and figures with their units in the order given.
type row struct {
	What    string
	Figures []string
}

func (t *table) add(what string, figures ...string) {
	t.Rows = append(t.Rows, row{what, figures})
	fmt.Fprintf(os.Stderr, "%s: %s\n", what, strings.Join(figures, ", "))
}

func (t *table) finish() error {
	t.LoadAfter = loadAverage()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintf(w, "\n%s (load average before %s, after %s, %.0f s)\n", t.Measurement, t.LoadBefore, t.LoadAfter, time.Since(t.Began).Seconds())
	for _, r := range t.Rows {
		fmt.Fprintf(w, "%s\t%s\n", r.What, strings.Join(r.Figures, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	path := filepath.Join("out", "bench", t.Measurement+".json")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("keep the figures: %w", err)
	}
	text, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
