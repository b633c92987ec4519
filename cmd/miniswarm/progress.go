package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/docker/cli/cli/command/formatter"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
)

// message is a line of progress in the form that Docker's display takes. One with the id of an earlier takes its place.
type message struct {
	ID     string `json:"id,omitempty"`
	Status string `json:"status,omitempty"`
}

// progressPrinter shows progress: on a terminal as Docker does, elsewhere a line for each change that matters.
type progressPrinter struct {
	quiet  bool
	frames io.WriteCloser    // to Docker's display; nil where there is no terminal
	nodes  map[string]string // names by id
	// because completes what is said of an update that has stopped; nil leaves it.
	because func(text string) string

	mu    sync.Mutex        // guards what follows
	write io.Writer         // standard output
	last  map[string]string // what was said last, by id
}

// copy takes what Docker's progress says until it ends.
func (p *progressPrinter) copy(r io.Reader) {
	dec := json.NewDecoder(r)
	for {
		var raw json.RawMessage
		if dec.Decode(&raw) != nil {
			return
		}
		var m message
		if json.Unmarshal(raw, &m) != nil || m.ID == "" && ofInterrupt(m.Status) {
			continue
		}
		if m.ID == "rollback" && p.because != nil {
			m.Status = p.because(m.Status)
			p.message(m)
			continue
		}
		if p.frames == nil {
			m.ID = p.nodeName(m.ID)
			p.line(m)
			continue
		}
		if name := p.nodeName(m.ID); name != m.ID {
			raw = bytes.Replace(raw, quoted(m.ID), quoted(name), 1)
		}
		p.mu.Lock()
		_, _ = p.frames.Write(append(bytes.TrimSpace(raw), '\n'))
		p.mu.Unlock()
	}
}

// ofInterrupt says whether a message is what Docker's progress says after Ctrl-C. The command says that itself, once however
// many services it waits for.
func ofInterrupt(status string) bool {
	return status == "Operation continuing in background." || strings.HasPrefix(status, "Use `docker service ps ")
}

// nodeName gives the name of the node where an id, or its beginning, is that of one.
func (p *progressPrinter) nodeName(id string) string {
	if p.nodes[id] != "" {
		return p.nodes[id]
	}
	return id
}

// quoted is a string in JSON.
func quoted(s string) []byte {
	text, _ := json.Marshal(s) // a string always can be
	return text
}

// nodesByID gives the names of nodes by their ids, and by the beginnings of those that Docker's progress shows. Names that
// several nodes have are left out.
func nodesByID(ctx context.Context, cl client.APIClient) map[string]string {
	nodes, err := cl.NodeList(ctx, swarm.NodeListOptions{})
	if err != nil {
		return nil // ids will do
	}
	count := make(map[string]int)
	for _, n := range nodes {
		count[n.Description.Hostname]++
	}
	names := make(map[string]string)
	for _, n := range nodes {
		if name := n.Description.Hostname; count[name] == 1 {
			names[n.ID], names[formatter.TruncateID(n.ID)] = name, name
		}
	}
	return names
}

// message shows a line of our own.
func (p *progressPrinter) message(m message) {
	if p.frames == nil {
		p.line(m)
		return
	}
	text, err := json.Marshal(m)
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = p.frames.Write(append(text, '\n'))
}

// failure shows why a task has ended: on a terminal the latest on one line, elsewhere each reason once.
func (p *progressPrinter) failure(task, why string) {
	why = strings.TrimSpace(why)
	if p.frames != nil {
		if said := task + ": " + why; p.last[taskError] != said { // only what watches tasks comes here
			p.last[taskError] = said
			p.message(message{ID: "last failure", Status: said})
		}
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if key := taskError + why; !p.quiet && p.last[key] == "" {
		p.last[key] = why
		fmt.Fprintf(p.write, "%s failed: %s\n", task, why)
	}
}

// saidInFull says whether the error of a task, which Docker's progress cuts off, was shown already. p.mu is held.
func (p *progressPrinter) saidInFull(status string) bool {
	begin, cut := strings.CutSuffix(status, "…")
	for key := range p.last {
		if cut && strings.HasPrefix(key, taskError+begin) {
			return true
		}
	}
	return false
}

// taskError is what the keys of errors of tasks begin with.
const taskError = "task: "

// line prints a message where it is news: the counts, errors of tasks each once, and the end.
func (p *progressPrinter) line(m message) {
	status := strings.TrimSpace(m.Status)
	if p.quiet || status == "" || knownState(status) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	key, said := m.ID, status
	switch {
	case m.ID == "verify" && strings.HasPrefix(status, "Waiting "):
		said = "Waiting" // the countdown is not news
	case strings.Contains(m.ID, "/"):
		key, m.ID = taskError+status, "task "+m.ID
	}
	if p.last[key] == said || p.saidInFull(status) {
		return
	}
	p.last[key] = said
	if m.ID == "" {
		fmt.Fprintln(p.write, status)
		return
	}
	fmt.Fprintf(p.write, "%s: %s\n", m.ID, status)
}

// knownState says whether a status is no more than the state of a task.
func knownState(status string) bool {
	word, _, _ := strings.Cut(status, " ")
	switch swarm.TaskState(word) {
	case swarm.TaskStateNew, swarm.TaskStateAllocated, swarm.TaskStatePending, swarm.TaskStateAssigned, swarm.TaskStateAccepted, swarm.TaskStatePreparing,
		swarm.TaskStateReady, swarm.TaskStateStarting, swarm.TaskStateRunning, swarm.TaskStateComplete, swarm.TaskStateShutdown:
		return word == status
	}
	return false
}
