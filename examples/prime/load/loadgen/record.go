package loadgen

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

const (
	// Latencies are counted in microseconds up to an hour with three significant digits: 0.2 MB a histogram, whatever
	// the number of requests.
	longestLatency    = time.Hour
	significantDigits = 3

	// maxNames bounds the replicas and error examples that are told apart; the rest are counted as otherName.
	maxNames  = 1000
	otherName = "(others)"
)

// outcome is what became of one request.
type outcome struct {
	target  string
	replica string // who answered, if anyone said so
	took    time.Duration
	err     error
}

// tally counts outcomes. It is not safe for concurrent use; recorder guards those it owns.
type tally struct {
	name     string
	began    time.Time
	answered int64
	failed   int64
	latency  *hdrhistogram.Histogram
	classes  map[Class]int64
	examples map[Class]string
	replicas map[string]int64
	targets  map[string]TargetCount
	// The offsets of failures from began; valid when failed > 0.
	firstFailure, lastFailure time.Duration
}

func newTally(name string, now time.Time) *tally {
	return &tally{
		name: name, began: now,
		latency: hdrhistogram.New(1, longestLatency.Microseconds(), significantDigits),
		classes: map[Class]int64{}, examples: map[Class]string{}, replicas: map[string]int64{}, targets: map[string]TargetCount{},
	}
}

func (t *tally) add(o outcome, now time.Time) {
	target := t.targets[o.target]
	target.Requests++
	if o.replica != "" {
		name := o.replica
		if _, known := t.replicas[name]; !known && len(t.replicas) >= maxNames {
			name = otherName
		}
		t.replicas[name]++
	}
	if o.err == nil {
		t.answered++
		// Out of range is impossible after the clamp, so the error says nothing.
		_ = t.latency.RecordValue(min(max(o.took, time.Microsecond), longestLatency).Microseconds())
	} else {
		target.Failures++
		if t.failed == 0 {
			t.firstFailure = now.Sub(t.began)
		}
		t.lastFailure = now.Sub(t.began)
		t.failed++
		class := classify(o.err)
		t.classes[class]++
		if _, known := t.examples[class]; !known {
			t.examples[class] = o.err.Error()
		}
	}
	t.targets[o.target] = target
}

// phase turns what was counted into numbers for people, as of now.
func (t *tally) phase(now time.Time) Phase {
	seconds := now.Sub(t.began).Seconds()
	p := Phase{
		Name: t.name, Began: t.began, Seconds: seconds,
		Requests: t.answered + t.failed, Answered: t.answered, Failures: t.failed,
		Classes: maps.Clone(t.classes), Examples: maps.Clone(t.examples),
		Replicas: maps.Clone(t.replicas), Targets: maps.Clone(t.targets),
		Latency: latencyOf(t.latency),
	}
	if seconds > 0 {
		p.RequestsPerSecond = float64(p.Requests) / seconds
		p.AnsweredPerSecond = float64(p.Answered) / seconds
	}
	if t.failed > 0 {
		p.FailingFrom, p.FailingTo = t.firstFailure.Seconds(), t.lastFailure.Seconds()
	}
	return p
}

func latencyOf(h *hdrhistogram.Histogram) Latency {
	at := func(percentile float64) float64 { return float64(h.ValueAtPercentile(percentile)) / 1000 }
	return Latency{P50: at(50), P90: at(90), P95: at(95), P99: at(99), Max: float64(h.Max()) / 1000, Mean: h.Mean() / 1000}
}

// recorder is where all users report. It is safe for concurrent use.
type recorder struct {
	mu       sync.Mutex // guards all below
	total    *tally
	current  *tally
	finished []Phase
	window   *hdrhistogram.Histogram // since the last live call
	windowed struct {
		began                   time.Time
		users, answered, failed int64
	}
}

func newRecorder(firstPhase string, now time.Time) *recorder {
	r := &recorder{
		total:   newTally("total", now),
		current: newTally(firstPhase, now),
		window:  hdrhistogram.New(1, longestLatency.Microseconds(), significantDigits),
	}
	r.windowed.began = now
	return r
}

func (r *recorder) add(o outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.total.add(o, now)
	r.current.add(o, now)
	if o.err != nil {
		r.windowed.failed++
		return
	}
	r.windowed.answered++
	_ = r.window.RecordValue(min(max(o.took, time.Microsecond), longestLatency).Microseconds())
}

func (r *recorder) userBegan() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.windowed.users++
}

// startPhase ends the current phase and begins another; the ended one keeps its numbers and gives up its histogram.
func (r *recorder) startPhase(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.finished = append(r.finished, r.current.phase(now))
	r.current = newTally(name, now)
}

// live says what happened since the last call.
func (r *recorder) live() Live {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	seconds := now.Sub(r.windowed.began).Seconds()
	l := Live{
		Elapsed: now.Sub(r.total.began), Phase: r.current.name, Users: int(r.windowed.users),
		Requests: r.total.answered + r.total.failed, Failures: r.total.failed,
		P50: time.Duration(r.window.ValueAtPercentile(50)) * time.Microsecond,
		P95: time.Duration(r.window.ValueAtPercentile(95)) * time.Microsecond,
	}
	if seconds > 0 {
		l.RequestsPerSecond = float64(r.windowed.answered+r.windowed.failed) / seconds
		l.FailuresPerSecond = float64(r.windowed.failed) / seconds
	}
	r.window.Reset()
	r.windowed.began, r.windowed.answered, r.windowed.failed = now, 0, 0
	return l
}

// result sums up a run that ended at end.
func (r *recorder) result(end time.Time) Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	phases := append(slices.Clone(r.finished), r.current.phase(end))
	return Result{Began: r.total.began, Phases: phases, Total: r.total.phase(end)}
}

// String is the line that is shown while a run goes on.
func (l Live) String() string {
	return fmt.Sprintf("%5s  %-12s  users %-5d  %7.1f requests/s  failures %d (%.1f/s)  p50 %s  p95 %s",
		l.Elapsed.Round(time.Second), l.Phase, l.Users, l.RequestsPerSecond, l.Failures, l.FailuresPerSecond,
		showLatency(l.P50), showLatency(l.P95))
}

// showLatency keeps about three digits, which is all that a reader takes in. Zero means that nothing was answered.
func showLatency(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	for unit := time.Second; unit > time.Microsecond; unit /= 10 {
		if d >= unit {
			return d.Round(unit / 100).String()
		}
	}
	return d.String()
}
