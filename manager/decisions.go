package manager

import (
	"slices"
	"sync"

	"github.com/miniswarm/miniswarm/orchestrator"
)

// decisionsKept bounds the memory of past decisions, outside the log; the full table behind a decision is recomputed
// when somebody asks.
const decisionsKept = 10_000

// decisionLog keeps the latest decisions of this manager while it leads.
type decisionLog struct {
	mu   sync.Mutex
	ring []orchestrator.Decision // guarded by mu
	next int                     // guarded by mu; where the next one goes once the ring is full
}

func newDecisionLog() *decisionLog { return &decisionLog{} }

func (l *decisionLog) add(ds []orchestrator.Decision) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range ds {
		if len(l.ring) < decisionsKept {
			l.ring = append(l.ring, d)
			continue
		}
		l.ring[l.next] = d
		l.next = (l.next + 1) % decisionsKept
	}
}

// of gives the kept decisions about a task, oldest first.
func (l *decisionLog) of(taskID string) []orchestrator.Decision {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []orchestrator.Decision
	for i := range l.ring {
		d := l.ring[(l.next+i)%len(l.ring)]
		if slices.Contains(d.Tasks, taskID) {
			out = append(out, d)
		}
	}
	return out
}

// Decisions gives what this manager remembers of why a task was placed, oldest first.
func (m *Manager) Decisions(taskID string) []orchestrator.Decision { return m.decisions.of(taskID) }
