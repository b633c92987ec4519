package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// childCommand makes this program do one part in a process of its own.
const childCommand = "child"

// inChild runs children[name] with args in a new process and gives what it printed in result. The process must be
// the first to use its memory for its peak to mean anything.
func inChild(ctx context.Context, name string, args, result any) error {
	text, err := json.Marshal(args)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, childCommand, name, string(text))
	return outputOf(cmd, result)
}

// outputOf runs a command that prints JSON. It ends with an interrupt when its context does, so that it can clear away.
func outputOf(cmd *exec.Cmd, result any) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", cmd.Path, err)
	}
	return json.Unmarshal(out.Bytes(), result)
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// statusBytes reads a size such as VmHWM from /proc/PID/status; pid is a number or "self".
func statusBytes(pid, field string) (int64, error) {
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/%s/status has no %s", pid, field)
}

// ticks are a second of processor time in /proc/PID/stat; Linux shows 100 whatever it counts in.
const ticks = 100

// usedBy is the processor time of a process so far.
func usedBy(pid string) (time.Duration, error) {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0, err
	}
	// The second field is the command in parentheses and may hold anything; utime and stime are the 14th and 15th.
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var sum int64
	for _, field := range f[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return time.Duration(sum) * time.Second / ticks, nil
}

// loadAverage is the machine's, of the last minute: what else it did makes every figure worse.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(text), " ")
	return first
}

// median is the middle one, or the mean of the two in the middle.
func median(v []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(v))
	return (s[len(s)/2] + s[(len(s)-1)/2]) / 2
}

// spread shows the median with the smallest and the largest of several rounds, in seconds.
func spread(v []time.Duration) string {
	if len(v) == 1 {
		return fmt.Sprintf("%.2f s", v[0].Seconds())
	}
	return fmt.Sprintf("%.2f s (%.2f-%.2f, %d rounds)", median(v).Seconds(), slices.Min(v).Seconds(), slices.Max(v).Seconds(), len(v))
}

func mib(n int64) string { return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20)) }
