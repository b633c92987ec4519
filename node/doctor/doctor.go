// Package doctor says what is wrong with a machine and its cluster, and what to do about it.
//
// What can be found without a daemon is here: disk, kernel, settings, engine. What a running node knows besides, of its
// session, its certificates and its peers, it adds itself, and the leader adds what concerns the cluster. Everything comes as
// [Finding]s of one form, the good ones too: who asks wants to see what was looked at.
//
// Checks disturb nothing: they write one small file to see how fast the disk is, and try the kernel in a network namespace
// of their own.
package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Level says how bad a finding is.
type Level string

// The levels. Ok may come with advice; a Warning is about what works and should not stay so; a Failure is about what does not
// work.
const (
	Ok      Level = "ok"
	Warning Level = "warning"
	Failure Level = "failure"
)

// rank orders levels, the worst first.
var rank = map[Level]int{Failure: 0, Warning: 1, Ok: 2}

// Finding is the result of one check.
type Finding struct {
	// Check names what was looked at, in a word or two that do not change: "disk", "clock", "quorum".
	Check string
	Level Level
	// Says is what was found, with the numbers.
	Says string
	// Cure is what to do about it, "" where nothing is.
	Cure string `json:",omitempty"`
}

// Report is what was found on one node.
type Report struct {
	NodeID   string `json:",omitempty"` // "" on a machine that is part of no swarm
	Hostname string
	// Role is manager or worker, "" on a machine that is part of no swarm.
	Role     string `json:",omitempty"`
	Version  string
	Time     time.Time
	Findings []Finding
}

// Cluster is what the leader found: of the cluster, and the reports of all nodes that it could ask.
type Cluster struct {
	Findings []Finding
	Nodes    []Report
}

// Good, Bad and Broken make findings.
func Good(check, says string, args ...any) Finding {
	return Finding{Check: check, Level: Ok, Says: fmt.Sprintf(says, args...)}
}

// Bad is a warning with its cure.
func Bad(check, cure, says string, args ...any) Finding {
	return Finding{Check: check, Level: Warning, Cure: cure, Says: fmt.Sprintf(says, args...)}
}

// Broken is a failure with its cure.
func Broken(check, cure, says string, args ...any) Finding {
	return Finding{Check: check, Level: Failure, Cure: cure, Says: fmt.Sprintf(says, args...)}
}

// Sort puts the worst first, and otherwise keeps the order in which things were looked at.
func Sort(fs []Finding) {
	slices.SortStableFunc(fs, func(a, b Finding) int { return cmp.Compare(rank[a.Level], rank[b.Level]) })
}

// Worst is the worst level among findings.
func Worst(fs ...[]Finding) Level {
	worst := Ok
	for _, list := range fs {
		for _, f := range list {
			if rank[f.Level] < rank[worst] {
				worst = f.Level
			}
		}
	}
	return worst
}
