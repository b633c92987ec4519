package loadgen

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Live is what a run looks like at one moment; rates and latencies are those since the moment before.
type Live struct {
	Elapsed           time.Duration
	Phase             string
	Users             int // spawned so far
	RequestsPerSecond float64
	FailuresPerSecond float64
	Requests          int64         // since the beginning, answered or failed
	Failures          int64         // since the beginning
	P50, P95          time.Duration // zero when nothing was answered
}

// Result is the account of a run.
type Result struct {
	Began      time.Time `json:"began"`
	Users      int       `json:"users"`
	Seed       uint64    `json:"seed"`
	Phases     []Phase   `json:"phases"` // in order; at least one
	Total      Phase     `json:"total"`
	Unfinished int64     `json:"unfinished"` // requests that the end of the run cut off
}

// Phase is the account of a part of a run.
type Phase struct {
	Name              string    `json:"name"`
	Began             time.Time `json:"began"`
	Seconds           float64   `json:"seconds"`
	Requests          int64     `json:"requests"` // Answered + Failures
	Answered          int64     `json:"answered"`
	Failures          int64     `json:"failures"`
	RequestsPerSecond float64   `json:"requests_per_second"` // failures included, as Locust counts
	AnsweredPerSecond float64   `json:"answered_per_second"`
	Latency           Latency   `json:"latency_ms"`
	// FailingFrom and FailingTo are when the first and the last failure happened, in seconds from Began.
	FailingFrom float64                `json:"failing_from,omitempty"`
	FailingTo   float64                `json:"failing_to,omitempty"`
	Classes     map[Class]int64        `json:"failure_classes"`
	Examples    map[Class]string       `json:"failure_examples,omitempty"` // the first error of each class
	Replicas    map[string]int64       `json:"replicas"`                   // answers by X-Replica
	Targets     map[string]TargetCount `json:"targets"`
}

// Latency has percentiles in milliseconds, of answered requests only; all zero when there were none.
type Latency struct {
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P95  float64 `json:"p95"`
	P99  float64 `json:"p99"`
	Max  float64 `json:"max"`
	Mean float64 `json:"mean"`
}

// TargetCount is the part of a phase that went to one target.
type TargetCount struct {
	Requests int64 `json:"requests"`
	Failures int64 `json:"failures"`
}

// WriteTable writes the run as a table for people: a row per phase, then failures by class and answers by replica.
func (r Result) WriteTable(w io.Writer) error {
	rows := r.Phases
	if len(rows) > 1 {
		rows = append(slices.Clone(rows), r.Total)
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "PHASE\tSECONDS\tREQUESTS\tREQUESTS/S\tFAILURES\tP50\tP90\tP95\tP99\tMAX (MS)\t")
	for _, p := range rows {
		fmt.Fprintf(tw, "%s\t%.1f\t%d\t%.1f\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t\n", p.Name, p.Seconds, p.Requests,
			p.RequestsPerSecond, p.Failures, p.Latency.P50, p.Latency.P90, p.Latency.P95, p.Latency.P99, p.Latency.Max)
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("write load result: %w", err)
	}
	var tail strings.Builder
	for _, p := range r.Phases {
		if p.Failures > 0 {
			fmt.Fprintf(&tail, "%s: failures from %.1f s to %.1f s\n", p.Name, p.FailingFrom, p.FailingTo)
		}
		for _, class := range slices.Sorted(maps.Keys(p.Classes)) {
			fmt.Fprintf(&tail, "  %6d  %s, such as: %s\n", p.Classes[class], class, p.Examples[class])
		}
	}
	if len(r.Total.Replicas) > 0 {
		fmt.Fprintln(&tail, "answers by replica:")
		for _, name := range slices.Sorted(maps.Keys(r.Total.Replicas)) {
			fmt.Fprintf(&tail, "  %6d  %s\n", r.Total.Replicas[name], name)
		}
	}
	if r.Unfinished > 0 {
		fmt.Fprintf(&tail, "%d requests were under way at the end and are not counted\n", r.Unfinished)
	}
	if _, err := io.WriteString(w, tail.String()); err != nil {
		return fmt.Errorf("write load result: %w", err)
	}
	return nil
}
