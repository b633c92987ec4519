package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/miniswarm/miniswarm/examples/prime/load/loadgen"
)

// report is out/demo-report.json. All durations are seconds.
type report struct {
	Began  time.Time `json:"began"`
	AsTold bool      `json:"as_told"`
	Failed string    `json:"failed,omitempty"` // what was not as told
	CPUs   int       `json:"cpus"`
	// Placements are the running replicas of each host, after every change.
	Placements []placement `json:"placements"`
	// KeptIDs are the containers that scaling from 4 to 12 left alone: same id, same start.
	KeptIDs []string       `json:"kept_ids"`
	Phases  []phase        `json:"phases"`
	Seconds secondsOf      `json:"seconds"`
	LB      *loadOfBalance `json:"lb,omitempty"`
}

type placement struct {
	After string         `json:"after"`
	Hosts map[string]int `json:"hosts"`
}

// phase is a load. Requests per second are those answered.
type phase struct {
	Name              string           `json:"name"`
	Seconds           float64          `json:"seconds"`
	Answered          int64            `json:"answered"`
	RequestsPerSecond float64          `json:"requests_per_second"`
	Failures          int64            `json:"failures"`
	FailureClasses    map[string]int64 `json:"failure_classes,omitempty"`
	P50               float64          `json:"p50_ms"`
	P95               float64          `json:"p95_ms"`
	Replicas          int              `json:"replicas"` // that answered
}

type secondsOf struct {
	LabUp      float64 `json:"lab_up"`
	Converge4  float64 `json:"converge_4"`  // from typing deploy to the last of 4 replicas running
	Converge12 float64 `json:"converge_12"` // from typing deploy again to the last of 12 running
	Replace    float64 `json:"replace"`     // from the power cord to the last lost replica running elsewhere
	Recover    float64 `json:"recover"`     // from the power cord to the last new connection through another node that came to nothing
	Total      float64 `json:"total"`
}

// loadOfBalance is what the clients of `miniswarm lb` saw while a node died.
type loadOfBalance struct {
	Requests int64   `json:"requests"`
	Failures int64   `json:"failures"`
	MaxMS    float64 `json:"max_ms"`
}

func newReport() *report {
	return &report{Began: time.Now(), CPUs: runtime.NumCPU(), Placements: []placement{}, KeptIDs: []string{}, Phases: []phase{}}
}

func (r *report) phase(name string, p loadgen.Phase) phase {
	out := phase{Name: name, Seconds: round(p.Seconds), Answered: p.Answered, RequestsPerSecond: round(p.AnsweredPerSecond), Failures: p.Failures,
		P50: p.Latency.P50, P95: p.Latency.P95, Replicas: len(p.Replicas), FailureClasses: map[string]int64{}}
	for class, n := range p.Classes {
		out.FailureClasses[string(class)] = n
	}
	r.Phases = append(r.Phases, out)
	return out
}

// finish writes the report.
func (r *report) finish(path string, failed error) error {
	r.Seconds.Total = since(r.Began)
	r.AsTold = failed == nil
	if failed != nil {
		r.Failed = failed.Error()
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}
